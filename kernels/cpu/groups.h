// Small groups: lanes over the channels of many groups.
#ifndef ADDER_GROUPS_H
#define ADDER_GROUPS_H

#include "grad_input_tile.h"
#include "output.h"
#include "rows.h"

namespace ADDER_NAMESPACE {

constexpr int GROUPED_PIXELS = 6;
constexpr int64_t GROUPED_LANES = 16; // that are worked on at a time, so that rows of them stay in the cache

// A pixel's channels spread out so that lanes `first` to first + GROUPED_LANES find their own: to[i][lane], i over the
// per_group channels of a group, each of which lanes_per_group lanes share.
template <class T> struct Spread {
  int64_t per_group, first, count; // count: lanes that there are
  bool permutes;                   // a vector's lanes find theirs among as many channels side by side
  int32_t channel[GROUPED_LANES], order[T::L / 2 * T::L]; // order [i][lane]

  Spread(int64_t per_group_, int64_t lanes_per_group, int64_t first_, int64_t lanes)
      : per_group(per_group_), first(first_), count(min64(GROUPED_LANES, lanes - first)),
        permutes(T::PERMUTES && per_group == lanes_per_group && per_group <= T::L / 2 && T::L % per_group == 0) {
    for (int64_t lane = 0; lane < GROUPED_LANES; ++lane)
      channel[lane] = static_cast<int32_t>((first + lane) / lanes_per_group * per_group);
    for (int64_t i = 0; permutes && i < per_group; ++i)
      for (int64_t lane = 0; lane < T::L; ++lane)
        order[i * T::L + lane] = static_cast<int32_t>(lane / per_group * per_group + i);
  }

  // Row of `count` pixels, `channels` apart, between `left` and `right` of zeros.
  void row(const float *from, int64_t pixels, int64_t channels, int64_t left, int64_t right, float *to) const {
    const int64_t step = per_group * GROUPED_LANES;
    memset(to, 0, static_cast<size_t>((count < GROUPED_LANES ? left + pixels + right : left) * step) * sizeof(float));
    to += left * step;
    for (; pixels > 0; --pixels, from += channels, to += step) pixel(from, to);
    memset(to, 0, static_cast<size_t>(right * step) * sizeof(float));
  }

  void pixel(const float *from, float *to) const {
    int64_t done = 0;
    if constexpr (T::PERMUTES)
      if (permutes)
        for (; done + T::L <= count; done += T::L) {
          const typename T::V v = T::load(from + first + done);
          for (int64_t i = 0; i < per_group; ++i)
            T::store(to + i * GROUPED_LANES + done, T::permute(v, order + i * T::L));
        }
    for (int64_t i = 0; i < per_group; ++i)
      for (int64_t lane = done; lane < count; ++lane) to[i * GROUPED_LANES + lane] = from[channel[lane] + i];
  }
};

// y[m] = -(outside + sum over taps of |x - w|) for MR pixels and one whole vector of output channels.
template <class T, int MR>
__attribute__((noinline)) void grouped_forward_tile(const int64_t *offsets, const int64_t *taps, int64_t count,
                                                    const float *x, int64_t step, const float *w, int64_t w_step,
                                                    const float *outside, const Output<T> &out) {
  typedef typename T::V V;
  const V one = T::opaque(T::set(1.f));
  V acc[MR][1];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) acc[m][0] = T::load(outside);
  for (int64_t t = 0; t < count; ++t) {
    const V wv = T::load(w + taps[t] * w_step);
    const float *xs = x + offsets[t];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = T::accumulate(acc[m][0], T::distance(T::load(xs + m * step), wv), one);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) acc[m][0] = T::set(0.f) - acc[m][0];
  store_tile<T, MR, 1>(out, acc);
}

