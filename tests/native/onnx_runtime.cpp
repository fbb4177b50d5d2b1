// Holds kernels/cpu/onnx_runtime.h against ONNX Runtime's own header: it compiles if each place and value is the same.
#include "onnx_runtime.h"
#include "onnxruntime_c_api.h"

#define SAME_PLACE(ours, theirs) static_assert(onnx_runtime::ours.place * sizeof(void *) == offsetof(OrtApi, theirs))
#define SAME_FIELD(ours, theirs)                                                               \
  static_assert(offsetof(onnx_runtime::CustomOperator, ours) == offsetof(OrtCustomOp, theirs))

SAME_PLACE(create_status, CreateStatus);
SAME_PLACE(release_status, ReleaseStatus);
SAME_PLACE(create_domain, CreateCustomOpDomain);
SAME_PLACE(add_to_domain, CustomOpDomain_Add);
SAME_PLACE(add_domain, AddCustomOpDomain);
SAME_PLACE(attribute_float, KernelInfoGetAttribute_float);
SAME_PLACE(attribute_int64, KernelInfoGetAttribute_int64);
SAME_PLACE(get_input, KernelContext_GetInput);
SAME_PLACE(get_output, KernelContext_GetOutput);
SAME_PLACE(tensor_data, GetTensorMutableData);
SAME_PLACE(tensor_info, GetTensorTypeAndShape);
SAME_PLACE(release_tensor_info, ReleaseTensorTypeAndShapeInfo);
SAME_PLACE(dimensions_count, GetDimensionsCount);
SAME_PLACE(dimensions, GetDimensions);
SAME_PLACE(parallel_for, KernelContext_ParallelFor);

SAME_FIELD(version, version);
SAME_FIELD(create_kernel_without_status, CreateKernel);
SAME_FIELD(name, GetName);
SAME_FIELD(provider, GetExecutionProviderType);
SAME_FIELD(input_type, GetInputType);
SAME_FIELD(input_count, GetInputTypeCount);
SAME_FIELD(output_type, GetOutputType);
SAME_FIELD(output_count, GetOutputTypeCount);
SAME_FIELD(compute_without_status, KernelCompute);
SAME_FIELD(destroy_kernel, KernelDestroy);
SAME_FIELD(input_is_optional, GetInputCharacteristic);
SAME_FIELD(output_is_optional, GetOutputCharacteristic);
SAME_FIELD(input_memory, GetInputMemoryType);
SAME_FIELD(least_variadic_inputs, GetVariadicInputMinArity);
SAME_FIELD(variadic_inputs_alike, GetVariadicInputHomogeneity);
SAME_FIELD(least_variadic_outputs, GetVariadicOutputMinArity);
SAME_FIELD(variadic_outputs_alike, GetVariadicOutputHomogeneity);
SAME_FIELD(create_kernel, CreateKernelV2);
SAME_FIELD(compute, KernelComputeV2);
SAME_FIELD(infer_shape, InferOutputShapeFn);
SAME_FIELD(first_version, GetStartVersion);
SAME_FIELD(last_version, GetEndVersion);
static_assert(sizeof(onnx_runtime::CustomOperator) >= sizeof(OrtCustomOp) || ORT_API_VERSION > 21);

static_assert(ORT_API_VERSION >= onnx_runtime::VERSION);
static_assert(offsetof(onnx_runtime::ApiBase, get_api) == offsetof(OrtApiBase, GetApi));
static_assert(offsetof(onnx_runtime::ApiBase, get_version) == offsetof(OrtApiBase, GetVersionString));
static_assert(static_cast<int>(onnx_runtime::FLOAT) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(static_cast<int>(onnx_runtime::UINT8) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(static_cast<int>(onnx_runtime::INT32) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(static_cast<int>(onnx_runtime::FAIL) == ORT_FAIL);
static_assert(static_cast<int>(onnx_runtime::INVALID_ARGUMENT) == ORT_INVALID_ARGUMENT);
static_assert(INPUT_OUTPUT_REQUIRED == 0 && OrtMemTypeDefault == 0);

int main() { return 0; }
