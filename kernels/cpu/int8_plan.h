// What a call of the int8 kernels looks like: the words of a patch, and the rows that a task reads.
//
//   N, H, W, C      input         x  [N, H, W, C]     uint8
//   P, Q, K         output        y  [N, P, Q, K]     int32
//   R, S            kernel        w  [K, R, S, Cg]    uint8,  Cg = C / G, Kg = K / G
//
// A *word* is eight bytes that lie side by side in an image row and belong to the same taps for every pixel. A patch is
// a list of words: where the taps of a kernel row lie side by side (no dilation) a row of S * Cg bytes is cut into
// words, otherwise each tap's Cg bytes are. The last word of such a *piece* may hold fewer taps than bytes; a mask
// clears the rest, and the filters have zeros there.
#ifndef ADDER_INT8_PLAN_H
#define ADDER_INT8_PLAN_H

#include "adder_int8.h"
#include "plan.h"

namespace ADDER_NAMESPACE {

// A kernel without neighbours is a matrix product, and its pixels are rows of one, so that a tile may reach from one
// image into the next. Not where the image must be copied, or channels of a group picked: that goes by rows.
static inline Geometry flattened(const adder_shape &shape) {
  Geometry s(shape);
  if (s.groups != 1 || s.R != 1 || s.S != 1 || s.stride_h != 1 || s.stride_w != 1 || s.has_padding() || s.C % 8)
    return s;
  s.H = s.P = s.N * s.H * s.W;
  s.N = s.W = s.Q = 1;
  return s;
}

// Words side by side: in an image from `offset` on, counted from the tile's pixel.
struct WordRun {
  int64_t offset, words;
};

// How a patch falls into words.
struct Words {
  int64_t pieces, bytes, whole; // pieces of `bytes` bytes, with `whole` full words each
  int64_t S, step_r, step_s;    // a piece is a row (S = 1) or a tap; offsets between rows and between taps
  uint64_t tail;                // mask of a piece's last word; 0: it is full

  Words(const Geometry &s, int64_t row_bytes) {
    const bool rows = s.dilation_w == 1 || s.S == 1;
    S = rows ? 1 : s.S;
    pieces = s.R * S;
    bytes = rows ? s.S * s.Cg : s.Cg;
    whole = bytes / 8;
    step_r = s.dilation_h * row_bytes;
    step_s = s.dilation_w * s.Cg;
    tail = bytes % 8 ? (uint64_t(1) << 8 * (bytes % 8)) - 1 : 0;
  }
  int64_t full() const { return pieces * whole; }
  int64_t masked() const { return tail ? pieces : 0; }
  int64_t count() const { return full() + masked(); }
  int64_t start(int64_t piece) const { return piece / S * step_r + piece % S * step_s; }

  int64_t runs(int64_t most) const { return pieces * ceil_div(whole, most); }
  // Full words in runs of at most `most`, then a run for each word with a mask.
  void list(int64_t most, WordRun *out) const {
    for (int64_t piece = 0; piece < pieces; ++piece)
      for (int64_t word = 0; word < whole; word += most) *out++ = {start(piece) + 8 * word, min64(most, whole - word)};
    for (int64_t piece = 0; piece < masked(); ++piece) *out++ = {start(piece) + 8 * whole, 1};
  }
};

// The image rows that output rows [begin, end) of one image read: the image itself, or a copy of one group's channels
// with the padding written out.
struct ByteRows {
  const Geometry &s;
  uint8_t pad;
  bool in_place;                  // nothing is padded, and no word reads beyond its tap
  int64_t channels, width, bytes; // of a pixel, of a row in pixels, of a row

