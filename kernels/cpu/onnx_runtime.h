// What `onnx_operators.cpp` uses of ONNX Runtime's C interface, as of its version 17 (ONNX Runtime 1.17, of 2024).
//
// ONNX Runtime hands a library a table of functions. Later versions only append to it, so a function is its place in
// the table and its type, and no header of ONNX Runtime's is needed to call it. A struct `CustomOperator` describes an
// operator; it says which version it was written for, and ONNX Runtime reads no field that is newer.
// tests/native/onnx_runtime.cpp holds each place and value against ONNX Runtime's header, where that is installed.
#ifndef ADDER_ONNX_RUNTIME_H
#define ADDER_ONNX_RUNTIME_H

#include <cstddef>
#include <cstdint>

namespace onnx_runtime {

constexpr uint32_t VERSION = 17;

struct Status; // null is success
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;
struct Domain;
struct SessionOptions;

enum ElementType : int { FLOAT = 1, UINT8 = 2, INT32 = 6 };
enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2 };

struct Api {
  void (*functions[275])();
};

struct ApiBase {
  const Api *(*get_api)(uint32_t version); // null for a version that it does not have
  const char *(*get_version)();
};

// A function of the table. It is called with the table before its own arguments.
template <class Result, class... Arguments> struct Function {
  size_t place;
  Result operator()(const Api *api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api->functions[place])(arguments...);
  }
};
template <class... Arguments> using Call = Function<Status *, Arguments...>;

constexpr Function<Status *, ErrorCode, const char *> create_status{0};
constexpr Function<void, Status *> release_status{93};
constexpr Call<const char *, Domain **> create_domain{26};
constexpr Call<Domain *, const struct CustomOperator *> add_to_domain{27};
constexpr Call<SessionOptions *, Domain *> add_domain{28};
constexpr Call<const KernelInfo *, const char *, float *> attribute_float{85};
constexpr Call<const KernelInfo *, const char *, int64_t *> attribute_int64{86};
constexpr Call<const KernelContext *, size_t, const Value **> get_input{90};
constexpr Call<KernelContext *, size_t, const int64_t *, size_t, Value **> get_output{91};
constexpr Call<Value *, void **> tensor_data{51};
constexpr Call<const Value *, TensorInfo **> tensor_info{65};
constexpr Function<void, TensorInfo *> release_tensor_info{99};
constexpr Call<const TensorInfo *, size_t *> dimensions_count{61};
constexpr Call<const TensorInfo *, int64_t *, size_t> dimensions{62};
constexpr Call<const KernelContext *, void (*)(void *, size_t), size_t, size_t, void *> parallel_for{274};

struct CustomOperator {
  uint32_t version = VERSION;
  void *(*create_kernel_without_status)(const CustomOperator *, const Api *, const KernelInfo *) = nullptr;
  const char *(*name)(const CustomOperator *) = nullptr;
  const char *(*provider)(const CustomOperator *) = nullptr; // null: the CPU's
  ElementType (*input_type)(const CustomOperator *, size_t) = nullptr;
  size_t (*input_count)(const CustomOperator *) = nullptr;
  ElementType (*output_type)(const CustomOperator *, size_t) = nullptr;
  size_t (*output_count)(const CustomOperator *) = nullptr;
  void (*compute_without_status)(void *, KernelContext *) = nullptr;
  void (*destroy_kernel)(void *) = nullptr;
  int (*input_is_optional)(const CustomOperator *, size_t) = nullptr; // 0: required
  int (*output_is_optional)(const CustomOperator *, size_t) = nullptr;
  int (*input_memory)(const CustomOperator *, size_t) = nullptr; // 0: the provider's own
  int (*least_variadic_inputs)(const CustomOperator *) = nullptr;
  int (*variadic_inputs_alike)(const CustomOperator *) = nullptr;
  int (*least_variadic_outputs)(const CustomOperator *) = nullptr;
  int (*variadic_outputs_alike)(const CustomOperator *) = nullptr;
  Status *(*create_kernel)(const CustomOperator *, const Api *, const KernelInfo *, void **) = nullptr;
  Status *(*compute)(void *, KernelContext *) = nullptr;
  Status *(*infer_shape)(const CustomOperator *, void *) = nullptr; // null: not known before it runs
  int (*first_version)(const CustomOperator *) = nullptr;
  int (*last_version)(const CustomOperator *) = nullptr;
  void (*newer[4])() = {}; // which inputs and outputs may share memory: none
};

} // namespace onnx_runtime
#endif
