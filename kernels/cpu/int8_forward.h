// y = -sum |x - w| over bytes, Eq. 2, for filters over several channels; depthwise layers are in int8_depthwise.h.
//
// A task copies the rows that it reads, where they have padding, and takes its blocks of filters one after the other
// over all of its pixels, V::PIXELS at a time.
#ifndef ADDER_INT8_FORWARD_H
#define ADDER_INT8_FORWARD_H

#include "int8_mode.h"
#include "int8_pack.h"
#include "int8_tile.h"

namespace ADDER_NAMESPACE {

// DENORMAL: how sums are added up, see int8_vec.h.
template <bool DENORMAL> struct ChannelsKernel {
  const Geometry s;
  const uint8_t *const x, *const packed;
  const adder_int8_epilogue *const epilogue;
  int32_t *const y;
  const ByteRows rows;
  const Words words;
  const ByteSplit split;
  const Scratch<WordRun> runs;
  Flag failed;

  ChannelsKernel(const adder_shape &shape, const uint8_t *x_, const uint8_t *packed_, uint8_t pad,
                 const adder_int8_epilogue *epilogue_, int32_t *y_)
      : s(flattened(shape)), x(x_), packed(packed_), epilogue(epilogue_), y(y_),
        rows(s, pad, Words(s, 0).tail == 0, s.Cg), words(s, rows.bytes),
        split(s, WidestBytes::PIXELS, rows.bytes, WidestBytes::F * 8 * words.count(), filter_blocks(s), many_pixels(s)),
        runs(words.runs(most_words()) + words.masked()) {
    if (runs) words.list(most_words(), runs);
    else failed.set();
  }
  static int64_t most_words() { return min64(WidestBytes::MOST_WORDS, NarrowBytes::MOST_WORDS); }

  // Enough for a few full tiles in each task. With fewer, blocks of filters are shared out before rows are: a task
  // would read each panel for a tile or two.
  static bool many_pixels(const Geometry &s) { return s.N * s.P * s.Q >= TASKS * 8 * WidestBytes::PIXELS; }

  int64_t tasks() const { return failed.value ? 0 : split.split.tasks(); }
  double operations() const {
    return static_cast<double>(s.N * s.P * s.Q) * static_cast<double>(filter_blocks(s) * words.count() * 4);
  }

  void run(int64_t begin, int64_t end) {
    const Scratch<uint8_t> copy(copy_size() * (in_pairs(s) ? 2 : 1));
    if (!copy) return failed.set();
    const IeeeMode for_the_tiles;
    for (; begin < end; ++begin) run_task(ByteTask(split, s.P, begin), copy);
  }

  // Bytes of one group's rows.
  int64_t copy_size() const { return rows.size(split.most_rows()); }

  void run_task(const ByteTask &task, uint8_t *copy) const {
    const uint8_t *source = nullptr;
    int64_t group = -1;
    for (int64_t b = task.block_begin; b < task.block_end; ++b) {
      const FilterBlock block = filter_block(s, words.count(), b);
      if (block.group != group) {
        group = block.group;
        const uint8_t *const image = x + task.image * s.H * s.W * s.C;
        source = rows.read(image, group * s.Cg, task.row_begin, task.row_end, copy);
        if (block.pair) rows.read(image, (group + 1) * s.Cg, task.row_begin, task.row_end, copy + copy_size());
      }
      if (block.narrow) run_block<Narrow<DENORMAL>>(task, block, source);
      else run_block<Widest<DENORMAL>>(task, block, source);
    }
  }

  template <class V> void run_block(const ByteTask &task, const FilterBlock &block, const uint8_t *source) const {
    const WordRun *const full = runs + words.runs(most_words());
    const Patch patch = {runs, full, full + words.masked(), words.tail, copy_size()};
    const Output<V> out(epilogue, y, s.K, block.first, block.filters);
    const auto *tiles =
        tiles_of<V::PIXELS>([](auto pixels) ADDER_LAMBDA_INLINE { return sum_tile<V, pixels.value, false>; });
    if constexpr (V::PAIRS)
      if (block.pair)
        tiles = tiles_of<V::PIXELS>([](auto pixels) ADDER_LAMBDA_INLINE { return sum_tile<V, pixels.value, true>; });
    const int64_t pixels = (task.row_end - task.row_begin) * s.Q, first = (task.image * s.P + task.row_begin) * s.Q;
    const int64_t count = ceil_div(pixels, V::PIXELS);
    const EvenParts parts(pixels, count);
    PixelWalk walk(source, s.Q, s.stride_w * rows.channels, s.stride_h * rows.bytes);
    for (int64_t i = 0, pixel = first; i < count; ++i) {
      const uint8_t *at[V::PIXELS];
      const int64_t mr = parts.size(i);
      walk.next<V::PIXELS>(mr, at);
      tiles[mr](at, patch, packed + block.panel, out, pixel);
      pixel += mr;
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