  // whole_words: no word reads beyond its piece. channels: s.Cg, or s.C for all of the image.
  ByteRows(const Geometry &shape, uint8_t pad_, bool whole_words, int64_t channels_)
      : s(shape), pad(pad_), in_place(whole_words && channels_ == s.C && !s.has_padding()), channels(channels_) {
    width = in_place ? s.W : (s.Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
    bytes = width * channels;
  }
  int64_t height(int64_t rows) const { return (rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1; }
  // Eight bytes more: a masked word may read that far.
  int64_t size(int64_t rows) const { return in_place ? 0 : height(rows) * bytes + 8; }

  // first_channel: where the group begins.
  const uint8_t *read(const uint8_t *image, int64_t first_channel, int64_t begin, int64_t end, uint8_t *copy) const {
    const int64_t top = begin * s.stride_h - s.pad_top;
    if (in_place) return image + top * bytes;
    // A row may end within its padding on the left.
    const int64_t left = min64(s.pad_left, width), own = max64(0, min64(s.W, width - s.pad_left));
    uint8_t *row = copy;
    for (int64_t i = 0; i < height(end - begin); ++i, row += bytes) {
      const int64_t h = top + i;
      if (h < 0 || h >= s.H) {
        memset(row, pad, static_cast<size_t>(bytes));
        continue;
      }
      memset(row, pad, static_cast<size_t>(left * channels));
      copy_pixels(image + h * s.W * s.C + first_channel, own, row + left * channels);
      memset(row + (left + own) * channels, pad, static_cast<size_t>((width - left - own) * channels));
    }
    memset(row, 0, 8);
    return copy;
  }

private:
  template <int BYTES> void copy_fixed(const uint8_t *from, int64_t pixels, uint8_t *to) const {
    for (; pixels > 0; --pixels, from += s.C, to += BYTES) memcpy(to, from, BYTES);
  }
  void copy_pixels(const uint8_t *from, int64_t pixels, uint8_t *to) const {
    if (channels == s.C) memcpy(to, from, static_cast<size_t>(pixels * channels));
    else if (channels == 4) copy_fixed<4>(from, pixels, to);
    else if (channels == 8) copy_fixed<8>(from, pixels, to);
    else if (channels == 16) copy_fixed<16>(from, pixels, to);
    else if (channels == 32) copy_fixed<32>(from, pixels, to);
    else
      for (; pixels > 0; --pixels, from += s.C, to += channels) memcpy(to, from, static_cast<size_t>(channels));
  }
};

// Where the outputs' pixels begin in the rows that a task reads, one after the other.
struct PixelWalk {
  const uint8_t *row, *at;
  int64_t left, Q, step, row_step; // left: pixels of this row
  // Rows without anything in between are one.
  PixelWalk(const uint8_t *source, int64_t Q_, int64_t step_, int64_t row_step_)
      : row(source), at(source), left(Q_ * step_ == row_step_ ? INT64_MAX : Q_), Q(Q_), step(step_),
        row_step(row_step_) {}
  // The next `count` of at most MOST; what stands behind them in `pixels` is of no meaning.
  template <int MOST> ADDER_INLINE void next(int64_t count, const uint8_t **pixels) {
    if (left >= MOST) { // the usual case, without a question for each pixel
      const uint8_t *pixel = at;
#pragma GCC unroll 8
      for (int m = 0; m < MOST; ++m) {
        pixels[m] = pixel;
        pixel += step;
        asm("" : "+r"(pixel)); // no vectors: they would wait for the tile before
      }
      left -= count, at += count * step;
      return;
    }
    for (int64_t m = 0; m < count; ++m, --left, at += step) {
      if (left == 0) at = row += row_step, left = Q;
      pixels[m] = at;
    }
  }
};

// Images times chunks of rows times parts of the blocks of filters; a tile wants PIXELS pixels, so small images are
// taken several rows at a time.
struct ByteSplit {
  int64_t unit; // rows
  Split split;
  ByteSplit(const Geometry &s, int64_t pixels, int64_t row_bytes, int64_t panel_bytes, int64_t blocks, bool rows_first)
      : unit(ceil_div(pixels, s.Q)),
        split(s.N, ceil_div(s.P, unit), row_bytes * s.stride_h * unit, panel_bytes, blocks, rows_first) {}
  int64_t most_rows() const { return split.chunk * unit; }
};
struct ByteTask : Task {
  ByteTask(const ByteSplit &s, int64_t P, int64_t i) : Task(s.split, i) {
    row_begin *= s.unit;
    row_end = min64(P, row_end * s.unit);
  }
};

} // namespace ADDER_NAMESPACE
#endif
