// Depthwise layers, one filter for each channel: how tiles walk over taps and columns, and the tiles.
#ifndef ADDER_DEPTHWISE_TILE_H
#define ADDER_DEPTHWISE_TILE_H

#include "grad_input_tile.h"
#include "output.h"

namespace ADDER_NAMESPACE {

// Lanes go over the channels, and nothing is copied: tiles reach their pixels through pointers, and where there is
// padding these lead to zeros. A tile goes over all channels, as they lie side by side in memory, with all its taps for
// each vector.
template <class T> bool is_depthwise(const Geometry &s) { return s.groups == s.C && s.C == s.K && s.C >= T::L; }

// Pixels of the tiles, whose dx holds x beside its sums.
template <class T> constexpr int depthwise_pixels(bool x_too) { return x_too && T::REGISTERS < 32 ? 6 : 8; }

// The taps of a row of outputs or of dx, in runs: the next tap of a run meets, at each pixel, what this one meets at
// the next pixel, so a tile loads each column once for all of them. A run of one place among the pointers, where its
// first tap meets the first pixel, and one of its filters.
constexpr int LONGEST_RUN = 3; // whose filters have room in registers
struct TapRun {
  int64_t place, filter;
};
struct DepthwiseTaps {
  TapRun *runs;                           // [LONGEST_RUN][room], by length
  int64_t room, step, count[LONGEST_RUN]; // step: between the filters of a run's taps
  DepthwiseTaps(TapRun *runs_, int64_t room_, int64_t step_) : runs(runs_), room(room_), step(step_), count() {}
  // Taps whose places follow each other.
  void add(int64_t place, int64_t filter, int64_t taps) {
    for (int64_t n; taps > 0; taps -= n, place += n, filter += n * step) {
      n = min64(taps, LONGEST_RUN);
      runs[(n - 1) * room + count[n - 1]++] = {place, filter};
    }
  }
};

// The pointers to rows of `width` pixels with columns of zeros around them: [row][phase][column of this phase].
struct Columns {
  int64_t width, left, padded, phases, of_phase;
  Columns(int64_t width_, int64_t left_, int64_t right, int64_t phases_)
      : width(width_), left(left_), padded(left_ + width_ + right), phases(phases_),
        of_phase(ceil_div(padded, phases_)) {}
  int64_t row() const { return phases * of_phase; }
  // column: of the padded ones.
  int64_t place(int64_t column) const { return column % phases * of_phase + column / phases; }
  void point(const float *pixels, int64_t channels, const float *zeros, const float **to) const {
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int64_t i = 0; i < of_phase; ++i) {
        const int64_t column = i * phases + phase - left;
        to[phase * of_phase + i] = column >= 0 && column < width ? pixels + column * channels : zeros;
      }
  }
};

// f(run, its length as a Constant) for all runs, the longest first.
template <int N = LONGEST_RUN, class F> ADDER_INLINE void each_run(const DepthwiseTaps &taps, F f) {
  const TapRun *run = taps.runs + (N - 1) * taps.room;
  for (const TapRun *const end = run + taps.count[N - 1]; run != end; ++run) f(*run, Constant<N>());
  if constexpr (N > 1) each_run<N - 1>(taps, f);
}

// f(m, s, column): tap s of a run meets this column at pixel m.
template <class T, int MR, int N, class F> ADDER_INLINE void each_column(const float *const *columns, int64_t c, F f) {
#pragma GCC unroll 16
  for (int j = 0; j < MR + N - 1; ++j) {
    const typename T::V column = T::load(columns[j] + c);
    __builtin_prefetch(columns[j] + c + 16, 0, 3); // columns lie too far apart for the processor to see it
#pragma GCC unroll 4
    for (int s = 0; s < N; ++s)
      if (j - s >= 0 && j - s < MR) f(j - s, s, column);
  }
}

// f(m, column, filter) for all taps.
template <class T, int MR, class F>
ADDER_INLINE void each_tap(const DepthwiseTaps &taps, const float *const *columns, const float *w, int64_t c, F f) {
  typedef typename T::V V;
  each_run(taps, [&](const TapRun &run, auto length) ADDER_LAMBDA_INLINE {
    V filters[length.value];
#pragma GCC unroll 4
    for (int s = 0; s < length.value; ++s) filters[s] = T::load(w + run.filter + s * taps.step + c);
    each_column<T, MR, length.value>(columns + run.place, c,
                                     [&](int m, int s, V column) ADDER_LAMBDA_INLINE { f(m, column, filters[s]); });
  });
}

