// dx and dw in one pass, where both are sums of the same terms: dx = sum dy t(w - x) and dw = -sum dy t(w - x), with
// t the sign or the derivative of a power. What t costs is paid once, and two additions follow it.
//
// Lanes are channels. A task has a vector of channels and some rows of x. It owns these rows of dx, and its own sums of
// dw, which are added up at the end in a fixed order. Outputs whose tap lies outside of the image see x = 0 there: they
// add t(w) times the sum of their dy to dw, and nothing to dx.
#ifndef ADDER_BOTH_GRADIENTS_H
#define ADDER_BOTH_GRADIENTS_H

#include "plan.h"
#include "shape.h"
#include "threads.h"
#include "transfer.h"
#include "values.h"

namespace ADDER_NAMESPACE {

// t(w - x) for finite operands, divided by FACTOR. w is never -0.
template <class T> struct SignOfDifference {
  typedef typename T::V V;
  static constexpr float FACTOR = T::TWICE_SIGN ? 0.5f : 1.f;
  ADDER_INLINE V operator()(V w, V x) const {
    if constexpr (T::TWICE_SIGN) return T::twice_sign(w, x);
    else return T::sign_of_difference(w, x);
  }
};

// MR pixels of x and dx, x_step and dx_step floats apart, with `filters` filters and their sums, [filters][L] each.
template <class T, int MR, class Term>
__attribute__((noinline)) void both_gradients_tile(const Term &term, const float *x, int64_t x_step, const float *dy,
                                                   int64_t dy_step, const float *w, int64_t filters, float *dx,
                                                   float *sums) {
  typedef typename T::V V;
  V xs[MR], totals[MR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) xs[i] = T::load(x + i * x_step), totals[i] = T::set(0.f);
  for (int64_t k = 0; k < filters; ++k) {
    const V filter = T::load(w + k * T::L);
    V sum = T::load(sums + k * T::L);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const V t = term(filter, xs[i]), d = T::set(dy[i * dy_step + k]);
      totals[i] = T::fma(t, d, totals[i]);
      sum = T::fma(t, d, sum);
    }
    T::store(sums + k * T::L, sum);
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) T::store(dx + i * x_step, T::load(dx + i * x_step) + totals[i]);
}

