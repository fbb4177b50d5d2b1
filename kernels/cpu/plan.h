// How the work is cut: tiles, blocks of channels, tasks, and the stretches of the sum that a tile adds up.
#ifndef ADDER_PLAN_H
#define ADDER_PLAN_H

#include "threads.h"

namespace ADDER_NAMESPACE {

// Taps that are added up in registers before the sum goes to memory. Rounding errors grow along a chain of additions,
// so chains are kept short.
constexpr int64_t CHAIN = 256;
// Bytes of image rows that a task works on. They stay in the second-level cache beside the panels: few if all panels
// stay there too, more if the panels have to be read from further away for each chunk.
constexpr int64_t MIN_CHUNK = 96 << 10, MAX_CHUNK = 192 << 10;
// Tasks to cut the work into, if there is enough of it.
constexpr int64_t TASKS = 32;

// A stretch of the reduction whose taps lie side by side both in the image and in the panel of filters.
struct Segment {
  int64_t source; // offset in the image, from the tile's first pixel
  int64_t panel;  // first tap
  int64_t length; // taps
  bool last;      // of a chain
};

// Columns of a tile: NV vectors of one group.
struct Block {
  int64_t group, vector; // vector: counted over all groups
  int64_t channel;       // first channel, counted over all groups
  int64_t channels;      // how many of the NV * L are real
  int nv;
};

// `count` things in `parts` parts that differ by at most one, the larger ones first.
struct EvenParts {
  int64_t smaller, larger; // size of the smaller ones, number of the larger ones
  EvenParts(int64_t count, int64_t parts) : smaller(count / max64(1, parts)), larger(count % max64(1, parts)) {}
  int64_t size(int64_t part) const { return smaller + (part < larger); }
};

// The largest number of pixels that tiles of nv vectors are built for; x_too: the tile holds x beside its sums.
template <class T> constexpr int max_pixels(int nv, bool x_too) {
  if (T::REGISTERS >= 32) return x_too ? (nv == 1 ? 12 : 6) : (nv == 1 ? 14 : nv == 2 ? 12 : 6);
  return x_too ? (nv == 1 ? 8 : 4) : (nv == 1 ? 10 : 5);
}
constexpr int MAX_PIXELS = 14, MAX_SUM = 24 * 16; // floats in the largest tile: 24 vectors of 16
// Four vectors want 32 registers; with fewer than 7 pixels in a row they fill them better than two.
template <class T> constexpr int max_vectors(int64_t pixels, bool x_too) {
  return T::REGISTERS >= 32 && !x_too && pixels <= 6 ? 4 : 2;
}

// Cuts `channels` channels for each of `groups` into blocks; returns how many. blocks may be null, to count.
template <class T> int64_t cut_blocks(int64_t groups, int64_t channels, int nv_max, Block *blocks) {
  const int64_t vectors = ceil_div(channels, T::L);
  int64_t count = 0;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t v = 0; v < vectors;) {
      int nv = nv_max;
      while (nv > vectors - v) nv /= 2;
      if (blocks)
        blocks[count] = {g, g * vectors + v, g * channels + v * T::L, min64(channels - v * T::L, nv * T::L), nv};
      v += nv;
      ++count;
    }
  return count;
}

// The blocks of a layer, in memory of their own (null if there was not enough memory).
template <class T> struct Blocks {
  int64_t count;
  Scratch<Block> at;
  Blocks(int64_t groups, int64_t channels, int nv_max)
      : count(cut_blocks<T>(groups, channels, nv_max, nullptr)), at(count) {
    if (at) cut_blocks<T>(groups, channels, nv_max, at);
  }
};

// Tasks: images times chunks of rows times parts of the blocks.
struct Split {
  int64_t images, rows, chunk, chunks, blocks, parts;
  // rows_first: if there are few images, cut the rows rather than the blocks.
  Split(int64_t images_, int64_t rows_, int64_t row_bytes, int64_t panel_bytes, int64_t blocks_, bool rows_first = true)
      : images(images_), rows(rows_), blocks(blocks_) {
    const int64_t whole = rows_first ? images : images * blocks; // tasks, if rows are not cut
    chunk = max64(1, min64(rows, max64(MIN_CHUNK, min64(MAX_CHUNK, panel_bytes)) / max64(1, row_bytes)));
    if (whole * ceil_div(rows, chunk) < TASKS) chunk = max64(1, ceil_div(rows, ceil_div(TASKS, max64(1, whole))));
    chunks = ceil_div(rows, chunk);
    parts = max64(1, min64(blocks, TASKS / max64(1, images * chunks)));
  }
  int64_t tasks() const { return images * chunks * parts; }
};

struct Task {
  int64_t image, row_begin, row_end, block_begin, block_end;
  Task(const Split &s, int64_t i) {
    const int64_t part = i % s.parts, chunk = i / s.parts % s.chunks;
    image = i / s.parts / s.chunks;
    row_begin = chunk * s.chunk;
    row_end = min64(s.rows, row_begin + s.chunk);
    block_begin = s.blocks * part / s.parts;
    block_end = s.blocks * (part + 1) / s.parts;
  }
};

// Adds a stretch of the reduction to a row's segments. A stretch longer than a chain is cut into equal pieces. A
// chain ends before a piece that does not fit into it: each piece is a loop of its own, so few are better. Returns
// the new count.
static inline int64_t add_segment(Segment *segments, int64_t count, int64_t &chain, int64_t source, int64_t panel,
                                  int64_t length) {
  const int64_t pieces = ceil_div(length, CHAIN);
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = length * i / pieces, n = length * (i + 1) / pieces - begin;
    if (chain > 0 && chain + n > CHAIN) {
      segments[count - 1].last = true;
      chain = 0;
    }
    segments[count++] = {source + begin, panel + begin, n, false};
    chain += n;
  }
  return count;
}

static inline int64_t segment_capacity(int64_t taps, int64_t pieces) { return pieces + taps / CHAIN + 2; }

} // namespace ADDER_NAMESPACE
#endif