// y[m] = -(outside + sum over taps of |x - w|) for MR pixels and all channels.
template <class T, int MR>
__attribute__((noinline)) void depthwise_forward_tile(const DepthwiseTaps &taps, const float *const *columns,
                                                      const float *w, const float *outside, const TileOutput<T> &out) {
  typedef typename T::V V;
  const V one = T::opaque(T::set(1.f));
  const int64_t channels = out.channels;
  for (int64_t next = 0; next < channels; next += T::L) {
    const int64_t c = min64(next, channels - T::L); // the last vector goes over some channels again
    V acc[MR][1];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = T::load(outside + c);
    each_tap<T, MR>(taps, columns, w, c, [&](int m, V x, V filter) ADDER_LAMBDA_INLINE {
      acc[m][0] = T::accumulate(acc[m][0], T::distance(x, filter), one);
    });
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = T::set(0.f) - acc[m][0];
    store_tile<T, MR, 1>(out.from(c), acc);
  }
}

// dx[m] = sum over taps of dy * t(w - x) for MR pixels and the channels from `next` on, up to the first vector that has
// an |x| beyond `limit`; returns where that is.
template <class T, int MR, int MODE>
__attribute__((noinline)) int64_t depthwise_grad_input_tile(const DepthwiseTaps &taps, const float *const *columns,
                                                            const float *w, const float *x, float *dx, int64_t step,
                                                            int64_t next, int64_t channels, float limit) {
  typedef typename T::V V;
  for (; next < channels; next += T::L) {
    const int64_t c = min64(next, channels - T::L);
    V acc[MR], xs[MR];
    bool good = true;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      acc[m] = T::set(0.f), xs[m] = T::load(x + m * step + c);
      good &= T::all_le(T::abs(xs[m]), T::set(limit));
    }
    if (!good) break;
    each_tap<T, MR>(taps, columns, w, c, [&](int m, V dy, V filter) ADDER_LAMBDA_INLINE {
      acc[m] = T::fma(transfer<T, MODE>(filter, xs[m]), dy, acc[m]);
    });
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) T::store(dx + m * step + c, acc[m]);
  }
  return next;
}

// sums[tap] += sum of dy * x over MR pixels, all channels; and dy's own sum.
template <class T, int MR>
__attribute__((noinline)) void depthwise_grad_weight_tile(const DepthwiseTaps &taps, const float *const *columns,
                                                          const float *dy, int64_t channels, float *sums,
                                                          float *dy_sums) {
  typedef typename T::V V;
  for (int64_t next = 0; next < channels; next += T::L) {
    const int64_t c = min64(next, channels - T::L);
    V d[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) d[m] = T::load(dy + m * channels + c);
    if (c < next) { // the last vector goes over some channels again, which are counted already
      alignas(64) float counts[T::L];
      for (int64_t lane = 0; lane < T::L; ++lane) counts[lane] = c + lane < next ? 0.f : 1.f;
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) d[m] = d[m] * T::load(counts);
    }
    V total = d[0];
#pragma GCC unroll 8
    for (int m = 1; m < MR; ++m) total = total + d[m];
    T::store(dy_sums + c, T::load(dy_sums + c) + total);
    each_run(taps, [&](const TapRun &run, auto length) ADDER_LAMBDA_INLINE {
      float *const to = sums + run.filter + c;
      V acc[length.value];
#pragma GCC unroll 4
      for (int s = 0; s < length.value; ++s) acc[s] = T::load(to + s * taps.step);
      each_column<T, MR, length.value>(columns + run.place, c, [&](int m, int s, V column) ADDER_LAMBDA_INLINE {
        acc[s] = T::fma(d[m], column, acc[s]);
      });
#pragma GCC unroll 4
      for (int s = 0; s < length.value; ++s) T::store(to + s * taps.step, acc[s]);
    });
  }
}

} // namespace ADDER_NAMESPACE
#endif
