// A layer's shape: which rows and columns of x, dy and the filters meet, and which layers are simpler than they look.
#ifndef ADDER_SHAPE_H
#define ADDER_SHAPE_H

#include "adder.h"

namespace ADDER_NAMESPACE {

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin, end;
};

// The C interface's shape with the rules of the convolution. Every kernel calls these functions, so no rule is written
// twice.
struct Geometry : adder_shape {
  int64_t Cg, Kg, taps; // channels and filters of a group, taps of a filter
  explicit Geometry(const adder_shape &s) : adder_shape(s), Cg(C / groups), Kg(K / groups), taps(R * S * Cg) {}

  // The row of x that row r of the filters meets for row p of the outputs; -1: it lies outside of the image.
  int64_t x_row(int64_t p, int64_t r) const {
    const int64_t h = p * stride_h - pad_top + r * dilation_h;
    return h >= 0 && h < H ? h : -1;
  }
  // The rows of x that output rows [begin, end) meet.
  Range x_rows(int64_t begin, int64_t end) const {
    const int64_t first = max64(0, min64(H, begin * stride_h - pad_top));
    return {first, max64(first, min64(H, (end - 1) * stride_h - pad_top + (R - 1) * dilation_h + 1))};
  }
  // The most rows of x that `rows` output rows meet.
  int64_t max_x_rows(int64_t rows) const { return min64(H, (rows - 1) * stride_h + (R - 1) * dilation_h + 1); }
  // Columns of zeros to the right of x; to its left there are pad_left.
  int64_t pad_right() const { return max64(0, (Q - 1) * stride_w + (S - 1) * dilation_w + 1 - pad_left - W); }

  // The row of dy that row r of the filters meets from row h of x; -1: none. This is dx's rule.
  int64_t dy_row(int64_t h, int64_t r) const {
    const int64_t p = h + pad_top - r * dilation_h; // times the stride
    return p < 0 || p % stride_h || p / stride_h >= P ? -1 : p / stride_h;
  }
  // The rows of dy that rows [begin, end) of x meet.
  Range dy_rows(int64_t begin, int64_t end) const {
    const int64_t low = begin + pad_top - (R - 1) * dilation_h, high = end - 1 + pad_top;
    const int64_t first = low <= 0 ? 0 : min64(P, ceil_div(low, stride_h));
    return {first, max64(first, min64(P, high / stride_h + 1))};
  }
  // The most rows of dy that `rows` rows of x meet.
  int64_t max_dy_rows(int64_t rows) const { return min64(P, (rows + (R - 1) * dilation_h) / stride_h + 1); }

  // Pixels of x that are stride_w columns apart form a *phase*, named by its first column. All of them meet dy through
  // the same columns of the filters; the next pixel of a phase meets the next column of dy.
  int64_t phases() const { return min64(stride_w, W); }
  bool column_meets(int64_t phase, int64_t s) const { return (phase + pad_left - s * dilation_w) % stride_w == 0; }
  // The column of dy that column s of the filters meets from a phase's first pixel, if column_meets; it may lie
  // outside.
  int64_t dy_column(int64_t phase, int64_t s) const { return (phase + pad_left - s * dilation_w) / stride_w; }

  bool has_padding() const {
    return pad_top != 0 || pad_left != 0 || (P - 1) * stride_h + (R - 1) * dilation_h + 1 > H ||
           (Q - 1) * stride_w + (S - 1) * dilation_w + 1 > W;
  }
};

// The columns of zeros beside dy that let each tap of each column of x find its column of dy.
struct DyPadding {
  int64_t left, right;
  explicit DyPadding(const Geometry &s) {
    const int64_t low = s.pad_left - (s.S - 1) * s.dilation_w; // of q * stride
    left = low < 0 ? ceil_div(-low, s.stride_w) : 0;
    right = max64(0, (s.W - 1 + s.pad_left) / s.stride_w - (s.Q - 1));
  }
};

// Rows of a matrix product: a 1x1 kernel's pixels are cut into rows of this many, whatever the image's shape.
constexpr int64_t FLAT_ROW = 60; // of tiles of 5, 6, 10 and 12 pixels

// A kernel without neighbours is a matrix product: its pixels are one long row, cut into rows of FLAT_ROW, the last of
// which may be shorter (last_width). A kernel that covers the whole image is one too, with C' = R * S * C.
struct Shape : Geometry {
  int64_t last_width = -1; // pixels in the last row of a matrix product; -1: of an image, whose rows are all alike

  explicit Shape(const adder_shape &s) : Geometry(without_extent(Geometry(s))) {
    // Not with groups: the kernels for small groups cannot have a shorter last row.
    if (groups != 1 || R != 1 || S != 1 || stride_h != 1 || stride_w != 1 || has_padding()) return;
    const int64_t pixels = N * H * W;
    W = Q = max64(1, min64(pixels, FLAT_ROW));
    H = P = ceil_div(pixels, W);
    last_width = pixels - (H - 1) * W;
    N = 1;
  }

  bool is_product() const { return last_width >= 0; }
  int64_t pixels() const { return is_product() ? (H - 1) * W + last_width : N * H * W; } // of x
  // Pixels of a row of x (rows = H, full = W), or of y and dy (P, Q).
  int64_t width(int64_t row, int64_t rows, int64_t full) const {
    return is_product() && row == rows - 1 ? last_width : full;
  }
  // Are groups so small that lanes over the channels of one group would mostly be empty?
  template <class T> bool small_groups(int64_t channels_of_a_group) const {
    return groups > 1 && channels_of_a_group <= T::L / 2;
  }

private:
  static adder_shape without_extent(Geometry s) {
    if (s.groups == 1 && !s.has_padding() && s.P == 1 && s.Q == 1 && s.R == s.H && s.S == s.W && s.dilation_h == 1 &&
        s.dilation_w == 1) {
      s.C = s.taps;
      s.H = s.W = s.R = s.S = s.stride_h = s.stride_w = 1;
    }
    return s;
  }
};

} // namespace ADDER_NAMESPACE
#endif
