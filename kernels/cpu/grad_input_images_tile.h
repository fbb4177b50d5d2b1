// The tiles of dx with lanes over images.
#ifndef ADDER_GRAD_INPUT_IMAGES_TILE_H
#define ADDER_GRAD_INPUT_IMAGES_TILE_H

#include "grad_input_tile.h"
#include "taps_avx2.h"

namespace ADDER_NAMESPACE {

// With a lane for each of L images, dy of a tap is a vector that an fma takes from memory, and the filter, the same for
// all lanes, is loaded once for all pixels. With a lane for each channel dy is a number that has to be spread over a
// register first, and three operations, that load and its share of the filter's take a third longer. What it costs is a
// transposition of dy, x and dx on their way.

// Pixels of a tile: three registers for each and two sums, as an addition takes four cycles; the fewer, the more sums.
constexpr int IMAGES_PIXELS = 3;
constexpr int sums_of_pixel(int pixels) { return pixels >= 3 ? 2 : pixels == 2 ? 4 : 8; }
// Bytes of dy that all channels' tiles read before they take the next: to stay in the first-level cache.
constexpr int64_t IMAGES_BYTES = 24 << 10;
// Bytes that a pixel row of the lanes' images should take, where the width of a row is free to choose.
constexpr int64_t IMAGES_ROW = 160 << 10;

// Adds to sum[c][m] (or begins it) for MR pixels of L images and each of `channels` channels, over segments of taps:
// dy * median(w, x - 1, x + 1) or dy * clamp(w - x, -1, 1).
template <class T, int MR, bool MEDIAN>
__attribute__((noinline)) void images_tile(const Segment *begin, const Segment *end, const float *dy, int64_t step,
                                           const float *panel, int64_t panel_step, const float *x, int64_t x_step,
                                           int64_t channels, float *sum, bool first) {
  typedef typename T::V V;
  constexpr int SUMS = sums_of_pixel(MR), TAPS = SUMS;
  for (; channels > 0; --channels, panel += panel_step, x += T::L, sum += MR * T::L) {
    V acc[SUMS][MR], low[MR], high[MR]; // low: x itself where there is no median
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const V own = T::load(x + m * x_step);
      low[m] = MEDIAN ? own - T::set(1.f) : own;
      high[m] = own + T::set(1.f);
#pragma GCC unroll 8
      for (int i = 0; i < SUMS; ++i) acc[i][m] = T::set(0.f);
    }
    for (const Segment *segment = begin; segment != end; ++segment) {
      const float *ds = dy + segment->source * T::L, *ws = panel + segment->panel;
      int64_t t = segment->length;
      if constexpr (has_unrolled_images<T, MR, MEDIAN>())
        if (const int64_t count = t & -UNROLLED) {
          unrolled_images(acc, low, high, ds, step, ws, count);
          ds += count * T::L;
          ws += count;
          t -= count;
        }
      V next = T::set(*ws); // a tap early
      for (; t >= TAPS; t -= TAPS, ds += TAPS * T::L, ws += TAPS) {
#pragma GCC unroll 8
        for (int i = 0; i < TAPS; ++i) {
          const V w = next;
          next = T::set(ws[i + 1]);
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) {
            V &sum = acc[i % SUMS][m];
            sum = T::fma(MEDIAN ? T::median(w, low[m], high[m]) : T::clamp1(w - low[m]),
                         T::load(ds + m * step + i * T::L), sum);
          }
        }
      }
      for (; t > 0; --t, ds += T::L, ++ws)
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) {
          const V w = T::set(*ws);
          acc[0][m] =
              T::fma(MEDIAN ? T::median(w, low[m], high[m]) : T::clamp1(w - low[m]), T::load(ds + m * step), acc[0][m]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
      for (int half = SUMS / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int i = 0; i < half; ++i) acc[i][m] = acc[i][m] + acc[i + half][m];
      T::store(sum + m * T::L, first ? acc[0][m] : T::load(sum + m * T::L) + acc[0][m]);
    }
  }
}

template <class T> auto images_tiles(bool median) {
  return median ? tiles_of<IMAGES_PIXELS>([](auto pixels) { return images_tile<T, pixels.value, true>; })
                : tiles_of<IMAGES_PIXELS>([](auto pixels) { return images_tile<T, pixels.value, false>; });
}

// `count` floats of each of L images, side by side: to[i * L + lane], and back.
template <class T> void interleave(const float *from, int64_t image, int64_t count, float *to) {
  int64_t i = 0;
#if defined(__AVX2__)
  if constexpr (T::L == 8)
    for (; i + 8 <= count; i += 8) transpose8(from + i, image, to + i * 8, 8);
#endif
  for (; i < count; ++i)
    for (int64_t lane = 0; lane < T::L; ++lane) to[i * T::L + lane] = from[lane * image + i];
}
template <class T> void separate(const float *from, int64_t count, float *to, int64_t image) {
  int64_t i = 0;
#if defined(__AVX2__)
  if constexpr (T::L == 8)
    for (; i + 8 <= count; i += 8) transpose8(from + i * 8, 8, to + i, image);
#endif
  for (; i < count; ++i)
    for (int64_t lane = 0; lane < T::L; ++lane) to[lane * image + i] = from[i * T::L + lane];
}

} // namespace ADDER_NAMESPACE
#endif
