// y = -sum |x - w| with lanes over the output channels of a group.
#ifndef ADDER_FORWARD_H
#define ADDER_FORWARD_H

#include "forward_tile.h"
#include "pack.h"
#include "rows.h"

namespace ADDER_NAMESPACE {

template <class T> struct ChannelForward : Shape {
  const float *x;
  float *y;
  bool identity;                     // 2 sum max(x, w) - sum x - sum w, where it passes its test
  int64_t image_floats, image_width; // of the image as it is
  int64_t skip_h, skip_w;            // steps between the pixels that are gathered; 1: all are read in place
  int64_t left, right;               // columns of padding
  const float *panels, *row_sums;    // see packed_floats
  const Epilogue<T> &epilogue;
  const Block *blocks;
  Split split;
  Flag failed;

  ChannelForward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_,
                 bool identity_, const Blocks<T> &blocks_)
      : Shape(identity_ && skips(shape) ? without_stride(shape) : shape), x(x_), y(y_), identity(identity_),
        image_floats(shape.H * shape.W * C), image_width(shape.W), skip_h(shape.stride_h / stride_h),
        skip_w(shape.stride_w / stride_w), left(pad_left), right(pad_right()), panels(packed),
        row_sums(packed + groups * ceil_div(Kg, T::L) * taps * T::L), epilogue(epilogue_), blocks(blocks_.at),
        split(N, P, stride_h * W * C * 4, 4 * K * taps, blocks_.count) {}

  int64_t tasks() const { return split.tasks(); }
  double operations() const { return 1. * N * P * Q * taps * K / T::L; }

  // A 1x1 kernel with a stride leaves out most pixels. The identity would sum pixels that nothing uses, so the pixels
  // that the kernel meets are gathered first.
  static bool skips(const Shape &s) {
    return s.R == 1 && s.S == 1 && (s.stride_h > 1 || s.stride_w > 1) && s.pad_top == 0 && s.pad_left == 0 &&
           (s.P - 1) * s.stride_h < s.H && (s.Q - 1) * s.stride_w < s.W;
  }
  static Shape without_stride(Shape s) {
    s.H = s.P;
    s.W = s.Q;
    s.stride_h = s.stride_w = 1;
    return s;
  }

