// Where a tile's outputs go, and what is fused into the store.
#ifndef ADDER_OUTPUT_H
#define ADDER_OUTPUT_H

#include "threads.h"
#include "values.h"

namespace ADDER_NAMESPACE {

// Of a tile whose first pixel and first channel are at y.
template <class T> struct TileOutput {
  float *y;                   // of the tile's first pixel and the block's first channel
  const float *residual;      // the same place there; null: none
  int64_t step;               // from pixel to pixel
  const float *scale, *shift; // of the block, whole vectors; null: y is stored as it is
  bool relu;
  int64_t channels; // of the block that are real
  bool whole;       // all lanes of its vectors are

  void advance(int64_t pixels) {
    y += pixels * step;
    if (residual) residual += pixels * step;
  }
  // From channel c on.
  TileOutput from(int64_t c) const {
    TileOutput next = *this;
    next.y += c;
    if (residual) next.residual += c;
    if (scale) next.scale += c, next.shift += c;
    return next;
  }
};

// Stores value(v) for each vector v of pixel m.
template <class T, class F> ADDER_INLINE void store_pixel(const TileOutput<T> &out, int64_t m, int nv, F value) {
  typedef typename T::V V;
  alignas(64) float row[4 * T::L], beside[4 * T::L];
  float *to = out.whole ? out.y + m * out.step : row;
  const float *residual = out.residual ? out.residual + m * out.step : nullptr;
  if (residual && !out.whole) {
    memset(beside, 0, sizeof beside);
    memcpy(beside, residual, static_cast<size_t>(out.channels) * sizeof(float));
    residual = beside;
  }
  for (int v = 0; v < nv; ++v) {
    V y = value(v);
    if (out.scale) {
      y = T::fma(y, T::load(out.scale + v * T::L), T::load(out.shift + v * T::L));
      if (residual) y = y + T::load(residual + v * T::L);
      if (out.relu) y = T::max(T::set(0.f), y); // the second operand if either is NaN
    }
    T::store(to + v * T::L, y);
  }
  if (!out.whole) memcpy(out.y + m * out.step, row, static_cast<size_t>(out.channels) * sizeof(float));
}

// The same for a whole tile that is in registers, of whole vectors.
template <class T, int MR, int NV>
ADDER_INLINE void store_tile(const TileOutput<T> &out, const typename T::V (&values)[MR][NV]) {
  typedef typename T::V V;
  float *const to = out.y;
  const int64_t step = out.step;
  if (!out.scale) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) T::store(to + m * step + v * T::L, values[m][v]);
    return;
  }
  const float *const scale = out.scale, *const shift = out.shift, *const residual = out.residual;
  const bool relu = out.relu;
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      V y = T::fma(values[m][v], T::load(scale + v * T::L), T::load(shift + v * T::L));
      if (residual) y = y + T::load(residual + m * step + v * T::L);
      if (relu) y = T::max(T::set(0.f), y);
      T::store(to + m * step + v * T::L, y);
    }
}

// scale and shift in whole vectors, as the blocks read them: `channels` for each of `groups`.
template <class T> struct Epilogue {
  const float *residual;
  bool relu;
  Scratch<float> padded; // [2][vectors][L]
  int64_t vectors;

  Epilogue(const adder_epilogue *e, int64_t groups, int64_t channels)
      : residual(e ? e->residual : nullptr), relu(e && e->relu),
        padded(e ? 2 * groups * ceil_div(channels, T::L) * T::L : 1),
        vectors(e ? groups * ceil_div(channels, T::L) : 0) {
    if (!e || !padded) return;
    const int64_t per_group = ceil_div(channels, T::L) * T::L;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t c = 0; c < per_group; ++c) {
        padded[g * per_group + c] = c < channels ? e->scale[g * channels + c] : 0.f;
        padded[vectors * T::L + g * per_group + c] = c < channels ? e->shift[g * channels + c] : 0.f;
      }
  }

  // For the outputs at y[offset], `channels` of nv vectors from `vector` on.
  TileOutput<T> output(float *y, int64_t offset, int64_t step, int64_t vector, int nv, int64_t channels) const {
    const float *const at = vectors ? padded + vector * T::L : nullptr;
    const float *const beside = residual ? residual + offset : nullptr;
    return {y + offset, beside, step, at, at + vectors * T::L, relu, channels, channels == nv * T::L};
  }
};

} // namespace ADDER_NAMESPACE
#endif
