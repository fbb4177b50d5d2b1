// Small groups: lanes over the channels of many groups.
#ifndef ADDER_GROUPS_H
#define ADDER_GROUPS_H

#include "grad_input_tile.h"
#include "output.h"
#include "rows.h"

namespace ADDER_NAMESPACE {

constexpr int GROUP_PIXELS = 6;     // of a tile
constexpr int64_t GROUP_LANES = 16; // that are worked on at a time, so that rows of them stay in the cache

// A pixel's channels spread out so that lanes `first` to first + GROUP_LANES find their own: to[i][lane], i over the
// per_group channels of a group, each of which lanes_per_group lanes share.
template <class T> struct GroupLanes {
  int64_t per_group, first, count; // count: lanes that there are
  bool permutes;                   // a vector's lanes find theirs among as many channels side by side
  int32_t channel[GROUP_LANES], order[T::L / 2 * T::L]; // order [i][lane]

  GroupLanes(int64_t per_group_, int64_t lanes_per_group, int64_t first_, int64_t lanes)
      : per_group(per_group_), first(first_), count(min64(GROUP_LANES, lanes - first)),
        permutes(T::PERMUTES && per_group == lanes_per_group && per_group <= T::L / 2 && T::L % per_group == 0) {
    for (int64_t lane = 0; lane < GROUP_LANES; ++lane)
      channel[lane] = static_cast<int32_t>((first + lane) / lanes_per_group * per_group);
    for (int64_t i = 0; permutes && i < per_group; ++i)
      for (int64_t lane = 0; lane < T::L; ++lane)
        order[i * T::L + lane] = static_cast<int32_t>(lane / per_group * per_group + i);
  }

  // Row of `count` pixels, `channels` apart, between `left` and `right` of zeros.
  void row(const float *from, int64_t pixels, int64_t channels, int64_t left, int64_t right, float *to) const {
    const int64_t step = per_group * GROUP_LANES;
    memset(to, 0, static_cast<size_t>((count < GROUP_LANES ? left + pixels + right : left) * step) * sizeof(float));
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
            T::store(to + i * GROUP_LANES + done, T::permute(v, order + i * T::L));
        }
    for (int64_t i = 0; i < per_group; ++i)
      for (int64_t lane = done; lane < count; ++lane) to[i * GROUP_LANES + lane] = from[channel[lane] + i];
  }
};

