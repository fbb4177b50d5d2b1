// The adder layers of our ONNX files as operators of ONNX Runtime: SessionOptions.register_custom_ops_library takes
// this library.
//
// A runtime that knows an operator of a node's name runs that, and not the function that the file has for the node.
// Names, shapes and attributes are as in src/adder_zoo/onnx/_functions.py: x [N, H, W, C], w [K, R, S, C/group],
// y and residual [N, P, Q, K], which is the order that the kernels work in, so nothing is copied. The kernels' loops
// run on ONNX Runtime's own threads.
#include "adder.h"
#include "adder_int8.h"
#include "onnx_runtime.h"
#include "parallel.h"

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace {

using namespace onnx_runtime;

#define TRY(call)                                     \
  do {                                                \
    if (Status *const status = (call)) return status; \
  } while (0)

Status *refuse(const Api *api, const char *node, const char *message) {
  char text[256];
  std::snprintf(text, sizeof text, "adder_zoo: %s: %s", node, message);
  return create_status(api, INVALID_ARGUMENT, text);
}

int64_t least(std::initializer_list<int64_t> numbers) {
  int64_t answer = INT64_MAX;
  for (const int64_t n : numbers) answer = n < answer ? n : answer;
  return answer;
}

// ---- threads ----

// Whose threads a kernel may use. A process can hold more than one ONNX Runtime, each with a table of its own.
struct Runner {
  const Api *api;
  const KernelContext *context;
};
thread_local Runner running;

struct Pieces {
  int64_t begin, end, size;
  adder_body body;
  void *context;
};

void run_piece(void *data, size_t i) {
  const Pieces &p = *static_cast<const Pieces *>(data);
  const int64_t first = p.begin + static_cast<int64_t>(i) * p.size, last = first + p.size;
  p.body(first, last < p.end ? last : p.end, p.context);
}

int32_t on_runtime_threads(int64_t begin, int64_t end, int64_t grain, adder_body body, void *context) {
  constexpr int64_t MOST = 64; // pieces
  const int64_t count = end - begin, even = (count + MOST - 1) / MOST, size = grain > even ? grain : even;
  Pieces pieces{begin, end, size, body, context};
  const auto total = static_cast<size_t>((count + size - 1) / size);
  Status *const status = parallel_for(running.api, running.context, run_piece, total, 0, &pieces);
  if (status == nullptr) return 0;
  release_status(running.api, status);
  return 1;
}

// The kernels that are called while it lives, on this thread, use the threads of ONNX Runtime.
struct RuntimeThreads {
  const Runner running_before = running;
  const adder_parallel_for before = adder::use_here(on_runtime_threads);
  RuntimeThreads(const Api *api, const KernelContext *context) { running = {api, context}; }
  ~RuntimeThreads() {
    running = running_before;
    adder::use_here(before);
  }
};

// ---- operators and nodes ----

struct Operator : CustomOperator {
  const char *label;
  bool fused, bytes;
  size_t inputs, outputs;
  ElementType taken[5], given[2];
};

const Operator &self(const CustomOperator *op) { return *static_cast<const Operator *>(op); }

struct Node {
  const Operator *op;
  const Api *api;
  int64_t stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w, group;
  int64_t relu, zero_point, wide, narrow, next_zero_point, top;
  float inverse_step;

  Status *read(const KernelInfo *info) {
    struct {
      bool wanted;
      const char *name;
      int64_t *value;
    } const all[] = {
        {true, "stride_h", &stride_h},
        {true, "stride_w", &stride_w},
        {true, "pad_top", &pad_top},
        {true, "pad_bottom", &pad_bottom},
        {true, "pad_left", &pad_left},
        {true, "pad_right", &pad_right},
        {true, "dilation_h", &dilation_h},
        {true, "dilation_w", &dilation_w},
        {true, "group", &group},
        {op->fused, "relu", &relu},
        {op->bytes, "zero_point", &zero_point},
        {op->fused && op->bytes, "wide", &wide},
        {op->fused && op->bytes, "narrow", &narrow},
        {op->fused && op->bytes, "next_zero_point", &next_zero_point},
        {op->fused && op->bytes, "top", &top},
    };
    for (const auto &each : all)
      if (each.wanted) TRY(attribute_int64(api, info, each.name, each.value));
    if (op->fused && op->bytes) TRY(attribute_float(api, info, "inverse_step", &inverse_step));
    constexpr int64_t MOST = 1 << 30; // of each, so that sizes stay far from overflow
    for (const int64_t n : {stride_h, stride_w, dilation_h, dilation_w, group})
      if (n < 1 || n > MOST) return refuse("a stride, dilation or group is out of range");
    for (const int64_t n : {pad_top, pad_bottom, pad_left, pad_right})
      if (n < 0 || n > MOST) return refuse("a padding is out of range");
    if (zero_point < 0 || zero_point > 255 || next_zero_point < 0 || top > 255 || next_zero_point > top)
      return refuse("a zero point or the highest level is not a byte");
    return nullptr;
  }

  Status *refuse(const char *message) const { return ::refuse(api, op->label, message); }
};

// ---- tensors ----

struct Tensor {
  static constexpr size_t MOST = 4;
  void *data;
  size_t rank;
  int64_t shape[MOST], elements;

  Status *take(const Node &node, const KernelContext *context, size_t i) {
    const Api *const api = node.api;
    const Value *value;
    TensorInfo *info;
    TRY(get_input(api, context, i, &value));
    TRY(tensor_data(api, const_cast<Value *>(value), &data));
    TRY(tensor_info(api, value, &info));
    Status *status = dimensions_count(api, info, &rank);
    if (!status && rank > MOST) status = node.refuse("an input has more than 4 dimensions");
    if (!status) status = dimensions(api, info, shape, rank);
    release_tensor_info(api, info);
    elements = 1;
    for (size_t d = 0; !status && d < rank; ++d) elements *= shape[d];
    return status;
  }
  bool is(const int64_t (&other)[MOST]) const {
    if (rank != MOST) return false;
    for (size_t d = 0; d < MOST; ++d)
      if (shape[d] != other[d]) return false;
    return true;
  }
  const float *floats() const { return static_cast<const float *>(data); }
  const uint8_t *levels() const { return static_cast<const uint8_t *>(data); }
};

template <class T>
Status *give(const Node &node, KernelContext *context, size_t i, const int64_t *shape, size_t rank, T **data) {
  Value *value;
  void *memory;
  TRY(get_output(node.api, context, i, shape, rank, &value));
  TRY(tensor_data(node.api, value, &memory));
  *data = static_cast<T *>(memory);
  return nullptr;
}

Status *shape_of(const Node &node, const Tensor &x, const Tensor &w, adder_shape *shape) {
  if (x.rank != 4 || w.rank != 4) return node.refuse("x and w must have 4 dimensions");
  const int64_t N = x.shape[0], H = x.shape[1], W = x.shape[2], C = x.shape[3];
  const int64_t K = w.shape[0], R = w.shape[1], S = w.shape[2], each = w.shape[3];
  // The kernels believe what they are told: what does not fit would be read beyond its end.
  if (least({H, W, C, K, R, S, each}) < 1) return node.refuse("x or w has no elements");
  if (each * node.group != C || K % node.group != 0) return node.refuse("the filters do not fit the channels of x");
  if (node.op->bytes && R * S * each > ADDER_INT8_MOST_TAPS)
    return node.refuse("a filter has so many taps that a sum may overflow");
  const int64_t height = H + node.pad_top + node.pad_bottom - node.dilation_h * (R - 1) - 1;
  const int64_t width = W + node.pad_left + node.pad_right - node.dilation_w * (S - 1) - 1;
  if (height < 0 || width < 0) return node.refuse("the kernel is larger than the padded input");
  *shape = {N,
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
  return nullptr;
}

// ---- what a node computes ----

// What comes behind the sums of a fused node: act(scale y + shift + residual).
struct Behind {
  const float *scale = nullptr, *shift = nullptr, *residual = nullptr;

  Status *take(const Node &node, const KernelContext *context, const int64_t (&y)[4]) {
    Tensor by, plus, added;
    TRY(by.take(node, context, 2));
    TRY(plus.take(node, context, 3));
    TRY(added.take(node, context, 4));
    if (by.elements != y[3] || plus.elements != y[3])
      return node.refuse("scale and shift must have a value for each filter");
    const bool none = added.elements == 0 && !added.is(y);
    if (!none && !added.is(y)) return node.refuse("the residual must have the shape of the result");
    scale = by.floats(), shift = plus.floats(), residual = none ? nullptr : added.floats();
    return nullptr;
  }
};

Status *compute_floats(const Node &node, KernelContext *context, const adder_shape &shape, const Tensor &x,
                       const Tensor &w, const int64_t (&y)[4], int *code) {
  Behind behind;
  if (node.op->fused) TRY(behind.take(node, context, y));
  float *to;
  TRY(give(node, context, 0, y, 4, &to));
  const adder_epilogue epilogue{behind.scale, behind.shift, behind.residual, static_cast<int32_t>(node.relu)};
  *code = adder_forward(&shape, x.floats(), w.floats(), node.op->fused ? &epilogue : nullptr, to, 0);
  return nullptr;
}

Status *compute_levels(const Node &node, KernelContext *context, const adder_shape &shape, const Tensor &x,
                       const Tensor &w, const int64_t (&y)[4], int *code) {
  const auto zero_point = static_cast<uint8_t>(node.zero_point);
  if (!node.op->fused) {
    int32_t *to;
    TRY(give(node, context, 0, y, 4, &to));
    *code = adder_int8_forward(&shape, x.levels(), w.levels(), zero_point, nullptr, to);
    return nullptr;
  }
  Behind behind;
  TRY(behind.take(node, context, y));
  const int64_t nothing = 0;
  float *wide;
  uint8_t *narrow;
  TRY(give(node, context, 0, node.wide ? y : &nothing, node.wide ? 4 : 1, &wide));
  TRY(give(node, context, 1, node.narrow ? y : &nothing, node.narrow ? 4 : 1, &narrow));
  const adder_int8_epilogue epilogue{behind.scale,
                                     behind.shift,
                                     behind.residual,
                                     static_cast<int32_t>(node.relu),
                                     node.inverse_step,
                                     static_cast<int32_t>(node.next_zero_point),
                                     static_cast<int32_t>(node.top),
                                     node.wide ? wide : nullptr,
                                     node.narrow ? narrow : nullptr};
  *code = adder_int8_forward(&shape, x.levels(), w.levels(), zero_point, &epilogue, nullptr);
  return nullptr;
}

Status *compute_node(const Node &node, KernelContext *context) {
  Tensor x, w;
  adder_shape shape;
  TRY(x.take(node, context, 0));
  TRY(w.take(node, context, 1));
  TRY(shape_of(node, x, w, &shape));
  const RuntimeThreads threads(node.api, context);
  const int64_t y[4] = {shape.N, shape.P, shape.Q, shape.K};
  int code = ADDER_OK;
  TRY((node.op->bytes ? compute_levels : compute_floats)(node, context, shape, x, w, y, &code));
  return code == ADDER_OK ? nullptr : node.refuse("there is not enough memory");
}

Status *create_node(const CustomOperator *op, const Api *api, const KernelInfo *info, void **kernel) {
  void *const memory = std::calloc(1, sizeof(Node));
  if (memory == nullptr) return refuse(api, self(op).label, "there is not enough memory");
  Node *const node = static_cast<Node *>(memory);
  node->op = &self(op), node->api = api;
  if (Status *const status = node->read(info)) {
    std::free(memory);
    return status;
  }
  *kernel = memory;
  return nullptr;
}

// ---- operators, as ONNX Runtime asks for them ----

Operator describe(const char *label, bool fused, bool bytes) {
  const ElementType number = bytes ? UINT8 : FLOAT;
  Operator op{};
  op.label = label, op.fused = fused, op.bytes = bytes;
  op.inputs = fused ? 5 : 2, op.outputs = fused && bytes ? 2 : 1;
  for (size_t i = 0; i < 5; ++i) op.taken[i] = i < 2 ? number : FLOAT;
  op.given[0] = bytes && !fused ? INT32 : FLOAT, op.given[1] = UINT8;
  op.name = [](const CustomOperator *o) { return self(o).label; };
  op.provider = [](const CustomOperator *) -> const char * { return nullptr; };
  op.input_count = [](const CustomOperator *o) { return self(o).inputs; };
  op.input_type = [](const CustomOperator *o, size_t i) { return self(o).taken[i]; };
  op.output_count = [](const CustomOperator *o) { return self(o).outputs; };
  op.output_type = [](const CustomOperator *o, size_t i) { return self(o).given[i]; };
  op.input_is_optional = op.output_is_optional = op.input_memory = [](const CustomOperator *, size_t) { return 0; };
  op.least_variadic_inputs = op.least_variadic_outputs = [](const CustomOperator *) { return 1; };
  op.variadic_inputs_alike = op.variadic_outputs_alike = [](const CustomOperator *) { return 1; };
  op.first_version = op.last_version = [](const CustomOperator *) { return 1; };
  op.create_kernel = create_node;
  op.compute = [](void *kernel, KernelContext *context) {
    return compute_node(*static_cast<const Node *>(kernel), context);
  };
  op.destroy_kernel = [](void *kernel) { std::free(kernel); };
  return op;
}

const Operator operators[] = {
    describe("Adder2d", false, false),
    describe("Adder2dFused", true, false),
    describe("Adder2dInt8", false, true),
    describe("Adder2dInt8Fused", true, true),
};

// The operators as an ONNX Runtime of this process knows them; they live as long as the sessions that use them: to the
// end.
struct Runtime {
  const Api *api;
  Domain *domain;
  Runtime *next;
};
Runtime *runtimes = nullptr;

Status *domain_of(const Api *api, Domain **domain) {
  Runtime *first = __atomic_load_n(&runtimes, __ATOMIC_ACQUIRE);
  for (const Runtime *runtime = first; runtime; runtime = runtime->next)
    if (runtime->api == api) return *domain = runtime->domain, nullptr;
  Runtime *const made = static_cast<Runtime *>(std::calloc(1, sizeof(Runtime)));
  if (made == nullptr) return create_status(api, FAIL, "adder_zoo: there is not enough memory");
  made->api = api, made->next = first;
  TRY(create_domain(api, "ai.adder_zoo", &made->domain));
  for (const Operator &op : operators) TRY(add_to_domain(api, made->domain, &op));
  // Two threads may come at once: then there are two, and both are good.
  while (!__atomic_compare_exchange_n(&runtimes, &made->next, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {}
  *domain = made->domain;
  return nullptr;
}

} // namespace

// What SessionOptions.register_custom_ops_library calls.
extern "C" ADDER_API onnx_runtime::Status *RegisterCustomOps(onnx_runtime::SessionOptions *options,
                                                             const onnx_runtime::ApiBase *base) {
  const Api *const api = base->get_api(VERSION);
  if (api == nullptr) {
    char text[128];
    std::snprintf(text, sizeof text, "adder_zoo: its kernels need ONNX Runtime 1.17 or newer, not %s",
                  base->get_version());
    return create_status(base->get_api(1), FAIL, text); // every version has a first table
  }
  Domain *domain = nullptr;
  TRY(domain_of(api, &domain));
  return add_domain(api, options, domain);
}
