// The input gradient's register tiles, and what all of its kernels share.
#ifndef ADDER_GRAD_INPUT_TILE_H
#define ADDER_GRAD_INPUT_TILE_H

#include "plan.h"
#include "tiles.h"
#include "transfer.h"
#include "values.h"

namespace ADDER_NAMESPACE {

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
        for (int v = 0; v < NV; ++v) w[v] = w_of_taps<T, MODE>(T::load(ws + v * panel_stride));
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const V d = d_of_taps<T, MODE>(T::set(ds[m * step]));
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[m][v] = add_tap<T, MODE>(w[v], xs[m][v], d, acc[m][v]);
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

// The tiles of nv vectors by number of pixels.
template <class T> auto grad_input_tiles(int nv, int mode) {
  return with_mode(mode, [&](auto mode_value) {
    constexpr int MODE = mode_value.value;
    constexpr auto of_one = [](auto pixels) { return grad_input_tile<T, pixels.value, 1, MODE>; };
    constexpr auto of_two = [](auto pixels) { return grad_input_tile<T, pixels.value, 2, MODE>; };
    return nv == 2 ? tiles_of<max_pixels<T>(2, true)>(of_two) : tiles_of<max_pixels<T>(1, true)>(of_one);
  });
}

// clamp(w - x, -1, 1) = min(max(w, x - 1), x + 1) - x: an operation less for each tap, as x is constant over a sum:
//
//   sum dy * clamp(w - x) = sum dy * median(w, x - 1, x + 1) - x * sum dy.
//
// The terms are at most |dy| (|x| + 1) and round accordingly, and so does x * sum dy. So the error is at most
// gamma * (2 |x| + 2) * sum |dy|; with differences it is gamma * sum |dy t|. A tile takes it where each of its x
// lies in [-1, MEDIAN_LIMIT]: most do after a ReLU and batch norm.
//
// Inputs that are not rectified are moved there: x and w grow by the same whole number, which leaves w - x as it is.
// The |x| above is the moved one's then, so MEDIAN_LIMIT still holds.
constexpr float MEDIAN_LIMIT = 8.f;
constexpr int LARGEST_SHIFT = 4;

// What to add to `count` values x and to all filters: the least whole number that leaves one of 512 outside (24 values
// make a tile), or the fewest; 0 where even these would spoil most tiles. A sample tells: a step of 13 cache lines
// meets all channels in their turn.
static inline float median_shift(const float *x, int64_t count) {
  constexpr int64_t LINE = 16, STEP = 13 * LINE;
  int64_t fewest = count;
  int best = 0;
  for (int shift = 0; shift <= LARGEST_SHIFT; ++shift) {
    const float low = static_cast<float>(-1 - shift), high = MEDIAN_LIMIT - static_cast<float>(shift);
    int64_t outside = 0, seen = 0;
    for (int64_t i = 0; i < count; i += STEP) {
      const int64_t length = min64(LINE, count - i);
      int32_t out = 0;
      for (int64_t j = i; j < i + length; ++j) out += (x[j] < low) | (x[j] > high);
      outside += out;
      seen += length;
    }
    if (outside * 512 <= seen) return static_cast<float>(shift);
    if (outside < fewest && outside * 32 <= seen) best = shift, fewest = outside;
  }
  return static_cast<float>(best);
}
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

template <class T> auto median_tiles() {
  return tiles_of<MEDIAN_PIXELS<T>>([](auto pixels) { return median_tile<T, pixels.value>; });
}

// dx of one pixel, tap by tap, for operands that are not finite: t of a NaN is NaN. A tap that no output takes adds
// nothing; the tiles would add 0 * t.
static inline void grad_input_pixel(const Shape &s, const float *dy, const float *x, const float *w, float *dx,
                                    int mode, int64_t n, int64_t h, int64_t column, int64_t begin, int64_t end) {
  const int64_t pixel = ((n * s.H + h) * s.W + column) * s.C;
  for (int64_t c = begin; c < end; ++c) dx[pixel + c] = 0;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t p = s.dy_row(h, r);
    if (p < 0) continue;
    for (int64_t t = 0; t < s.S; ++t) {
      if (!s.column_meets(column, t)) continue;
      const int64_t q = s.dy_column(column, t);
      if (q < 0 || q >= s.Q) continue;
      const float *const d = dy + ((n * s.P + p) * s.Q + q) * s.K;
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

// The taps of a kernel's row, ordered so that the taps of one phase of pixels (columns that are a stride apart) follow
// each other, with ascending outputs.
static inline void order_columns(const Shape &s, int64_t *order) {
  int64_t count = 0;
  for (int64_t phase = 0; phase < s.stride_w; ++phase)
    for (int64_t t = s.S - 1; t >= 0; --t)
      if (t * s.dilation_w % s.stride_w == phase) order[count++] = t;
}

// What the kernels of dx with lanes over channels work on, whatever the groups.
struct GradInputOperands : Shape {
  const float *dy, *x, *w;
  float *dx;
  int mode;
  float limit;   // of |x| and |w| for the tiles
  bool w_within; // w keeps it
  DyPadding pad; // columns of zeros beside dy
  Flag failed;

  GradInputOperands(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dx_, int mode_)
      : Shape(shape), dy(dy_), x(x_), w(w_), dx(dx_), mode(mode_), limit(largest_operand(mode_)),
        w_within(all_within<Widest>(w_, K * taps, limit)), pad(shape) {}

  template <class T> double operations_of() const { return 2. * N * P * Q * taps * K / T::L; }
  int64_t padded() const { return pad.left + Q + pad.right; }
  // One pixel of a phase of row h of image n, channels [begin, end), tap by tap.
  void one_by_one(int64_t n, int64_t h, int64_t column, int64_t begin, int64_t end) const {
    grad_input_pixel(*this, dy, x, w, dx, mode, n, h, column, begin, end);
  }
};

} // namespace ADDER_NAMESPACE
#endif
