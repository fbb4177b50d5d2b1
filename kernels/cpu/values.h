// Questions about an array of floats, and stores of vectors that are not whole.
#ifndef ADDER_VALUES_H
#define ADDER_VALUES_H

#include "vec.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

// The largest of `count` values that are not negative; infinity if one is not finite.
template <class T> float max_or_inf(const float *values, int64_t count) {
  typedef typename T::V V;
  V largest = T::set(0.f);
  bool finite = true;
  int64_t i = 0;
  for (; i + T::L <= count; i += T::L) {
    const V v = T::load(values + i);
    finite &= T::all_le(v, T::set(FLT_MAX));
    largest = T::max(largest, v);
  }
  alignas(64) float lanes[T::L];
  T::store(lanes, largest);
  float result = lanes[0];
  for (int lane = 1; lane < T::L; ++lane) result = lanes[lane] > result ? lanes[lane] : result;
  for (; i < count; ++i) {
    finite &= values[i] <= FLT_MAX;
    result = values[i] > result ? values[i] : result;
  }
  return finite ? result : __builtin_inff();
}

// Is each magnitude at most `limit`? Not if there is a NaN.
template <class T> bool all_within(const float *values, int64_t count, float limit) {
  typedef typename T::V V;
  bool good = true;
  int64_t i = 0;
  for (; i + T::L <= count && good; i += T::L) {
    const V v = T::load(values + i);
    good = T::all_le(T::abs(v), T::set(limit));
  }
  for (; i < count && good; ++i) good = __builtin_fabsf(values[i]) <= limit;
  return good;
}

// The first `channels` lanes of a row of vectors.
template <class T> void store_channels(float *to, const float *from, int64_t vectors, int64_t channels) {
  if (channels == vectors * T::L)
    for (int64_t v = 0; v < vectors; ++v) T::store(to + v * T::L, T::load(from + v * T::L));
  else memcpy(to, from, static_cast<size_t>(channels) * sizeof(float));
}

} // namespace ADDER_NAMESPACE
#endif
