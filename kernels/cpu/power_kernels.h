// y, dx and dw for 1 < p < 2: y = -sum |x - w|^p and its derivatives. See power.h for the power itself.
//
// It takes some 20 instructions for a tap, so nothing else is as dear, and no layer needs a tile of its own: lanes
// are filters (y, dw) or channels (dx), also those of several groups, and what a lane reads is laid out before.
#ifndef ADDER_POWER_KERNELS_H
#define ADDER_POWER_KERNELS_H

#include "both_gradients.h"
#include "plan.h"
#include "power.h"
#include "shape.h"
#include "values.h"

namespace ADDER_NAMESPACE {

// Beyond it d t(d) might be, on the way, where its p-th power is not.
constexpr float POWER_LIMIT = 0x1p60f;

// Vectors of `count` lanes (filters or channels), `each` of them in a group.
template <class T> struct Lanes {
  int64_t count, each, vectors;
  Lanes(int64_t count_, int64_t each_) : count(count_), each(each_), vectors(ceil_div(count_, T::L)) {}
  int64_t group(int64_t lane) const { return min64(lane, count - 1) / each; }
  int64_t filled(int64_t vector) const { return min64(T::L, count - vector * T::L); }
  bool one_group(int64_t vector) const { return group(vector * T::L) == group(vector * T::L + T::L - 1); }
};

// What a vector of filters reads of x, tap by tap: one number for all lanes, or, of several groups, a vector.
template <class T> struct Patches : Geometry {
  const float *x;
  Lanes<T> filters;
  Patches(const Geometry &s, const float *x_) : Geometry(s), x(x_), filters(s.K, s.Kg) {}

  // Rows [begin, end) of the kernel's taps at output (n, p, q), [groups][rows][S][Cg]; zeros outside of the image.
  void take(int64_t n, int64_t p, int64_t q, int64_t begin, int64_t end, float *to) const {
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t r = begin; r < end; ++r) {
        const int64_t h = x_row(p, r);
        for (int64_t s = 0; s < S; ++s, to += Cg) {
          const int64_t column = q * stride_w - pad_left + s * dilation_w;
          if (h >= 0 && column >= 0 && column < W)
            memcpy(to, x + ((n * H + h) * W + column) * C + g * Cg, static_cast<size_t>(Cg) * sizeof(float));
          else memset(to, 0, static_cast<size_t>(Cg) * sizeof(float));
        }
      }
  }

  // f(tap, x of that tap in each lane) for `count` taps of a patch.
  template <class F> ADDER_INLINE void each_tap(int64_t vector, const float *patch, int64_t count, F f) const {
    if (filters.one_group(vector)) {
      const float *const from = patch + filters.group(vector * T::L) * count;
      for (int64_t t = 0; t < count; ++t) f(t, T::set(from[t]));
      return;
    }
    int64_t at[T::L];
    for (int64_t lane = 0; lane < T::L; ++lane) at[lane] = filters.group(vector * T::L + lane) * count;
    for (int64_t t = 0; t < count; ++t) {
      alignas(64) float lanes[T::L];
#pragma GCC unroll 16
      for (int lane = 0; lane < T::L; ++lane) lanes[lane] = patch[at[lane] + t];
      f(t, T::load(lanes));
    }
  }

  // Filters as vectors, [vectors][R][S * Cg][L].
  void pack(const float *w, float *panels) const {
    for_each(filters.vectors, 1. * taps * filters.vectors, [&](int64_t vector) {
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t lane = 0; lane < T::L; ++lane)
          panels[(vector * taps + t) * T::L + lane] =
              lane < filters.filled(vector) ? w[(vector * T::L + lane) * taps + t] : 0.f;
    });
  }
};

