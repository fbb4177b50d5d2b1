// Depthwise layers in all three directions.
#ifndef ADDER_DEPTHWISE_H
#define ADDER_DEPTHWISE_H

#include "depthwise_tile.h"
#include "grad_weight_product.h"
#include "pack.h"

namespace ADDER_NAMESPACE {

// The memory that a thread needs to go through rows.
struct DepthwiseBuffers {
  Scratch<const float *> pointers; // to the columns of R rows
  Scratch<float> zeros;            // [C]
  Scratch<TapRun> runs;
  DepthwiseBuffers(const Geometry &s, const Columns &columns)
      : pointers(s.R * columns.row()), zeros(s.C), runs(LONGEST_RUN * s.R * s.S) {
    if (zeros) memset(zeros, 0, static_cast<size_t>(s.C) * sizeof(float));
  }
  bool complete() const { return pointers && zeros && runs; }
};

// How many columns apart the taps of a filter's row are that meet the columns of neighbouring pixels; S: none do.
static inline int64_t depthwise_apart(const Geometry &s) {
  return s.stride_w % s.dilation_w == 0 ? s.stride_w / s.dilation_w : s.S;
}

// Columns of the images as output pixels meet them.
static inline Columns columns_of_images(const Geometry &s) {
  return Columns(s.W, s.pad_left, s.pad_right(), s.stride_w);
}

// The taps of output row p whose rows lie inside of the image, and pointers to these rows' pixels.
static inline DepthwiseTaps taps_of_output_row(const Geometry &s, const float *image, int64_t p, const Columns &columns,
                                               int64_t lanes, const DepthwiseBuffers &buffers) {
  const int64_t apart = depthwise_apart(s);
  DepthwiseTaps found(buffers.runs, s.R * s.S, apart * lanes);
  int64_t rows = 0;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t h = s.x_row(p, r);
    if (h < 0) continue;
    columns.point(image + h * s.W * s.C, s.C, buffers.zeros, buffers.pointers + rows * columns.row());
    for (int64_t t = 0; t < min64(apart, s.S); ++t)
      found.add(rows * columns.row() + columns.place(t * s.dilation_w), (r * s.S + t) * lanes,
                ceil_div(s.S - t, apart));
    ++rows;
  }
  return found;
}

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
        columns(columns_of_images(*this)), split(N, P, stride_h * W * C * 4, MAX_CHUNK, 1) {}

  int64_t tasks() const { return split.tasks(); }
  double operations() const { return 1. * N * P * Q * taps * K / T::L; }

  void run(int64_t begin, int64_t end) {
    constexpr int MAX = depthwise_pixels<T>(false);
    const auto tiles = tiles_of<MAX>([](auto pixels) { return depthwise_forward_tile<T, pixels.value>; });
    const DepthwiseBuffers buffers(*this, columns);
    Scratch<float> outside(C);
    if (!buffers.complete() || !outside) return failed.set();
    const int64_t tile_count = ceil_div(Q, MAX);
    const EvenParts sizes(Q, tile_count);
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      for (int64_t p = task.row_begin; p < task.row_end; ++p) {
        const DepthwiseTaps found = taps_of_output_row(*this, x + task.image * H * W * C, p, columns, lanes, buffers);
        sum_outside(p, outside);
        TileOutput<T> out = epilogue.output(y, (task.image * P + p) * Q * C, C, 0, 1, C);
        for (int64_t j = 0, q = 0, mr; j < tile_count; ++j, q += mr, out.advance(mr)) {
          mr = sizes.size(j);
          tiles[mr](found, buffers.pointers + q, filters, outside, out);
        }
      }
    }
  }

  // Sum of |w| over the taps of output row p outside of the image, [C].
  void sum_outside(int64_t p, float *sum) const {
    memset(sum, 0, static_cast<size_t>(C) * sizeof(float));
    for (int64_t r = 0; r < R; ++r)
      if (x_row(p, r) < 0)
        for (int64_t s = 0; s < S; ++s)
          for (int64_t c = 0; c < C; ++c) sum[c] += __builtin_fabsf(filters[(r * S + s) * lanes + c]);
  }
};

