// Filters as the forward's tiles read them.
#ifndef ADDER_PACK_H
#define ADDER_PACK_H

#include "plan.h"
#include "threads.h"

namespace ADDER_NAMESPACE {

// Packed filters: panels [vectors][taps][L], then sums of w and of |w| over each row of taps,
// [vectors][R][2][L]; for small groups filters [taps][lanes].
template <class T> int64_t packed_floats(const Shape &s) {
  if (s.small_groups<T>(s.Kg)) return s.taps * ceil_div(s.K, T::L) * T::L;
  return s.groups * ceil_div(s.Kg, T::L) * (s.taps + 2 * s.R) * T::L;
}

// Taps [begin, end) of the filters of a vector, into their panel. `filters` of them are there, the others are zero.
template <class T>
void pack_taps(const Shape &s, const float *from, int64_t filters, int64_t begin, int64_t end, float *panel) {
#if defined(__AVX2__)
  if constexpr (T::L % 8 == 0)
    if (filters >= T::L)
      for (; begin + 8 <= end; begin += 8)
        for (int64_t lane = 0; lane < T::L; lane += 8)
          transpose8(from + lane * s.taps + begin, s.taps, panel + begin * T::L + lane, T::L);
#endif
  for (int64_t t = begin; t < end; ++t)
    for (int64_t lane = 0; lane < T::L; ++lane) panel[t * T::L + lane] = lane < filters ? from[lane * s.taps + t] : 0.f;
}

// Sums of w and of |w| over taps of a panel, added to `sums`. In SUMS chains: in a single one, each addition would
// wait for the one before.
template <class T> void add_taps(const float *panel, int64_t taps, typename T::V *sums) {
  typedef typename T::V V;
  constexpr int SUMS = 4;
  V sum[SUMS], abs_sum[SUMS];
  for (int i = 0; i < SUMS; ++i) sum[i] = abs_sum[i] = T::set(0.f);
  int64_t t = 0;
  for (; t + SUMS <= taps; t += SUMS)
#pragma GCC unroll 4
    for (int i = 0; i < SUMS; ++i) {
      const V value = T::load(panel + (t + i) * T::L);
      sum[i] = sum[i] + value;
      abs_sum[i] = abs_sum[i] + T::abs(value);
    }
  for (; t < taps; ++t) {
    const V value = T::load(panel + t * T::L);
    sum[0] = sum[0] + value;
    abs_sum[0] = abs_sum[0] + T::abs(value);
  }
  sums[0] = sums[0] + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
  sums[1] = sums[1] + ((abs_sum[0] + abs_sum[1]) + (abs_sum[2] + abs_sum[3]));
}

template <class T> void pack_vector(const Shape &s, const float *w, int64_t vector, float *packed) {
  const int64_t per_group = ceil_div(s.Kg, T::L), g = vector / per_group, first = vector % per_group * T::L;
  float *const panel = packed + vector * s.taps * T::L;
  float *const row_sums = packed + (s.groups * per_group * s.taps + vector * 2 * s.R) * T::L;
  const float *const from = w + (g * s.Kg + first) * s.taps;
  const int64_t row = s.S * s.Cg;
  for (int64_t r = 0; r < s.R; ++r) {
    typename T::V sums[2] = {T::set(0.f), T::set(0.f)};
    for (int64_t t = r * row, end; t < (r + 1) * row; t = end) { // summed while the first cache holds what was packed
      end = min64(t + CHAIN, (r + 1) * row);
      pack_taps<T>(s, from, s.Kg - first, t, end, panel);
      add_taps<T>(panel + t * T::L, end - t, sums);
    }
    T::store(row_sums + (r * 2 + 0) * T::L, sums[0]);
    T::store(row_sums + (r * 2 + 1) * T::L, sums[1]);
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
  for_each(vectors, 2. * vectors * s.taps, [&](int64_t vector) { pack_vector<T>(s, w, vector, packed); });
}

} // namespace ADDER_NAMESPACE
#endif
