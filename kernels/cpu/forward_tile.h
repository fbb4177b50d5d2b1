// The forward's register tiles.
#ifndef ADDER_FORWARD_TILE_H
#define ADDER_FORWARD_TILE_H

#include "output.h"
#include "plan.h"
#include "taps_avx2.h"
#include "tiles.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

// The identity  sum |x - w| = 2 sum max(x, w) - sum x - sum w  saves an operation for each tap and loses digits where
// sums cancel. With A = sum |x|, B = sum |w| and 2 |max(x, w)| <= |x| + |w| + |x - w|, all that it adds up is at most
// 2 (A + B) + |y| in magnitude, so its error is at most gamma * (2 (A + B) + |y|), gamma = chain * 2^-24 for the
// longest chain of additions. A tile keeps the result only if A + B <= CANCELLATION * |y| for each output: then the
// error is at most (2 * CANCELLATION + 1) * gamma * |y|, with chains of CHAIN taps and not of all. A NaN never passes
// the test, and an infinity or an overflow in A or B fails it, so those too are computed directly.
constexpr float CANCELLATION = 4.f;
// With few taps the test costs what the identity saves.
constexpr int64_t IDENTITY_TAPS = 32;

// What the identity and its test need of a row's patches and filters.
struct IdentitySums {
  const float *x, *abs_x; // [pixels], Σ x and Σ |x| over a patch
  const float *w, *abs_w; // [NV * L]
  float max_x, max_w;     // upper bounds of abs_x and of abs_w; infinity if one is not finite

  void advance(int64_t pixels) {
    x += pixels;
    abs_x += pixels;
  }
};

// A + B up to here leaves 2 sum max(x, w) finite.
constexpr float MAX_MAGNITUDES = FLT_MAX / 8;

// Do all outputs of a tile pass the test, one by one?
template <class T>
__attribute__((noinline)) bool each_passes(const float *values, int64_t mr, int nv, const IdentitySums &sums) {
  typedef typename T::V V;
  bool good = true;
  for (int64_t m = 0; m < mr && good; ++m)
    for (int v = 0; v < nv; ++v) {
      const V limit =
          T::min(T::set(MAX_MAGNITUDES), T::abs(T::load(values + (m * nv + v) * T::L)) * T::set(CANCELLATION));
      good &= T::all_le(T::set(sums.abs_x[m]) + T::load(sums.abs_w + v * T::L), limit);
    }
  return good;
}

// Whether a tile may continue in the next row, so that rows need not be a multiple of its size. Its pixels are not a
// constant step apart then, and each needs a register for its offset.
template <class T> constexpr bool joins_rows(int nv) { return T::REGISTERS < 32 && nv == 2; }

// What the tiles of a row work on.
template <class T> struct RowOperands {
  const Segment *segments;
  int64_t count;
  const int64_t *offsets; // pixel m > 0 is at x[offsets[m]] if tiles may join rows, else at x[m * offsets[1]]
  const float *panel;
  int64_t panel_stride;
  float *sum;           // [MR][NV][L], of chains before the last
  const float *outside; // [NV * L], Σ |w| of the taps outside of the image
  TileOutput<T> out;    // of whole vectors
  IdentitySums sums;
};

