// Rows of an image as the tiles read them: as they are, with their padding written out, or gathered.
#ifndef ADDER_ROWS_H
#define ADDER_ROWS_H

#include "shape.h"

namespace ADDER_NAMESPACE {

// Rows [begin, end) of an image, as they are or copied with `left` and `right` columns of zeros beside them.
struct Rows {
  const float *data; // column -left of row `begin`
  int64_t begin, left, stride;
  const float *at(int64_t row, int64_t column, int64_t channels) const {
    return data + (row - begin) * stride + (left + column) * channels;
  }
};

static inline Rows take_rows(const float *image, int64_t width, int64_t channels, int64_t begin, int64_t end,
                             int64_t left, int64_t right, float *copy) {
  const int64_t row = width * channels;
  if (!copy) return {image + begin * row, begin, 0, row};
  const int64_t stride = (left + width + right) * channels;
  for (int64_t h = begin; h < end; ++h) {
    float *to = copy + (h - begin) * stride;
    memset(to, 0, static_cast<size_t>(left * channels) * sizeof(float));
    memcpy(to + left * channels, image + h * row, static_cast<size_t>(row) * sizeof(float));
    memset(to + (left + width) * channels, 0, static_cast<size_t>(right * channels) * sizeof(float));
  }
  return {copy, begin, left, stride};
}

// Copies the pixels that a strided 1x1 kernel meets for output rows [begin, end), side by side: every stride_w-th pixel
// of every stride_h-th row. On the copy the kernel has no stride.
template <class T>
Rows gather_rows(const float *image, int64_t width, int64_t channels, int64_t stride_h, int64_t stride_w, int64_t begin,
                 int64_t end, int64_t outputs, float *copy) {
  float *to = copy;
  for (int64_t p = begin; p < end; ++p) {
    const float *from = image + p * stride_h * width * channels;
    for (int64_t q = 0; q < outputs; ++q, from += stride_w * channels, to += channels) {
      int64_t c = 0;
      for (; c + T::L <= channels; c += T::L) T::store(to + c, T::load(from + c));
      for (; c < channels; ++c) to[c] = from[c];
    }
  }
  return {copy, begin, 0, outputs * channels};
}

// Prefetches the rows of the next task into the second-level cache, a few lines with each tile of this task. The rows
// that tiles read are copied (and summed) in one go before them. Without the prefetch, this copy would wait for memory
// if images do not fit into the caches.
struct Prefetcher {
  const char *at = nullptr, *row_end = nullptr;
  int64_t row = 0, skip = 0, rows = 0; // bytes of a row, bytes to the next one, rows that are left
  int64_t lines = 0;                   // with each tile

  Prefetcher() = default;
  Prefetcher(const float *from, int64_t row_floats, int64_t row_step, int64_t rows_, int64_t tiles)
      : at(reinterpret_cast<const char *>(from)), row_end(at + row_floats * 4), row(row_floats * 4),
        skip((row_step - row_floats) * 4), rows(rows_), lines(ceil_div(ceil_div(row, 64) * rows, max64(1, tiles))) {}
  ADDER_INLINE void prefetch_lines() {
    if (rows <= 0) return;
    for (int64_t i = 0; i < lines; ++i, at += 64) {
      if (at >= row_end) {
        if (--rows <= 0) return;
        at = row_end + skip;
        row_end = at + row;
      }
      __builtin_prefetch(at, 0, 2);
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
