// What becomes of the sums of a tile: bare integers, or batch norm, shortcut, ReLU and the next layer's bytes.
#ifndef ADDER_INT8_OUTPUT_H
#define ADDER_INT8_OUTPUT_H

#include "adder_int8.h"

#include <cstdint>

namespace ADDER_NAMESPACE {

// Writes `channels` outputs of one pixel, the first of them channel `k`, at element `at` of [N, P, Q, K]. N is their
// number where the compiler is to know it, so that all of them stay in registers; 0 otherwise.
template <int N>
static inline void write_channels(const int32_t *sums, int64_t k, int64_t at, int64_t channels,
                                  const adder_int8_epilogue &e) {
  constexpr int64_t MOST = N ? N : 64; // at a time
  for (int64_t first = 0; first < channels; first += MOST) {
    const int64_t n = N ? N : channels - first < MOST ? channels - first : MOST;
    const float *scale = e.scale + k + first, *shift = e.shift + k + first;
    float v[MOST];
    for (int64_t i = 0; i < n; ++i) v[i] = scale[i] * (float)-sums[first + i] + shift[i];
    if (e.residual)
      for (int64_t i = 0; i < n; ++i) v[i] += e.residual[at + first + i];
    if (e.relu)
      for (int64_t i = 0; i < n; ++i) v[i] = v[i] > 0 ? v[i] : 0;
    if (e.wide)
      for (int64_t i = 0; i < n; ++i) e.wide[at + first + i] = v[i];
    if (e.narrow) {
      const float inverse_step = e.inverse_step, zero_point = (float)e.zero_point, top = (float)e.top;
      for (int64_t i = 0; i < n; ++i) {
        const float level = __builtin_nearbyintf(v[i] * inverse_step) + zero_point;
        e.narrow[at + first + i] = (uint8_t)(int32_t)(level > top ? top : level > 0 ? level : 0.f); // a NaN gives 0
      }
    }
  }
}

template <int N>
static inline void write_pixel(const int32_t *sums, int64_t k, int64_t at, int64_t channels,
                               const adder_int8_epilogue *epilogue, int32_t *y) {
  if (epilogue == nullptr)
    for (int64_t i = 0; i < channels; ++i) y[at + i] = -sums[i];
  else if (channels == N) write_channels<N>(sums, k, at, channels, *epilogue);
  else write_channels<0>(sums, k, at, channels, *epilogue);
}

} // namespace ADDER_NAMESPACE
#endif
