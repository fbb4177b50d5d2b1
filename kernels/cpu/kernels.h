// The functions behind the C interface for one instruction set; included by isa_*.cpp with that set's flags and
// namespace. README.md is the map of all files.
//
//   N, H, W, C      input         x  [N, H, W, C]
//   P, Q, K         output        y, dy [N, P, Q, K]
//   R, S            kernel        w  [K, R, S, Cg],  Cg = C / G, Kg = K / G
//
// All kernels are implicit matrix products without im2col. A *tile* is MR pixels of one row times NV vectors of L
// channels, held in registers; it runs over *segments*, stretches of the reduction that lie side by side in memory both
// in the image and in the *panel*, the filters packed as [vector][tap][L]. The pixels of a tile are a constant step
// apart, so a tile needs no table of pointers. Tap rows that fall outside the image are left out of the segments of a
// row of pixels; columns of padding, if there are any, come from a copy of the rows with the padding written out. So
// no tile has a branch for the border. Depthwise layers are not matrix products: see there.
//
// The order of an output's sum does not depend on how the work is cut into tasks, so the result has the same bits with
// any number of threads. The last bits may change with the number of images: dx of images that do not fill a vector is
// summed in another order, and the pixels of a tile pass the test of y's identity only together.
#ifndef ADDER_KERNELS_H
#define ADDER_KERNELS_H

#include "choose.h"

namespace ADDER_NAMESPACE {

template <class T>
int run_forward(const Choice &choice, const Shape &shape, const float *x, const float *w, const adder_epilogue *e,
                float *y) {
  const bool small = choice.algorithm != Algorithm::CHANNELS;
  const Epilogue<T> epilogue(e, small ? 1 : shape.groups, small ? shape.K : shape.Kg);
  Scratch<float> filters(packed_floats<T>(shape));
  if (!filters || !epilogue.padded) return ADDER_NO_MEMORY;
  pack_filters<T>(shape, w, filters);
  if (choice.algorithm == Algorithm::DEPTHWISE) return forward_depthwise<T>(shape, x, filters, epilogue, y);
  if (choice.algorithm == Algorithm::GROUPS) return forward_by_groups<T>(shape, x, filters, epilogue, y);
  return forward_by_channels<T>(shape, x, filters, epilogue, y, choice.identity);
}

inline int forward(const adder_shape *s, const float *x, const float *w, const adder_epilogue *e, float *y, int exact) {
  if (s->N * s->P * s->Q == 0) return ADDER_OK;
  const Shape shape(*s);
  const Choice choice = choose_forward(shape, exact);
  return choice.narrow ? run_forward<Narrow>(choice, shape, x, w, e, y)
                       : run_forward<Widest>(choice, shape, x, w, e, y);
}

template <class T> int run_grad_input(const Choice &choice, const GradInputOperands &operands) {
  if (choice.algorithm == Algorithm::DEPTHWISE) return grad_input_depthwise<T>(operands);
  if (choice.algorithm == Algorithm::GROUPS) return grad_input_by_groups<T>(operands);
  return grad_input_by_channels<T>(operands, choice.identity);
}

inline int grad_input(const adder_shape *s, const float *dy, const float *x, const float *w, float *dx, int mode,
                      int exact) {
  if (s->N * s->H * s->W == 0) return ADDER_OK;
  const Shape shape(*s);
  Choice choice = choose_grad_input(shape, mode, exact);
  if constexpr (Widest::OVER_IMAGES)
    if (choice.algorithm == Algorithm::IMAGES) {
      if (all_within<Widest>(w, shape.K * shape.taps, FLT_MAX)) {
        const int status = grad_input_by_images<Widest>(shape, dy, x, w, dx);
        const int64_t done = LaneFill<Widest>(shape).images;
        if (status || shape.is_product() || done == shape.N) return status;
        adder_shape rest = *s; // images that do not fill a vector
        rest.N -= done;
        return grad_input(&rest, dy + done * s->P * s->Q * s->K, x + done * s->H * s->W * s->C, w,
                          dx + done * s->H * s->W * s->C, mode, exact);
      }
      choice = choose_grad_input(shape, mode, exact, false);
    }
  const GradInputOperands operands(shape, dy, x, w, dx, mode);
  return choice.narrow ? run_grad_input<Narrow>(choice, operands) : run_grad_input<Widest>(choice, operands);
}

inline int grad_weight(const adder_shape *s, const float *dy, const float *x, const float *w, float *dw, int mode) {
  const Geometry shape(*s);
  if (mode != ADDER_SIGN) return grad_weight_by_taps<ADDER_FULL>(shape, dy, x, w, dw);
  if (!all_within<Widest>(x, s->N * s->H * s->W * s->C, FLT_MAX) || !all_within<Widest>(w, s->K * shape.taps, FLT_MAX))
    return grad_weight_by_taps<ADDER_SIGN>(shape, dy, x, w, dw);
  return choose_grad_weight(shape, mode).narrow ? grad_weight_by_signs<Narrow>(Shape(*s), dy, x, w, dw)
                                                : grad_weight_by_signs<Widest>(Shape(*s), dy, x, w, dw);
}

inline int grad_weight_product(const adder_shape *s, const float *dy, const float *x, const float *w, float *dw) {
  const Geometry shape(*s);
  const Choice choice = choose_grad_weight(shape, ADDER_FULL);
  if (choice.algorithm == Algorithm::CONVOLUTION) return ADDER_UNSUITED;
  if (s->N == 0) {
    memset(dw, 0, static_cast<size_t>(s->K * shape.taps) * sizeof(float));
    return ADDER_OK;
  }
  if (choice.algorithm == Algorithm::PRODUCTS) return grad_weight_by_products<Widest>(shape, dy, x, w, dw);
  return choice.narrow ? grad_weight_depthwise<Narrow>(Shape(*s), dy, x, w, dw)
                       : grad_weight_depthwise<Widest>(Shape(*s), dy, x, w, dw);
}

inline int grad_weight_from_convolution(const adder_shape *s, const float *dy, const float *w, float *dw) {
  return grad_weight_after_convolution<Widest>(Geometry(*s), dy, w, dw);
}

// For 1 < p < 2, in power_*.cpp with this set's flags: see power_kernels.h.
int power_forward(const adder_shape *, const float *x, const float *w, const adder_power *, float *y);
int power_grad_input(const adder_shape *, const float *dy, const float *x, const float *w, const adder_power *,
                     float *dx);
int power_grad_weight(const adder_shape *, const float *dy, const float *x, const float *w, const adder_power *,
                      float *dw);
// dx and dw of signs or powers, in power_*.cpp as well: see both_gradients.h.
int gradients(const adder_shape *, const float *dy, const float *x, const float *w, const adder_power *, float *dx,
              float *dw);

inline const char *kernel(const adder_shape *s, int direction) {
  const int mode = direction == ADDER_GRAD_WEIGHT ? ADDER_FULL : ADDER_CLIPPED;
  return name_of(choose(*s, direction, mode, false), direction);
}

constexpr adder::Kernels make_table(const char *isa) {
  return {isa,
          forward,
          grad_input,
          grad_weight,
          grad_weight_product,
          grad_weight_from_convolution,
          power_forward,
          power_grad_input,
          power_grad_weight,
          gradients,
          kernel};
}

} // namespace ADDER_NAMESPACE
#endif