// Writes the outputs of MR pixels: by |x - w| (EXACT), or by max(x, w) and the identity. Then it returns whether all of
// them pass the identity's test. The sums do not leave the registers in between. ADDS: by additions,
// not by T::accumulate; the same bits.
template <class T, int MR, int NV, bool EXACT, bool ADDS>
__attribute__((noinline)) bool forward_tile(const RowOperands<T> &row, const float *x) {
  typedef typename T::V V;
  const V one = T::opaque(T::set(1.f));
  const float *const panel = row.panel;
  const int64_t panel_stride = row.panel_stride;
  int64_t offset[MR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) offset[m] = m == 0 ? 0 : joins_rows<T>(NV) ? row.offsets[m] : m * row.offsets[1];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) prefetch_to_write(row.out.y + m * row.out.step);
  const Segment *segment = row.segments, *const end = segment + row.count;
  V acc[MR][NV];
  float *const sum = row.sum;
  const auto each = [&](auto f) ADDER_LAMBDA_INLINE {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) f(acc[m][v], sum + (m * NV + v) * T::L);
  };
  for (bool first = true;; first = false) {
    each([](V &a, float *) ADDER_LAMBDA_INLINE { a = T::set(0.f); });
    for (bool last = false; !last && segment != end; ++segment) {
      const float *xs = x + segment->source, *ws = panel + segment->panel * T::L;
      int64_t t = segment->length;
      if constexpr (has_unrolled_taps<T, MR, NV, EXACT>())
        if (const int64_t count = t & -UNROLLED) {
          unrolled_taps<ADDS>(acc, xs, offset, ws, panel_stride, count, one);
          xs += count;
          ws += count * T::L;
          t -= count;
        }
      for (; t > 0; --t) {
        V w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) w[v] = T::load(ws + v * panel_stride);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const V b = T::set(xs[offset[m]]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            const V term = EXACT ? T::distance(b, w[v]) : T::max(b, w[v]);
            acc[m][v] = ADDS ? acc[m][v] + term : T::accumulate(acc[m][v], term, one);
          }
        }
        ++xs;
        ws += T::L;
      }
      last = segment->last;
    }
    if (!first) each([](V &a, float *s) ADDER_LAMBDA_INLINE { a = T::load(s) + a; });
    if (segment == end) break;
    each([](V &a, float *s) ADDER_LAMBDA_INLINE { T::store(s, a); });
  }
  const TileOutput<T> &out = row.out;
  const IdentitySums &sums = row.sums;
  if constexpr (EXACT) {
    const float *const outside = row.outside;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) acc[m][v] = T::set(0.f) - (acc[m][v] + T::load(outside + v * T::L));
    store_tile<T, MR, NV>(out, acc);
    return true;
  } else {
    const float *const sum_x = sums.x, *const sum_w = sums.w;
    V largest = T::set(-FLT_MAX); // y is negative, so the largest has the smallest magnitude
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        acc[m][v] = (T::set(sum_x[m]) + T::load(sum_w + v * T::L)) - (acc[m][v] + acc[m][v]);
        largest = T::max(acc[m][v], largest);
      }
    store_tile<T, MR, NV>(out, acc);
    // Where the largest A + B passes with the smallest |y|, all do. No value is NaN then, so max has not dropped one.
    // Tried first with the largest A of all tiles, which is known already.
    const V limit = T::set(-CANCELLATION) * largest;
    const auto passes = [&](float magnitudes) ADDER_LAMBDA_INLINE {
      return magnitudes <= MAX_MAGNITUDES && T::all_le(T::set(magnitudes), limit);
    };
    if (passes(sums.max_x + sums.max_w) || passes(max_or_inf<T>(sums.abs_x, MR) + sums.max_w)) return true;
    each([](V &a, float *s) ADDER_LAMBDA_INLINE { T::store(s, a); });
    return each_passes<T>(sum, MR, NV, sums);
  }
}

// The tiles of nv vectors by number of pixels, of max(x, w) (identity) or of |x - w|.
template <class T, int NV> auto forward_tiles_of(bool identity) {
  constexpr int MAX = max_pixels<T>(NV, false);
  if (!identity) return tiles_of<MAX>([](auto pixels) { return forward_tile<T, pixels.value, NV, true, false>; });
  if constexpr (T::EITHER_SUM)
    if (adder::adds) return tiles_of<MAX>([](auto pixels) { return forward_tile<T, pixels.value, NV, false, true>; });
  return tiles_of<MAX>([](auto pixels) { return forward_tile<T, pixels.value, NV, false, false>; });
}
template <class T> auto forward_tiles(int nv, bool identity) {
  if constexpr (T::REGISTERS >= 32)
    if (nv == 4) return forward_tiles_of<T, 4>(identity);
  return nv == 2 ? forward_tiles_of<T, 2>(identity) : forward_tiles_of<T, 1>(identity);
}

} // namespace ADDER_NAMESPACE
#endif