  int64_t segments_of_row(int64_t p, const Rows &rows, Segment *segments) const {
    int64_t count = 0, chain = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t h = x_row(p, r);
      if (h < 0) continue;
      const int64_t source = (h - rows.begin) * rows.stride;
      if (groups == 1 && dilation_w == 1) count = add_segment(segments, count, chain, source, r * S * Cg, S * Cg);
      else
        for (int64_t s = 0; s < S; ++s)
          count = add_segment(segments, count, chain, source + s * dilation_w * C, (r * S + s) * Cg, Cg);
    }
    return count;
  }

  // Sum of x and of |x| over the patches of output row p of group g.
  void patch_sums(int64_t p, const Rows &rows, const float *sums, const float *abs_sums, int64_t padded, float *sum_x,
                  float *abs_x) const {
    const int64_t width_p = width(p, P, Q);
    for (int64_t q = 0; q < width_p; ++q) sum_x[q] = abs_x[q] = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t h = x_row(p, r);
      if (h < 0) continue;
      const int64_t row = (h - rows.begin) * padded;
      for (int64_t s = 0; s < S; ++s) {
        const float *from = sums + row + s * dilation_w, *abs_from = abs_sums + row + s * dilation_w;
        if (stride_w == 1)
          for (int64_t q = 0; q < width_p; ++q) sum_x[q] += from[q], abs_x[q] += abs_from[q];
        else
          for (int64_t q = 0; q < width_p; ++q) sum_x[q] += from[q * stride_w], abs_x[q] += abs_from[q * stride_w];
      }
    }
  }

  struct Buffers {
    float *copy;     // rows of x with their padding, or gathered
    float *sums;     // [2][rows][padded]: of x and of |x| over the channels of a group
    float *patches;  // [groups][2][rows][Q]: of them over the patches
    int64_t in_rows; // room for so many rows
    Segment *segments;
  };

  void run(int64_t begin, int64_t end) {
    const bool gathers = skip_h > 1 || skip_w > 1, copies = left > 0 || right > 0;
    const int64_t padded = left + W + right, in_rows = max_x_rows(split.chunk);
    Scratch<float> copy(copies || gathers ? in_rows * padded * C : 1);
    Scratch<float> sums(identity ? 2 * in_rows * padded * groups : 1);
    Scratch<float> patches(identity ? 2 * groups * split.chunk * Q : 1);
    Scratch<Segment> segments(segment_capacity(taps, R * S));
    if (!copy || !sums || !patches || !segments) return failed.set();
    const Buffers buffers = {copy, sums, patches, in_rows, segments};
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const auto [h_begin, h_end] = x_rows(task.row_begin, task.row_end);
      const float *const image = x + task.image * image_floats;
      const Rows rows = gathers ? gather_rows<T>(image, image_width, C, skip_h, skip_w, h_begin, h_end, W, copy)
                                : take_rows(image, W, C, h_begin, h_end, left, right, copies ? copy.data : nullptr);
      Prefetcher next = rows_of_next_task(i + 1, end, task);
      if (identity) sum_patches(task, rows, h_end, buffers);
      for (int64_t b = task.block_begin; b < task.block_end; ++b) block_of_task(blocks[b], task, rows, buffers, next);
    }
  }

  // The sums over all patches of a task.
  void sum_patches(const Task &task, const Rows &rows, int64_t h_end, const Buffers &buffers) const {
    const int64_t padded = left + W + right, tile_rows = task.row_end - task.row_begin;
    float *const sums = buffers.sums, *const abs_sums = sums + buffers.in_rows * padded;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t h = rows.begin; h < h_end; ++h)
        channel_sums(rows.at(h, -left, C) + g * Cg, width(h, H, W) + left + right, sums + (h - rows.begin) * padded,
                     abs_sums + (h - rows.begin) * padded);
      for (int64_t p = 0; p < tile_rows; ++p) {
        float *to = buffers.patches + (2 * g * tile_rows + p) * Q;
        patch_sums(task.row_begin + p, rows, sums, abs_sums, padded, to, to + tile_rows * Q);
      }
    }
  }

  // All rows of a task for one block of filters.
  void block_of_task(const Block &block, const Task &task, const Rows &rows, const Buffers &buffers,
                     Prefetcher &next) const {
    const int64_t tile_rows = task.row_end - task.row_begin;
    for (int64_t p = 0, n; p < tile_rows; p += n) {
      n = 1;
      if (joins_rows<T>(block.nv) && Q >= max_pixels<T>(2, false) && all_inside(task.row_begin + p))
        while (p + n < tile_rows && all_inside(task.row_begin + p + n)) ++n;
      const float *const sum_x = buffers.patches + (identity ? (2 * block.group * tile_rows + p) * Q : 0);
      rows_of_tiles(block, task.image, task.row_begin + p, n, rows, buffers.segments, sum_x, sum_x + tile_rows * Q,
                    next);
    }
  }

  // The rows that the task after `now` reads; for a strided 1x1 kernel only the rows that it meets.
  Prefetcher rows_of_next_task(int64_t i, int64_t end, const Task &now) const {
    if (i >= end) return {};
    const Task next(split, i);
    if (next.image == now.image && next.row_begin == now.row_begin) return {};
    const int64_t tiles = (now.block_end - now.block_begin) * (now.row_end - now.row_begin) * ceil_div(Q, MAX_PIXELS);
    const int64_t row = image_width * C, step = R == 1 ? stride_h * skip_h : 1;
    const auto [h_begin, h_end] = x_rows(next.row_begin, next.row_end);
    const int64_t rows = skip_h > 1 ? h_end - h_begin : ceil_div(h_end - h_begin, step);
    return {x + next.image * image_floats + h_begin * skip_h * row, row, step * row, rows, tiles};
  }

  bool all_inside(int64_t p) const { return x_row(p, 0) >= 0 && x_row(p, R - 1) >= 0; }

  // Sum of x and of |x| over the channels of a group, for each of `count` pixels.
  void channel_sums(const float *from, int64_t count, float *sum, float *abs_sum) const {
    typedef typename T::V V;
    int64_t j = 0;
    if (Cg % T::L == 0)
      for (; j + T::L <= count; j += T::L, from += T::L * C) { // as many pixels at a time as a vector has lanes
        V total = T::set(0.f), abs_total = T::set(0.f);
        for (int64_t c = 0; c < Cg;) {
          const int64_t end = min64(Cg, c + CHAIN * T::L);
          V s[T::L], a[T::L];
#pragma GCC unroll 16
          for (int i = 0; i < T::L; ++i) s[i] = T::load(from + i * C + c), a[i] = T::abs(s[i]);
          for (c += T::L; c < end; c += T::L)
#pragma GCC unroll 16
            for (int i = 0; i < T::L; ++i) {
              const V value = T::load(from + i * C + c);
              s[i] = s[i] + value;
              a[i] = a[i] + T::abs(value);
            }
          total = total + T::sums(s);
          abs_total = abs_total + T::sums(a);
        }
        T::store(sum + j, total);
        T::store(abs_sum + j, abs_total);
      }
    for (; j < count; ++j, from += C) {
      float total = 0, abs_total = 0;
      int64_t c = 0;
      while (c + T::L <= Cg) {
        V s = T::set(0.f), a = T::set(0.f);
        for (const int64_t end = min64(Cg, c + CHAIN * T::L); c + T::L <= end; c += T::L) {
          const V value = T::load(from + c);
          s = s + value;
          a = a + T::abs(value);
        }
        total += T::sum(s);
        abs_total += T::sum(a);
      }
      float rest = 0, abs_rest = 0;
      for (; c < Cg; ++c) rest += from[c], abs_rest += __builtin_fabsf(from[c]);
      sum[j] = total + rest;
      abs_sum[j] = abs_total + abs_rest;
    }
  }

  // Sums of a block's filters over the rows of taps that output row p meets, and over the other rows, [NV * L].
  struct FilterSums {
    alignas(64) float w[4 * T::L];
    alignas(64) float abs_w[4 * T::L];
    alignas(64) float outside[4 * T::L]; // |w| of the taps outside of the image
  };
  void sum_filters(const Block &block, int64_t p, FilterSums &sums) const {
    typedef typename T::V V;
    for (int v = 0; v < block.nv; ++v) {
      V sum = T::set(0.f), abs_sum = T::set(0.f), outside = T::set(0.f);
      for (int64_t r = 0; r < R; ++r) {
        const float *from = row_sums + ((block.vector + v) * R + r) * 2 * T::L;
        if (x_row(p, r) >= 0) sum = sum + T::load(from), abs_sum = abs_sum + T::load(from + T::L);
        else outside = outside + T::load(from + T::L); // a padded tap has x = 0 and adds |w|
      }
      T::store(sums.w + v * T::L, sum - outside);
      T::store(sums.abs_w + v * T::L, abs_sum + outside);
      T::store(sums.outside + v * T::L, outside);
    }
  }

  // Offsets of the pixels of a tile that begins `left_in_row` pixels before the end of its row.
  static void join_rows(int64_t left_in_row, int64_t step, int64_t next_row, int64_t *offsets) {
    for (int64_t m = 0, at = 0; m < max_pixels<T>(2, false); ++m, at += step) {
      if (m == left_in_row) at += next_row;
      offsets[m] = at;
    }
  }

  // Output rows [p, p + n); n > 1 only if the rows have the same segments and a row is at least as long as a tile.
  void rows_of_tiles(const Block &block, int64_t image, int64_t p, int64_t n, const Rows &rows, Segment *segments,
                     const float *sum_x, const float *abs_x, Prefetcher &next) const {
    alignas(64) float sum[MAX_SUM], values[MAX_SUM];
    FilterSums filters;
    sum_filters(block, p, filters);
    const int64_t pixels = (n - 1) * Q + width(p + n - 1, P, Q), step = stride_w * C;
    const float max_w = max_or_inf<T>(filters.abs_w, block.nv * T::L);
    const float max_x = identity ? max_or_inf<T>(abs_x, pixels) : 0.f;
    const int64_t count = segments_of_row(p, rows, segments);
    const int64_t next_row = stride_h * rows.stride - Q * step; // beyond the step from a row's last pixel
    const int64_t origin = (image * P + p) * Q * K + block.channel;
    TileOutput<T> out = epilogue.output(y, origin, K, block.vector, block.nv, block.channels);
    int64_t offsets[MAX_PIXELS], left_in_row = Q;
    for (int64_t m = 0; m < MAX_PIXELS; ++m) offsets[m] = joins_rows<T>(block.nv) ? m * step : step;
    bool regular = true; // offsets are a step apart
    // Vectors that are not whole are first written to a buffer.
    const TileOutput<T> beside = {values, nullptr, block.nv * T::L, nullptr, nullptr, false, block.nv * T::L, true};
    const float *const panel = panels + block.vector * taps * T::L;
    RowOperands<T> row = {segments,
                          count,
                          offsets,
                          panel,
                          taps * T::L,
                          sum,
                          filters.outside,
                          out.whole ? out : beside,
                          {sum_x, abs_x, filters.w, filters.abs_w, max_x, max_w}};
    const auto tiles = forward_tiles<T>(block.nv, identity);
    const float *from = rows.data + block.group * Cg;
    const int64_t tile_count = ceil_div(pixels, max_pixels<T>(block.nv, false));
    const EvenParts sizes(pixels, tile_count);
    for (int64_t i = 0; i < tile_count; ++i) {
      const int64_t mr = sizes.size(i);
      next.prefetch_lines();
      if (joins_rows<T>(block.nv) && (mr > left_in_row || !regular)) {
        join_rows(left_in_row, step, next_row, offsets);
        regular = left_in_row >= max_pixels<T>(2, false);
      }
      if (!tiles[mr](row, from)) forward_tiles<T>(block.nv, false)[mr](row, from);
      if (out.whole) row.out.advance(mr);
      else {
        for (int64_t m = 0; m < mr; ++m)
          store_pixel<T>(out, m, block.nv, [&](int v) { return T::load(values + (m * block.nv + v) * T::L); });
        out.advance(mr);
      }
      row.sums.advance(mr);
      from += mr * step;
      left_in_row -= mr;
      if (n > 1 && left_in_row <= 0) from += next_row, left_in_row += Q;
    }
  }
};

template <class T>
int forward_by_channels(const Shape &shape, const float *x, const float *packed, const Epilogue<T> &epilogue, float *y,
                        bool identity) {
  const Blocks<T> blocks(shape.groups, shape.Kg, max_vectors<T>(shape.Q, false));
  if (!blocks.at) return ADDER_NO_MEMORY;
  ChannelForward<T> kernel(shape, x, packed, epilogue, y, identity, blocks);
  return launch(kernel);
}

} // namespace ADDER_NAMESPACE
#endif
