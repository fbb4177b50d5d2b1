// dx and dw in one pass, where both are sums of the same terms: dx = sum dy t(w - x) and dw = -sum dy t(w - x), with
// t the sign or the derivative of a power. What t costs is paid once, and two additions follow it.
//
// Lanes are channels. A task has a vector of channels and some rows of x. It owns these rows of dx. It takes a block of
// filters at a time, so that these and their sums stay in the cache. What it finds for dw is dw where it has all rows;
// else the tasks' sums are added up at the end in a fixed order. Outputs whose tap lies outside of the image see x = 0
// there: they add t(w) times the sum of their dy to dw, and nothing to dx.
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
  // Filters of a block: with AVX-512 a matrix product's block is 8 KiB, its sums as much. No longer than a chain.
  static constexpr int64_t BLOCK = 128;
  const float *dy, *x, *w;
  const Term &term;
  float *dx, *dw;
  const double *outside = nullptr; // sums of dy, see sum_outside; null: no tap lies outside of the image
  float *partial = nullptr;        // the tasks' sums, [parts][vectors][R * S][Kg][L]; null: there is one part
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
  int64_t partial_floats() const { return parts == 1 ? 0 : parts * vectors * sums_of_vector(); }
  int64_t filled(int64_t vector) const { return min64(T::L, C - vector * T::L); }
  size_t filled_bytes(int64_t vector) const { return static_cast<size_t>(filled(vector)) * sizeof(float); }
  int64_t group_of(int64_t vector) const { return vector * T::L / Cg; }
  // Where a vector's channels of tap `rs` of filter k of its group stand in w and dw.
  int64_t place(int64_t v, int64_t rs, int64_t k) const {
    return ((group_of(v) * Kg + k) * R * S + rs) * Cg + v * T::L - group_of(v) * Cg;
  }

  int64_t tasks() const { return vectors * parts; }
  double operations() const { return 8. * N * P * Q * R * S * Kg * vectors; }

  // `count` filters of a group, from `first` on.
  struct Filters {
    int64_t first, count;
  };

  void run(int64_t begin, int64_t end) {
    const int64_t pixels = W * T::L, most = R * S * min64(BLOCK, Kg) * T::L;
    Scratch<float> own(pixels), gradient(pixels), panel(most), totals(most), sums(most);
    if (!own || !gradient || !panel || !totals || !sums) return failed.set();
    for (; begin < end; ++begin) {
      const int64_t v = begin % vectors, part = begin / vectors;
      const Range rows_of_part = {part * rows() / parts, (part + 1) * rows() / parts};
      for (int64_t k = 0; k < Kg; k += BLOCK) {
        const Filters filters = {k, min64(BLOCK, Kg - k)};
        const int64_t count = R * S * filters.count * T::L;
        take_filters(v, filters, panel);
        if (rows_of_part.begin == rows_of_part.end) memset(totals, 0, static_cast<size_t>(count) * sizeof(float));
        for (int64_t row = rows_of_part.begin; row < rows_of_part.end; ++row) { // each has sums: shorter chains
          float *const sum = row == rows_of_part.begin ? totals : sums;
          memset(sum, 0, static_cast<size_t>(count) * sizeof(float));
          take_row(x, row, v, 1.f, own);
          if (k == 0) memset(gradient, 0, static_cast<size_t>(pixels) * sizeof(float));
          else take_row(dx, row, v, 1.f / Term::FACTOR, gradient);
          row_of_taps(row, v, filters, panel, own, gradient, sum);
          give_row(row, v, gradient);
          if (sum == totals) continue;
          for (int64_t i = 0; i < count; i += T::L) T::store(totals + i, T::load(totals + i) + T::load(sums + i));
        }
        give_sums(v, part, filters, panel, totals);
      }
    }
  }

  // [R * S][filters][L], without -0.
  void take_filters(int64_t v, const Filters &filters, float *to) const {
    for (int64_t rs = 0; rs < R * S; ++rs)
      for (int64_t k = 0; k < filters.count; ++k, to += T::L)
        T::store(to, lanes_of(w + place(v, rs, filters.first + k), v) + T::set(0.f));
  }

  // A vector's channels; zeros beyond the last one.
  ADDER_INLINE typename T::V lanes_of(const float *from, int64_t v) const {
    if (filled(v) == T::L) return T::load(from);
    alignas(64) float lanes[T::L] = {};
    memcpy(lanes, from, filled_bytes(v));
    return T::load(lanes);
  }
  ADDER_INLINE void give_lanes(float *to, int64_t v, typename T::V value) const {
    if (filled(v) == T::L) return T::store(to, value);
    alignas(64) float lanes[T::L];
    T::store(lanes, value);
    memcpy(to, lanes, filled_bytes(v));
  }

  // A row of a vector of channels, times `factor`.
  void take_row(const float *image, int64_t row, int64_t v, float factor, float *to) const {
    const float *from = image + row * W * C + v * T::L;
    for (int64_t j = width(row % H, H, W); j > 0; --j, from += C, to += T::L)
      T::store(to, lanes_of(from, v) * T::set(factor));
  }

  void give_row(int64_t row, int64_t v, const float *from) const {
    float *to = dx + row * W * C + v * T::L;
    for (int64_t j = width(row % H, H, W); j > 0; --j, from += T::L, to += C)
      give_lanes(to, v, T::load(from) * T::set(Term::FACTOR));
  }

  // A part's sums, of which the first one has what lies outside of the image.
  void give_sums(int64_t v, int64_t part, const Filters &filters, const float *panel, const float *totals) const {
    typedef typename T::V V;
    typedef typename Uints<T::L>::V Bits;
    for (int64_t rs = 0; rs < R * S; ++rs)
      for (int64_t k = 0; k < filters.count; ++k, panel += T::L, totals += T::L) {
        const int64_t filter = filters.first + k;
        V sum = T::load(totals);
        if (outside && part == 0) {
          const double exact = outside[rs * K + group_of(v) * Kg + filter];
          const V t = term(T::load(panel), T::set(0.f)), dy_outside = T::set(static_cast<float>(exact));
          if (__builtin_isfinite(exact) && !__builtin_isfinite(static_cast<float>(exact))) // 0 times it is still 0
            sum = sum + (V)((Bits)(t * dy_outside) & (Bits)(t != T::set(0.f)));
          else sum = T::fma(t, dy_outside, sum);
        }
        if (partial) T::store(partial + (part * vectors + v) * sums_of_vector() + (rs * Kg + filter) * T::L, sum);
        else give_lanes(dw + place(v, rs, filter), v, sum * T::set(-Term::FACTOR));
      }
  }

  // Adds up the parts in their order.
  void add_parts() const {
    const double additions = static_cast<double>(partial_floats()) / T::L;
    for_each(vectors, 3. * additions, [&](int64_t v) {
      for (int64_t rs = 0; rs < R * S; ++rs)
        for (int64_t k = 0; k < Kg; ++k) {
          typename T::V sum = T::set(0.f);
          for (int64_t part = 0; part < parts; ++part)
            sum = sum + T::load(partial + (part * vectors + v) * sums_of_vector() + (rs * Kg + k) * T::L);
          give_lanes(dw + place(v, rs, k), v, sum * T::set(-Term::FACTOR));
        }
    });
  }

  // The columns of y whose tap of column s lies in the image.
  Range inside(int64_t s, int64_t image_width, int64_t output_width) const {
    const int64_t first = pad_left - s * dilation_w, last = image_width - 1 + first; // of q * stride_w
    const int64_t begin = first <= 0 ? 0 : min64(output_width, ceil_div(first, stride_w));
    return {begin, last < 0 ? begin : max64(begin, min64(output_width, last / stride_w + 1))};
  }

  // All outputs that a row of x has a part in.
  void row_of_taps(int64_t row, int64_t v, const Filters &filters, const float *panel, const float *own,
                   float *gradient, float *sums) const {
    const int64_t n = row / H, h = row % H, x_width = width(h, H, W), step = stride_w * T::L;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        const Range columns = inside(s, x_width, width(p, P, Q));
        const int64_t first = s * dilation_w - pad_left;
        const float *const w_tap = panel + (r * S + s) * filters.count * T::L;
        float *const sum = sums + (r * S + s) * filters.count * T::L;
        const float *d = dy + ((n * P + p) * Q + columns.begin) * K + group_of(v) * Kg + filters.first;
        int64_t q = columns.begin, at = (q * stride_w + first) * T::L;
        for (; q + MR <= columns.end; q += MR, d += MR * K, at += MR * step)
          both_gradients_tile<T, MR>(term, own + at, step, d, K, w_tap, filters.count, gradient + at, sum);
        if (columns.end - q == 3)
          both_gradients_tile<T, 3>(term, own + at, step, d, K, w_tap, filters.count, gradient + at, sum);
        if (columns.end - q == 2)
          both_gradients_tile<T, 2>(term, own + at, step, d, K, w_tap, filters.count, gradient + at, sum);
        if (columns.end - q == 1)
          both_gradients_tile<T, 1>(term, own + at, step, d, K, w_tap, filters.count, gradient + at, sum);
      }
    }
  }

  // The sum of dy over the outputs whose tap lies outside of the image, [R * S][K], in double precision.
  void sum_outside(double *to) const {
    for_each(R * S, 1. * N * P * Q * R * S, [&](int64_t rs) {
      double *const sum = to + rs * K;
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
};

// ADDER_UNSUITED, and nothing written, where a vector of channels would belong to several groups.
template <class T, class Term>
int both_gradients(const adder_shape *s, const float *dy, const float *x, const float *w, const Term &term, float *dx,
                   float *dw) {
  BothGradients<T, Term> kernel(*s, dy, x, w, term, dx, dw);
  if (!kernel.suits()) return ADDER_UNSUITED;
  const bool padded = kernel.has_padding(), cut = kernel.parts > 1;
  Scratch<float> partial(kernel.partial_floats());
  Scratch<double> outside(padded ? kernel.R * kernel.S * kernel.K : 0);
  if (!partial || !outside) return ADDER_NO_MEMORY;
  if (cut) kernel.partial = partial;
  if (padded) kernel.sum_outside(outside), kernel.outside = outside;
  const int status = launch(kernel);
  if (status == ADDER_OK && cut) kernel.add_parts();
  return status;
}

} // namespace ADDER_NAMESPACE
#endif