template <class T> struct DepthwiseGradInput : GradInputOperands {
  int64_t lanes, apart;
  const float *filters; // [R][S][lanes]
  Columns columns;
  Split split;

  DepthwiseGradInput(const GradInputOperands &operands, const float *packed)
      : GradInputOperands(operands), lanes(ceil_div(C, T::L) * T::L), apart(depthwise_apart(*this)), filters(packed),
        columns(Q, pad.left, pad.right, 1), split(N, H, (Q / stride_h + W) * C * 4, MAX_CHUNK, 1) {}

  int64_t tasks() const { return split.tasks(); }
  double operations() const { return operations_of<T>(); }

  void run(int64_t begin, int64_t end) {
    const DepthwiseBuffers buffers(*this, columns);
    if (!buffers.complete()) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      for (int64_t h = task.row_begin; h < task.row_end; ++h) {
        int64_t rows = 0;
        for (int64_t r = 0; r < R; ++r)
          if (const int64_t p = dy_row(h, r); p >= 0)
            columns.point(dy + (task.image * P + p) * Q * C, C, buffers.zeros,
                          buffers.pointers + rows++ * columns.row());
        for (int64_t phase = 0; phase < phases(); ++phase)
          row_of_tiles(task.image, h, phase, find_taps(h, phase, buffers.runs), buffers.pointers);
      }
    }
  }

  // The taps that meet a phase of row h. The columns of dy fall as the columns of the filters rise, so a run begins at
  // its last column.
  DepthwiseTaps find_taps(int64_t h, int64_t phase, TapRun *runs) const {
    DepthwiseTaps found(runs, R * S, -apart * lanes);
    int64_t rows = 0;
    for (int64_t r = 0; r < R; ++r) {
      if (dy_row(h, r) < 0) continue;
      for (int64_t s = 0; s < min64(apart, S); ++s) {
        const int64_t count = ceil_div(S - s, apart), end = s + (count - 1) * apart;
        if (column_meets(phase, end))
          found.add(rows * columns.row() + columns.left + dy_column(phase, end), (r * S + end) * lanes, count);
      }
      ++rows;
    }
    return found;
  }

  void row_of_tiles(int64_t image, int64_t h, int64_t phase, const DepthwiseTaps &found,
                    const float *const *pointers) const {
    constexpr int MAX = depthwise_pixels<T>(true);
    const auto tiles = with_mode(mode, [](auto mode_value) {
      constexpr int MODE = mode_value.value;
      return tiles_of<MAX>([](auto pixels) { return depthwise_grad_input_tile<T, pixels.value, MODE>; });
    });
    const int64_t step = stride_w * C, origin = ((image * H + h) * W + phase) * C;
    const int64_t pixels = ceil_div(W - phase, stride_w), tile_count = ceil_div(pixels, MAX);
    const EvenParts sizes(pixels, tile_count);
    for (int64_t j = 0, q = 0, mr; j < tile_count; ++j, q += mr) {
      mr = sizes.size(j);
      const int64_t place = origin + q * step;
      for (int64_t next = 0; next < C; next += T::L) {
        if (w_within) next = tiles[mr](found, pointers + q, filters, x + place, dx + place, step, next, C, limit);
        if (next >= C) break;
        const int64_t c = min64(next, C - T::L);
        for (int64_t m = 0; m < mr; ++m) one_by_one(image, h, phase + (q + m) * stride_w, c, c + T::L);
      }
    }
  }
};

// dw = sum dy * x - w * sum dy. As in the forward; first sums over a unit of rows, then over a part, then over all.
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

  int64_t tasks() const { return parts; }
  double operations() const { return 1. * N * P * Q * taps * C / T::L; }

  void run(int64_t part, int64_t last) {
    const DepthwiseBuffers buffers(*this, columns);
    Scratch<float> unit_sums(floats);
    if (!buffers.complete() || !unit_sums) return failed.set();
    for (; part < last; ++part) {
      float *const part_sums = sums + part * floats;
      memset(part_sums, 0, static_cast<size_t>(floats) * sizeof(float));
      for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
        memset(unit_sums, 0, static_cast<size_t>(floats) * sizeof(float));
        const int64_t image = unit / chunks, begin = unit % chunks * rows;
        for (int64_t p = begin; p < min64(P, begin + rows); ++p) row_of_tiles(image, p, buffers, unit_sums);
        for (int64_t i = 0; i < floats; i += T::L)
          T::store(part_sums + i, T::load(part_sums + i) + T::load(unit_sums + i));
      }
    }
  }

  void row_of_tiles(int64_t image, int64_t p, const DepthwiseBuffers &buffers, float *unit_sums) const {
    constexpr int MAX = depthwise_pixels<T>(false);
    const auto tiles = tiles_of<MAX>([](auto pixels) { return depthwise_grad_weight_tile<T, pixels.value>; });
    const int64_t tile_count = ceil_div(Q, MAX);
    const EvenParts sizes(Q, tile_count);
    const DepthwiseTaps found = taps_of_output_row(*this, x + image * H * W * C, p, columns, lanes, buffers);
    const float *from = dy + (image * P + p) * Q * C;
    for (int64_t j = 0, q = 0, mr; j < tile_count; ++j, q += mr, from += mr * C) {
      mr = sizes.size(j);
      tiles[mr](found, buffers.pointers + q, from, C, unit_sums, unit_sums + taps * lanes);
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

template <class T>
int forward_depthwise(const Shape &shape, const float *x, const float *packed, const Epilogue<T> &epilogue, float *y) {
  DepthwiseForward<T> kernel(shape, x, packed, epilogue, y);
  return launch(kernel);
}

template <class T> int grad_input_depthwise(const GradInputOperands &operands) {
  Scratch<float> filters(packed_floats<T>(operands));
  if (!filters) return ADDER_NO_MEMORY;
  pack_filters<T>(operands, operands.w, filters);
  DepthwiseGradInput<T> kernel(operands, filters);
  return launch(kernel);
}

template <class T>
int grad_weight_depthwise(const Shape &shape, const float *dy, const float *x, const float *w, float *dw) {
  DepthwiseGradWeight<T> kernel(shape, dy, x, w, dw);
  Scratch<float> sums(kernel.parts * kernel.floats);
  if (!sums) return ADDER_NO_MEMORY;
  kernel.sums = sums;
  if (const int status = launch(kernel)) return status;
  for_each(kernel.lanes / T::L, 1. * kernel.parts * kernel.floats / T::L,
           [&](int64_t vector) { kernel.finish(vector); });
  return kernel.infinite.value ? ADDER_NOT_FINITE : ADDER_OK;
}

} // namespace ADDER_NAMESPACE
#endif
