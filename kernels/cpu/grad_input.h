// dx = sum dy t(w - x) with lanes over the input channels of a group.
#ifndef ADDER_GRAD_INPUT_H
#define ADDER_GRAD_INPUT_H

#include "grad_input_tile.h"
#include "rows.h"

namespace ADDER_NAMESPACE {

template <class T> struct ChannelGradInput : GradInputOperands {
  bool medians;  // tiles may take them
  float shift;   // added to x and w, see median_shift
  float *panels; // [vectors][R][S in order_columns][Kg][L]
  int64_t *order;
  const Block *blocks;
  Split split;

  ChannelGradInput(const GradInputOperands &operands, bool medians_, float *panels_, int64_t *order_,
                   const Blocks<T> &blocks_)
      : GradInputOperands(operands), medians(medians_), shift(medians ? median_shift(x, pixels() * C) : 0),
        panels(panels_), order(order_), blocks(blocks_.at),
        split(N, H, Q * K * 4 / stride_h + W * C * 4, 4 * K * taps, blocks_.count) {
    order_columns(*this, order);
  }

  int64_t tasks() const { return split.tasks(); }
  double operations() const { return operations_of<T>(); }

  // Two vectors at a time: they share a cache line, and the next filter is far away.
  int64_t pack_tasks() const { return groups * ceil_div(Cg, 2 * T::L); }
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
            T::store(to, T::load(from) + T::set(shift));
            T::store(to + beside, T::load(from + T::L) + T::set(shift));
            continue;
          }
          for (int64_t lane = 0; lane < ceil_div(channels, T::L) * T::L; ++lane)
            to[lane / T::L * beside + lane % T::L] = lane < channels ? from[lane] + shift : 0.f;
        }
      }
  }

  int64_t segments_of_row(int64_t h, int64_t phase, const Rows &rows, Segment *segments) const {
    int64_t count = 0, chain = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      const int64_t row = (p - rows.begin) * rows.stride;
      for (int64_t i = 0; i < S;) {
        if (!column_meets(phase, order[i])) {
          ++i;
          continue;
        }
        // Joins the next column of the filters to the segment, if the channels lie side by side.
        const int64_t q = dy_column(phase, order[i]);
        int64_t n = 1;
        while (groups == 1 && i + n < S && follows(phase, order[i + n], q + n)) ++n;
        count = add_segment(segments, count, chain, row + (rows.left + q) * K, (r * S + i) * Kg, n * Kg);
        i += n;
      }
    }
    return count;
  }

  // Does column s of the filters meet column q of dy from a phase's first pixel?
  bool follows(int64_t phase, int64_t s, int64_t q) const { return column_meets(phase, s) && dy_column(phase, s) == q; }

  void run(int64_t begin, int64_t end) {
    const bool copies = pad.left > 0 || pad.right > 0;
    const int64_t out_rows = max_dy_rows(split.chunk);
    Scratch<float> copy(copies ? out_rows * padded() * K : 1);
    Scratch<Segment> segments(segment_capacity(R * S * Kg, R * S));
    Scratch<float> sums(medians ? out_rows * padded() : 1), totals(medians ? split.chunk * W : 1);
    if (!copy || !segments || !sums || !totals) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const auto [p_begin, p_end] = dy_rows(task.row_begin, task.row_end);
      const Rows rows = take_rows(dy + task.image * P * Q * K, Q, K, p_begin, p_end, pad.left, pad.right,
                                  copies ? copy.data : nullptr);
      if (medians) sum_taps(task, rows, p_end, sums, totals);
      for (int64_t b = task.block_begin; b < task.block_end; ++b)
        for (int64_t h = task.row_begin; h < task.row_end; ++h)
          for (int64_t phase = 0; phase < phases(); ++phase)
            row_of_tiles(blocks[b], task.image, h, phase, rows, segments,
                         totals + (medians ? (h - task.row_begin) * W + first_of(phase) : 0));
    }
  }

  // totals [rows][W, phase by phase]: sum of dy over all that each pixel's taps meet.
  void sum_taps(const Task &task, const Rows &rows, int64_t p_end, float *sums, float *totals) const {
    for (int64_t p = rows.begin; p < p_end; ++p)
      pixel_sums(rows.at(p, -pad.left, K), width(p, P, Q) + pad.left + pad.right, sums + (p - rows.begin) * padded());
    for (int64_t h = task.row_begin; h < task.row_end; ++h)
      for (int64_t phase = 0; phase < phases(); ++phase)
        tap_sums(h, phase, rows.begin, sums, totals + (h - task.row_begin) * W + first_of(phase));
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

  // The same for the pixels of one phase of row h, over the segments that segments_of_row lists.
  void tap_sums(int64_t h, int64_t phase, int64_t p_begin, const float *sums, float *total) const {
    const int64_t pixels = ceil_div(width(h, H, W) - phase, stride_w);
    for (int64_t j = 0; j < pixels; ++j) total[j] = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        if (!column_meets(phase, s)) continue;
        const float *from = sums + (p - p_begin) * padded() + pad.left + dy_column(phase, s);
        for (int64_t j = 0; j < pixels; ++j) total[j] += from[j];
      }
    }
  }

  // Fills xs [mr][NV * L] with x of a tile; returns which tiles can compute it.
  struct Allowed {
    bool medians, differences;
  };
  Allowed take_x(const Block &block, const float *from, int64_t step, int64_t mr, float *xs) const {
    typedef typename T::V V;
    const bool whole = block.channels == block.nv * T::L;
    Allowed allowed = {medians && w_within, w_within};
    for (int64_t m = 0; m < mr; ++m, from += step, xs += block.nv * T::L) {
      if (!whole) {
        memcpy(xs, from, static_cast<size_t>(block.channels) * sizeof(float));
        for (int64_t lane = block.channels; lane < block.nv * T::L; ++lane) xs[lane] = 0;
      }
      for (int v = 0; v < block.nv; ++v) {
        const V value = T::load((whole ? from : xs) + v * T::L) + T::set(shift);
        if (allowed.medians) allowed.medians = T::all_le(T::set(-1.f), value) && T::all_le(value, T::set(MEDIAN_LIMIT));
        if (!allowed.medians) allowed.differences &= T::all_le(T::abs(value), T::set(limit));
        T::store(xs + v * T::L, value);
      }
    }
    return allowed;
  }

  // dx of a tile from its sums of medians; returns whether it is finite: no infinity in dy and no overflow.
  bool finish_medians(float *sum, const float *xs, const float *totals, int64_t mr, int64_t step, int64_t channels,
                      float *to) const {
    typedef typename T::V V;
    bool finite = true;
    for (int64_t m = 0; m < mr; ++m, sum += T::L, xs += T::L, to += step) {
      const V value = T::load(sum) - T::load(xs) * T::set(totals[m]);
      finite &= T::all_le(T::abs(value), T::set(FLT_MAX));
      T::store(sum, value);
      store_channels<T>(to, sum, 1, channels);
    }
    return finite;
  }

  void row_of_tiles(const Block &block, int64_t image, int64_t h, int64_t phase, const Rows &rows, Segment *segments,
                    const float *totals) const {
    alignas(64) float sum[MAX_SUM], xs[MAX_SUM];
    const int64_t count = segments_of_row(h, phase, rows, segments);
    const int64_t pixels = ceil_div(width(h, H, W) - phase, stride_w), step = stride_w * C;
    const int64_t origin = ((image * H + h) * W + phase) * C + block.channel;
    if (count == 0) { // no output takes these pixels
      for (int64_t j = 0; j < pixels; ++j)
        memset(dx + origin + j * step, 0, static_cast<size_t>(block.channels) * sizeof(float));
      return;
    }
    const float *const panel = panels + block.vector * R * S * Kg * T::L, *source = rows.data + block.group * Kg;
    const auto tiles = grad_input_tiles<T>(block.nv, mode);
    const int64_t tile_count = ceil_div(pixels, medians ? MEDIAN_PIXELS<T> : max_pixels<T>(block.nv, true));
    const EvenParts sizes(pixels, tile_count);
    for (int64_t i = 0, j = 0, mr; i < tile_count; ++i, j += mr, source += mr * K) {
      mr = sizes.size(i);
      float *const to = dx + origin + j * step;
      const Allowed allowed = take_x(block, x + origin + j * step, step, mr, xs);
      if constexpr (T::MEDIAN)
        if (allowed.medians) {
          median_tiles<T>()[mr](segments, count, source, K, panel, 0, xs, sum);
          if (finish_medians(sum, xs, totals + j, mr, step, block.channels, to)) continue;
        }
      if (allowed.differences) {
        tiles[mr](segments, count, source, K, panel, R * S * Kg * T::L, xs, sum);
        for (int64_t m = 0; m < mr; ++m)
          store_channels<T>(to + m * step, sum + m * block.nv * T::L, block.nv, block.channels);
      } else {
        for (int64_t m = 0; m < mr; ++m)
          one_by_one(image, h, phase + (j + m) * stride_w, block.channel, block.channel + block.channels);
      }
    }
  }
};

template <class T> int grad_input_by_channels(const GradInputOperands &operands, bool medians) {
  const int64_t vectors = operands.groups * ceil_div(operands.Cg, T::L), taps = operands.R * operands.S * operands.Kg;
  const int nv = medians ? 1 : max_vectors<T>(operands.W / operands.stride_w, true);
  const Blocks<T> blocks(operands.groups, operands.Cg, nv);
  Scratch<float> panels(vectors * taps * T::L);
  Scratch<int64_t> order(operands.S);
  if (!panels || !order || !blocks.at) return ADDER_NO_MEMORY;
  ChannelGradInput<T> kernel(operands, medians, panels, order, blocks);
  for_each(kernel.pack_tasks(), 2. * vectors * taps, [&](int64_t task) { kernel.pack(task); });
  return launch(kernel);
}

} // namespace ADDER_NAMESPACE
#endif