// y[m] = -(outside + sum over taps of |x - w|) for MR pixels and one whole vector of output channels.
template <class T, int MR>
__attribute__((noinline)) void group_forward_tile(const int64_t *offsets, const int64_t *taps, int64_t count,
                                                  const float *x, int64_t step, const float *w, int64_t w_step,
                                                  const float *outside, const TileOutput<T> &out) {
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

// dx[m] = sum over taps of dy * t(w - x) for MR pixels and one vector of input channels.
template <class T, int MR, int MODE>
__attribute__((noinline)) void group_grad_input_tile(const int64_t *offsets, const int64_t *taps, int64_t count,
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

template <class T> struct GroupForward : Shape {
  const float *x;
  float *y;
  int64_t left, right, lanes; // columns of padding; K rounded up to vectors
  const float *filters;       // [R][S][Cg][lanes]
  const Epilogue<T> &epilogue;
  Split split;
  Flag failed;

  GroupForward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_)
      : Shape(shape), x(x_), y(y_), left(pad_left), right(pad_right()), lanes(ceil_div(K, T::L) * T::L),
        filters(packed), epilogue(epilogue_),
        split(N, P, stride_h * W * GROUP_LANES * Cg * 4, MAX_CHUNK, ceil_div(K, GROUP_LANES), false) {}

  int64_t tasks() const { return split.tasks(); }
  double operations() const { return 1. * N * P * Q * taps * K / T::L; }

  void run(int64_t begin, int64_t end) {
    const int64_t padded = left + W + right, stride = padded * Cg * GROUP_LANES;
    Scratch<float> copy(max_x_rows(split.chunk) * stride);
    Scratch<int64_t> offsets(2 * taps);
    if (!copy || !offsets) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const auto [h_begin, h_end] = x_rows(task.row_begin, task.row_end);
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t first = block * GROUP_LANES;
        const GroupLanes<T> group_lanes(Cg, Kg, first, K);
        for (int64_t h = h_begin; h < h_end; ++h)
          group_lanes.row(x + (task.image * H + h) * W * C, W, C, left, right, copy + (h - h_begin) * stride);
        for (int64_t p = task.row_begin; p < task.row_end; ++p)
          row_of_tiles(task.image, p, h_begin, first, copy, stride, offsets, offsets + taps);
      }
    }
  }

  // The taps of output row p inside of the image: where each of them is in x and among the filters.
  int64_t find_taps(int64_t p, int64_t h_begin, int64_t stride, int64_t *offsets, int64_t *index) const {
    const int64_t channels = Cg, columns = S, pixel = channels * GROUP_LANES, column_step = dilation_w * pixel;
    int64_t count = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t h = x_row(p, r);
      if (h < 0) continue;
      int64_t tap = r * columns * channels, column = (h - h_begin) * stride;
      for (int64_t s = 0; s < columns; ++s, column += column_step)
        for (int64_t i = 0; i < channels; ++i) {
          offsets[count] = column + i * GROUP_LANES;
          index[count++] = tap++;
        }
    }
    return count;
  }

  // Sum of |w| of the taps outside of the image, for a vector of filters from k on.
  typename T::V outside_of_image(int64_t p, int64_t k) const {
    typename T::V sum = T::set(0.f);
    for (int64_t r = 0; r < R; ++r)
      if (x_row(p, r) < 0)
        for (int64_t t = 0; t < S * Cg; ++t) sum = sum + T::abs(T::load(filters + (r * S * Cg + t) * lanes + k));
    return sum;
  }

  // Lanes from `first` on of output row p.
  __attribute__((noinline)) void row_of_tiles(int64_t image, int64_t p, int64_t h_begin, int64_t first,
                                              const float *copy, int64_t stride, int64_t *offsets,
                                              int64_t *index) const {
    const int64_t count = find_taps(p, h_begin, stride, offsets, index);
    alignas(64) float outside[T::L], values[GROUP_PIXELS * T::L];
    const auto tiles = tiles_of<GROUP_PIXELS>([](auto pixels) { return group_forward_tile<T, pixels.value>; });
    const int64_t step = stride_w * Cg * GROUP_LANES, tile_count = ceil_div(Q, GROUP_PIXELS);
    const EvenParts sizes(Q, tile_count);
    for (int64_t k = first; k < min64(K, first + GROUP_LANES); k += T::L) {
      T::store(outside, outside_of_image(p, k));
      TileOutput<T> out = epilogue.output(y, (image * P + p) * Q * K + k, K, k / T::L, 1, min64(T::L, K - k));
      // Vectors that are not whole are first written to a buffer.
      const TileOutput<T> beside = {values, nullptr, T::L, nullptr, nullptr, false, T::L, true};
      for (int64_t j = 0, q = 0, mr; j < tile_count; ++j, q += mr, out.advance(mr)) {
        mr = sizes.size(j);
        tiles[mr](offsets, index, count, copy + q * step + k - first, step, filters + k, lanes, outside,
                  out.whole ? out : beside);
        for (int64_t m = 0; m < mr && !out.whole; ++m)
          store_pixel<T>(out, m, 1, [&](int) ADDER_LAMBDA_INLINE { return T::load(values + m * T::L); });
      }
    }
  }
};

template <class T>
int forward_by_groups(const Shape &shape, const float *x, const float *packed, const Epilogue<T> &epilogue, float *y) {
  GroupForward<T> kernel(shape, x, packed, epilogue, y);
  return launch(kernel);
}

