// The input gradient's register tiles, and what all its kernels share.
#ifndef ADDER_GRAD_INPUT_TILE_H
#define ADDER_GRAD_INPUT_TILE_H

#include "plan.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

// t(w - x) for operands within largest_operand.
template <class T, int MODE> ADDER_INLINE typename T::V transfer(typename T::V w, typename T::V x) {
  if (MODE == ADDER_CLIPPED) return T::clamp1(w - x);
  if (MODE == ADDER_FULL) return w - x;
  return T::sign_of_difference(w, x);
}

// t(w - x) for anything, NaN included.
static inline float transfer_any(float w, float x, int mode) {
  const float z = w - x;
  if (mode == ADDER_FULL || z != z) return z;
  if (mode == ADDER_SIGN) return static_cast<float>((z > 0) - (z < 0));
  return z > 1 ? 1.f : z < -1 ? -1.f : z;
}

// sum[m][v] = sum over the segments of dy * t(w - x); x [MR][NV * L] lies beside the sums.
template <class T, int MR, int NV, int MODE>
__attribute__((noinline)) void grad_input_tile(const Segment *segment, int64_t count, const float *dy, int64_t step,
                                               const float *panel, int64_t panel_stride, const float *x, float *sum) {
  typedef typename T::V V;
  V xs[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) xs[m][v] = T::load(x + (m * NV + v) * T::L);
  const Segment *const end = segment + count;
  for (bool first = true; segment != end; first = false) {
    V acc[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = T::set(0.f);
    bool last;
    do {
      const float *ds = dy + segment->source, *ws = panel + segment->panel * T::L;
      for (int64_t t = segment->length; t > 0; --t) {
        V w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) w[v] = T::load(ws + v * panel_stride);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const V d = T::set(ds[m * step]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[m][v] = T::fma(transfer<T, MODE>(w[v], xs[m][v]), d, acc[m][v]);
        }
        ++ds;
        ws += T::L;
      }
      last = segment->last;
      ++segment;
    } while (!last && segment != end);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float *s = sum + (m * NV + v) * T::L;
        T::store(s, first ? acc[m][v] : T::load(s) + acc[m][v]);
      }
  }
}

typedef void (*GradInputTile)(const Segment *, int64_t, const float *, int64_t, const float *, int64_t, const float *,
                              float *);

template <class T, int NV, int MODE, int MR = max_pixels<T>(NV, true)> struct GradInputTiles {
  static GradInputTile get(int64_t mr) {
    if constexpr (MR == 0) return nullptr;
    else return mr == MR ? grad_input_tile<T, MR, NV, MODE> : GradInputTiles<T, NV, MODE, MR - 1>::get(mr);
  }
};

template <class T> GradInputTile grad_input_tile_for(int nv, int64_t mr, int mode) {
  if (nv == 2)
    return mode == ADDER_CLIPPED ? GradInputTiles<T, 2, ADDER_CLIPPED>::get(mr)
           : mode == ADDER_FULL  ? GradInputTiles<T, 2, ADDER_FULL>::get(mr)
                                 : GradInputTiles<T, 2, ADDER_SIGN>::get(mr);
  return mode == ADDER_CLIPPED ? GradInputTiles<T, 1, ADDER_CLIPPED>::get(mr)
         : mode == ADDER_FULL  ? GradInputTiles<T, 1, ADDER_FULL>::get(mr)
                               : GradInputTiles<T, 1, ADDER_SIGN>::get(mr);
}

// clamp(w - x, -1, 1) = min(max(w, x - 1), x + 1) - x: an operation less for each tap, as x is constant over a sum, and
// so
//   sum dy * clamp(w - x) = sum dy * median(w, x - 1, x + 1) - x * sum dy.
// What is added up is at most |dy| (|x| + 1) and rounded with that, and x * sum dy likewise, so the error is at most
// gamma * (2 |x| + 2) * sum |dy|, where the difference's is gamma * sum |dy t|. A tile takes it where each of its x
// lies in
// [-1, MEDIAN_LIMIT]: most do behind a ReLU and batch norm.
constexpr float MEDIAN_LIMIT = 8.f;
template <class T> constexpr int MEDIAN_PIXELS = T::REGISTERS >= 32 ? 8 : 5; // three registers for each