template <class T> struct GroupedForwardTiles {
  typedef void (*Tile)(const int64_t *, const int64_t *, int64_t, const float *, int64_t, const float *, int64_t,
                       const float *, const Output<T> &);
  Tile of[GROUPED_PIXELS + 1]; // by pixels; there is none of no pixels
  constexpr GroupedForwardTiles() : of() { list<GROUPED_PIXELS>(); }
  template <int MR> constexpr void list() {
    of[MR] = grouped_forward_tile<T, MR>;
    if constexpr (MR > 1) list<MR - 1>();
  }
};

// dx[m] = sum over taps of dy * t(w - x) for MR pixels and one vector of input channels.
template <class T, int MR, int MODE>
__attribute__((noinline)) void grouped_grad_input_tile(const int64_t *offsets, const int64_t *taps, int64_t count,
                                                       const float *dy, int64_t step, const float *w, int64_t w_step,
                                                       const float *x, float *sum) {
  typedef typename T::V V;
  V acc[MR], xs[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) acc[m] = T::set(0.f), xs[m] = T::load(x + m * T::L);
  for (int64_t t = 0; t < count; ++t) {
    const V wv = T::load(w + taps[t] * w_step);
    const float *ds = dy + offsets[t];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m] = T::fma(transfer<T, MODE>(wv, xs[m]), T::load(ds + m * step), acc[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) T::store(sum + m * T::L, acc[m]);
}

typedef void (*GroupedTile)(const int64_t *, const int64_t *, int64_t, const float *, int64_t, const float *, int64_t,
                            const float *, float *);

template <class T, int MODE, int MR = GROUPED_PIXELS> GroupedTile grouped_grad_input_tile_in(int64_t mr) {
  if constexpr (MR == 0) return nullptr;
  else return mr == MR ? grouped_grad_input_tile<T, MR, MODE> : grouped_grad_input_tile_in<T, MODE, MR - 1>(mr);
}

template <class T> GroupedTile grouped_grad_input_tile_for(int mode, int64_t mr) {
  return mode == ADDER_CLIPPED ? grouped_grad_input_tile_in<T, ADDER_CLIPPED>(mr)
         : mode == ADDER_FULL  ? grouped_grad_input_tile_in<T, ADDER_FULL>(mr)
                               : grouped_grad_input_tile_in<T, ADDER_SIGN>(mr);
}

template <class T> struct GroupedForward : Shape {
  const float *x;
  float *y;
  int64_t left, right, lanes; // lanes: K rounded up to vectors
  const float *filters;       // [R][S][Cg][lanes]
  const Epilogue<T> &epilogue;
  Split split;
  Flag failed;

  GroupedForward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_)
      : Shape(shape), x(x_), y(y_), left(pad_left),
        right(max64(0, (Q - 1) * stride_w + (S - 1) * dilation_w + 1 - pad_left - W)), lanes(ceil_div(K, T::L) * T::L),
        filters(packed), epilogue(epilogue_),
        split(N, P, stride_h * W * GROUPED_LANES * Cg * 4, MOST_CHUNK, ceil_div(K, GROUPED_LANES), false) {}

  void run(int64_t begin, int64_t end) {
    const int64_t padded = left + W + right, stride = padded * Cg * GROUPED_LANES;
    const int64_t in_rows = min64(H, (split.chunk - 1) * stride_h + (R - 1) * dilation_h + 1);
    Scratch<float> copy(in_rows * stride);
    Scratch<int64_t> offsets(2 * taps);
    if (!copy || !offsets) return failed.set();
    int64_t *const index = offsets + taps;
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const int64_t h_begin = max64(0, min64(H, task.row_begin * stride_h - pad_top));
      const int64_t h_end =
          max64(h_begin, min64(H, (task.row_end - 1) * stride_h - pad_top + (R - 1) * dilation_h + 1));
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t first = block * GROUPED_LANES;
        const Spread<T> spread(Cg, Kg, first, K);
        for (int64_t h = h_begin; h < h_end; ++h)
          spread.row(x + (task.image * H + h) * W * C, W, C, left, right, copy + (h - h_begin) * stride);
        for (int64_t p = task.row_begin; p < task.row_end; ++p)
          row(task.image, p, h_begin, first, copy, stride, offsets, index);
      }
    }
  }

  // Lanes `first` and those beside it of output row p.
  void row(int64_t image, int64_t p, int64_t h_begin, int64_t first, const float *copy, int64_t stride,
           int64_t *offsets, int64_t *index) const {
    typedef typename T::V V;
    static constexpr GroupedForwardTiles<T> grouped_tiles;
    const int64_t pixel = Cg * GROUPED_LANES, step = stride_w * pixel, tiles = ceil_div(Q, GROUPED_PIXELS);
    int64_t count = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t h = p * stride_h - pad_top + r * dilation_h;
      if (h < 0 || h >= H) continue;
      for (int64_t s = 0; s < S; ++s)
        for (int64_t i = 0; i < Cg; ++i) {
          offsets[count] = (h - h_begin) * stride + s * dilation_w * pixel + i * GROUPED_LANES;
          index[count++] = (r * S + s) * Cg + i;
        }
    }
    for (int64_t k = first; k < min64(K, first + GROUPED_LANES); k += T::L) {
      alignas(64) float outside[T::L], values[GROUPED_PIXELS * T::L];
      V beyond = T::set(0.f);
      for (int64_t r = 0; r < R; ++r) {
        const int64_t h = p * stride_h - pad_top + r * dilation_h;
        for (int64_t t = 0; t < S * Cg && (h < 0 || h >= H); ++t)
          beyond = beyond + T::abs(T::load(filters + (r * S * Cg + t) * lanes + k));
      }
      T::store(outside, beyond);
      Output<T> out = epilogue.output(y, (image * P + p) * Q * K + k, K, k / T::L, 1, min64(T::L, K - k));
      const Output<T> aside = {values,  nullptr, T::L, nullptr,
                               nullptr, false,   T::L, true}; // vectors that are not whole
      const Cut cut(Q, tiles);
      for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr, out.advance(mr)) {
        mr = cut.size(j);
        grouped_tiles.of[mr](offsets, index, count, copy + q * step + k - first, step, filters + k, lanes, outside,
                             out.whole ? out : aside);
        for (int64_t m = 0; m < mr && !out.whole; ++m)
          store_pixel<T>(out, m, 1, [&](int) ADDER_LAMBDA_INLINE { return T::load(values + m * T::L); });
      }
    }
  }
};

