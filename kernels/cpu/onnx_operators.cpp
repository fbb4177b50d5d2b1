// The adder layers of our ONNX files as operators of ONNX Runtime, on a CPU: kernels/cpu behind ONNX Runtime's C
// interface.
//
// A runtime that knows an operator of a node's name runs that, and not the function that the file has for the node.
// Names, shapes and attributes are as in src/adder_zoo/onnx/_functions.py: x [N, H, W, C], w [K, R, S, C/group],
// y and residual [N, P, Q, K], which is the order that the kernels work in, so nothing is copied.
#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adder.h"
#include "adder_int8.h"
#include "onnxruntime_c_api.h"

namespace {

constexpr auto FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto UINT8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto INT32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr uint32_t OLDEST = 17; // version of the interface that has all that is called here

const OrtApi *api;                            // set once, when the library is loaded
thread_local const OrtKernelContext *running; // whose threads a kernel may use
using Shape = std::vector<int64_t>;

// ---- ONNX Runtime's threads ----

struct Pieces {
  int64_t begin, end, size;
  adder_body body;
  void *context;
};

void run_piece(void *data, size_t i) {
  const Pieces &p = *static_cast<const Pieces *>(data);
  const int64_t first = p.begin + static_cast<int64_t>(i) * p.size;
  p.body(first, std::min(first + p.size, p.end), p.context);
}

int32_t parallel_for(int64_t begin, int64_t end, int64_t grain, adder_body body, void *context) {
  const int64_t count = end - begin, most = 64;
  if (count <= 0) return 0;
  const int64_t size = std::max(std::max<int64_t>(grain, 1), (count + most - 1) / most);
  Pieces pieces{begin, end, size, body, context};
  const auto total = static_cast<size_t>((count + size - 1) / size);
  if (total < 2 || running == nullptr) {
    body(begin, end, context);
    return 0;
  }
  OrtStatus *status = api->KernelContext_ParallelFor(running, run_piece, total, 0, &pieces);
  if (status == nullptr) return 0;
  api->ReleaseStatus(status);
  return 1;
}

// ---- errors ----

// An error of ONNX Runtime's, or of ours, on its way to the caller.
struct Failed {
  OrtStatus *status;
};

void check(OrtStatus *status) {
  if (status != nullptr) throw Failed{status};
}

[[noreturn]] void fail(const std::string &message) {
  throw Failed{api->CreateStatus(ORT_INVALID_ARGUMENT, ("adder_zoo: " + message).c_str())};
}

// ---- a node ----

struct Node {
  std::string name;
  int64_t stride_h = 1, stride_w = 1, pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  int64_t dilation_h = 1, dilation_w = 1, group = 1;
  int64_t relu = 0, zero_point = 0, wide = 0, narrow = 0, next_zero_point = 0, top = 0;
  float inverse_step = 0;

  Node(const char *given, const OrtKernelInfo *info) : name(given) {
    const std::pair<const char *, int64_t *> geometry[] = {
        {"stride_h", &stride_h},     {"stride_w", &stride_w},     {"pad_top", &pad_top},
        {"pad_bottom", &pad_bottom}, {"pad_left", &pad_left},     {"pad_right", &pad_right},
        {"dilation_h", &dilation_h}, {"dilation_w", &dilation_w}, {"group", &group}};
    for (const auto &[key, value] : geometry) check(api->KernelInfoGetAttribute_int64(info, key, value));
    if (fused()) check(api->KernelInfoGetAttribute_int64(info, "relu", &relu));
    if (bytes()) check(api->KernelInfoGetAttribute_int64(info, "zero_point", &zero_point));
    if (fused() && bytes()) {
      const std::pair<const char *, int64_t *> after[] = {
          {"wide", &wide}, {"narrow", &narrow}, {"next_zero_point", &next_zero_point}, {"top", &top}};
      for (const auto &[key, value] : after) check(api->KernelInfoGetAttribute_int64(info, key, value));
      check(api->KernelInfoGetAttribute_float(info, "inverse_step", &inverse_step));
    }
    if (std::min({stride_h, stride_w, dilation_h, dilation_w, group}) < 1 ||
        std::min({pad_top, pad_bottom, pad_left, pad_right}) < 0)
      fail(name + " has a stride, padding, dilation or group out of range");
    if (zero_point < 0 || zero_point > 255 || next_zero_point < 0 || top > 255 || next_zero_point > top)
      fail(name + " has levels that are no bytes");
  }

