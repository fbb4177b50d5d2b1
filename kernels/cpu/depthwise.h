// Depthwise layers in all three directions.
#ifndef ADDER_DEPTHWISE_H
#define ADDER_DEPTHWISE_H

#include "depthwise_tile.h"
#include "grad_weight_product.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

template <class T> struct DepthwiseForward : Shape {
  const float *x;
  float *y;
  int64_t lanes;        // C rounded up to vectors
  const float *filters; // [R][S][lanes]
  const Epilogue<T> &epilogue;
  Columns columns;
  Split split;
  Flag failed;

  DepthwiseForward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_)
      : Shape(shape), x(x_), y(y_), lanes(ceil_div(C, T::L) * T::L), filters(packed), epilogue(epilogue_),
        columns(columns_of_images(*this)), split(N, P, stride_h * W * C * 4, MOST_CHUNK, 1) {}

  void run(int64_t begin, int64_t end) {
    static constexpr DepthwiseForwardTiles<T> depthwise_tiles;
    Scratch<const float *> pointers(R * columns.row());
    Scratch<float> zeros(2 * C);
    Scratch<Run> runs(LONGEST_RUN * R * S);
    if (!pointers || !zeros || !runs) return failed.set();
    float *const outside = zeros + C;
    memset(zeros, 0, static_cast<size_t>(C) * sizeof(float));
    const int64_t tiles = ceil_div(Q, depthwise_pixels<T>(false));
    const Cut cut(Q, tiles);
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      for (int64_t p = task.row_begin; p < task.row_end; ++p) {
        const DepthwiseTaps found =
            rows_of(*this, x + task.image * H * W * C, p, columns, lanes, zeros, pointers, runs);
        memset(outside, 0, static_cast<size_t>(C) * sizeof(float));
        for (int64_t r = 0; r < R; ++r) {
          const int64_t h = p * stride_h - pad_top + r * dilation_h;
          for (int64_t s = 0; s < S && (h < 0 || h >= H); ++s)
            for (int64_t c = 0; c < C; ++c) outside[c] += __builtin_fabsf(filters[(r * S + s) * lanes + c]);
        }
        Output<T> out = epilogue.output(y, (task.image * P + p) * Q * C, C, 0, 1, C);
        for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr, out.advance(mr)) {
          mr = cut.size(j);
          depthwise_tiles.of[mr](found, pointers + q, filters, outside, out);
        }
      }
    }
  }
};

template <class T> struct DepthwiseGradInput : Shape {
  const float *dy, *x, *w;
  float *dx;
  int mode;
  float limit; // of |x| and |w| for the tiles
  bool good_w; // w keeps it
  int64_t lanes, apart;
  const float *filters; // [R][S][lanes]
  Columns columns;
  Split split;
  Flag failed;

  DepthwiseGradInput(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dx_, int mode_,
                     const float *packed)
      : Shape(shape), dy(dy_), x(x_), w(w_), dx(dx_), mode(mode_), limit(largest_operand(mode_)),
        good_w(all_within<T>(w_, K * taps, limit)), lanes(ceil_div(C, T::L) * T::L), apart(depthwise_apart(*this)),
        filters(packed), columns(Q, Reach(shape).left, Reach(shape).right, 1),
        split(N, H, (Q / stride_h + W) * C * 4, MOST_CHUNK, 1) {}

  void run(int64_t begin, int64_t end) {
    Scratch<const float *> pointers(R * columns.row());
    Scratch<float> zeros(C);
    Scratch<Run> runs(LONGEST_RUN * R * S);
    if (!pointers || !zeros || !runs) return failed.set();
    memset(zeros, 0, static_cast<size_t>(C) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      for (int64_t h = task.row_begin; h < task.row_end; ++h) {
        int64_t rows = 0;
        for (int64_t r = 0; r < R; ++r)
          if (const int64_t p = row_of(h, r); p >= 0)
            columns.point(dy + (task.image * P + p) * Q * C, C, zeros, pointers + rows++ * columns.row());
        for (int64_t phase = 0; phase < min64(stride_w, W); ++phase) {
          const DepthwiseTaps found = find_taps(h, phase, runs);
          if (mode == ADDER_CLIPPED) row<ADDER_CLIPPED>(task.image, h, phase, found, pointers);
          else if (mode == ADDER_FULL) row<ADDER_FULL>(task.image, h, phase, found, pointers);
          else row<ADDER_SIGN>(task.image, h, phase, found, pointers);
        }
      }
    }
  }

  // The row of dy that row r of the filters meets from row h of x; -1: none.
  int64_t row_of(int64_t h, int64_t r) const {
    const int64_t ph = h + pad_top - r * dilation_h;
    return ph < 0 || ph % stride_h || ph / stride_h >= P ? -1 : ph / stride_h;
  }

  // The taps that meet a phase of row h. Columns of dy go down as those of the filters go up, so runs begin at their
  // ends.
  DepthwiseTaps find_taps(int64_t h, int64_t phase, Run *runs) const {
    DepthwiseTaps found(runs, R * S, -apart * lanes);
    int64_t rows = 0;
    for (int64_t r = 0; r < R; ++r) {
      if (row_of(h, r) < 0) continue;
      for (int64_t s = 0; s < min64(apart, S); ++s) {
        const int64_t taps = ceil_div(S - s, apart), end = s + (taps - 1) * apart;
        const int64_t qw = phase + pad_left - end * dilation_w;
        if (qw % stride_w == 0)
          found.add(rows * columns.row() + columns.left + qw / stride_w, (r * S + end) * lanes, taps);
      }
      ++rows;
    }
    return found;
  }

  template <int MODE>
  void row(int64_t image, int64_t h, int64_t phase, const DepthwiseTaps &found, const float *const *pointers) const {
    static constexpr DepthwiseGradInputTiles<T, MODE> depthwise_tiles;
    const int64_t step = stride_w * C, origin = ((image * H + h) * W + phase) * C;
    const int64_t pixels = ceil_div(W - phase, stride_w), tiles = ceil_div(pixels, depthwise_pixels<T>(true));
    const Cut cut(pixels, tiles);
    for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr) {
      mr = cut.size(j);
      for (int64_t next = 0; next < C; next += T::L) {
        if (good_w)
          next = depthwise_tiles.of[mr](found, pointers + q, filters, x + origin + q * step, dx + origin + q * step,
                                        step, next, C, limit);
        if (next >= C) break;
        const int64_t c = min64(next, C - T::L);
        for (int64_t m = 0; m < mr; ++m)
          grad_input_pixel(*this, dy, x, w, dx, MODE, image, h, phase + (q + m) * stride_w, c, c + T::L);
      }
    }
  }
};