template <class T, class Term> struct BothGradients : Shape {
  static constexpr int MR = 4;         // pixels of a tile
  static constexpr int64_t TASKS = 16; // at least, if there are as many rows: depends on no number of threads
  const float *dy, *x, *w;
  const Term &term;
  float *dx, *dw;
  float *panels, *partial; // [vectors][R * S][Kg][L], and the sums of each part, [parts][vectors][R * S][Kg][L]
  int64_t vectors, parts;
  Flag failed;

  BothGradients(const adder_shape &s, const float *dy_, const float *x_, const float *w_, const Term &term_, float *dx_,
                float *dw_)
      : Shape(s), dy(dy_), x(x_), w(w_), term(term_), dx(dx_), dw(dw_), vectors(ceil_div(C, T::L)),
        parts(max64(1, min64(N * H, ceil_div(TASKS, vectors)))) {}

  // Do all lanes of each vector belong to one group?
  bool suits() const { return groups == 1 || Cg % T::L == 0; }
  int64_t rows() const { return N * H; }
  int64_t sums_of_vector() const { return R * S * Kg * T::L; }
  int64_t panel_floats() const { return vectors * sums_of_vector(); }
  int64_t filled(int64_t vector) const { return min64(T::L, C - vector * T::L); }
  int64_t group_of(int64_t vector) const { return vector * T::L / Cg; }

  int64_t tasks() const { return vectors * parts; }
  double operations() const { return 8. * N * P * Q * R * S * Kg * vectors; }

  void pack() const {
    for_each(vectors, static_cast<double>(panel_floats()), [&](int64_t v) {
      float *to = panels + v * sums_of_vector();
      const int64_t c = v * T::L, g = group_of(v);
      for (int64_t rs = 0; rs < R * S; ++rs)
        for (int64_t k = 0; k < Kg; ++k, to += T::L) {
          alignas(64) float lanes[T::L] = {};
          memcpy(lanes, w + ((g * Kg + k) * R * S + rs) * Cg + c - g * Cg,
                 static_cast<size_t>(filled(v)) * sizeof(float));
          T::store(to, T::load(lanes) + T::set(0.f)); // no -0
        }
    });
  }

  void run(int64_t begin, int64_t end) {
    const int64_t pixels = W * T::L, count = sums_of_vector();
    Scratch<float> own(pixels), gradient(pixels), sums(count);
    if (!own || !gradient || !sums) return failed.set();
    for (; begin < end; ++begin) {
      const int64_t v = begin % vectors, part = begin / vectors;
      float *const totals = partial + (part * vectors + v) * count;
      memset(totals, 0, static_cast<size_t>(count) * sizeof(float));
      for (int64_t row = part * rows() / parts; row < (part + 1) * rows() / parts; ++row) {
        take_row(row, v, own);
        memset(gradient, 0, static_cast<size_t>(pixels) * sizeof(float));
        memset(sums, 0, static_cast<size_t>(count) * sizeof(float));
        row_of_taps(row, v, own, gradient, sums);
        for (int64_t i = 0; i < count; i += T::L) T::store(totals + i, T::load(totals + i) + T::load(sums + i));
        give_row(row, v, gradient);
      }
    }
  }

  void take_row(int64_t row, int64_t v, float *to) const {
    const float *from = x + row * W * C + v * T::L;
    const size_t bytes = static_cast<size_t>(filled(v)) * sizeof(float);
    for (int64_t j = width(row % H, H, W); j > 0; --j, from += C, to += T::L) {
      if (filled(v) < T::L) T::store(to, T::set(0.f));
      memcpy(to, from, bytes);
    }
  }

  void give_row(int64_t row, int64_t v, const float *from) const {
    float *to = dx + row * W * C + v * T::L;
    const size_t bytes = static_cast<size_t>(filled(v)) * sizeof(float);
    for (int64_t j = width(row % H, H, W); j > 0; --j, from += T::L, to += C) {
      alignas(64) float lanes[T::L];
      T::store(lanes, T::load(from) * T::set(Term::FACTOR));
      memcpy(to, lanes, bytes);
    }
  }

  // The columns of y whose tap of column s lies in the image.
  Range inside(int64_t s, int64_t image_width, int64_t output_width) const {
    const int64_t first = pad_left - s * dilation_w, last = image_width - 1 + first; // of q * stride_w
    const int64_t begin = first <= 0 ? 0 : min64(output_width, ceil_div(first, stride_w));
    return {begin, last < 0 ? begin : max64(begin, min64(output_width, last / stride_w + 1))};
  }

  // All outputs that a row of x has a part in.
  void row_of_taps(int64_t row, int64_t v, const float *own, float *gradient, float *sums) const {
    const int64_t n = row / H, h = row % H, x_width = width(h, H, W), step = stride_w * T::L;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        const Range columns = inside(s, x_width, width(p, P, Q));
        const int64_t first = s * dilation_w - pad_left;
        const float *const panel = panels + v * sums_of_vector() + (r * S + s) * Kg * T::L;
        float *const sum = sums + (r * S + s) * Kg * T::L;
        const float *d = dy + ((n * P + p) * Q + columns.begin) * K + group_of(v) * Kg;
        int64_t q = columns.begin, at = (q * stride_w + first) * T::L;
        for (; q + MR <= columns.end; q += MR, d += MR * K, at += MR * step)
          tile<MR>(own + at, step, d, panel, gradient + at, sum);
        if (columns.end - q == 3) tile<3>(own + at, step, d, panel, gradient + at, sum);
        if (columns.end - q == 2) tile<2>(own + at, step, d, panel, gradient + at, sum);
        if (columns.end - q == 1) tile<1>(own + at, step, d, panel, gradient + at, sum);
      }
    }
  }

  // In chains of CHAIN filters, whose sums are added up.
  template <int PIXELS>
  ADDER_INLINE void tile(const float *own, int64_t step, const float *d, const float *panel, float *gradient,
                         float *sum) const {
    for (int64_t k = 0; k < Kg; k += CHAIN)
      both_gradients_tile<T, PIXELS>(term, own, step, d + k, K, panel + k * T::L, min64(CHAIN, Kg - k), gradient,
                                     sum + k * T::L);
  }

  // The sum of dy over the outputs whose tap lies outside of the image, [R * S][K], in double precision.
  void sum_outside(double *outside) const {
    for_each(R * S, 1. * N * P * Q * R * S, [&](int64_t rs) {
      double *const sum = outside + rs * K;
      for (int64_t k = 0; k < K; ++k) sum[k] = 0;
      const Range columns = inside(rs % S, W, Q);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t p = 0; p < P; ++p) {
          const bool row_inside = x_row(p, rs / S) >= 0;
          for (int64_t q = 0; q < Q; ++q) {
            if (row_inside && q == columns.begin && columns.end > columns.begin) q = columns.end;
            if (q == Q) break;
            const float *const d = dy + ((n * P + p) * Q + q) * K;
            for (int64_t k = 0; k < K; ++k) sum[k] += d[k];
          }
        }
    });
  }

  // The parts in their order, and what lies outside.
  void finish(const double *outside) const {
    typedef typename T::V V;
    for_each(vectors, 3. * static_cast<double>(panel_floats()) * static_cast<double>(parts) / T::L, [&](int64_t v) {
      const int64_t c = v * T::L, g = group_of(v);
      for (int64_t rs = 0; rs < R * S; ++rs)
        for (int64_t k = 0; k < Kg; ++k) {
          const int64_t at = v * sums_of_vector() + (rs * Kg + k) * T::L;
          V sum = T::set(0.f);
          for (int64_t part = 0; part < parts; ++part) sum = sum + T::load(partial + part * panel_floats() + at);
          if (outside) {
            const V s = T::set(static_cast<float>(outside[rs * K + g * Kg + k]));
            sum = T::fma(term(T::load(panels + at), T::set(0.f)), s, sum);
          }
          alignas(64) float lanes[T::L];
          T::store(lanes, sum * T::set(-Term::FACTOR));
          memcpy(dw + ((g * Kg + k) * R * S + rs) * Cg + c - g * Cg, lanes,
                 static_cast<size_t>(filled(v)) * sizeof(float));
        }
    });
  }
};

// ADDER_UNSUITED, and nothing written, where a vector of channels would belong to several groups.
template <class T, class Term>
int both_gradients(const adder_shape *s, const float *dy, const float *x, const float *w, const Term &term, float *dx,
                   float *dw) {
  BothGradients<T, Term> kernel(*s, dy, x, w, term, dx, dw);
  if (!kernel.suits()) return ADDER_UNSUITED;
  const bool padded = kernel.has_padding();
  Scratch<float> panels(kernel.panel_floats()), partial(kernel.parts * kernel.panel_floats());
  Scratch<double> outside(padded ? kernel.R * kernel.S * kernel.K : 0);
  if (!panels || !partial || !outside) return ADDER_NO_MEMORY;
  kernel.panels = panels, kernel.partial = partial;
  kernel.pack();
  if (padded) kernel.sum_outside(outside);
  const int status = launch(kernel);
  if (status == ADDER_OK) kernel.finish(padded ? static_cast<double *>(outside) : nullptr);
  return status;
}

} // namespace ADDER_NAMESPACE
#endif