// The taps of a patch in two lists: those where x is 0, as after a ReLU, and the others. Lists have room for T::L more.
template <class T> struct ListedTaps {
  int32_t *others, *zeros;
  int64_t count_others = 0, count_zeros = 0;

  ListedTaps(const float *patch, int64_t taps, int32_t *others_, int32_t *zeros_) : others(others_), zeros(zeros_) {
    int64_t t = 0;
#if defined(__AVX512F__)
    if constexpr (T::L == 16) {
      __m512i tap = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      for (; t + 16 <= taps; t += 16, tap = _mm512_add_epi32(tap, _mm512_set1_epi32(16))) {
        const __mmask16 other = _mm512_cmp_ps_mask(_mm512_loadu_ps(patch + t), _mm512_setzero_ps(), _CMP_NEQ_OQ);
        // In a register first: Zen 4 takes a hundred cycles to compress into memory.
        _mm512_storeu_si512(others + count_others, _mm512_maskz_compress_epi32(other, tap));
        _mm512_storeu_si512(zeros + count_zeros, _mm512_maskz_compress_epi32(_knot_mask16(other), tap));
        const int found = __builtin_popcount(other);
        count_others += found, count_zeros += 16 - found;
      }
    }
#endif
    for (; t < taps; ++t) { // without a branch: nobody could foretell it
      others[count_others] = zeros[count_zeros] = static_cast<int32_t>(t);
      const int found = patch[t] != 0;
      count_others += found, count_zeros += 1 - found;
    }
  }
};