template <class T> struct GroupedGradInput : Shape {
  const float *dy, *x, *w;
  float *dx;
  int mode;
  float limit; // of |x| and |w| for the tiles
  bool good_w; // w keeps it
  int64_t left, right, lanes;
  float *filters; // [R][S][Kg][lanes]
  Split split;
  Flag failed;

  GroupedGradInput(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dx_, int mode_,
                   float *filters_)
      : Shape(shape), dy(dy_), x(x_), w(w_), dx(dx_), mode(mode_), limit(largest_operand(mode_)),
        good_w(all_within<T>(w_, K * taps, limit)), left(Reach(shape).left), right(Reach(shape).right),
        lanes(ceil_div(C, T::L) * T::L), filters(filters_),
        split(N, H, GROUPED_LANES * (Q * Kg / stride_h + W) * 4, MOST_CHUNK, ceil_div(C, GROUPED_LANES), false) {}

  void pack(int64_t tap) const { // tap: (r * S + s) * Kg + k
    float *to = filters + tap * lanes;
    const int64_t k = tap % Kg, rs = tap / Kg;
    for (int64_t c = 0; c < C; ++c) to[c] = w[((c / Cg * Kg + k) * R * S + rs) * Cg + c % Cg];
    for (int64_t c = C; c < lanes; ++c) to[c] = 0;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t padded = left + Q + right, stride = padded * Kg * GROUPED_LANES;
    const int64_t out_rows = min64(P, (split.chunk + (R - 1) * dilation_h) / stride_h + 1);
    Scratch<float> copy(out_rows * stride);
    const int64_t phases = min64(stride_w, W), room = 1 + 2 * R * S * Kg;
    Scratch<int64_t> taps_of(split.chunk * phases * room); // [row][phase]: how many, their places in dy, and in w
    if (!copy || !taps_of) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const int64_t low = task.row_begin + pad_top - (R - 1) * dilation_h, high = task.row_end - 1 + pad_top;
      const int64_t p_begin = low <= 0 ? 0 : min64(P, ceil_div(low, stride_h));
      const int64_t p_end = max64(p_begin, min64(P, high / stride_h + 1));
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t first = block * GROUPED_LANES;
        const Spread<T> spread(Kg, Cg, first, C);
        for (int64_t p = p_begin; p < p_end; ++p)
          spread.row(dy + (task.image * P + p) * Q * K, Q, K, left, right, copy + (p - p_begin) * stride);
        for (int64_t h = task.row_begin; h < task.row_end; ++h)
          for (int64_t phase = 0; phase < phases; ++phase) {
            int64_t *const taps = taps_of + ((h - task.row_begin) * phases + phase) * room;
            if (block == task.block_begin) find_taps(h, phase, p_begin, stride, taps);
            row(task.image, h, phase, first, copy, taps);
          }
      }
    }
  }

  // The taps that meet a phase of row h.
  void find_taps(int64_t h, int64_t phase, int64_t p_begin, int64_t stride, int64_t *taps) const {
    int64_t count = 0, *const offsets = taps + 1, *const index = offsets + R * S * Kg;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t ph = h + pad_top - r * dilation_h;
      if (ph < 0 || ph % stride_h || ph / stride_h >= P) continue;
      for (int64_t s = 0; s < S; ++s) {
        const int64_t qw = phase + pad_left - s * dilation_w;
        if (qw % stride_w) continue;
        for (int64_t k = 0; k < Kg; ++k) {
          offsets[count] = (ph / stride_h - p_begin) * stride + ((left + qw / stride_w) * Kg + k) * GROUPED_LANES;
          index[count++] = (r * S + s) * Kg + k;
        }
      }
    }
    *taps = count;
  }

  // Lanes `first` and those beside it of a phase of row h of dx.
  void row(int64_t image, int64_t h, int64_t phase, int64_t first, const float *copy, const int64_t *taps) const {
    const int64_t count = *taps, *const offsets = taps + 1, *const index = offsets + R * S * Kg;
    const int64_t pixel = Kg * GROUPED_LANES, step = stride_w * C, origin = ((image * H + h) * W + phase) * C;
    const int64_t pixels = ceil_div(W - phase, stride_w), tiles = ceil_div(pixels, GROUPED_PIXELS);
    const Cut cut(pixels, tiles);
    alignas(64) float xs[GROUPED_PIXELS * T::L], sum[GROUPED_PIXELS * T::L];
    for (int64_t c = first; c < min64(C, first + GROUPED_LANES); c += T::L) {
      const int64_t channels = min64(T::L, C - c);
      for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr) {
        mr = cut.size(j);
        const float *const from = x + origin + q * step + c;
        float *const to = dx + origin + q * step + c;
        bool good = good_w;
        for (int64_t m = 0; m < mr; ++m) {
          if (channels < T::L) {
            T::store(xs + m * T::L, T::set(0.f));
            memcpy(xs + m * T::L, from + m * step, static_cast<size_t>(channels) * sizeof(float));
          } else T::store(xs + m * T::L, T::load(from + m * step));
          good &= T::all_le(T::abs(T::load(xs + m * T::L)), T::set(limit));
        }
        if (good) {
          grouped_grad_input_tile_for<T>(mode, mr)(offsets, index, count, copy + q * pixel + c - first, pixel,
                                                   filters + c, lanes, xs, sum);
          for (int64_t m = 0; m < mr; ++m) store_channels<T>(to + m * step, sum + m * T::L, 1, channels);
        } else
          for (int64_t m = 0; m < mr; ++m)
            grad_input_pixel(*this, dy, x, w, dx, mode, image, h, phase + (q + m) * stride_w, c, c + channels);
      }
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
