// Filters as the forward's tiles read them.
#ifndef ADDER_PACK_H
#define ADDER_PACK_H

#include "threads.h"

namespace ADDER_NAMESPACE {

// What adder_pack writes: panels [vectors][taps][L], then sums of w and of |w| over each row of taps,
// [vectors][R][2][L]; for small groups filters [taps][lanes].
template <class T> int64_t packed_floats(const Shape &s) {
  if (s.small_groups<T>(s.Kg)) return s.taps * ceil_div(s.K, T::L) * T::L;
  return s.groups * ceil_div(s.Kg, T::L) * (s.taps + 2 * s.R) * T::L;
}

template <class T> void pack_vector(const Shape &s, const float *w, int64_t vector, float *packed) {
  typedef typename T::V V;
  const int64_t per_group = ceil_div(s.Kg, T::L), g = vector / per_group, first = vector % per_group * T::L;
  float *const panel = packed + vector * s.taps * T::L;
  float *const row_sums = packed + (s.groups * per_group * s.taps + vector * 2 * s.R) * T::L;
  const float *const from = w + (g * s.Kg + first) * s.taps;
  int64_t packed_taps = 0;
#if defined(__AVX2__)
  if constexpr (T::L % 8 == 0)
    if (first + T::L <= s.Kg)
      for (; packed_taps + 8 <= s.taps; packed_taps += 8)
        for (int64_t lane = 0; lane < T::L; lane += 8)
          transpose8(from + lane * s.taps + packed_taps, s.taps, panel + packed_taps * T::L + lane, T::L);
#endif
  for (int64_t t = packed_taps; t < s.taps; ++t)
    for (int64_t lane = 0; lane < T::L; ++lane)
      panel[t * T::L + lane] = first + lane < s.Kg ? from[lane * s.taps + t] : 0.f;
  for (int64_t r = 0; r < s.R; ++r) {
    V sum = T::set(0.f), abs_sum = T::set(0.f);
    for (int64_t t = r * s.S * s.Cg; t < (r + 1) * s.S * s.Cg;) {
      const int64_t end = min64(t + CHAIN, (r + 1) * s.S * s.Cg);
      V chain = T::set(0.f), abs_chain = T::set(0.f);
      for (; t < end; ++t) {
        const V value = T::load(panel + t * T::L);
        chain = chain + value;
        abs_chain = abs_chain + T::abs(value);
      }
      sum = sum + chain;
      abs_sum = abs_sum + abs_chain;
    }
    T::store(row_sums + (r * 2 + 0) * T::L, sum);
    T::store(row_sums + (r * 2 + 1) * T::L, abs_sum);
  }
}

template <class T> void pack_filters(const Shape &s, const float *w, float *packed) {
  const int64_t per_group = ceil_div(s.Kg, T::L), vectors = s.groups * per_group;
  if (s.small_groups<T>(s.Kg)) {
    const int64_t lanes = ceil_div(s.K, T::L) * T::L;
    for (int64_t tap = 0; tap < s.taps; ++tap, packed += lanes) {
      for (int64_t k = 0; k < s.K; ++k) packed[k] = w[k * s.taps + tap];
      for (int64_t k = s.K; k < lanes; ++k) packed[k] = 0;
    }
    return;
  }
  parallel(vectors, grain_for(2. * vectors * s.taps, vectors), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) pack_vector<T>(s, w, a, packed);
  });
}

} // namespace ADDER_NAMESPACE
#endif
