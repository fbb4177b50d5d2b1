// dw = sum dy t(x - w), tap by tap: for any operands, and for the sign of finite ones.
#ifndef ADDER_GRAD_WEIGHT_H
#define ADDER_GRAD_WEIGHT_H

#include "threads.h"
#include "tiles.h"
#include "transfer.h"

namespace ADDER_NAMESPACE {

// dw = sum dy * t(x - w) for any operands, also NaN and infinities, for which x - w has a value but
// sum dy * x - w * sum dy has not.
constexpr int64_t DW_FILTERS = 4, DW_LANES = 32;

template <int MODE> struct GradWeightTaps : Geometry {
  const float *dy, *x, *w;
  float *dw;
  int64_t filter_blocks; // for each group
  Flag failed;           // never: all is on the stack

  GradWeightTaps(const Geometry &s, const float *dy_, const float *x_, const float *w_, float *dw_)
      : Geometry(s), dy(dy_), x(x_), w(w_), dw(dw_), filter_blocks(ceil_div(Kg, DW_FILTERS)) {}

  int64_t tasks() const { return groups * filter_blocks * R * S; }
  double operations() const { return 4. * N * P * Q * taps * K / Widest::L; }

  void run(int64_t begin, int64_t end) const {
    for (; begin < end; ++begin) run_task(begin);
  }

  void run_task(int64_t i) const {
    const int64_t s = i % S, r = i / S % R, block = i / S / R % filter_blocks, g = i / S / R / filter_blocks;
    const int64_t k0 = g * Kg + block * DW_FILTERS, filters = min64(DW_FILTERS, Kg - block * DW_FILTERS);
    for (int64_t c0 = 0; c0 < Cg; c0 += DW_LANES) {
      const int64_t channels = min64(DW_LANES, Cg - c0);
      alignas(64) float total[DW_FILTERS][DW_LANES] = {}, ws[DW_FILTERS][DW_LANES] = {}, xs[DW_LANES] = {};
      for (int64_t k = 0; k < filters; ++k)
        memcpy(ws[k], w + (((k0 + k) * R + r) * S + s) * Cg + c0, static_cast<size_t>(channels) * sizeof(float));
      for (int64_t n = 0; n < N; ++n)
        for (int64_t p = 0; p < P; ++p) { // sums of a row first: shorter chains
          alignas(64) float sum[DW_FILTERS][DW_LANES] = {};
          const int64_t h = x_row(p, r);
          for (int64_t q = 0; q < Q; ++q) {
            const int64_t column = q * stride_w - pad_left + s * dilation_w;
            if (h >= 0 && column >= 0 && column < W)
              memcpy(xs, x + ((n * H + h) * W + column) * C + g * Cg + c0,
                     static_cast<size_t>(channels) * sizeof(float));
            else memset(xs, 0, sizeof xs);
            const float *const d = dy + ((n * P + p) * Q + q) * K + k0;
            for (int64_t k = 0; k < filters; ++k)
              for (int64_t c = 0; c < DW_LANES; ++c) sum[k][c] += d[k] * transfer_any(xs[c], ws[k][c], MODE);
          }
          for (int64_t k = 0; k < filters; ++k)
            for (int64_t c = 0; c < DW_LANES; ++c) total[k][c] += sum[k][c];
        }
      for (int64_t k = 0; k < filters; ++k)
        memcpy(dw + (((k0 + k) * R + r) * S + s) * Cg + c0, total[k], static_cast<size_t>(channels) * sizeof(float));
    }
  }
};

// The same with the sign, for finite operands: lanes over the taps of a filter's row, which lie side by side in the
// image as well, or over its channels where groups or a dilation part them. sum[k][v] += sum over the outputs of a row
// of dy * sign(x - w); w and sum [MK][NV * L].
template <class T, int MK, int NV>
__attribute__((noinline)) void grad_weight_sign_tile(const float *x, int64_t x_step, const float *dy, int64_t dy_step,
                                                     int64_t count, const float *w, float *sum) {
  typedef typename T::V V;
  V acc[MK][NV];
#pragma GCC unroll 8
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[k][v] = T::set(0.f);
  for (; count > 0; --count, x += x_step, dy += dy_step) {
    V xv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) xv[v] = w_of_taps<T, ADDER_SIGN>(T::load(x + v * T::L)); // x - w here
#pragma GCC unroll 8
    for (int k = 0; k < MK; ++k) {
      const V d = d_of_taps<T, ADDER_SIGN>(T::set(dy[k]));
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        acc[k][v] = add_tap<T, ADDER_SIGN>(xv[v], T::load(w + (k * NV + v) * T::L), d, acc[k][v]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      float *const s = sum + (k * NV + v) * T::L;
      T::store(s, T::load(s) + acc[k][v]);
    }
}

// Filters of a tile: with two vectors of taps each, and what else a tap needs, they fit the registers.
template <class T> constexpr int SIGN_FILTERS = T::REGISTERS >= 32 ? 8 : 4;

template <class T> struct GradWeightSigns : Shape {
  const float *dy, *x, *w;
  float *dw;
  int64_t row_taps, pieces, vectors; // a filter's row is `pieces` pieces of `row_taps` taps, in `vectors` vectors each
  int64_t filter_blocks, left, right;
  Flag failed;

  static int64_t row_taps_of(const Geometry &s) { return s.groups == 1 && s.dilation_w == 1 ? s.S * s.C : s.Cg; }

  GradWeightSigns(const Shape &s, const float *dy_, const float *x_, const float *w_, float *dw_)
      : Shape(s), dy(dy_), x(x_), w(w_), dw(dw_), row_taps(row_taps_of(s)), pieces(S * Cg / row_taps),
        vectors(ceil_div(row_taps, T::L)), filter_blocks(ceil_div(Kg, SIGN_FILTERS<T>)), left(pad_left),
        right(pad_right()) {}

  int64_t tasks() const { return groups * filter_blocks * R * pieces; }

  double operations() const { return 6. * N * P * Q * R * pieces * vectors * K; }

  void run(int64_t begin, int64_t end) {
    for (; begin < end; ++begin) run_task(begin);
  }

  template <int NV> static auto tiles() {
    return tiles_of<SIGN_FILTERS<T>>([](auto filters) { return grad_weight_sign_tile<T, filters.value, NV>; });
  }

  void run_task(int64_t i) {
    const int64_t piece = i % pieces, r = i / pieces % R, block = i / pieces / R % filter_blocks;
    const int64_t g = i / pieces / R / filter_blocks;
    const int64_t k0 = g * Kg + block * SIGN_FILTERS<T>, filters = min64(SIGN_FILTERS<T>, Kg - block * SIGN_FILTERS<T>);
    // A row with its padding, and lanes beyond its end; [vectors, two at a time][filters][1 or 2][L].
    const bool in_place = is_product() && row_taps == vectors * T::L; // no padding, and no lanes beyond the end
    const int64_t row_floats = in_place ? 0 : (left + W + right) * C, packed = vectors * filters * T::L;
    Scratch<float> row(row_floats + 2 * T::L), ws(packed), total(packed);
    if (!row || !ws || !total) return failed.set();
    memset(row, 0, static_cast<size_t>(row_floats + 2 * T::L) * sizeof(float));
    memset(total, 0, static_cast<size_t>(packed) * sizeof(float));
    const auto each = [&](auto f) { // f(filter, tap of the piece, place in ws and total)
      for (int64_t v = 0; v < vectors; v += 2) {
        const int64_t lanes = min64(2, vectors - v) * T::L;
        for (int64_t k = 0; k < filters; ++k)
          for (int64_t lane = 0; lane < lanes; ++lane) f(k, v * T::L + lane, v * filters * T::L + k * lanes + lane);
      }
    };
    const auto at = [&](int64_t k, int64_t tap) { return (((k0 + k) * R + r) * S + piece) * Cg + tap; };
    each([&](int64_t k, int64_t tap, int64_t place) { ws[place] = tap < row_taps ? w[at(k, tap)] : 0.f; });
    for (int64_t n = 0; n < N; ++n)
      for (int64_t p = 0; p < P; ++p) {
        const int64_t h = x_row(p, r), outputs = width(p, P, Q);
        const float *source = x + (n * H + h) * W * C;
        if (!in_place) {
          const size_t bytes = static_cast<size_t>(width(h, H, W) * C) * sizeof(float);
          if (h >= 0) memcpy(row + left * C, source, bytes);
          else memset(row + left * C, 0, bytes);
          source = row;
        }
        const float *const from = source + piece * dilation_w * C + g * Cg, *const d = dy + (n * P + p) * Q * K + k0;
        for (int64_t v = 0; v < vectors; v += 2) {
          const int64_t place = v * filters * T::L;
          const auto tile = (vectors - v > 1 ? tiles<2>() : tiles<1>())[filters];
          tile(from + v * T::L, stride_w * C, d, K, outputs, ws + place, total + place);
        }
      }
    each([&](int64_t k, int64_t tap, int64_t place) {
      if (tap < row_taps) dw[at(k, tap)] = total[place];
    });
  }
};

template <int MODE>
int grad_weight_by_taps(const Geometry &s, const float *dy, const float *x, const float *w, float *dw) {
  const GradWeightTaps<MODE> kernel(s, dy, x, w, dw);
  return launch(kernel);
}

template <class T>
int grad_weight_by_signs(const Shape &s, const float *dy, const float *x, const float *w, float *dw) {
  GradWeightSigns<T> kernel(s, dy, x, w, dw);
  return launch(kernel);
}

} // namespace ADDER_NAMESPACE
#endif