  bool fused() const { return name.find("Fused") != std::string::npos; }
  bool bytes() const { return name.find("Int8") != std::string::npos; }
};

// ---- tensors ----

struct Input {
  const void *data;
  Shape shape;
  int64_t elements = 1;

  Input(const OrtKernelContext *context, size_t i) {
    const OrtValue *value;
    check(api->KernelContext_GetInput(context, i, &value));
    void *memory;
    check(api->GetTensorMutableData(const_cast<OrtValue *>(value), &memory));
    data = memory;
    OrtTensorTypeAndShapeInfo *raw;
    check(api->GetTensorTypeAndShape(value, &raw));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)> info(
        raw, api->ReleaseTensorTypeAndShapeInfo);
    size_t dimensions;
    check(api->GetDimensionsCount(raw, &dimensions));
    shape.resize(dimensions);
    check(api->GetDimensions(raw, shape.data(), dimensions));
    for (const int64_t n : shape) elements *= n;
  }
};

void *output(OrtKernelContext *context, size_t i, const Shape &shape) {
  OrtValue *value;
  check(api->KernelContext_GetOutput(context, i, shape.data(), shape.size(), &value));
  void *memory;
  check(api->GetTensorMutableData(value, &memory));
  return memory;
}

adder_shape shape_of(const Node &node, const Input &x, const Input &w) {
  if (x.shape.size() != 4 || w.shape.size() != 4) fail(node.name + ": x and w must have 4 dimensions");
  const int64_t N = x.shape[0], H = x.shape[1], W = x.shape[2], C = x.shape[3];
  const int64_t K = w.shape[0], R = w.shape[1], S = w.shape[2];
  // The kernels believe what they are told: what does not fit would be read beyond its end.
  if (std::min({H, W, C, K, R, S, w.shape[3]}) < 1 || w.shape[3] * node.group != C || K % node.group != 0)
    fail(node.name + ": the filters do not fit the channels of x");
  if (node.bytes() && R * S * w.shape[3] > ADDER_INT8_MOST_TAPS)
    fail(node.name + ": a filter has so many taps that a sum may overflow");
  const int64_t height = H + node.pad_top + node.pad_bottom - node.dilation_h * (R - 1) - 1;
  const int64_t width = W + node.pad_left + node.pad_right - node.dilation_w * (S - 1) - 1;
  if (height < 0 || width < 0) fail(node.name + ": the kernel is larger than the padded input");
  return {N,
          C,
          H,
          W,
          K,
          R,
          S,
          height / node.stride_h + 1,
          width / node.stride_w + 1,
          node.group,
          node.stride_h,
          node.stride_w,
          node.pad_top,
          node.pad_left,
          node.dilation_h,
          node.dilation_w};
}

const float *each_filter(const Node &node, const Input &values, int64_t K) {
  if (values.elements != K) fail(node.name + ": scale and shift must have a value for each filter");
  return static_cast<const float *>(values.data);
}

const float *added(const Node &node, const Input &residual, const Shape &y) {
  if (residual.elements == 0 && residual.shape != y) return nullptr;
  if (residual.shape != y) fail(node.name + ": the residual must have the shape of the result");
  return static_cast<const float *>(residual.data);
}

// ---- what a node computes ----

