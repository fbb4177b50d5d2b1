// Which kernel a shape takes. What runs it (kernels.h) and what reports it (adder_kernel) ask the same function.
#ifndef ADDER_CHOOSE_H
#define ADDER_CHOOSE_H

#include "depthwise.h"
#include "forward.h"
#include "grad_input.h"
#include "grad_input_images.h"
#include "grad_weight.h"
#include "grad_weight_product.h"
#include "groups.h"

namespace ADDER_NAMESPACE {

enum class Algorithm {
  DEPTHWISE,   // depthwise.h: a filter for each channel, lanes over channels
  GROUPS,      // groups.h: lanes over the channels of many small groups
  CHANNELS,    // forward.h, grad_input.h: lanes over the channels of a group
  IMAGES,      // grad_input_images.h: lanes over images
  PRODUCTS,    // grad_weight_product.h: dw by outer products
  CONVOLUTION, // dw by a convolution's weight gradient, outside of this library
  TAPS,        // grad_weight.h: dw tap by tap
};

struct Choice {
  Algorithm algorithm;
  bool narrow;   // in vectors of Narrow, as there are few channels
  bool identity; // of CHANNELS: if its values allow it, a tile saves an operation for each tap: y by maxima, dx by
                 // medians
};

// Whether a layer with few lanes is faster in vectors of Narrow: a depthwise layer if it does not fill one vector of
// Widest, any other layer if one vector of Narrow holds all of its channels.
static inline bool few_lanes(const Shape &s, int64_t lanes) {
  if (sizeof(Narrow::V) == sizeof(Widest::V)) return false;
  return is_depthwise<Narrow>(s) ? !is_depthwise<Widest>(s) : lanes <= Narrow::L;
}

template <class T> Choice choose_forward(const Shape &s, bool exact, bool narrow) {
  if (is_depthwise<T>(s)) return {Algorithm::DEPTHWISE, narrow, false};
  if (s.small_groups<T>(s.Kg)) return {Algorithm::GROUPS, narrow, false};
  // patch_sums adds a pixel at a time, and its sums are one chain.
  return {Algorithm::CHANNELS, narrow, T::IDENTITY && !exact && s.taps >= IDENTITY_TAPS && s.R * s.S <= CHAIN};
}
static inline Choice choose_forward(const Shape &s, bool exact) {
  const bool narrow = few_lanes(s, s.small_groups<Widest>(s.Kg) ? s.K : s.Kg);
  return narrow ? choose_forward<Narrow>(s, exact, narrow) : choose_forward<Widest>(s, exact, narrow);
}

template <class T> Choice choose_grad_input(const Shape &s, int mode, bool exact, bool narrow) {
  if (is_depthwise<T>(s)) return {Algorithm::DEPTHWISE, narrow, false};
  if (s.small_groups<T>(s.Cg)) return {Algorithm::GROUPS, narrow, false};
  return {Algorithm::CHANNELS, narrow, T::MEDIAN && mode == ADDER_CLIPPED && !exact && s.groups == 1};
}
// finite_filters: lanes over images need finite filters.
static inline Choice choose_grad_input(const Shape &s, int mode, bool exact, bool finite_filters = true) {
  if (Widest::OVER_IMAGES && finite_filters && mode == ADDER_CLIPPED && !exact && s.groups == 1 &&
      LaneFill<Widest>(s).suits())
    return {Algorithm::IMAGES, false, true};
  const bool narrow = few_lanes(s, s.small_groups<Widest>(s.Cg) ? s.C : s.Cg);
  return narrow ? choose_grad_input<Narrow>(s, mode, exact, narrow) : choose_grad_input<Widest>(s, mode, exact, narrow);
}

// A convolution is faster for grouped filters, for channels that do not fill a vector, and for 1x1 kernels with many
// channels, which meet each pixel once, far from the next.
static inline bool products_suit(const Geometry &s) {
  return s.groups == 1 && s.C % Widest::L == 0 && (s.R * s.S > 1 || s.C <= 4 * Widest::L);
}
static inline Choice choose_grad_weight(const Geometry &s, int mode) {
  if (mode == ADDER_SIGN) return {Algorithm::TAPS, GradWeightSigns<Widest>::row_taps_of(Shape(s)) <= Narrow::L, false};
  if (is_depthwise<Narrow>(s)) return {Algorithm::DEPTHWISE, !is_depthwise<Widest>(s), false};
  return {products_suit(s) ? Algorithm::PRODUCTS : Algorithm::CONVOLUTION, false, false};
}

// For finite operands.
static inline Choice choose(const adder_shape &s, int direction, int mode, bool exact) {
  if (direction == ADDER_FORWARD) return choose_forward(Shape(s), exact);
  if (direction == ADDER_GRAD_INPUT) return choose_grad_input(Shape(s), mode, exact);
  return choose_grad_weight(Geometry(s), mode);
}

static inline const char *name_of(const Choice &choice, int direction) {
  switch (choice.algorithm) {
  case Algorithm::DEPTHWISE: return choice.narrow ? "depthwise, narrow" : "depthwise";
  case Algorithm::GROUPS: return choice.narrow ? "lanes over groups, narrow" : "lanes over groups";
  case Algorithm::IMAGES: return "medians over images";
  case Algorithm::PRODUCTS: return "outer products";
  case Algorithm::CONVOLUTION: return "convolution";
  case Algorithm::TAPS: return choice.narrow ? "signs, narrow" : "signs";
  case Algorithm::CHANNELS: break;
  }
  if (!choice.identity) return choice.narrow ? "differences, narrow" : "differences";
  if (direction == ADDER_FORWARD) return choice.narrow ? "identity, narrow" : "identity";
  return choice.narrow ? "medians, narrow" : "medians";
}

} // namespace ADDER_NAMESPACE
#endif
