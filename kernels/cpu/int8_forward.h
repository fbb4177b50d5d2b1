// y = -sum |x - w| over bytes, Eq. 2, for filters over several channels; depthwise layers are in int8_depthwise.h.
//
// A task copies the rows that it reads, where they have padding, and takes its blocks of filters one after the other
// over all of its pixels, TILE_PIXELS at a time.
#ifndef ADDER_INT8_FORWARD_H
#define ADDER_INT8_FORWARD_H

#include "int8_pack.h"
#include "int8_tile.h"

namespace ADDER_NAMESPACE {

struct ChannelsKernel {
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
        split(s, TILE_PIXELS, rows.bytes, WidestBytes::F * 8 * words.count(), filter_blocks(s)),
        runs(words.runs(most_words()) + words.masked()) {
    if (runs) words.list(most_words(), runs);
    else failed.set();
  }
  static int64_t most_words() { return min64(WidestBytes::MOST_WORDS, NarrowBytes::MOST_WORDS); }

  int64_t tasks() const { return failed.value ? 0 : split.split.tasks(); }
  double operations() const {
    return static_cast<double>(s.N * s.P * s.Q) * static_cast<double>(filter_blocks(s) * words.count() * 4);
  }

  void run(int64_t begin, int64_t end) {
    const Scratch<uint8_t> copy(copy_size() * (in_pairs(s) ? 2 : 1));
    if (!copy) return failed.set();
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
      if (block.narrow) run_block<NarrowBytes>(task, block, source);
      else run_block<WidestBytes>(task, block, source);
    }
  }

  template <class V> void run_block(const ByteTask &task, const FilterBlock &block, const uint8_t *source) const {
    const Patch patch = {runs, words.runs(most_words()), words.runs(most_words()) + words.masked(), words.tail,
                         copy_size()};
    const Output<V> out(epilogue, y, s.K, block.first, block.filters);
    const auto *tiles =
        tiles_of<TILE_PIXELS>([](auto pixels) ADDER_LAMBDA_INLINE { return sum_tile<V, pixels.value, false>; });
    if constexpr (V::PAIRS)
      if (block.pair)
        tiles = tiles_of<TILE_PIXELS>([](auto pixels) ADDER_LAMBDA_INLINE { return sum_tile<V, pixels.value, true>; });
    const int64_t pixels = (task.row_end - task.row_begin) * s.Q, first = (task.image * s.P + task.row_begin) * s.Q;
    const int64_t count = ceil_div(pixels, TILE_PIXELS);
    const EvenParts parts(pixels, count);
    PixelWalk walk(source, s.Q, s.stride_w * rows.channels, s.stride_h * rows.bytes);
    for (int64_t i = 0, pixel = first; i < count; ++i) {
      const uint8_t *at[TILE_PIXELS];
      const int64_t mr = parts.size(i);
      walk.next(mr, at);
      tiles[mr](at, patch, packed + block.panel, out, pixel);
      pixel += mr;
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
