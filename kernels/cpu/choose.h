// Which kernel a shape takes, and the functions behind the C interface.
#ifndef ADDER_CHOOSE_H
#define ADDER_CHOOSE_H

#include "depthwise.h"
#include "forward.h"
#include "grad_input.h"
#include "grad_input_images.h"
#include "grad_weight.h"
#include "grad_weight_product.h"
#include "groups.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

template <class T>
int forward_as(const Shape &shape, const float *x, const float *w, const float *packed, const adder_epilogue *e,
               float *y, bool exact) {
  const double operations = 1. * shape.N * shape.P * shape.Q * shape.taps * shape.K / T::L;
  const bool small = shape.small_groups<T>(shape.Kg);
  const Epilogue<T> epilogue(e, small ? 1 : shape.groups, small ? shape.K : shape.Kg);
  Scratch<float> own(packed ? 1 : packed_floats<T>(shape));
  if (!own || !epilogue.padded) return ADDER_NO_MEMORY;
  if (!packed) pack_filters<T>(shape, w, own);
  const float *const filters = packed ? packed : own;
  if (depthwise<T>(shape)) {
    DepthwiseForward<T> f(shape, x, filters, epilogue, y);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  if (small) {
    GroupedForward<T> f(shape, x, filters, epilogue, y);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  const int nv = max_vectors<T>(shape.Q, false);
  const int64_t count = cut_blocks<T>(shape.groups, shape.Kg, nv, nullptr);
  Scratch<Block> blocks(count);
  if (!blocks) return ADDER_NO_MEMORY;
  cut_blocks<T>(shape.groups, shape.Kg, nv, blocks);
  Forward<T> f(shape, x, filters, epilogue, y, exact, blocks, count);
  parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

// Few output channels are computed in narrow vectors.
static inline bool narrow_forward(const Shape &shape) {
  if (depthwise<Narrow>(shape)) return !depthwise<Widest>(shape);
  return (shape.small_groups<Widest>(shape.Kg) ? shape.K : shape.Kg) <= Narrow::L;
}

inline int64_t packed_size(const adder_shape *s) {
  const Shape shape(*s);
  return narrow_forward(shape) ? packed_floats<Narrow>(shape) : packed_floats<Widest>(shape);
}

inline void pack(const adder_shape *s, const float *w, float *packed) {
  const Shape shape(*s);
  narrow_forward(shape) ? pack_filters<Narrow>(shape, w, packed) : pack_filters<Widest>(shape, w, packed);
}

inline int forward(const adder_shape *s, const float *x, const float *w, const float *packed, const adder_epilogue *e,
                   float *y, int exact) {
  if (s->N * s->P * s->Q == 0) return ADDER_OK;
  const Shape shape(*s);
  return narrow_forward(shape) ? forward_as<Narrow>(shape, x, w, packed, e, y, exact)
                               : forward_as<Widest>(shape, x, w, packed, e, y, exact);
}

// dx of the images that fill lanes.
template <class T>
int grad_input_over_images(const Shape &shape, const float *dy, const float *x, const float *w, float *dx) {
  typedef GradInputOverImages<T> Images;
  Scratch<int64_t> order(shape.S);
  if (!order) return ADDER_NO_MEMORY;
  Images f(shape, dy, x, w, dx, order);
  Scratch<float> panels(f.panel_floats());
  if (!panels) return ADDER_NO_MEMORY;
  f.panels = panels;
  const double operations = 3. * f.N * f.P * f.Q * f.taps * f.K / T::L;
  parallel(f.pack_tasks(), grain_for(1. * f.K * f.taps / T::L, f.pack_tasks()), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.pack(a);
  });
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  if (const int64_t rest = typename Images::Part(shape).rest) {
    const int64_t pixels = f.N * f.W, room = T::L * f.W;
    const size_t own = static_cast<size_t>(rest) * sizeof(float);
    Scratch<float> more(room * (f.K + 2 * f.C));
    if (!more) return ADDER_NO_MEMORY;
    float *const more_dy = more, *const more_x = more_dy + room * f.K, *const more_dx = more_x + room * f.C;
    memset(more_dy, 0, static_cast<size_t>(room * (f.K + f.C)) * sizeof(float));
    memcpy(more_dy, dy + pixels * f.K, own * static_cast<size_t>(f.K));
    memcpy(more_x, x + pixels * f.C, own * static_cast<size_t>(f.C));
    f.dy = more_dy, f.x = more_x, f.dx = more_dx, f.N = T::L;
    f.run(0, f.tasks());
    memcpy(dx + pixels * f.C, more_dx, own * static_cast<size_t>(f.C));
  }
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

template <class T>
int grad_input_as(const Shape &shape, const float *dy, const float *x, const float *w, float *dx, int mode,
                  bool exact) {
  const double operations = 2. * shape.N * shape.P * shape.Q * shape.taps * shape.K / T::L;
  if (depthwise<T>(shape)) {
    Scratch<float> filters(packed_floats<T>(shape));
    if (!filters) return ADDER_NO_MEMORY;
    pack_filters<T>(shape, w, filters);
    DepthwiseGradInput<T> f(shape, dy, x, w, dx, mode, filters);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  if (shape.small_groups<T>(shape.Cg)) {
    Scratch<float> filters(shape.R * shape.S * shape.Kg * ceil_div(shape.C, T::L) * T::L);
    if (!filters) return ADDER_NO_MEMORY;
    GroupedGradInput<T> f(shape, dy, x, w, dx, mode, filters);
    for (int64_t t = 0; t < f.R * f.S * f.Kg; ++t) f.pack(t);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  const int nv = GradInput<T>::most_vectors(shape, mode, exact);
  const int64_t vectors = shape.groups * ceil_div(shape.Cg, T::L);
  const int64_t count = cut_blocks<T>(shape.groups, shape.Cg, nv, nullptr);
  Scratch<float> panels(vectors * shape.R * shape.S * shape.Kg * T::L);
  Scratch<int64_t> order(shape.S);
  Scratch<Block> blocks(count);
  if (!panels || !order || !blocks) return ADDER_NO_MEMORY;
  cut_blocks<T>(shape.groups, shape.Cg, nv, blocks);
  GradInput<T> f(shape, dy, x, w, dx, mode, exact, panels, order, blocks, count);
  const int64_t pack_tasks = GradInput<T>::pack_tasks(shape);
  parallel(pack_tasks, grain_for(2. * vectors * f.R * f.S * f.Kg, pack_tasks), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.pack(a);
  });
  parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

inline int grad_input(const adder_shape *s, const float *dy, const float *x, const float *w, float *dx, int mode,
                      int exact) {
  if (s->N * s->H * s->W == 0) return ADDER_OK;
  Shape shape(*s);
  if constexpr (Widest::OVER_IMAGES) {
    typedef GradInputOverImages<Widest> Images;
    if (Images::suits(shape, mode, exact) && all_within<Widest>(w, shape.K * shape.taps, FLT_MAX)) {
      if (const int error = grad_input_over_images<Widest>(shape, dy, x, w, dx)) return error;
      const int64_t done = Images::Part(shape).images;
      if (shape.last_width >= 0 || done == shape.N) return ADDER_OK;
      dy += done * shape.P * shape.Q * shape.K;
      x += done * shape.H * shape.W * shape.C;
      dx += done * shape.H * shape.W * shape.C;
      shape.N -= done;
    }
  }
  const int64_t lanes = shape.small_groups<Widest>(shape.Cg) ? shape.C : shape.Cg;
  const bool narrow = depthwise<Narrow>(shape) ? !depthwise<Widest>(shape) : lanes <= Narrow::L;
  return narrow ? grad_input_as<Narrow>(shape, dy, x, w, dx, mode, exact)
                : grad_input_as<Widest>(shape, dy, x, w, dx, mode, exact);
}

template <class T>
int grad_weight_sign_as(const adder_shape &s, const float *dy, const float *x, const float *w, float *dw) {
  GradWeightSign<T> f(s, dy, x, w, dw);
  const double operations = 6. * s.N * s.P * s.Q * s.R * f.pieces * f.vectors * s.K;
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.task(a);
  });
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

inline int grad_weight(const adder_shape *s, const float *dy, const float *x, const float *w, float *dw, int mode) {
  const int64_t Cg = s->C / s->groups;
  if (mode == ADDER_SIGN && all_within<Widest>(x, s->N * s->H * s->W * s->C, FLT_MAX) &&
      all_within<Widest>(w, s->K * s->R * s->S * Cg, FLT_MAX))
    return GradWeightSign<Widest>::width_of(*s) <= Narrow::L ? grad_weight_sign_as<Narrow>(*s, dy, x, w, dw)
                                                             : grad_weight_sign_as<Widest>(*s, dy, x, w, dw);
  const GradWeight f(*s, dy, x, w, dw);
  const double operations = 4. * s->N * s->P * s->Q * s->R * s->S * f.Cg * s->K / Widest::L;
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) mode == ADDER_SIGN ? f.task<ADDER_SIGN>(a) : f.task<ADDER_FULL>(a);
  });
  return ADDER_OK;
}

template <class F> int finish_filters(const F &f) {
  Flag infinite;
  parallel(f.K, grain_for(1. * f.parts * f.K * f.taps / Widest::L, f.K), [&](int64_t a, int64_t b) {
    for (; a < b; ++a)
      if (!f.finish(a)) infinite.set();
  });
  return infinite.value ? ADDER_NOT_FINITE : ADDER_OK;
}

template <class T>
int grad_weight_depthwise(const Shape &shape, const float *dy, const float *x, const float *w, float *dw) {
  DepthwiseGradWeight<T> f(shape, dy, x, w, dw);
  Scratch<float> sums(f.parts * f.floats);
  if (!sums) return ADDER_NO_MEMORY;
  f.sums = sums;
  const double operations = 1. * f.N * f.P * f.Q * f.taps * f.C / T::L;
  parallel(f.parts, grain_for(operations, f.parts), [&](int64_t a, int64_t b) { f.run(a, b); });
  if (f.failed.value) return ADDER_NO_MEMORY;
  const int64_t vectors = f.lanes / T::L;
  parallel(vectors, grain_for(1. * f.parts * f.floats / T::L, vectors), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.finish(a);
  });
  return f.infinite.value ? ADDER_NOT_FINITE : ADDER_OK;
}