void compute(const Node &node, OrtKernelContext *context) {
  const Input x(context, 0), w(context, 1);
  const adder_shape shape = shape_of(node, x, w);
  const Shape y{shape.N, shape.P, shape.Q, shape.K}, nothing{0};
  running = context;
  int status;
  if (!node.fused() && !node.bytes()) {
    auto *to = static_cast<float *>(output(context, 0, y));
    status =
        adder_forward(&shape, static_cast<const float *>(x.data), static_cast<const float *>(w.data), nullptr, to, 0);
  } else if (!node.fused()) {
    auto *to = static_cast<int32_t *>(output(context, 0, y));
    status = adder_int8_forward(&shape, static_cast<const uint8_t *>(x.data), static_cast<const uint8_t *>(w.data),
                                nullptr, static_cast<uint8_t>(node.zero_point), nullptr, to);
  } else {
    const Input scale(context, 2), shift(context, 3), residual(context, 4);
    const float *by = each_filter(node, scale, shape.K), *plus = each_filter(node, shift, shape.K);
    const float *other = added(node, residual, y);
    if (node.bytes()) {
      auto *v = static_cast<float *>(output(context, 0, node.wide ? y : nothing));
      auto *levels = static_cast<uint8_t *>(output(context, 1, node.narrow ? y : nothing));
      const adder_int8_epilogue after{by,
                                      plus,
                                      other,
                                      static_cast<int32_t>(node.relu),
                                      node.inverse_step,
                                      static_cast<int32_t>(node.next_zero_point),
                                      static_cast<int32_t>(node.top),
                                      node.wide ? v : nullptr,
                                      node.narrow ? levels : nullptr};
      status = adder_int8_forward(&shape, static_cast<const uint8_t *>(x.data), static_cast<const uint8_t *>(w.data),
                                  nullptr, static_cast<uint8_t>(node.zero_point), &after, nullptr);
    } else {
      auto *to = static_cast<float *>(output(context, 0, y));
      const adder_epilogue after{by, plus, other, static_cast<int32_t>(node.relu)};
      status =
          adder_forward(&shape, static_cast<const float *>(x.data), static_cast<const float *>(w.data), &after, to, 0);
    }
  }
  running = nullptr;
  if (status != ADDER_OK) fail(node.name + " found no memory");
}

template <typename Body> OrtStatus *guarded(const Body &body) {
  try {
    body();
    return nullptr;
  } catch (const Failed &failed) { return failed.status; } catch (const std::exception &error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

// ---- operators, as ONNX Runtime asks for them ----

struct Operator : OrtCustomOp {
  const char *name;
  std::vector<ONNXTensorElementDataType> inputs, outputs;

  static const Operator &self(const OrtCustomOp *op) { return *static_cast<const Operator *>(op); }

  Operator(const char *given, std::vector<ONNXTensorElementDataType> in, std::vector<ONNXTensorElementDataType> out)
      : OrtCustomOp{}, name(given), inputs(std::move(in)), outputs(std::move(out)) {
    version = OLDEST;
    GetName = [](const OrtCustomOp *op) { return self(op).name; };
    GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp *op) { return self(op).inputs.size(); };
    GetInputType = [](const OrtCustomOp *op, size_t i) { return self(op).inputs[i]; };
    GetOutputTypeCount = [](const OrtCustomOp *op) { return self(op).outputs.size(); };
    GetOutputType = [](const OrtCustomOp *op, size_t i) { return self(op).outputs[i]; };
    GetInputCharacteristic = [](const OrtCustomOp *, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetOutputCharacteristic = [](const OrtCustomOp *, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp *, size_t) { return OrtMemTypeDefault; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp *) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp *) { return 1; };
    GetStartVersion = GetEndVersion = [](const OrtCustomOp *) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp *op, const OrtApi *, const OrtKernelInfo *info, void **kernel) {
      return guarded([&] { *kernel = new Node(self(op).name, info); });
    };
    KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
      return guarded([&] { compute(*static_cast<const Node *>(kernel), context); });
    };
    KernelDestroy = [](void *kernel) { delete static_cast<Node *>(kernel); };
  }
};

OrtStatus *add_all(OrtSessionOptions *options) {
  static const std::array<Operator, 4> operators{
      Operator{"Adder2d", {FLOAT, FLOAT}, {FLOAT}},
      Operator{"Adder2dFused", {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT}, {FLOAT}},
      Operator{"Adder2dInt8", {UINT8, UINT8}, {INT32}},
      Operator{"Adder2dInt8Fused", {UINT8, UINT8, FLOAT, FLOAT, FLOAT}, {FLOAT, UINT8}},
  };
  return guarded([&] {
    static OrtCustomOpDomain *domain = [] { // lives as long as the sessions that use it: to the end
      OrtCustomOpDomain *made;
      check(api->CreateCustomOpDomain("ai.adder_zoo", &made));
      for (const Operator &op : operators) check(api->CustomOpDomain_Add(made, &op));
      return made;
    }();
    check(api->AddCustomOpDomain(options, domain));
  });
}

} // namespace

// What SessionOptions.register_custom_ops_library calls.
extern "C" ADDER_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  api = base->GetApi(OLDEST);
  if (api == nullptr) return nullptr; // an ONNX Runtime before 1.17, in which there is nothing to report an error by
  adder_set_parallel_for(parallel_for);
  return add_all(options);
}
