// The function t of the difference in the gradients: the clamp to [-1, 1], the identity or the sign.
#ifndef ADDER_TRANSFER_H
#define ADDER_TRANSFER_H

#include "adder.h"
#include "vec.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

// t(w - x) for operands within largest_operand.
template <class T, int MODE> ADDER_INLINE typename T::V transfer(typename T::V w, typename T::V x) {
  if (MODE == ADDER_CLIPPED) return T::clamp1(w - x);
  if (MODE == ADDER_FULL) return w - x;
  return T::sign_of_difference(w, x);
}

// sum + t(w - x) * d for tiles in which a w and a d serve for several taps: each is prepared once, by w_of_taps and
// d_of_taps. Twice the sign needs half of d, and a w that is not -0.
template <class T, int MODE> constexpr bool takes_twice_sign = MODE == ADDER_SIGN && T::TWICE_SIGN;

template <class T, int MODE> ADDER_INLINE typename T::V w_of_taps(typename T::V w) {
  return takes_twice_sign<T, MODE> ? w + T::set(0.f) : w;
}
template <class T, int MODE> ADDER_INLINE typename T::V d_of_taps(typename T::V d) {
  return takes_twice_sign<T, MODE> ? d * T::set(0.5f) : d;
}
template <class T, int MODE>
ADDER_INLINE typename T::V add_tap(typename T::V w, typename T::V x, typename T::V d, typename T::V sum) {
  if constexpr (takes_twice_sign<T, MODE>) return T::fma(T::twice_sign(w, x), d, sum);
  else return T::fma(transfer<T, MODE>(w, x), d, sum);
}

// t(w - x) for any operands, also NaN.
static inline float transfer_any(float w, float x, int mode) {
  const float z = w - x;
  if (mode == ADDER_FULL || z != z) return z;
  if (mode == ADDER_SIGN) return static_cast<float>((z > 0) - (z < 0));
  return z > 1 ? 1.f : z < -1 ? -1.f : z;
}

// The largest operand for which t(w - x) is finite. Up to it, a tap that no output takes may add 0 * t.
static inline float largest_operand(int mode) { return mode == ADDER_FULL ? FLT_MAX / 2 : FLT_MAX; }

} // namespace ADDER_NAMESPACE
#endif