template <class T> struct PowerForward : Patches<T> {
  typedef typename T::V V;
  static constexpr int64_t BLOCK = 8; // vectors of a task
  // Outputs of a filter from which on |w|^p, which is a tap's term where x is 0, is computed beforehand. With fewer
  // each is computed where it is needed, and added in the same order: an image's answer does not depend on the others.
  static constexpr int64_t WORTH_POWERS = 16;
  const float *panels;
  const float *powers = nullptr; // |w|^p, laid out as panels; null: not computed
  const AddPower<T> &add;
  float *y;
  Flag failed;

  PowerForward(const Patches<T> &patches, const float *panels_, const AddPower<T> &add_, float *y_)
      : Patches<T>(patches), panels(panels_), add(add_), y(y_) {}

  bool worth_powers() const {
    if (this->N * this->P * this->Q < WORTH_POWERS) return false;
    for (int64_t v = 0; v < this->filters.vectors; ++v)
      if (sorts_taps(v)) return true;
    return false;
  }
  // All lanes of the vector see the same x.
  bool sorts_taps(int64_t v) const { return this->filters.one_group(v) && this->taps <= INT32_MAX - T::L; }
  int64_t blocks() const { return ceil_div(this->filters.vectors, BLOCK); }
  int64_t tasks() const { return this->N * this->P * blocks(); }
  double operations() const { return 24. * this->N * this->P * this->Q * this->taps * this->filters.vectors; }

  void compute_powers(float *to) {
    const int64_t taps = this->taps;
    for_each(this->filters.vectors, 24. * taps * this->filters.vectors, [&](int64_t vector) {
      for (int64_t i = vector * taps * T::L; i < (vector + 1) * taps * T::L; i += T::L)
        T::store(to + i, add(T::load(panels + i), T::set(0.f)));
    });
    powers = to;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t room = this->taps + T::L;
    Scratch<float> patch(this->groups * this->taps);
    Scratch<int32_t> others(room), zeros(room);
    if (!patch || !others || !zeros) return failed.set();
    for (; begin < end; ++begin) {
      const int64_t first = begin % blocks() * BLOCK, row = begin / blocks(), n = row / this->P, p = row % this->P;
      const int64_t last = min64(this->filters.vectors, first + BLOCK);
      for (int64_t q = 0; q < this->Q; ++q) {
        this->take(n, p, q, 0, this->R, patch);
        float *const to = y + (row * this->Q + q) * this->K;
        for (int64_t v = first; v < last;) {
          if (!sorts_taps(v)) {
            give(to, v, sum_of_all(patch, v));
            ++v;
            continue;
          }
          const int64_t group = this->filters.group(v * T::L);
          const float *const own = patch + group * this->taps;
          const ListedTaps<T> taps(own, this->taps, others, zeros);
          for (; v < last && sorts_taps(v) && this->filters.group(v * T::L) == group; ++v)
            give(to, v, sum_of_others(own, v, taps) + sum_of_zeros(v, taps));
        }
      }
    }
  }

  ADDER_INLINE void give(float *to, int64_t v, V sum) const {
    alignas(64) float lanes[T::L];
    T::store(lanes, T::set(0.f) - sum);
    memcpy(to + v * T::L, lanes, static_cast<size_t>(this->filters.filled(v)) * sizeof(float));
  }

  V sum_of_all(const float *patch, int64_t v) const {
    const float *const w = panels + v * this->taps * T::L;
    V total = T::set(0.f), sum = total;
    this->each_tap(v, patch, this->taps, [&](int64_t t, V x) ADDER_LAMBDA_INLINE {
      sum = add(x - T::load(w + t * T::L), sum);
      if (t % CHAIN == CHAIN - 1) total = total + sum, sum = T::set(0.f);
    });
    return total + sum;
  }

  V sum_of_others(const float *patch, int64_t v, const ListedTaps<T> &taps) const {
    const float *const w = panels + v * this->taps * T::L;
    V total = T::set(0.f);
    for (int64_t i = 0; i < taps.count_others;) {
      V sum = T::set(0.f);
      for (const int64_t end = min64(taps.count_others, i + CHAIN); i < end; ++i) {
        const int64_t t = taps.others[i];
        sum = add(T::set(patch[t]) - T::load(w + t * T::L), sum);
      }
      total = total + sum;
    }
    return total;
  }

  V sum_of_zeros(int64_t v, const ListedTaps<T> &taps) const {
    const float *const own = (powers ? powers : panels) + v * this->taps * T::L;
    return powers ? sum_of_zeros(taps, [&](int64_t t) ADDER_LAMBDA_INLINE { return T::load(own + t * T::L); })
                  : sum_of_zeros(taps, [&](int64_t t)
                                           ADDER_LAMBDA_INLINE { return add(T::load(own + t * T::L), T::set(0.f)); });
  }

  // power(tap) of the taps where x is 0.
  template <class F> ADDER_INLINE V sum_of_zeros(const ListedTaps<T> &taps, F power) const {
    constexpr int SUMS = 4; // an addition takes as many cycles as four of them need to start
    V total = T::set(0.f);
    for (int64_t i = 0; i < taps.count_zeros;) {
      V sums[SUMS] = {T::set(0.f), T::set(0.f), T::set(0.f), T::set(0.f)};
      const int64_t end = min64(taps.count_zeros, i + SUMS * CHAIN);
      for (; i + SUMS <= end; i += SUMS)
#pragma GCC unroll 4
        for (int j = 0; j < SUMS; ++j) sums[j] = sums[j] + power(taps.zeros[i + j]);
      for (; i < end; ++i) sums[0] = sums[0] + power(taps.zeros[i]);
      total = total + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    return total;
  }
};

template <class T> struct PowerGradWeight : Patches<T> {
  const float *dy, *panels;
  const DerivativeOfPower<T> &power;
  float *dw;
  Flag failed;

  PowerGradWeight(const Patches<T> &patches, const float *dy_, const float *panels_, const DerivativeOfPower<T> &power_,
                  float *dw_)
      : Patches<T>(patches), dy(dy_), panels(panels_), power(power_), dw(dw_) {}

  int64_t tasks() const { return this->filters.vectors * this->R; }
  double operations() const { return 24. * this->N * this->P * this->Q * this->taps * this->filters.vectors; }

  void run(int64_t begin, int64_t end) {
    typedef typename T::V V;
    const int64_t count = this->S * this->Cg;
    Scratch<float> patch(this->groups * count), sums(count * T::L), totals(count * T::L);
    if (!patch || !sums || !totals) return failed.set();
    for (; begin < end; ++begin) {
      const int64_t v = begin / this->R, r = begin % this->R, filled = this->filters.filled(v);
      const float *const w = panels + begin * count * T::L;
      memset(totals, 0, static_cast<size_t>(count * T::L) * sizeof(float));
      for (int64_t row = 0; row < this->N * this->P; ++row) { // sums of a row first: shorter chains
        memset(sums, 0, static_cast<size_t>(count * T::L) * sizeof(float));
        for (int64_t q = 0; q < this->Q; ++q) {
          this->take(row / this->P, row % this->P, q, r, r + 1, patch);
          alignas(64) float lanes[T::L] = {};
          memcpy(lanes, dy + (row * this->Q + q) * this->K + v * T::L, static_cast<size_t>(filled) * sizeof(float));
          const V d = T::load(lanes);
          this->each_tap(v, patch, count, [&](int64_t t, V x) ADDER_LAMBDA_INLINE {
            float *const sum = sums + t * T::L;
            T::store(sum, T::fma(power(x - T::load(w + t * T::L)), d, T::load(sum)));
          });
        }
        for (int64_t t = 0; t < count * T::L; t += T::L) T::store(totals + t, T::load(totals + t) + T::load(sums + t));
      }
      for (int64_t lane = 0; lane < filled; ++lane)
        for (int64_t t = 0; t < count; ++t)
          dw[(v * T::L + lane) * this->taps + r * count + t] = totals[t * T::L + lane];
    }
  }
};

// Lanes over the channels of x. Panels [vectors][R][S][Kg][L].
template <class T> struct PowerGradInput : Geometry {
  static constexpr int64_t BLOCK = 4; // vectors of a task
  const float *dy, *x;
  float *panels;
  const DerivativeOfPower<T> &power;
  float *dx;
  Lanes<T> channels;
  Flag failed;

  PowerGradInput(const Geometry &s, const float *dy_, const float *x_, float *panels_,
                 const DerivativeOfPower<T> &power_, float *dx_)
      : Geometry(s), dy(dy_), x(x_), panels(panels_), power(power_), dx(dx_), channels(C, Cg) {}

  int64_t blocks() const { return ceil_div(channels.vectors, BLOCK); }
  int64_t tasks() const { return N * H * blocks(); }
  double operations() const { return 24. * N * P * Q * R * S * Kg * channels.vectors; }
  int64_t panel_floats() const { return channels.vectors * R * S * Kg * T::L; }

  void pack(const float *w) const {
    for_each(channels.vectors, 1. * R * S * Kg * channels.vectors, [&](int64_t vector) {
      float *to = panels + vector * R * S * Kg * T::L;
      for (int64_t rs = 0; rs < R * S; ++rs)
        for (int64_t k = 0; k < Kg; ++k)
          for (int64_t lane = 0; lane < T::L; ++lane, ++to) {
            const int64_t c = vector * T::L + lane;
            *to = c < C ? w[((channels.group(c) * Kg + k) * R * S + rs) * Cg + c % Cg] : 0.f;
          }
    });
  }

  void run(int64_t begin, int64_t end) const {
    for (; begin < end; ++begin) {
      const int64_t first = begin % blocks() * BLOCK, row = begin / blocks();
      for (int64_t j = 0; j < W; ++j)
        for (int64_t v = first; v < min64(channels.vectors, first + BLOCK); ++v) pixel(row / H, row % H, j, v);
    }
  }

  // A vector of channels of one pixel.
  void pixel(int64_t n, int64_t h, int64_t column, int64_t v) const {
    typedef typename T::V V;
    const int64_t place = ((n * H + h) * W + column) * C + v * T::L;
    const size_t bytes = static_cast<size_t>(channels.filled(v)) * sizeof(float);
    alignas(64) float lanes[T::L] = {};
    memcpy(lanes, x + place, bytes);
    const V own = T::load(lanes);
    V total = T::set(0.f);
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        if (!column_meets(column, s)) continue;
        const int64_t q = dy_column(column, s);
        if (q < 0 || q >= Q) continue;
        const float *const d = dy + ((n * P + p) * Q + q) * K, *w = panels + ((v * R + r) * S + s) * Kg * T::L;
        total = total + filters(own, v, d, w);
      }
    }
    T::store(lanes, total);
    memcpy(dx + place, lanes, bytes);
  }

  // Sum over the filters of the lanes' groups.
  ADDER_INLINE typename T::V filters(typename T::V own, int64_t v, const float *d, const float *w) const {
    typedef typename T::V V;
    V total = T::set(0.f), sum = total;
    const bool one_group = channels.one_group(v);
    if (one_group) d += channels.group(v * T::L) * Kg;
    for (int64_t k = 0; k < Kg; ++k, w += T::L) {
      V each;
      if (one_group) each = T::set(d[k]);
      else {
        alignas(64) float lanes[T::L];
        for (int64_t lane = 0; lane < T::L; ++lane) lanes[lane] = d[channels.group(v * T::L + lane) * Kg + k];
        each = T::load(lanes);
      }
      sum = T::fma(power(T::load(w) - own), each, sum);
      if (k % CHAIN == CHAIN - 1) total = total + sum, sum = T::set(0.f);
    }
    return total + sum;
  }
};