inline int grad_weight_product(const adder_shape *s, const float *dy, const float *x, const float *w, float *dw) {
  typedef GradWeightProduct<Widest> Product;
  if (const Shape shape(*s); s->N > 0 && depthwise<Narrow>(shape))
    return depthwise<Widest>(shape) ? grad_weight_depthwise<Widest>(shape, dy, x, w, dw)
                                    : grad_weight_depthwise<Narrow>(shape, dy, x, w, dw);
  if (!Product::suits(*s)) return ADDER_UNSUITED;
  if (s->N == 0) {
    memset(dw, 0, static_cast<size_t>(s->K * s->R * s->S * s->C) * sizeof(float));
    return ADDER_OK;
  }
  Product f(*s, dy, x, w, dw);
  Scratch<float> sums(f.parts * f.K * f.taps), dy_sums(f.parts * f.K);
  if (!sums || !dy_sums) return ADDER_NO_MEMORY;
  f.sums = sums;
  f.dy_sums = dy_sums;
  const double operations = 1. * s->N * s->P * s->Q * s->R * s->S * s->C * s->K / Widest::L;
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  return f.failed.value ? ADDER_NO_MEMORY : finish_filters(f);
}

inline int grad_weight_from_convolution(const adder_shape *s, const float *dy, const float *w, float *dw) {
  GradWeightRest<Widest> f(*s, dy, w, dw);
  Scratch<float> dy_sums(f.parts * f.K);
  if (!dy_sums) return ADDER_NO_MEMORY;
  f.dy_sums = dy_sums;
  parallel(f.parts, grain_for(1. * s->N * s->P * s->Q * s->K / Widest::L, f.parts), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.sum_dy(a);
  });
  return finish_filters(f);
}

inline const char *kernel(const adder_shape *s, int direction) {
  const Shape shape(*s);
  if (direction == ADDER_FORWARD) {
    if (depthwise<Narrow>(shape)) return "depthwise";
    if (shape.small_groups<Widest>(shape.Kg)) return "lanes over groups";
    if (!Forward<Widest>::takes_identity(shape, false))
      return narrow_forward(shape) ? "differences, narrow" : "differences";
    return narrow_forward(shape) ? "identity, narrow" : "identity";
  }
  if (direction == ADDER_GRAD_INPUT) {
    if (depthwise<Narrow>(shape)) return "depthwise";
    if (shape.small_groups<Widest>(shape.Cg)) return "lanes over groups";
    if (GradInputOverImages<Widest>::suits(shape, ADDER_CLIPPED, false)) return "medians over images";
    if (shape.Cg <= Narrow::L) return "differences, narrow";
    return GradInput<Widest>::takes_median(shape, ADDER_CLIPPED, false) ? "medians" : "differences";
  }
  if (depthwise<Narrow>(shape)) return "depthwise";
  return GradWeightProduct<Widest>::suits(*s) ? "outer products" : "convolution";
}

} // namespace ADDER_NAMESPACE
#endif