// dw = sum dy * x - w * sum dy. Like the forward, with sums of a unit of rows first, then of a part, then of all.
template <class T> struct DepthwiseGradWeight : Shape {
  const float *dy, *x, *w;
  float *dw;
  int64_t lanes, floats; // floats: of the sums of a part, [taps + 1][lanes]
  Columns columns;
  int64_t rows, chunks, units, parts;
  float *sums;
  Flag failed, infinite;

  DepthwiseGradWeight(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dw_)
      : Shape(shape), dy(dy_), x(x_), w(w_), dw(dw_), lanes(ceil_div(C, T::L) * T::L), floats((taps + 1) * lanes),
        columns(columns_of_images(*this)), rows(min64(P, max64(1, DW_PIXELS / Q))), chunks(ceil_div(P, rows)),
        units(N * chunks), parts(max64(1, min64(min64(units, TASKS), N * (H * W + P * Q) * C / (4 * floats)))) {}

  void run(int64_t part, int64_t last) {
    static constexpr DepthwiseGradWeightTiles<T> depthwise_tiles;
    Scratch<const float *> pointers(R * columns.row());
    Scratch<float> zeros(C), unit_sums(floats);
    Scratch<Run> runs(LONGEST_RUN * R * S);
    if (!pointers || !zeros || !unit_sums || !runs) return failed.set();
    memset(zeros, 0, static_cast<size_t>(C) * sizeof(float));
    const int64_t tiles = ceil_div(Q, depthwise_pixels<T>(false));
    const Cut cut(Q, tiles);
    for (; part < last; ++part) {
      float *const part_sums = sums + part * floats;
      memset(part_sums, 0, static_cast<size_t>(floats) * sizeof(float));
      for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
        memset(unit_sums, 0, static_cast<size_t>(floats) * sizeof(float));
        const int64_t image = unit / chunks, begin = unit % chunks * rows;
        for (int64_t p = begin; p < min64(P, begin + rows); ++p) {
          const DepthwiseTaps found = rows_of(*this, x + image * H * W * C, p, columns, lanes, zeros, pointers, runs);
          const float *from = dy + (image * P + p) * Q * C;
          for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr, from += mr * C) {
            mr = cut.size(j);
            depthwise_tiles.of[mr](found, pointers + q, from, C, unit_sums, unit_sums + taps * lanes);
          }
        }
        for (int64_t i = 0; i < floats; i += T::L)
          T::store(part_sums + i, T::load(part_sums + i) + T::load(unit_sums + i));
      }
    }
  }

  // dw of the channels of a vector.
  void finish(int64_t vector) {
    typedef typename T::V V;
    const int64_t first = vector * T::L, channels = min64(T::L, C - first);
    alignas(64) float total[T::L], dy_total[T::L];
    bool finite = true;
    for (int64_t t = taps; t >= 0; --t) { // dy's first
      V sum = T::load(sums + t * lanes + first);
      for (int64_t part = 1; part < parts; ++part) sum = sum + T::load(sums + part * floats + t * lanes + first);
      T::store(t == taps ? dy_total : total, sum);
      for (int64_t c = 0; c < channels && t < taps; ++c) {
        const int64_t at = (first + c) * taps + t;
        dw[at] = total[c] - w[at] * dy_total[c];
        finite &= __builtin_fabsf(dw[at]) <= FLT_MAX;
      }
    }
    if (!finite) infinite.set();
  }
};

} // namespace ADDER_NAMESPACE
#endif