static inline bool power_takes(const Geometry &s, const float *x, const float *w) {
  return all_within<Widest>(x, s.N * s.H * s.W * s.C, POWER_LIMIT) && all_within<Widest>(w, s.K * s.taps, POWER_LIMIT);
}

int power_forward(const adder_shape *shape, const float *x, const float *w, const adder_power *power, float *y) {
  const Geometry s(*shape);
  if (!power_takes(s, x, w)) return ADDER_NOT_FINITE;
  const Patches<Widest> patches(s, x);
  const AddPower<Widest> of(*power);
  Scratch<float> panels(patches.filters.vectors * s.taps * Widest::L);
  if (!panels) return ADDER_NO_MEMORY;
  patches.pack(w, panels);
  PowerForward<Widest> kernel(patches, panels, of, y);
  Scratch<float> powers(kernel.worth_powers() ? patches.filters.vectors * s.taps * Widest::L : 0);
  if (!powers) return ADDER_NO_MEMORY;
  if (kernel.worth_powers()) kernel.compute_powers(powers);
  return launch(kernel);
}

int power_grad_input(const adder_shape *shape, const float *dy, const float *x, const float *w,
                     const adder_power *power, float *dx) {
  const Geometry s(*shape);
  if (!power_takes(s, x, w)) return ADDER_NOT_FINITE;
  const DerivativeOfPower<Widest> of(*power);
  PowerGradInput<Widest> kernel(s, dy, x, nullptr, of, dx);
  Scratch<float> panels(kernel.panel_floats());
  if (!panels) return ADDER_NO_MEMORY;
  kernel.panels = panels;
  kernel.pack(w);
  return launch(kernel);
}

