// dx = sum dy t(w - x) with lanes over the input channels of a group.
#ifndef ADDER_GRAD_INPUT_H
#define ADDER_GRAD_INPUT_H

#include "grad_input_tile.h"
#include "rows.h"
#include "threads.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

template <class T> struct GradInput : Shape {
  const float *dy, *x, *w;
  float *dx;
  int mode;
  float limit; // of |x| and |w| for the tiles
  bool good_w; // w keeps it
  bool median; // whether tiles may take it
  int64_t left, right;
  float *panels; // [vectors][R][S in order_columns][Kg][L]
  int64_t *order;
  Block *blocks;
  Split split;
  Flag failed;

  GradInput(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dx_, int mode_, bool exact,
            float *panels_, int64_t *order_, Block *blocks_, int64_t block_count)
      : Shape(shape), dy(dy_), x(x_), w(w_), dx(dx_), mode(mode_), limit(largest_operand(mode_)),
        good_w(all_within<T>(w_, K * taps, limit)), median(takes_median(shape, mode_, exact)), left(Reach(shape).left),
        right(Reach(shape).right), panels(panels_), order(order_), blocks(blocks_),
        split(N, H, Q * K * 4 / stride_h + W * C * 4, 4 * K * taps, block_count) {
    order_columns(*this, order);
  }

  static bool takes_median(const Shape &shape, int mode, bool exact) {
    return T::MEDIAN && mode == ADDER_CLIPPED && !exact && shape.groups == 1;
  }
  static int most_vectors(const Shape &shape, int mode, bool exact) {
    return takes_median(shape, mode, exact) ? 1 : max_vectors<T>(shape.W / shape.stride_w, true);
  }

  // Two vectors at a time: they lie on one line of the cache, and the next filter's is far away.
  static int64_t pack_tasks(const Shape &s) { return s.groups * ceil_div(s.Cg, 2 * T::L); }
  void pack(int64_t task) const {
    const int64_t pairs = ceil_div(Cg, 2 * T::L), g = task / pairs, first = task % pairs * 2 * T::L;
    const int64_t vector = g * ceil_div(Cg, T::L) + first / T::L, beside = R * S * Kg * T::L;
    const int64_t channels = min64(2 * T::L, Cg - first);
    float *to = panels + vector * beside;
    for (int64_t r = 0; r < R; ++r)
      for (int64_t i = 0; i < S; ++i) {
        const float *from = w + (g * Kg * R * S + r * S + order[i]) * Cg + first;
        for (int64_t k = 0; k < Kg; ++k, from += taps, to += T::L) {
          if (channels == 2 * T::L) {
            T::store(to, T::load(from));
            T::store(to + beside, T::load(from + T::L));
            continue;
          }
          for (int64_t lane = 0; lane < ceil_div(channels, T::L) * T::L; ++lane)
            to[lane / T::L * beside + lane % T::L] = lane < channels ? from[lane] : 0.f;
        }
      }
  }

  int64_t segments_of_row(int64_t h, int64_t phase, const Rows &rows, Segment *segments) const {
    int64_t count = 0, chain = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t ph = h + pad_top - r * dilation_h;
      if (ph < 0 || ph % stride_h || ph / stride_h >= P) continue;
      const int64_t row = (ph / stride_h - rows.begin) * rows.stride;
      for (int64_t i = 0; i < S;) {
        const int64_t qw = phase + pad_left - order[i] * dilation_w;
        if (qw % stride_w) {
          ++i;
          continue;
        }
        // Floor division is exact here. Take along what follows with the next output, if channels allow.
        const int64_t q = qw / stride_w;
        int64_t n = 1;
        while (groups == 1 && i + n < S && (phase + pad_left - order[i + n] * dilation_w) == (q + n) * stride_w) ++n;
        count = add_segment(segments, count, chain, row + (rows.left + q) * K, (r * S + i) * Kg, n * Kg);
        i += n;
      }
    }
    return count;
  }

  // The output rows that input rows [begin, end) reach.
  void reach(int64_t begin, int64_t end, int64_t &p_begin, int64_t &p_end) const {
    const int64_t low = begin + pad_top - (R - 1) * dilation_h, high = end - 1 + pad_top;
    p_begin = low <= 0 ? 0 : min64(P, ceil_div(low, stride_h));
    p_end = max64(p_begin, min64(P, high / stride_h + 1));
  }

  void run(int64_t begin, int64_t end) {
    const bool copies = left > 0 || right > 0;
    const int64_t out_rows = min64(P, (split.chunk + (R - 1) * dilation_h) / stride_h + 1);
    Scratch<float> copy(copies ? out_rows * (left + Q + right) * K : 1);
    Scratch<Segment> segments(segment_capacity(R * S * Kg, R * S));
    const int64_t padded = left + Q + right;
    Scratch<float> sums(median ? out_rows * padded : 1), totals(median ? split.chunk * W : 1);
    if (!copy || !segments || !sums || !totals) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      int64_t p_begin, p_end;
      reach(task.row_begin, task.row_end, p_begin, p_end);
      const Rows rows =
          take_rows(dy + task.image * P * Q * K, Q, K, p_begin, p_end, left, right, copies ? copy.data : nullptr);
      if (median) {
        for (int64_t p = p_begin; p < p_end; ++p)
          pixel_sums(rows.at(p, -left, K), width(p, P, Q) + left + right, sums + (p - p_begin) * padded);
        for (int64_t h = task.row_begin; h < task.row_end; ++h)
          for (int64_t phase = 0; phase < min64(stride_w, W); ++phase)
            tap_sums(h, phase, p_begin, sums, padded, totals + (h - task.row_begin) * W + first_of(phase));
      }
      for (int64_t b = task.block_begin; b < task.block_end; ++b)
        for (int64_t h = task.row_begin; h < task.row_end; ++h)
          for (int64_t phase = 0; phase < min64(stride_w, W); ++phase)
            row_of_tiles(blocks[b], task.image, h, phase, rows, segments,
                         totals + (median ? (h - task.row_begin) * W + first_of(phase) : 0));
    }
  }

  // Pixels of a row that belong to the phases before this one.
  int64_t first_of(int64_t phase) const {
    int64_t first = 0;
    for (int64_t i = 0; i < phase; ++i) first += ceil_div(W - i, stride_w);
    return first;
  }

  // Sum of dy over the filters, for each of `count` pixels.
  void pixel_sums(const float *from, int64_t count, float *sum) const {
    for (int64_t j = 0; j < count; ++j, from += K) {
      typename T::V s = T::set(0.f);
      int64_t k = 0;
      for (; k + T::L <= K; k += T::L) s = s + T::load(from + k);
      float rest = T::sum(s);
      for (; k < K; ++k) rest += from[k];
      sum[j] = rest;
    }
  }

  // Sum of dy over all that an input pixel's taps reach, for the pixels of a phase: over what segments_of_row lists.
  void tap_sums(int64_t h, int64_t phase, int64_t p_begin, const float *sums, int64_t padded, float *total) const {
    const int64_t pixels = ceil_div(width(h, H, W) - phase, stride_w);
    for (int64_t j = 0; j < pixels; ++j) total[j] = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t ph = h + pad_top - r * dilation_h;
      if (ph < 0 || ph % stride_h || ph / stride_h >= P) continue;
      for (int64_t s = 0; s < S; ++s) {
        const int64_t qw = phase + pad_left - s * dilation_w;
        if (qw % stride_w) continue;
        const float *from = sums + (ph / stride_h - p_begin) * padded + left + qw / stride_w;
        for (int64_t j = 0; j < pixels; ++j) total[j] += from[j];
      }
    }
  }

  void row_of_tiles(const Block &block, int64_t image, int64_t h, int64_t phase, const Rows &rows, Segment *segments,
                    const float *totals) const {
    typedef typename T::V V;
    alignas(64) float sum[MAX_SUM], xs[MAX_SUM];
    const int64_t count = segments_of_row(h, phase, rows, segments);
    const int64_t pixels = ceil_div(width(h, H, W) - phase, stride_w), step = stride_w * C;
    const int64_t tiles = ceil_div(pixels, median ? MEDIAN_PIXELS<T> : max_pixels<T>(block.nv, true));
    const int64_t first = ((image * H + h) * W + phase) * C + block.channel;
    const float *const panel = panels + block.vector * R * S * Kg * T::L, *const source = rows.data + block.group * Kg;
    const bool whole = block.channels == block.nv * T::L;
    if (count == 0) { // no output takes these pixels
      for (int64_t j = 0; j < pixels; ++j)
        memset(dx + first + j * step, 0, static_cast<size_t>(block.channels) * sizeof(float));
      return;
    }
    if (!whole)
      for (float &value : xs) value = 0;
    const Cut cut(pixels, tiles);
    for (int64_t i = 0, j = 0, mr; i < tiles; ++i, j += mr) {
      mr = cut.size(i);
      bool good = good_w, between = median && good_w;
      for (int64_t m = 0; m < mr; ++m) {
        const float *from = x + first + (j + m) * step;
        float *to = xs + m * block.nv * T::L;
        if (!whole) memcpy(to, from, static_cast<size_t>(block.channels) * sizeof(float));
        for (int v = 0; v < block.nv; ++v) {
          const V value = T::load((whole ? from : to) + v * T::L);
          if (between) between = T::all_le(T::set(-1.f), value) && T::all_le(value, T::set(MEDIAN_LIMIT));
          if (!between) good &= T::all_le(T::abs(value), T::set(limit));
          T::store(to + v * T::L, value);
        }
      }
      if (between) {
        median_tile_for<T>(mr)(segments, count, source + j * K, K, panel, 0, xs, sum);
        for (int64_t m = 0; m < mr; ++m) {
          float *const s = sum + m * T::L;
          const V value = T::load(s) - T::load(xs + m * T::L) * T::set(totals[j + m]);
          between &= T::all_le(T::abs(value), T::set(FLT_MAX)); // no infinity in dy, and none on the way
          T::store(s, value);
          store_channels<T>(dx + first + (j + m) * step, s, 1, block.channels);
        }
      }
      if (between) continue;
      if (good) {
        grad_input_tile_for<T>(block.nv, mr, mode)(segments, count, source + j * K, K, panel, R * S * Kg * T::L, xs,
                                                   sum);
        for (int64_t m = 0; m < mr; ++m)
          store_channels<T>(dx + first + (j + m) * step, sum + m * block.nv * T::L, block.nv, block.channels);
      } else {
        for (int64_t m = 0; m < mr; ++m)
          grad_input_pixel(*this, dy, x, w, dx, mode, image, h, phase + (j + m) * stride_w, block.channel,
                           block.channel + block.channels);
      }
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