template <class T> struct GroupGradInput : GradInputOperands {
  int64_t lanes;  // C rounded up to vectors
  float *filters; // [R][S][Kg][lanes]
  Split split;

  GroupGradInput(const GradInputOperands &operands, float *filters_)
      : GradInputOperands(operands), lanes(ceil_div(C, T::L) * T::L), filters(filters_),
        split(N, H, GROUP_LANES * (Q * Kg / stride_h + W) * 4, MAX_CHUNK, ceil_div(C, GROUP_LANES), false) {}

  int64_t tasks() const { return split.tasks(); }
  double operations() const { return operations_of<T>(); }

  void pack(int64_t tap) const { // tap: (r * S + s) * Kg + k
    float *to = filters + tap * lanes;
    const int64_t k = tap % Kg, rs = tap / Kg;
    for (int64_t c = 0; c < C; ++c) to[c] = w[((c / Cg * Kg + k) * R * S + rs) * Cg + c % Cg];
    for (int64_t c = C; c < lanes; ++c) to[c] = 0;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t stride = padded() * Kg * GROUP_LANES, room = 1 + 2 * R * S * Kg;
    Scratch<float> copy(max_dy_rows(split.chunk) * stride);
    Scratch<int64_t> taps_of(split.chunk * phases() * room); // [row][phase]: how many, their places in dy, and in w
    if (!copy || !taps_of) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const auto [p_begin, p_end] = dy_rows(task.row_begin, task.row_end);
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t first = block * GROUP_LANES;
        const GroupLanes<T> group_lanes(Kg, Cg, first, C);
        for (int64_t p = p_begin; p < p_end; ++p)
          group_lanes.row(dy + (task.image * P + p) * Q * K, Q, K, pad.left, pad.right, copy + (p - p_begin) * stride);
        for (int64_t h = task.row_begin; h < task.row_end; ++h)
          for (int64_t phase = 0; phase < phases(); ++phase) {
            int64_t *const found = taps_of + ((h - task.row_begin) * phases() + phase) * room;
            if (block == task.block_begin) find_taps(h, phase, p_begin, stride, found);
            row_of_tiles(task.image, h, phase, first, copy, found);
          }
      }
    }
  }

  // The taps that meet a phase of row h.
  void find_taps(int64_t h, int64_t phase, int64_t p_begin, int64_t stride, int64_t *found) const {
    int64_t count = 0, *const offsets = found + 1, *const index = offsets + R * S * Kg;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        if (!column_meets(phase, s)) continue;
        const int64_t column = pad.left + dy_column(phase, s);
        for (int64_t k = 0; k < Kg; ++k) {
          offsets[count] = (p - p_begin) * stride + (column * Kg + k) * GROUP_LANES;
          index[count++] = (r * S + s) * Kg + k;
        }
      }
    }
    *found = count;
  }

  // Fills xs [mr][L] with x of a tile; returns whether all of it is within the limit.
  bool take_x(const float *from, int64_t step, int64_t mr, int64_t channels, float *xs) const {
    bool within = w_within;
    for (int64_t m = 0; m < mr; ++m, from += step, xs += T::L) {
      if (channels < T::L) {
        T::store(xs, T::set(0.f));
        memcpy(xs, from, static_cast<size_t>(channels) * sizeof(float));
      } else T::store(xs, T::load(from));
      within &= T::all_le(T::abs(T::load(xs)), T::set(limit));
    }
    return within;
  }

  // Lanes from `first` on of a phase of row h of dx.
  void row_of_tiles(int64_t image, int64_t h, int64_t phase, int64_t first, const float *copy,
                    const int64_t *found) const {
    const int64_t count = *found, *const offsets = found + 1, *const index = offsets + R * S * Kg;
    const int64_t pixel = Kg * GROUP_LANES, step = stride_w * C, origin = ((image * H + h) * W + phase) * C;
    const int64_t pixels = ceil_div(W - phase, stride_w), tile_count = ceil_div(pixels, GROUP_PIXELS);
    const EvenParts sizes(pixels, tile_count);
    const auto tiles = with_mode(mode, [](auto mode_value) {
      constexpr int MODE = mode_value.value;
      return tiles_of<GROUP_PIXELS>([](auto size) { return group_grad_input_tile<T, size.value, MODE>; });
    });
    alignas(64) float xs[GROUP_PIXELS * T::L], sum[GROUP_PIXELS * T::L];
    for (int64_t c = first; c < min64(C, first + GROUP_LANES); c += T::L) {
      const int64_t channels = min64(T::L, C - c);
      for (int64_t j = 0, q = 0, mr; j < tile_count; ++j, q += mr) {
        mr = sizes.size(j);
        const int64_t place = origin + q * step + c;
        if (take_x(x + place, step, mr, channels, xs)) {
          tiles[mr](offsets, index, count, copy + q * pixel + c - first, pixel, filters + c, lanes, xs, sum);
          for (int64_t m = 0; m < mr; ++m) store_channels<T>(dx + place + m * step, sum + m * T::L, 1, channels);
        } else
          for (int64_t m = 0; m < mr; ++m) one_by_one(image, h, phase + (q + m) * stride_w, c, c + channels);
      }
    }
  }
};

template <class T> int grad_input_by_groups(const GradInputOperands &operands) {
  Scratch<float> filters(operands.R * operands.S * operands.Kg * ceil_div(operands.C, T::L) * T::L);
  if (!filters) return ADDER_NO_MEMORY;
  GroupGradInput<T> kernel(operands, filters);
  for (int64_t tap = 0; tap < kernel.R * kernel.S * kernel.Kg; ++tap) kernel.pack(tap);
  return launch(kernel);
}

} // namespace ADDER_NAMESPACE
#endif