int power_grad_weight(const adder_shape *shape, const float *dy, const float *x, const float *w,
                      const adder_power *power, float *dw) {
  const Geometry s(*shape);
  if (!power_takes(s, x, w)) return ADDER_NOT_FINITE;
  const Patches<Widest> patches(s, x);
  const DerivativeOfPower<Widest> of(*power);
  Scratch<float> panels(patches.filters.vectors * s.taps * Widest::L);
  if (!panels) return ADDER_NO_MEMORY;
  patches.pack(w, panels);
  PowerGradWeight<Widest> kernel(patches, dy, panels, of, dw);
  return launch(kernel);
}

// The derivative of the power of w - x.
template <class T> struct PowerOfDifference : DerivativeOfPower<T> {
  static constexpr float FACTOR = 1.f;
  using DerivativeOfPower<T>::DerivativeOfPower;
  ADDER_INLINE typename T::V operator()(typename T::V w, typename T::V x) const {
    return DerivativeOfPower<T>::operator()(w - x);
  }
};

int gradients(const adder_shape *shape, const float *dy, const float *x, const float *w, const adder_power *power,
              float *dx, float *dw) {
  const Geometry s(*shape);
  if (power) {
    if (!power_takes(s, x, w)) return ADDER_NOT_FINITE;
    return both_gradients<Widest>(shape, dy, x, w, PowerOfDifference<Widest>(*power), dx, dw);
  }
  // The kernels for one of the gradients know better what to do with few channels; with powers they do not.
  if (2 * s.C < ceil_div(s.C, Narrow::L) * Narrow::L) return ADDER_UNSUITED;
  if (!all_within<Widest>(x, s.N * s.H * s.W * s.C, FLT_MAX) || !all_within<Widest>(w, s.K * s.taps, FLT_MAX))
    return ADDER_NOT_FINITE;
  // Sums of twice the sign must stay in float's range.
  const double terms = static_cast<double>(max64(s.N * s.P * s.Q, s.R * s.S * s.Kg));
  if (Widest::TWICE_SIGN && !all_within<Widest>(dy, s.N * s.P * s.Q * s.K, static_cast<float>(FLT_MAX / 2 / terms)))
    return ADDER_NOT_FINITE;
  if (s.C <= Narrow::L) return both_gradients<Narrow>(shape, dy, x, w, SignOfDifference<Narrow>(), dx, dw);
  return both_gradients<Widest>(shape, dy, x, w, SignOfDifference<Widest>(), dx, dw);
}

} // namespace ADDER_NAMESPACE
#endif