// sum[m] = sum over the segments of dy * median(w, x - 1, x + 1) for MR pixels and one vector of channels.
template <class T, int MR>
__attribute__((noinline)) void median_tile(const Segment *segment, int64_t count, const float *dy, int64_t step,
                                           const float *panel, int64_t, const float *x, float *sum) {
  typedef typename T::V V;
  V low[MR], high[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    low[m] = T::load(x + m * T::L) - T::set(1.f);
    high[m] = T::load(x + m * T::L) + T::set(1.f);
  }
  const Segment *const end = segment + count;
  for (bool first = true; segment != end; first = false) {
    V acc[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m] = T::set(0.f);
    bool last;
    do {
      const float *ds = dy + segment->source, *ws = panel + segment->panel * T::L;
      for (int64_t t = segment->length; t > 0; --t) {
        const V w = T::load(ws);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) acc[m] = T::fma(T::median(w, low[m], high[m]), T::set(ds[m * step]), acc[m]);
        ++ds;
        ws += T::L;
      }
      last = segment->last;
      ++segment;
    } while (!last && segment != end);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) T::store(sum + m * T::L, first ? acc[m] : T::load(sum + m * T::L) + acc[m]);
  }
}

template <class T, int MR = MEDIAN_PIXELS<T>> GradInputTile median_tile_for(int64_t mr) {
  if constexpr (MR == 0 || !T::MEDIAN) return nullptr;
  else return mr == MR ? median_tile<T, MR> : median_tile_for<T, MR - 1>(mr);
}

// What dx of one pixel is, tap by tap, for operands that are not finite: t of a NaN is NaN, and a tap that no output
// takes adds nothing, where the tiles would add 0 * t.
static inline void grad_input_pixel(const Shape &s, const float *dy, const float *x, const float *w, float *dx,
                                    int mode, int64_t n, int64_t h, int64_t column, int64_t begin, int64_t end) {
  const int64_t pixel = ((n * s.H + h) * s.W + column) * s.C;
  for (int64_t c = begin; c < end; ++c) dx[pixel + c] = 0;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t ph = h + s.pad_top - r * s.dilation_h;
    if (ph < 0 || ph % s.stride_h || ph / s.stride_h >= s.P) continue;
    for (int64_t t = 0; t < s.S; ++t) {
      const int64_t qw = column + s.pad_left - t * s.dilation_w;
      if (qw < 0 || qw % s.stride_w || qw / s.stride_w >= s.Q) continue;
      const float *const d = dy + ((n * s.P + ph / s.stride_h) * s.Q + qw / s.stride_w) * s.K;
      for (int64_t c = begin; c < end; ++c) {
        const int64_t g = c / s.Cg;
        const float *ws = w + (g * s.Kg * s.R * s.S + r * s.S + t) * s.Cg + c % s.Cg;
        float sum = 0;
        for (int64_t k = 0; k < s.Kg; ++k, ws += s.taps) sum += d[g * s.Kg + k] * transfer_any(*ws, x[pixel + c], mode);
        dx[pixel + c] += sum;
      }
    }
  }
}

// The largest operand for which t(w - x) is finite, so that a tap that no output takes may add 0 * t.
static inline float largest_operand(int mode) { return mode == ADDER_FULL ? FLT_MAX / 2 : FLT_MAX; }

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

// The taps of a kernel's row in an order in which those that one phase of pixels takes (columns apart by the stride)
// follow each other, with outputs ascending.
static inline void order_columns(const Shape &s, int64_t *order) {
  int64_t count = 0;
  for (int64_t phase = 0; phase < s.stride_w; ++phase)
    for (int64_t t = s.S - 1; t >= 0; --t)
      if (t * s.dilation_w % s.stride_w == phase) order[count++] = t;
}

// Which outputs the taps of an input column reach: from the first column's first to the last column's last.
struct Reach {
  int64_t left, right; // columns of zeros to put beside dy
  explicit Reach(const Shape &s) {
    const int64_t low = s.pad_left - (s.S - 1) * s.dilation_w; // of q * stride
    left = low < 0 ? ceil_div(-low, s.stride_w) : 0;
    right = max64(0, (s.W - 1 + s.pad_left) / s.stride_w - (s.Q - 1));
  }
};

} // namespace ADDER_NAMESPACE
#endif
