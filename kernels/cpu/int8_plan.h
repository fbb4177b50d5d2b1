// What a call of the int8 kernels looks like: the words of a patch, the work that a task does, and the rows it reads.
//
//   N, H, W, C      input         x  [N, H, W, C]     uint8
//   P, Q, K         output        y  [N, P, Q, K]     int32
//   R, S            kernel        w  [K, R, S, Cg]    uint8,  Cg = C / G, Kg = K / G
//
// A *word* is eight bytes that lie side by side in an image row and belong to the same taps for every pixel. A patch is
// a list of words: where the taps of a kernel row lie side by side (one group, no dilation) a row of S * C bytes is cut
// into words, otherwise each tap's Cg bytes are. The last word of a piece may hold fewer taps than bytes; a mask clears
// the rest, and the filters have zeros there.
#ifndef ADDER_INT8_PLAN_H
#define ADDER_INT8_PLAN_H

#include "adder_int8.h"
#include "parallel.h"

#include <cstdint>
#include <cstring>

namespace ADDER_NAMESPACE {

static inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Bytes of image rows that a task works on: half of a first-level cache holds the panel, the rows stream from the
// second.
constexpr int64_t ROWS_OF_A_TASK = 96 << 10;
// Tasks to cut the work into, where there is enough of it.
constexpr int64_t ENOUGH_TASKS = 32;

// How a patch falls into words.
struct Words {
  int64_t pieces, bytes, whole, per_piece; // pieces of `bytes` bytes, `whole` full words and per_piece words each
  int64_t S, step_r, step_s; // offsets in a padded image between rows and between taps; step_s 0: rows are whole
  uint64_t tail;             // mask of a piece's last word where it is not full

  Words(const adder_shape &s, int64_t row_bytes) {
    const int64_t Cg = s.C / s.groups;
    const bool rows = s.groups == 1 && (s.dilation_w == 1 || s.S == 1);
    S = rows ? 1 : s.S;
    pieces = s.R * S;
    bytes = rows ? s.S * s.C : Cg;
    whole = bytes / 8;
    per_piece = quotient_up(bytes, 8);
    step_r = s.dilation_h * row_bytes;
    step_s = s.dilation_w * s.C;
    tail = bytes % 8 ? (uint64_t(1) << 8 * (bytes % 8)) - 1 : 0;
  }
  int64_t full() const { return pieces * whole; }
  int64_t count() const { return pieces * per_piece; }
  // Full words come first, then those with a mask.
  void offsets(int32_t *out) const {
    for (int64_t piece = 0, i = 0; piece < pieces; ++piece)
      for (int64_t word = 0; word < whole; ++word) out[i++] = (int32_t)(start(piece) + 8 * word);
    for (int64_t piece = 0, i = full(); per_piece > whole && piece < pieces; ++piece)
      out[i++] = (int32_t)(start(piece) + 8 * whole);
  }
  int64_t start(int64_t piece) const { return piece / S * step_r + piece % S * step_s; }
};

// The image rows that output rows [begin, end) of one image read, with their padding written out; or the image itself.
struct Rows {
  const adder_shape &s;
  uint8_t pad;
  bool in_place;        // nothing is padded, and no word reads beyond its tap
  int64_t width, bytes; // of a row, pixels and bytes

  Rows(const adder_shape &shape, uint8_t pad_, bool tails) : s(shape), pad(pad_) {
    const int64_t right = (s.Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1 - s.pad_left;
    const int64_t bottom = (s.P - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1 - s.pad_top;
    in_place = !tails && s.pad_top == 0 && s.pad_left == 0 && right <= s.W && bottom <= s.H;
    width = in_place ? s.W : s.pad_left + right;
    bytes = width * s.C;
  }
  int64_t height(int64_t rows) const { return (rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1; }
  // Eight bytes more: a masked word may read that far.
  int64_t size(int64_t rows) const { return in_place ? 0 : height(rows) * bytes + 8; }

  const uint8_t *read(const uint8_t *image, int64_t begin, int64_t end, uint8_t *copy) const {
    const int64_t top = begin * s.stride_h - s.pad_top;
    if (in_place) return image + top * bytes;
    // A row may end within its padding on the left.
    const int64_t left = smaller(s.pad_left, width) * s.C, own = larger(0, smaller(s.W, width - s.pad_left)) * s.C;
    uint8_t *row = copy;
    for (int64_t i = 0; i < height(end - begin); ++i, row += bytes) {
      const int64_t h = top + i;
      if (h < 0 || h >= s.H) {
        std::memset(row, pad, bytes);
        continue;
      }
      std::memset(row, pad, left);
      std::memcpy(row + left, image + h * s.W * s.C, own);
      std::memset(row + left + own, pad, bytes - left - own);
    }
    std::memset(row, 0, 8);
    return copy;
  }
};

// Images times chunks of rows times parts of the blocks of filters.
struct Tasks {
  int64_t rows, chunks, blocks, parts, count;
  Tasks(const adder_shape &s, int64_t row_bytes, int64_t blocks_) : blocks(blocks_) {
    rows = larger(1, smaller(s.P, ROWS_OF_A_TASK / larger(1, row_bytes * s.stride_h)));
    if (s.N * quotient_up(s.P, rows) < ENOUGH_TASKS)
      rows = larger(1, quotient_up(s.P, quotient_up(ENOUGH_TASKS, larger(1, s.N))));
    // A tile wants pixels: few rows of a small image would leave it half empty.
    rows = smaller(s.P, larger(rows, quotient_up(24, s.Q)));
    chunks = quotient_up(s.P, rows);
    parts = larger(1, smaller(blocks, ENOUGH_TASKS / larger(1, s.N * chunks)));
    count = s.N * chunks * parts;
  }
};

} // namespace ADDER_NAMESPACE
#endif
