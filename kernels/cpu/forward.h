// y = -sum |x - w| with lanes over the output channels of a group.
#ifndef ADDER_FORWARD_H
#define ADDER_FORWARD_H

#include "forward_tile.h"
#include "pack.h"
#include "rows.h"

namespace ADDER_NAMESPACE {

template <class T> struct Forward : Shape {
  const float *x;
  float *y;
  bool identity;
  int64_t image_floats, image_width, skip_h,
      skip_w;                     // of the image as it is; steps between the pixels that are gathered
  int64_t left, right;            // columns of padding
  const float *panels, *row_sums; // see packed_floats
  const Epilogue<T> &epilogue;
  Block *blocks;
  Split split;
  Flag failed;

  Forward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_,
          bool exact_, Block *blocks_, int64_t block_count)
      : Shape(gathered(shape, exact_) ? without_stride(shape) : shape), x(x_), y(y_),
        identity(takes_identity(shape, exact_)), image_floats(shape.H * shape.W * C), image_width(shape.W),
        skip_h(shape.stride_h / stride_h), skip_w(shape.stride_w / stride_w), left(pad_left),
        right(max64(0, (Q - 1) * stride_w + (S - 1) * dilation_w + 1 - pad_left - W)), panels(packed),
        row_sums(packed + groups * ceil_div(Kg, T::L) * taps * T::L), epilogue(epilogue_), blocks(blocks_),
        split(N, P, stride_h * W * C * 4, 4 * K * taps, block_count) {}

  static bool takes_identity(const Shape &s, bool exact) {
    return T::IDENTITY && !exact && s.taps >= IDENTITY_TAPS && s.R * s.S <= CHAIN; // patch_sums adds a pixel at a time
  }

  // A 1x1 kernel with a stride leaves out most pixels: the identity would sum what nobody uses.
  static bool gathered(const Shape &s, bool exact) {
    return takes_identity(s, exact) && s.R == 1 && s.S == 1 && (s.stride_h > 1 || s.stride_w > 1) && s.pad_top == 0 &&
           s.pad_left == 0 && (s.P - 1) * s.stride_h < s.H && (s.Q - 1) * s.stride_w < s.W;
  }
  static Shape without_stride(Shape s) {
    s.H = s.P;
    s.W = s.Q;
    s.stride_h = s.stride_w = 1;
    return s;
  }

  bool row_inside(int64_t p, int64_t r) const {
    const int64_t h = p * stride_h - pad_top + r * dilation_h;
    return h >= 0 && h < H;
  }

  int64_t segments_of_row(int64_t p, const Rows &rows, Segment *segments) const {
    int64_t count = 0, chain = 0;
    for (int64_t r = 0; r < R; ++r) {
      if (!row_inside(p, r)) continue;
      const int64_t source = (p * stride_h - pad_top + r * dilation_h - rows.begin) * rows.stride;
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
      if (!row_inside(p, r)) continue;
      const int64_t row = (p * stride_h - pad_top + r * dilation_h - rows.begin) * padded;
      for (int64_t s = 0; s < S; ++s) {
        const float *from = sums + row + s * dilation_w, *abs_from = abs_sums + row + s * dilation_w;
        if (stride_w == 1)
          for (int64_t q = 0; q < width_p; ++q) sum_x[q] += from[q], abs_x[q] += abs_from[q];
        else
          for (int64_t q = 0; q < width_p; ++q) sum_x[q] += from[q * stride_w], abs_x[q] += abs_from[q * stride_w];
      }
    }
  }

  void run(int64_t begin, int64_t end) {
    const bool gathers = skip_h > 1 || skip_w > 1, copies = left > 0 || right > 0;
    const int64_t padded = left + W + right;
    const int64_t in_rows = min64(H, (split.chunk - 1) * stride_h + (R - 1) * dilation_h + 1);
    Scratch<float> copy(copies || gathers ? in_rows * padded * C : 1);
    Scratch<float> sums(identity ? 2 * in_rows * padded * groups : 1);
    Scratch<float> patches(identity ? 2 * groups * split.chunk * Q : 1);
    Scratch<Segment> segments(segment_capacity(taps, R * S));
    if (!copy || !sums || !patches || !segments) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const int64_t h_begin = max64(0, min64(H, task.row_begin * stride_h - pad_top));
      const int64_t h_end =
          max64(h_begin, min64(H, (task.row_end - 1) * stride_h - pad_top + (R - 1) * dilation_h + 1));
      const float *const image = x + task.image * image_floats;
      const Rows rows = gathers ? gather_rows<T>(image, image_width, C, skip_h, skip_w, h_begin, h_end, W, copy)
                                : take_rows(image, W, C, h_begin, h_end, left, right, copies ? copy.data : nullptr);
      const int64_t tile_rows = task.row_end - task.row_begin;
      Ahead ahead = rows_ahead(i + 1, end, task);
      if (identity) {
        float *const abs_sums = sums + in_rows * padded;
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t h = h_begin; h < h_end; ++h)
            channel_sums(rows.at(h, -left, C) + g * Cg, width(h, H, W) + left + right, sums + (h - h_begin) * padded,
                         abs_sums + (h - h_begin) * padded);
          for (int64_t p = 0; p < tile_rows; ++p) {
            float *to = patches + (2 * g * tile_rows + p) * Q;
            patch_sums(task.row_begin + p, rows, sums, abs_sums, padded, to, to + tile_rows * Q);
          }
        }
      }
      for (int64_t b = task.block_begin; b < task.block_end; ++b)
        for (int64_t p = 0, n; p < tile_rows; p += n) {
          n = 1;
          if (joins_rows<T>(blocks[b].nv) && Q >= max_pixels<T>(2, false) && all_inside(task.row_begin + p))
            while (p + n < tile_rows && all_inside(task.row_begin + p + n)) ++n;
          const float *const sum_x = patches + (identity ? (2 * blocks[b].group * tile_rows + p) * Q : 0);
          rows_of_tiles(blocks[b], task.image, task.row_begin + p, n, rows, segments, sum_x, sum_x + tile_rows * Q,
                        ahead);
        }
    }
  }

  // The rows that the task after `now` brings; of a strided 1x1 kernel those that it meets.
  Ahead rows_ahead(int64_t i, int64_t end, const Task &now) const {
    if (i >= end) return {};
    const Task next(split, i);
    if (next.image == now.image && next.row_begin == now.row_begin) return {};
    const int64_t tiles = (now.block_end - now.block_begin) * (now.row_end - now.row_begin) * ceil_div(Q, MAX_PIXELS);
    const int64_t row = image_width * C, step = R == 1 ? stride_h * skip_h : 1;
    const int64_t h_begin = max64(0, min64(H, next.row_begin * stride_h - pad_top));
    const int64_t h_end = max64(h_begin, min64(H, (next.row_end - 1) * stride_h - pad_top + (R - 1) * dilation_h + 1));
    const int64_t rows = skip_h > 1 ? h_end - h_begin : ceil_div(h_end - h_begin, step);
    return {x + next.image * image_floats + h_begin * skip_h * row, row, step * row, rows, tiles};
  }

  bool all_inside(int64_t p) const { return row_inside(p, 0) && row_inside(p, R - 1); }

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

  // Output rows [p, p + n); more than one only if they have the same segments, and Q is no less than a tile.
  void rows_of_tiles(const Block &block, int64_t image, int64_t p, int64_t n, const Rows &rows, Segment *segments,
                     const float *sum_x, const float *abs_x, Ahead &ahead) const {
    typedef typename T::V V;
    alignas(64) float sum_w[4 * T::L], abs_w[4 * T::L], outside[4 * T::L], sum[MAX_SUM], values[MAX_SUM];
    const int64_t pixels = (n - 1) * Q + width(p + n - 1, P, Q), step = stride_w * C;
    for (int v = 0; v < block.nv; ++v) {
      V sw = T::set(0.f), aw = T::set(0.f), out = T::set(0.f);
      for (int64_t r = 0; r < R; ++r) {
        const float *from = row_sums + ((block.vector + v) * R + r) * 2 * T::L;
        if (row_inside(p, r)) sw = sw + T::load(from), aw = aw + T::load(from + T::L);
        else out = out + T::load(from + T::L); // a padded tap has x = 0 and adds |w|
      }
      T::store(sum_w + v * T::L, sw - out);
      T::store(abs_w + v * T::L, aw + out);
      T::store(outside + v * T::L, out);
    }
    const float most_w = most<T>(abs_w, block.nv * T::L), most_x = identity ? most<T>(abs_x, pixels) : 0.f;
    const int64_t count = segments_of_row(p, rows, segments);
    const int64_t next_row = stride_h * rows.stride - Q * step; // beyond the step from a row's last pixel
    const int64_t tiles = ceil_div(pixels, max_pixels<T>(block.nv, false));
    Output<T> out =
        epilogue.output(y, (image * P + p) * Q * K + block.channel, K, block.vector, block.nv, block.channels);
    int64_t offsets[MAX_PIXELS], left_in_row = Q;
    for (int64_t m = 0; m < MAX_PIXELS; ++m) offsets[m] = joins_rows<T>(block.nv) ? m * step : step;
    bool regular = true; // offsets are a step apart
    // Vectors that are not whole are written beside y first.
    const Output<T> aside = {values, nullptr, block.nv * T::L, nullptr, nullptr, false, block.nv * T::L, true};
    ForwardRow<T> row = {segments,
                         count,
                         offsets,
                         panels + block.vector * taps * T::L,
                         taps * T::L,
                         sum,
                         outside,
                         out.whole ? out : aside,
                         {sum_x, abs_x, sum_w, abs_w, most_x, most_w}};
    const ForwardTile<T> *const tile = forward_tiles<T>(block.nv, identity);
    const float *from = rows.data + block.group * Cg;
    const Cut cut(pixels, tiles);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t mr = cut.size(i);
      ahead.some();
      if (joins_rows<T>(block.nv) && (mr > left_in_row || !regular)) {
        for (int64_t m = 0, at = 0; m < max_pixels<T>(2, false); ++m, at += step) {
          if (m == left_in_row) at += next_row;
          offsets[m] = at;
        }
        regular = left_in_row >= max_pixels<T>(2, false);
      }
      if (!tile[mr](row, from)) forward_tiles<T>(block.nv, false)[mr](row, from);
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

} // namespace ADDER_NAMESPACE
#endif
