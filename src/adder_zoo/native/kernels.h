// Forward, dx and dw for one instruction set; included by isa_*.cpp with that set's flags and namespace.
//
//   N, H, W, C      input         x  [N, H, W, C]
//   P, Q, K         output        y, dy [N, P, Q, K]
//   R, S            kernel        w  [K, R, S, Cg],  Cg = C / G, Kg = K / G
//
// All kernels are implicit matrix products without im2col. A *tile* is MR pixels of one row times NV vectors of L
// channels, held in registers; it runs over *segments*, stretches of the reduction that lie side by side in memory both
// in the image and in the *panel*, the filters packed as [vector][tap][L]. The pixels of a tile are a constant step
// apart, so a tile needs no table of pointers. Tap rows that fall outside the image are left out of the segments of a
// row of pixels; columns of padding, if there are any, come from a copy of the rows with the padding written out. So
// no tile has a branch for the border. Depthwise layers are no matrix products: see there.
//
// What one output adds up, and in which order, does not depend on how the work is cut into tasks: the result has the
// same bits with any number of threads. The last bits may differ with the number of images: those that do not fill a
// vector have dx added up in another order, and pixels that share a tile pass the test of y's identity together.
#ifndef ADDER_KERNELS_H
#define ADDER_KERNELS_H

#include "adder.h"
#include "parallel.h"
#include "vec.h"

#include <cfloat>

namespace ADDER_NAMESPACE {

// ---- plan ----------------------------------------------------------------------------------------------------------

// Taps that are added up in registers before the sum goes to memory: shortens the chains that rounding grows along.
constexpr int64_t CHAIN = 256;
// Bytes of image rows that a task works on, to stay in the second-level cache beside the panels: few where all panels do,
// more where they come from further away for each chunk.
constexpr int64_t LEAST_CHUNK = 96 << 10, MOST_CHUNK = 192 << 10;
// Tasks to cut the work into, where there is enough of it.
constexpr int64_t TASKS = 32;
// Rows of a matrix product: a 1x1 kernel's pixels are cut into rows of this many, whatever the image's shape.
constexpr int64_t FLAT_ROW = 60; // of tiles of 5, 6, 10 and 12 pixels

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

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// `count` things in `parts` parts that differ by one at most, the larger ones first.
struct Cut {
  int64_t least, larger;
  Cut(int64_t count, int64_t parts) : least(count / max64(1, parts)), larger(count % max64(1, parts)) {}
  int64_t size(int64_t part) const { return least + (part < larger); }
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

// Tasks: images times chunks of rows times parts of the blocks.
struct Split {
  int64_t images, rows, chunk, chunks, blocks, parts;
  // rows_first: whether rather the rows than the blocks are cut where there are few images.
  Split(int64_t images_, int64_t rows_, int64_t row_bytes, int64_t panel_bytes, int64_t blocks_, bool rows_first = true)
      : images(images_), rows(rows_), blocks(blocks_) {
    const int64_t least = rows_first ? images : images * blocks;
    chunk = max64(1, min64(rows, max64(LEAST_CHUNK, min64(MOST_CHUNK, panel_bytes)) / max64(1, row_bytes)));
    if (least * ceil_div(rows, chunk) < TASKS) chunk = max64(1, ceil_div(rows, ceil_div(TASKS, max64(1, least))));
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

// A kernel without neighbours is a matrix product: its pixels are one long row, cut into rows of FLAT_ROW, the last of
// which may be shorter (last_width). A kernel that covers the whole image is one too, with C' = R * S * C.
struct Shape : adder_shape {
  int64_t Cg, Kg, taps;
  int64_t last_width; // pixels in the last row
  explicit Shape(const adder_shape &s) : adder_shape(s) {
    const bool no_padding = pad_top == 0 && pad_left == 0 && (P - 1) * stride_h + (R - 1) * dilation_h + 1 <= H &&
                            (Q - 1) * stride_w + (S - 1) * dilation_w + 1 <= W;
    if (groups == 1 && no_padding && P == 1 && Q == 1 && R == H && S == W && dilation_h == 1 && dilation_w == 1) {
      C *= R * S;
      H = W = R = S = stride_h = stride_w = 1;
    }
    last_width = -1;
    // Not with groups: the kernels for small ones know no shorter last row.
    if (groups == 1 && R == 1 && S == 1 && stride_h == 1 && stride_w == 1 && no_padding) {
      const int64_t pixels = N * H * W;
      W = Q = max64(1, min64(pixels, FLAT_ROW));
      H = P = ceil_div(pixels, W);
      last_width = pixels - (H - 1) * W;
      N = 1;
    }
    Cg = C / groups;
    Kg = K / groups;
    taps = R * S * Cg;
  }
  int64_t width(int64_t row, int64_t rows, int64_t full) const {
    return last_width >= 0 && row == rows - 1 ? last_width : full;
  }
  // Are groups so small that lanes over the channels of one group would mostly be empty?
  template <class T> bool small_groups(int64_t channels_of_a_group) const {
    return groups > 1 && channels_of_a_group <= T::L / 2;
  }
};

// Memory that is given back at the end of the scope; null when there was none to have.
template <class E> struct Scratch {
  E *data;
  explicit Scratch(int64_t count) : data(static_cast<E *>(adder::allocate(static_cast<size_t>(count) * sizeof(E)))) {}
  ~Scratch() { adder::release(data); }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  operator E *() const { return data; }
};

// Set by any thread, read when all are done.
struct Flag {
  int value = 0;
  void set() { __atomic_store_n(&value, 1, __ATOMIC_RELAXED); }
};

// Calls f(begin, end) over [0, count) on several threads, each with at least `grain` of them. A thread takes an eighth of
// its share at a time, so that one on a faster core, or one that others leave alone, takes more than its share.
template <class F> void parallel(int64_t count, int64_t grain, F f) {
  struct Shared {
    F *f;
    int64_t count, next;
  } shared = {&f, count, 0};
  adder::parallel_for(
      count, grain,
      [](int64_t begin, int64_t end, void *context) {
        Shared &s = *static_cast<Shared *>(context);
        if (end - begin == s.count) return (*s.f)(begin, end);
        const int64_t some = max64(1, (end - begin) / 8);
        for (int64_t i; (i = __atomic_fetch_add(&s.next, some, __ATOMIC_RELAXED)) < s.count;)
          (*s.f)(i, min64(s.count, i + some));
      },
      &shared);
}

// Vector operations below which handing work to another thread costs more than it saves (some 10 us).
constexpr double WORTH_A_THREAD = 32e3;
static inline int64_t grain_for(double operations, int64_t tasks) {
  const double per_task = operations / static_cast<double>(max64(1, tasks));
  return per_task >= WORTH_A_THREAD ? 1 : static_cast<int64_t>(WORTH_A_THREAD / (per_task + 1)) + 1;
}

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

// Of rows [begin, end) of outputs the pixels that a strided 1x1 kernel meets, side by side: every stride_w-th of every
// stride_h-th row. What is left is a kernel without a stride.
template <class T>
Rows gather_rows(const float *image, int64_t width, int64_t channels, int64_t stride_h, int64_t stride_w,
                 int64_t begin, int64_t end, int64_t outputs, float *copy) {
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

// Calls the rows of the next task into the second-level cache, a few lines with each tile of this one. What the tiles read
// is copied (and summed) in one go before them, which otherwise waits for memory where images do not fit into the caches.
struct Ahead {
  const char *at = nullptr, *row_end = nullptr;
  int64_t row = 0, skip = 0, rows = 0; // bytes of a row, bytes to the next one, rows that are left
  int64_t lines = 0;                   // with each tile

  Ahead() = default;
  Ahead(const float *from, int64_t row_floats, int64_t row_step, int64_t rows_, int64_t tiles)
      : at(reinterpret_cast<const char *>(from)), row_end(at + row_floats * 4), row(row_floats * 4),
        skip((row_step - row_floats) * 4), rows(rows_), lines(ceil_div(ceil_div(row, 64) * rows, max64(1, tiles))) {}
  ADDER_INLINE void some() {
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

// Adds a stretch of the reduction to a row's segments. What is longer than a chain is cut into equal pieces, and a chain
// ends before a piece that it has no room for: each piece is a loop of its own, so the fewer the better. Returns the new
// count.
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

template <class T> void store_channels(float *to, const float *from, int64_t vectors, int64_t channels) {
  if (channels == vectors * T::L)
    for (int64_t v = 0; v < vectors; ++v) T::store(to + v * T::L, T::load(from + v * T::L));
  else
    memcpy(to, from, static_cast<size_t>(channels) * sizeof(float));
}

// ---- forward -------------------------------------------------------------------------------------------------------

// The identity  sum |x - w| = 2 sum max(x, w) - sum x - sum w  saves an operation for each tap and loses digits where
// sums cancel. With A = sum |x|, B = sum |w| and 2 |max(x, w)| <= |x| + |w| + |x - w|, all that it adds up is at most
// 2 (A + B) + |y| in magnitude, so its error is at most gamma * (2 (A + B) + |y|), gamma = chain * 2^-24 for the
// longest chain of additions. A tile keeps the result only if A + B <= CANCELLATION * |y| for each output: then the error is
// at most (2 * CANCELLATION + 1) * gamma * |y|, with chains of CHAIN taps and not of all. A NaN never passes the test,
// and an infinity or an overflow in A or B fails it, so those too are computed directly.
constexpr float CANCELLATION = 4.f;
// With few taps the test costs what the identity saves.
constexpr int64_t IDENTITY_TAPS = 32;

// Where a tile's outputs go, and what is done to them on the way.
template <class T> struct Output {
  float *y;              // of the tile's first pixel and the block's first channel
  const float *residual; // the same place there; null: none
  int64_t step;          // from pixel to pixel
  const float *scale, *shift; // of the block, whole vectors; null: y is stored as it is
  bool relu;
  int64_t channels; // of the block that are real
  bool whole;       // all lanes of its vectors are

  void advance(int64_t pixels) {
    y += pixels * step;
    if (residual) residual += pixels * step;
  }
  // From channel c on.
  Output from(int64_t c) const {
    Output next = *this;
    next.y += c;
    if (residual) next.residual += c;
    if (scale) next.scale += c, next.shift += c;
    return next;
  }
};

// Stores value(v) for each vector v of pixel m.
template <class T, class F> ADDER_INLINE void store_pixel(const Output<T> &out, int64_t m, int nv, F value) {
  typedef typename T::V V;
  alignas(64) float row[4 * T::L], beside[4 * T::L];
  float *to = out.whole ? out.y + m * out.step : row;
  const float *residual = out.residual ? out.residual + m * out.step : nullptr;
  if (residual && !out.whole) {
    memset(beside, 0, sizeof beside);
    memcpy(beside, residual, static_cast<size_t>(out.channels) * sizeof(float));
    residual = beside;
  }
  for (int v = 0; v < nv; ++v) {
    V y = value(v);
    if (out.scale) {
      y = T::fma(y, T::load(out.scale + v * T::L), T::load(out.shift + v * T::L));
      if (residual) y = y + T::load(residual + v * T::L);
      if (out.relu) y = T::max(T::set(0.f), y); // the second operand if either is NaN
    }
    T::store(to + v * T::L, y);
  }
  if (!out.whole) memcpy(out.y + m * out.step, row, static_cast<size_t>(out.channels) * sizeof(float));
}

// The same for a whole tile that is in registers, of whole vectors.
template <class T, int MR, int NV> ADDER_INLINE void store_tile(const Output<T> &out, const typename T::V (&values)[MR][NV]) {
  typedef typename T::V V;
  float *const to = out.y;
  const int64_t step = out.step;
  if (!out.scale) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) T::store(to + m * step + v * T::L, values[m][v]);
    return;
  }
  const float *const scale = out.scale, *const shift = out.shift, *const residual = out.residual;
  const bool relu = out.relu;
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      V y = T::fma(values[m][v], T::load(scale + v * T::L), T::load(shift + v * T::L));
      if (residual) y = y + T::load(residual + m * step + v * T::L);
      if (relu) y = T::max(T::set(0.f), y);
      T::store(to + m * step + v * T::L, y);
    }
}

// What the test of the identity needs of a row's filters.
struct Sums {
  const float *x, *abs_x; // [pixels], Σ x and Σ |x| over a patch
  const float *w, *abs_w; // [NV * L]
  float most_x, most_w;   // no less than any of abs_x, and of abs_w; infinity where one is not finite

  void advance(int64_t pixels) {
    x += pixels;
    abs_x += pixels;
  }
};

// The largest of `count` values that are not negative; infinity where one is not finite.
template <class T> float most(const float *values, int64_t count) {
  typedef typename T::V V;
  V most = T::set(0.f);
  bool finite = true;
  int64_t i = 0;
  for (; i + T::L <= count; i += T::L) {
    const V v = T::load(values + i);
    finite &= T::all_le(v, T::set(FLT_MAX));
    most = T::max(most, v);
  }
  alignas(64) float lanes[T::L];
  T::store(lanes, most);
  float result = lanes[0];
  for (int lane = 1; lane < T::L; ++lane) result = lanes[lane] > result ? lanes[lane] : result;
  for (; i < count; ++i) {
    finite &= values[i] <= FLT_MAX;
    result = values[i] > result ? values[i] : result;
  }
  return finite ? result : __builtin_inff();
}

// A + B up to here leaves 2 sum max(x, w) finite.
constexpr float MOST = FLT_MAX / 8;

// Do all outputs of a tile pass the test, one by one?
template <class T>
__attribute__((noinline)) bool each_passes(const float *values, int64_t mr, int nv, const Sums &sums) {
  typedef typename T::V V;
  bool good = true;
  for (int64_t m = 0; m < mr && good; ++m)
    for (int v = 0; v < nv; ++v) {
      const V limit = T::min(T::set(MOST), T::abs(T::load(values + (m * nv + v) * T::L)) * T::set(CANCELLATION));
      good &= T::all_le(T::set(sums.abs_x[m]) + T::load(sums.abs_w + v * T::L), limit);
    }
  return good;
}

// Whether a tile may go on in the next row, so that rows that it does not divide cost nothing. Its pixels are no constant
// step apart then, and each of them takes a register of its own for its offset.
template <class T> constexpr bool joins_rows(int nv) { return T::REGISTERS < 32 && nv == 2; }

// A multiple of UNROLLED taps of the forward's most frequent tiles, two vectors of AVX2 for five or four pixels. The
// processor takes in six instructions a cycle, which is what a tap needs with its loop beside it: unrolled, the loop is
// cheaper. The compiler cannot be had to do it within 16 registers (its two taps take 1.5 times as long as two of one).
constexpr int64_t UNROLLED = 4;
#if defined(__AVX2__) && !defined(__AVX512VL__) && defined(__x86_64__)
#define ADDER_FILTERS(U) "vmovups 32*" #U "(%%rdx), %%ymm12\n\tvmovups 32*" #U "(%%rdx,%[stride],4), %%ymm13\n\t"
#define ADDER_BY_FMA(FROM, TO) "vfmadd231ps %[one], " FROM ", " TO "\n\t"
#define ADDER_BY_ADD(FROM, TO) "vaddps " FROM ", " TO ", " TO "\n\t"
#define ADDER_PIXEL(SUM, U, M, X)                                                                                            \
  "vbroadcastss 4*" #U "(" X "), %%ymm14\n\tvmaxps %%ymm12, %%ymm14, %%ymm15\n\tvmaxps %%ymm13, %%ymm14, %%ymm14\n\t"         \
      SUM("%%ymm15", "%[a" #M "]") SUM("%%ymm14", "%[b" #M "]")
#define ADDER_FOUR(SUM, U)                                                                                                   \
  ADDER_FILTERS(U) ADDER_PIXEL(SUM, U, 0, "%%rax") ADDER_PIXEL(SUM, U, 1, "%%rax,%[o1],4")                                     \
      ADDER_PIXEL(SUM, U, 2, "%%rax,%[o2],4") ADDER_PIXEL(SUM, U, 3, "%%rax,%[o3],4")
#define ADDER_FIVE(SUM, U) ADDER_FOUR(SUM, U) ADDER_PIXEL(SUM, U, 4, "%%rax,%[o4],4")
#define ADDER_LOOP(TAP, SUM)                                                                                                 \
  "mov %[xs], %%rax\n\tmov %[ws], %%rdx\n\tmov %[count], %%rcx\n\t.p2align 5\n1:\n\t"                                        \
      TAP(SUM, 0) TAP(SUM, 1) TAP(SUM, 2) TAP(SUM, 3)                                                                        \
  "add $16, %%rax\n\tadd $128, %%rdx\n\tsub $4, %%rcx\n\tjnz 1b"
#define ADDER_SUMS(M) [a##M] "+x"(acc[M][0]), [b##M] "+x"(acc[M][1])
#define ADDER_INPUTS                                                                                                         \
  [xs] "r"(xs), [ws] "r"(ws), [stride] "r"(panel_stride), [count] "r"(count), [one] "x"(one), [o1] "r"(offset[1]),           \
      [o2] "r"(offset[2]), [o3] "r"(offset[3])
#define ADDER_CLOBBERS "rax", "rcx", "rdx", "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory"

template <class T, int MR, int NV, bool EXACT> constexpr bool has_unrolled() {
  return !EXACT && T::L == 8 && NV == 2 && (MR == 4 || MR == 5);
}
#define ADDER_TAPS_OF_FIVE(SUM)                                                                                              \
  asm volatile(ADDER_LOOP(ADDER_FIVE, SUM)                                                                                   \
               : ADDER_SUMS(0), ADDER_SUMS(1), ADDER_SUMS(2), ADDER_SUMS(3), ADDER_SUMS(4)                                   \
               : ADDER_INPUTS, [o4] "r"(offset[4])                                                                             \
               : ADDER_CLOBBERS)
#define ADDER_TAPS_OF_FOUR(SUM)                                                                                              \
  asm volatile(ADDER_LOOP(ADDER_FOUR, SUM)                                                                                   \
               : ADDER_SUMS(0), ADDER_SUMS(1), ADDER_SUMS(2), ADDER_SUMS(3)                                                  \
               : ADDER_INPUTS                                                                                                \
               : ADDER_CLOBBERS)
template <bool ADDS, class V, int MR, int NV>
ADDER_INLINE void unrolled_taps(V (&acc)[MR][NV], const float *xs, const int64_t *offset, const float *ws,
                                int64_t panel_stride, int64_t count, V one) {
  if constexpr (MR == 5 && ADDS) ADDER_TAPS_OF_FIVE(ADDER_BY_ADD);
  else if constexpr (MR == 5) ADDER_TAPS_OF_FIVE(ADDER_BY_FMA);
  else if constexpr (ADDS) ADDER_TAPS_OF_FOUR(ADDER_BY_ADD);
  else ADDER_TAPS_OF_FOUR(ADDER_BY_FMA);
}
#else
template <class T, int MR, int NV, bool EXACT> constexpr bool has_unrolled() { return false; }
template <bool ADDS, class... A> void unrolled_taps(A &&...) {}
#endif

// What the tiles of a row work on.
template <class T> struct ForwardRow {
  const Segment *segments;
  int64_t count;
  const int64_t *offsets; // pixel m > 0 is at x[offsets[m]] if tiles may join rows, else at x[m * offsets[1]]
  const float *panel;
  int64_t panel_stride;
  float *sum;           // [MR][NV][L], of chains before the last
  const float *outside; // [NV * L], Σ |w| of the taps outside of the image
  Output<T> out;        // of whole vectors
  Sums sums;
};

// Writes the outputs of MR pixels from the first one's x on: by |x - w| (EXACT), or by max(x, w) and the identity, and then
// returns whether all of them pass its test. The sums do not leave the registers in between. ADDS: by additions, not by
// T::accumulate; the same bits.
template <class T, int MR, int NV, bool EXACT, bool ADDS>
__attribute__((noinline)) bool forward_tile(const ForwardRow<T> &row, const float *x) {
  typedef typename T::V V;
  const V one = T::opaque(T::set(1.f));
  const float *const panel = row.panel;
  const int64_t panel_stride = row.panel_stride;
  int64_t offset[MR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) offset[m] = m == 0 ? 0 : joins_rows<T>(NV) ? row.offsets[m] : m * row.offsets[1];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) prefetch_to_write(row.out.y + m * row.out.step);
  const Segment *segment = row.segments, *const end = segment + row.count;
  V acc[MR][NV];
  float *const sum = row.sum;
  const auto each = [&](auto f) ADDER_LAMBDA_INLINE {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) f(acc[m][v], sum + (m * NV + v) * T::L);
  };
  for (bool first = true;; first = false) {
    each([](V &a, float *) ADDER_LAMBDA_INLINE { a = T::set(0.f); });
    for (bool last = false; !last && segment != end; ++segment) {
      const float *xs = x + segment->source, *ws = panel + segment->panel * T::L;
      int64_t t = segment->length;
      if constexpr (has_unrolled<T, MR, NV, EXACT>())
        if (const int64_t count = t & -UNROLLED) {
          unrolled_taps<ADDS>(acc, xs, offset, ws, panel_stride, count, one);
          xs += count;
          ws += count * T::L;
          t -= count;
        }
      for (; t > 0; --t) {
        V w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) w[v] = T::load(ws + v * panel_stride);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const V b = T::set(xs[offset[m]]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            const V term = EXACT ? T::distance(b, w[v]) : T::max(b, w[v]);
            acc[m][v] = ADDS ? acc[m][v] + term : T::accumulate(acc[m][v], term, one);
          }
        }
        ++xs;
        ws += T::L;
      }
      last = segment->last;
    }
    if (!first) each([](V &a, float *s) ADDER_LAMBDA_INLINE { a = T::load(s) + a; });
    if (segment == end) break;
    each([](V &a, float *s) ADDER_LAMBDA_INLINE { T::store(s, a); });
  }
  const Output<T> &out = row.out;
  const Sums &sums = row.sums;
  if constexpr (EXACT) {
    const float *const outside = row.outside;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) acc[m][v] = T::set(0.f) - (acc[m][v] + T::load(outside + v * T::L));
    store_tile<T, MR, NV>(out, acc);
    return true;
  } else {
    const float *const sum_x = sums.x, *const sum_w = sums.w;
    V largest = T::set(-FLT_MAX); // y is negative, so the largest has the smallest magnitude
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        acc[m][v] = (T::set(sum_x[m]) + T::load(sum_w + v * T::L)) - (acc[m][v] + acc[m][v]);
        largest = T::max(acc[m][v], largest);
      }
    store_tile<T, MR, NV>(out, acc);
    // Where the largest A + B passes with the smallest |y|, all do. No value is NaN then, so max has lost none. First with
    // the largest A of all tiles, which is known.
    const V least = T::set(-CANCELLATION) * largest;
    const auto passes = [&](float bound) ADDER_LAMBDA_INLINE { return bound <= MOST && T::all_le(T::set(bound), least); };
    if (passes(sums.most_x + sums.most_w) || passes(most<T>(sums.abs_x, MR) + sums.most_w)) return true;
    each([](V &a, float *s) ADDER_LAMBDA_INLINE { T::store(s, a); });
    return each_passes<T>(sum, MR, NV, sums);
  }
}

template <class T> using ForwardTile = bool (*)(const ForwardRow<T> &, const float *x);

// All tiles by vectors and pixels; there is none of no pixels.
template <class T, bool EXACT, bool ADDS = false> struct ForwardTiles {
  ForwardTile<T> of[5][MAX_PIXELS + 1];
  constexpr ForwardTiles() : of() {
    list<1, max_pixels<T>(1, false)>();
    list<2, max_pixels<T>(2, false)>();
    if constexpr (T::REGISTERS >= 32) list<4, max_pixels<T>(4, false)>();
  }
  template <int NV, int MR> constexpr void list() {
    of[NV][MR] = forward_tile<T, MR, NV, EXACT, ADDS>;
    if constexpr (MR > 1) list<NV, MR - 1>();
  }
};

// The tiles of nv vectors by number of pixels, of max(x, w) or of |x - w|.
template <class T> const ForwardTile<T> *forward_tiles(int nv, bool identity) {
  static constexpr ForwardTiles<T, false> maxima;
  static constexpr ForwardTiles<T, true> distances;
  if constexpr (T::EITHER_SUM) {
    static constexpr ForwardTiles<T, false, true> added;
    if (identity && adder::adds) return added.of[nv];
  }
  return identity ? maxima.of[nv] : distances.of[nv];
}

// What adder_pack writes: panels [vectors][taps][L], then sums of w and of |w| over each row of taps,
// [vectors][R][2][L]; for small groups filters [taps][lanes].
template <class T> int64_t packed_floats(const Shape &s) {
  if (s.small_groups<T>(s.Kg)) return s.taps * ceil_div(s.K, T::L) * T::L;
  return s.groups * ceil_div(s.Kg, T::L) * (s.taps + 2 * s.R) * T::L;
}

template <class T> void pack_vector(const Shape &s, const float *w, int64_t vector, float *packed) {
  typedef typename T::V V;
  const int64_t per_group = ceil_div(s.Kg, T::L), g = vector / per_group, first = vector % per_group * T::L;
  float *const panel = packed + vector * s.taps * T::L;
  float *const row_sums = packed + (s.groups * per_group * s.taps + vector * 2 * s.R) * T::L;
  const float *const from = w + (g * s.Kg + first) * s.taps;
  int64_t packed_taps = 0;
#if defined(__AVX2__)
  if constexpr (T::L % 8 == 0)
    if (first + T::L <= s.Kg)
      for (; packed_taps + 8 <= s.taps; packed_taps += 8)
        for (int64_t lane = 0; lane < T::L; lane += 8)
          transpose8(from + lane * s.taps + packed_taps, s.taps, panel + packed_taps * T::L + lane, T::L);
#endif
  for (int64_t t = packed_taps; t < s.taps; ++t)
    for (int64_t lane = 0; lane < T::L; ++lane)
      panel[t * T::L + lane] = first + lane < s.Kg ? from[lane * s.taps + t] : 0.f;
  for (int64_t r = 0; r < s.R; ++r) {
    V sum = T::set(0.f), abs_sum = T::set(0.f);
    for (int64_t t = r * s.S * s.Cg; t < (r + 1) * s.S * s.Cg;) {
      const int64_t end = min64(t + CHAIN, (r + 1) * s.S * s.Cg);
      V chain = T::set(0.f), abs_chain = T::set(0.f);
      for (; t < end; ++t) {
        const V value = T::load(panel + t * T::L);
        chain = chain + value;
        abs_chain = abs_chain + T::abs(value);
      }
      sum = sum + chain;
      abs_sum = abs_sum + abs_chain;
    }
    T::store(row_sums + (r * 2 + 0) * T::L, sum);
    T::store(row_sums + (r * 2 + 1) * T::L, abs_sum);
  }
}

template <class T> void pack_filters(const Shape &s, const float *w, float *packed) {
  const int64_t per_group = ceil_div(s.Kg, T::L), vectors = s.groups * per_group;
  if (s.small_groups<T>(s.Kg)) {
    const int64_t lanes = ceil_div(s.K, T::L) * T::L;
    for (int64_t tap = 0; tap < s.taps; ++tap, packed += lanes) {
      for (int64_t k = 0; k < s.K; ++k) packed[k] = w[k * s.taps + tap];
      for (int64_t k = s.K; k < lanes; ++k) packed[k] = 0;
    }
    return;
  }
  parallel(vectors, grain_for(2. * vectors * s.taps, vectors), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) pack_vector<T>(s, w, a, packed);
  });
}

// scale and shift in whole vectors, as the blocks read them: `channels` for each of `groups`.
template <class T> struct Epilogue {
  const float *residual;
  bool relu;
  Scratch<float> padded; // [2][vectors][L]
  int64_t vectors;

  Epilogue(const adder_epilogue *e, int64_t groups, int64_t channels)
      : residual(e ? e->residual : nullptr), relu(e && e->relu), padded(e ? 2 * groups * ceil_div(channels, T::L) * T::L : 1),
        vectors(e ? groups * ceil_div(channels, T::L) : 0) {
    if (!e || !padded) return;
    const int64_t per_group = ceil_div(channels, T::L) * T::L;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t c = 0; c < per_group; ++c) {
        padded[g * per_group + c] = c < channels ? e->scale[g * channels + c] : 0.f;
        padded[vectors * T::L + g * per_group + c] = c < channels ? e->shift[g * channels + c] : 0.f;
      }
  }

  // For the outputs at y[offset], `channels` of nv vectors from `vector` on.
  Output<T> output(float *y, int64_t offset, int64_t step, int64_t vector, int nv, int64_t channels) const {
    const float *const scale = vectors ? padded + vector * T::L : nullptr;
    return {y + offset, residual ? residual + offset : nullptr, step,    scale, scale + vectors * T::L,
            relu,       channels,                               channels == nv * T::L};
  }
};

template <class T> struct Forward : Shape {
  const float *x;
  float *y;
  bool identity;
  int64_t image_floats, image_width, skip_h, skip_w; // of the image as it is; steps between the pixels that are gathered
  int64_t left, right;                               // columns of padding
  const float *panels, *row_sums;                    // see packed_floats
  const Epilogue<T> &epilogue;
  Block *blocks;
  Split split;
  Flag failed;

  Forward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_, bool exact_,
          Block *blocks_, int64_t block_count)
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
      if (groups == 1 && dilation_w == 1)
        count = add_segment(segments, count, chain, source, r * S * Cg, S * Cg);
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
          rows_of_tiles(blocks[b], task.image, task.row_begin + p, n, rows, segments, sum_x, sum_x + tile_rows * Q, ahead);
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
        if (row_inside(p, r))
          sw = sw + T::load(from), aw = aw + T::load(from + T::L);
        else
          out = out + T::load(from + T::L); // a padded tap has x = 0 and adds |w|
      }
      T::store(sum_w + v * T::L, sw - out);
      T::store(abs_w + v * T::L, aw + out);
      T::store(outside + v * T::L, out);
    }
    const float most_w = most<T>(abs_w, block.nv * T::L), most_x = identity ? most<T>(abs_x, pixels) : 0.f;
    const int64_t count = segments_of_row(p, rows, segments);
    const int64_t next_row = stride_h * rows.stride - Q * step; // beyond the step from a row's last pixel
    const int64_t tiles = ceil_div(pixels, max_pixels<T>(block.nv, false));
    Output<T> out = epilogue.output(y, (image * P + p) * Q * K + block.channel, K, block.vector, block.nv, block.channels);
    int64_t offsets[MAX_PIXELS], left_in_row = Q;
    for (int64_t m = 0; m < MAX_PIXELS; ++m) offsets[m] = joins_rows<T>(block.nv) ? m * step : step;
    bool regular = true; // offsets are a step apart
    // Vectors that are not whole are written beside y first.
    const Output<T> aside = {values, nullptr, block.nv * T::L, nullptr, nullptr, false, block.nv * T::L, true};
    ForwardRow<T> row = {segments, count, offsets, panels + block.vector * taps * T::L, taps * T::L, sum, outside,
                         out.whole ? out : aside, {sum_x, abs_x, sum_w, abs_w, most_x, most_w}};
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
      if (out.whole)
        row.out.advance(mr);
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

// ---- dx ------------------------------------------------------------------------------------------------------------

// t(w - x) for operands within largest_operand.
template <class T, int MODE> ADDER_INLINE typename T::V transfer(typename T::V w, typename T::V x) {
  if (MODE == ADDER_CLIPPED) return T::clamp1(w - x);
  if (MODE == ADDER_FULL) return w - x;
  return T::sign_of_difference(w, x);
}

// t(w - x) for anything, NaN included.
static inline float transfer_any(float w, float x, int mode) {
  const float z = w - x;
  if (mode == ADDER_FULL || z != z) return z;
  if (mode == ADDER_SIGN) return static_cast<float>((z > 0) - (z < 0));
  return z > 1 ? 1.f : z < -1 ? -1.f : z;
}

// sum[m][v] = sum over the segments of dy * t(w - x); x [MR][NV * L] lies beside the sums.
template <class T, int MR, int NV, int MODE>
__attribute__((noinline)) void grad_input_tile(const Segment *segment, int64_t count, const float *dy, int64_t step,
                                               const float *panel, int64_t panel_stride, const float *x, float *sum) {
  typedef typename T::V V;
  V xs[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) xs[m][v] = T::load(x + (m * NV + v) * T::L);
  const Segment *const end = segment + count;
  for (bool first = true; segment != end; first = false) {
    V acc[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = T::set(0.f);
    bool last;
    do {
      const float *ds = dy + segment->source, *ws = panel + segment->panel * T::L;
      for (int64_t t = segment->length; t > 0; --t) {
        V w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) w[v] = T::load(ws + v * panel_stride);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
          const V d = T::set(ds[m * step]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[m][v] = T::fma(transfer<T, MODE>(w[v], xs[m][v]), d, acc[m][v]);
        }
        ++ds;
        ws += T::L;
      }
      last = segment->last;
      ++segment;
    } while (!last && segment != end);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float *s = sum + (m * NV + v) * T::L;
        T::store(s, first ? acc[m][v] : T::load(s) + acc[m][v]);
      }
  }
}

typedef void (*GradInputTile)(const Segment *, int64_t, const float *, int64_t, const float *, int64_t, const float *,
                              float *);

template <class T, int NV, int MODE, int MR = max_pixels<T>(NV, true)> struct GradInputTiles {
  static GradInputTile get(int64_t mr) {
    if constexpr (MR == 0) return nullptr;
    else return mr == MR ? grad_input_tile<T, MR, NV, MODE> : GradInputTiles<T, NV, MODE, MR - 1>::get(mr);
  }
};

template <class T> GradInputTile grad_input_tile_for(int nv, int64_t mr, int mode) {
  if (nv == 2)
    return mode == ADDER_CLIPPED ? GradInputTiles<T, 2, ADDER_CLIPPED>::get(mr)
           : mode == ADDER_FULL  ? GradInputTiles<T, 2, ADDER_FULL>::get(mr)
                                 : GradInputTiles<T, 2, ADDER_SIGN>::get(mr);
  return mode == ADDER_CLIPPED ? GradInputTiles<T, 1, ADDER_CLIPPED>::get(mr)
         : mode == ADDER_FULL  ? GradInputTiles<T, 1, ADDER_FULL>::get(mr)
                               : GradInputTiles<T, 1, ADDER_SIGN>::get(mr);
}

// clamp(w - x, -1, 1) = min(max(w, x - 1), x + 1) - x: an operation less for each tap, as x is constant over a sum, and so
//   sum dy * clamp(w - x) = sum dy * median(w, x - 1, x + 1) - x * sum dy.
// What is added up is at most |dy| (|x| + 1) and rounded with that, and x * sum dy likewise, so the error is at most
// gamma * (2 |x| + 2) * sum |dy|, where the difference's is gamma * sum |dy t|. A tile takes it where each of its x lies in
// [-1, MEDIAN_LIMIT]: most do behind a ReLU and batch norm.
constexpr float MEDIAN_LIMIT = 8.f;
template <class T> constexpr int MEDIAN_PIXELS = T::REGISTERS >= 32 ? 8 : 5; // three registers for each

// sum[m] = sum over the segments of dy * median(w, x - 1, x + 1) for MR pixels and one vector of channels.
template <class T, int MR>
__attribute__((noinline)) void median_tile(const Segment *segment, int64_t count, const float *dy, int64_t step,
                                           const float *panel, int64_t, const float *x, float *sum) {
  typedef typename T::V V;
  V low[MR], high[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    low[m] = T::load(x + m * T::L) - T::set(1.f);
    high[m] = T::load(x + m * T::L) + T::set(1.f);
  }
  const Segment *const end = segment + count;
  for (bool first = true; segment != end; first = false) {
    V acc[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m] = T::set(0.f);
    bool last;
    do {
      const float *ds = dy + segment->source, *ws = panel + segment->panel * T::L;
      for (int64_t t = segment->length; t > 0; --t) {
        const V w = T::load(ws);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) acc[m] = T::fma(T::median(w, low[m], high[m]), T::set(ds[m * step]), acc[m]);
        ++ds;
        ws += T::L;
      }
      last = segment->last;
      ++segment;
    } while (!last && segment != end);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) T::store(sum + m * T::L, first ? acc[m] : T::load(sum + m * T::L) + acc[m]);
  }
}

template <class T, int MR = MEDIAN_PIXELS<T>> GradInputTile median_tile_for(int64_t mr) {
  if constexpr (MR == 0 || !T::MEDIAN) return nullptr;
  else return mr == MR ? median_tile<T, MR> : median_tile_for<T, MR - 1>(mr);
}

// What dx of one pixel is, tap by tap, for operands that are not finite: t of a NaN is NaN, and a tap that no output
// takes adds nothing, where the tiles would add 0 * t.
static inline void grad_input_pixel(const Shape &s, const float *dy, const float *x, const float *w, float *dx, int mode,
                                    int64_t n, int64_t h, int64_t column, int64_t begin, int64_t end) {
  const int64_t pixel = ((n * s.H + h) * s.W + column) * s.C;
  for (int64_t c = begin; c < end; ++c) dx[pixel + c] = 0;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t ph = h + s.pad_top - r * s.dilation_h;
    if (ph < 0 || ph % s.stride_h || ph / s.stride_h >= s.P) continue;
    for (int64_t t = 0; t < s.S; ++t) {
      const int64_t qw = column + s.pad_left - t * s.dilation_w;
      if (qw < 0 || qw % s.stride_w || qw / s.stride_w >= s.Q) continue;
      const float *const d = dy + ((n * s.P + ph / s.stride_h) * s.Q + qw / s.stride_w) * s.K;
      for (int64_t c = begin; c < end; ++c) {
        const int64_t g = c / s.Cg;
        const float *ws = w + (g * s.Kg * s.R * s.S + r * s.S + t) * s.Cg + c % s.Cg;
        float sum = 0;
        for (int64_t k = 0; k < s.Kg; ++k, ws += s.taps) sum += d[g * s.Kg + k] * transfer_any(*ws, x[pixel + c], mode);
        dx[pixel + c] += sum;
      }
    }
  }
}

// The largest operand for which t(w - x) is finite, so that a tap that no output takes may add 0 * t.
static inline float largest_operand(int mode) { return mode == ADDER_FULL ? FLT_MAX / 2 : FLT_MAX; }

template <class T> bool all_within(const float *values, int64_t count, float limit) {
  typedef typename T::V V;
  bool good = true;
  int64_t i = 0;
  for (; i + T::L <= count && good; i += T::L) {
    const V v = T::load(values + i);
    good = T::all_le(T::abs(v), T::set(limit));
  }
  for (; i < count && good; ++i) good = __builtin_fabsf(values[i]) <= limit;
  return good;
}

// The taps of a kernel's row in an order in which those that one phase of pixels takes (columns apart by the stride)
// follow each other, with outputs ascending.
static inline void order_columns(const Shape &s, int64_t *order) {
  int64_t count = 0;
  for (int64_t phase = 0; phase < s.stride_w; ++phase)
    for (int64_t t = s.S - 1; t >= 0; --t)
      if (t * s.dilation_w % s.stride_w == phase) order[count++] = t;
}

// Which outputs the taps of an input column reach: from the first column's first to the last column's last.
struct Reach {
  int64_t left, right; // columns of zeros to put beside dy
  explicit Reach(const Shape &s) {
    const int64_t low = s.pad_left - (s.S - 1) * s.dilation_w; // of q * stride
    left = low < 0 ? ceil_div(-low, s.stride_w) : 0;
    right = max64(0, (s.W - 1 + s.pad_left) / s.stride_w - (s.Q - 1));
  }
};

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

  void row_of_tiles(const Block &block, int64_t image, int64_t h, int64_t phase, const Rows &rows,
                    Segment *segments, const float *totals) const {
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
        grad_input_tile_for<T>(block.nv, mr, mode)(segments, count, source + j * K, K, panel, R * S * Kg * T::L, xs, sum);
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

// ---- dx with lanes over images -------------------------------------------------------------------------------------

// With a lane for each of L images, dy of a tap is a vector that an fma takes from memory, and the filter, the same for
// all lanes, is loaded once for all pixels. With a lane for each channel dy is a number that has to be spread over a
// register first, and three operations, that load and its share of the filter's take a third longer. What it costs is a
// transposition of dy, x and dx on their way.

// Pixels of a tile: three registers for each and two sums, as an addition takes four cycles; the fewer, the more sums.
constexpr int IMAGES_PIXELS = 3;
constexpr int sums_of_pixel(int pixels) { return pixels >= 3 ? 2 : pixels == 2 ? 4 : 8; }
// Bytes of dy that all channels' tiles read before they take the next: to stay in the first-level cache.
constexpr int64_t IMAGES_BYTES = 24 << 10;
// Bytes that a pixel row of the lanes' images should take, where the width of a row is free to choose.
constexpr int64_t IMAGES_ROW = 160 << 10;

// Four taps at a time of the most frequent tile with AVX2, as for the forward.
#if defined(__AVX2__) && !defined(__AVX512VL__) && defined(__x86_64__)
#define ADDER_IMAGES_TAP(U, W, NEXT, SUMS)                                                                                   \
  "vbroadcastss 4*" #U "+4(%[ws]), %%ymm" #NEXT "\n\t"                                                                       \
  "vpminsd %[h0], %%ymm" #W ", %%ymm14\n\tvmaxps %[l0], %%ymm14, %%ymm14\n\t"                                              \
  "vfmadd231ps 32*" #U "(%[ds]), %%ymm14, %[" #SUMS "0]\n\t"                                                                \
  "vpminsd %[h1], %%ymm" #W ", %%ymm15\n\tvmaxps %[l1], %%ymm15, %%ymm15\n\t"                                              \
  "vpminsd %[h2], %%ymm" #W ", %%ymm" #W "\n\t"                                                                             \
  "vfmadd231ps 32*" #U "(%[ds],%[step]), %%ymm15, %[" #SUMS "1]\n\t"                                                        \
  "vmaxps %[l2], %%ymm" #W ", %%ymm" #W "\n\t"                                                                              \
  "vfmadd231ps 32*" #U "(%[ds],%[step],2), %%ymm" #W ", %[" #SUMS "2]\n\t"
template <class T, int MR, bool MEDIAN> constexpr bool has_unrolled_images() { return T::L == 8 && MR == 3 && MEDIAN; }
template <class V, int SUMS, int MR>
ADDER_INLINE void unrolled_images(V (&acc)[SUMS][MR], const V (&low)[MR], const V (&high)[MR], const float *ds, int64_t step,
                                  const float *ws, int64_t count) {
  asm volatile("vbroadcastss (%[ws]), %%ymm12\n\t.p2align 5\n1:\n\t" ADDER_IMAGES_TAP(0, 12, 13, a)
                   ADDER_IMAGES_TAP(1, 13, 12, b) ADDER_IMAGES_TAP(2, 12, 13, a) ADDER_IMAGES_TAP(3, 13, 12, b)
               "add $16, %[ws]\n\tadd $128, %[ds]\n\tsub $4, %[count]\n\tjnz 1b"
               : [a0] "+x"(acc[0][0]), [a1] "+x"(acc[0][1]), [a2] "+x"(acc[0][2]), [b0] "+x"(acc[1][0]),
                 [b1] "+x"(acc[1][1]), [b2] "+x"(acc[1][2]), [ws] "+r"(ws), [ds] "+r"(ds), [count] "+r"(count)
               : [step] "r"(4 * step), [l0] "x"(low[0]), [l1] "x"(low[1]), [l2] "x"(low[2]), [h0] "x"(high[0]),
                 [h1] "x"(high[1]), [h2] "x"(high[2])
               : "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}
#else
template <class T, int MR, bool MEDIAN> constexpr bool has_unrolled_images() { return false; }
template <class... A> void unrolled_images(A &&...) {}
#endif

// Adds to sum[c][m] (or begins it) for MR pixels of L images and each of `channels` channels, over segments of taps:
// dy * median(w, x - 1, x + 1) or dy * clamp(w - x, -1, 1).
template <class T, int MR, bool MEDIAN>
__attribute__((noinline)) void images_tile(const Segment *begin, const Segment *end, const float *dy, int64_t step,
                                           const float *panel, int64_t panel_step, const float *x, int64_t x_step,
                                           int64_t channels, float *sum, bool first) {
  typedef typename T::V V;
  constexpr int SUMS = sums_of_pixel(MR), TAPS = SUMS;
  for (; channels > 0; --channels, panel += panel_step, x += T::L, sum += MR * T::L) {
    V acc[SUMS][MR], low[MR], high[MR]; // low: x itself where there is no median
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const V own = T::load(x + m * x_step);
      low[m] = MEDIAN ? own - T::set(1.f) : own;
      high[m] = own + T::set(1.f);
#pragma GCC unroll 8
      for (int i = 0; i < SUMS; ++i) acc[i][m] = T::set(0.f);
    }
    for (const Segment *segment = begin; segment != end; ++segment) {
      const float *ds = dy + segment->source * T::L, *ws = panel + segment->panel;
      int64_t t = segment->length;
      if constexpr (has_unrolled_images<T, MR, MEDIAN>())
        if (const int64_t count = t & -UNROLLED) {
          unrolled_images(acc, low, high, ds, step, ws, count);
          ds += count * T::L;
          ws += count;
          t -= count;
        }
      V next = T::set(*ws); // a tap early
      for (; t >= TAPS; t -= TAPS, ds += TAPS * T::L, ws += TAPS) {
#pragma GCC unroll 8
        for (int i = 0; i < TAPS; ++i) {
          const V w = next;
          next = T::set(ws[i + 1]);
#pragma GCC unroll 4
          for (int m = 0; m < MR; ++m) {
            V &sum = acc[i % SUMS][m];
            sum = T::fma(MEDIAN ? T::median(w, low[m], high[m]) : T::clamp1(w - low[m]),
                         T::load(ds + m * step + i * T::L), sum);
          }
        }
      }
      for (; t > 0; --t, ds += T::L, ++ws)
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) {
          const V w = T::set(*ws);
          acc[0][m] = T::fma(MEDIAN ? T::median(w, low[m], high[m]) : T::clamp1(w - low[m]), T::load(ds + m * step),
                             acc[0][m]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
      for (int half = SUMS / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int i = 0; i < half; ++i) acc[i][m] = acc[i][m] + acc[i + half][m];
      T::store(sum + m * T::L, first ? acc[0][m] : T::load(sum + m * T::L) + acc[0][m]);
    }
  }
}

typedef void (*ImagesTile)(const Segment *, const Segment *, const float *, int64_t, const float *, int64_t, const float *,
                           int64_t, int64_t, float *, bool);
template <class T> ImagesTile images_tile_for(int64_t mr, bool median) {
  switch (mr) {
    case 1: return median ? images_tile<T, 1, true> : images_tile<T, 1, false>;
    case 2: return median ? images_tile<T, 2, true> : images_tile<T, 2, false>;
    default: return median ? images_tile<T, 3, true> : images_tile<T, 3, false>;
  }
}

// `count` floats of each of L images, side by side: to[i * L + lane], and back.
template <class T> void interleave(const float *from, int64_t image, int64_t count, float *to) {
  int64_t i = 0;
#if defined(__AVX2__)
  if constexpr (T::L == 8)
    for (; i + 8 <= count; i += 8) transpose8(from + i, image, to + i * 8, 8);
#endif
  for (; i < count; ++i)
    for (int64_t lane = 0; lane < T::L; ++lane) to[i * T::L + lane] = from[lane * image + i];
}
template <class T> void separate(const float *from, int64_t count, float *to, int64_t image) {
  int64_t i = 0;
#if defined(__AVX2__)
  if constexpr (T::L == 8)
    for (; i + 8 <= count; i += 8) transpose8(from + i * 8, 8, to + i, image);
#endif
  for (; i < count; ++i)
    for (int64_t lane = 0; lane < T::L; ++lane) to[lane * image + i] = from[i * T::L + lane];
}

template <class T> struct GradInputOverImages : Shape {
  const float *dy, *x, *w;
  float *dx;
  int64_t left, right, padded; // columns of zeros beside dy, and all columns
  int64_t slots;               // rows of dy that a row of x meets: they are kept, row p in slot p % slots
  int64_t parts, filters;      // of a part: K is cut, so that dy stays in the first-level cache
  float *panels;               // [R][parts][C][S in order_columns][filters]
  int64_t *order;
  int64_t chunk, chunks; // rows of a task
  Flag failed;

  // Images of this shape that fill lanes: a multiple of L. The pixels of a matrix product count as images of one row,
  // `width` pixels wide; so few that there are many tasks.
  struct Part {
    int64_t images, width, rest; // pixels of a matrix product that are left
    explicit Part(const Shape &s) : images(s.N / T::L * T::L), width(s.W), rest(0) {
      if (s.last_width < 0) return;
      const int64_t pixels = (s.H - 1) * s.W + s.last_width;
      const int64_t most = min64(FLAT_ROW, IMAGES_ROW / ((s.C + s.K) * T::L * 4));
      width = min64(pixels / (T::L * TASKS), most) / IMAGES_PIXELS * IMAGES_PIXELS;
      width = max64(IMAGES_PIXELS, width);
      images = pixels / width / T::L * T::L;
      rest = pixels - images * width;
    }
  };
  // A rest of a matrix product is filled up with zeros, where that is little; other images that fill no lanes take other
  // kernels.
  static bool suits(const Shape &s, int mode, bool exact) {
    if (!T::OVER_IMAGES || mode != ADDER_CLIPPED || exact || s.groups != 1) return false;
    const Part part(s);
    const int64_t filled = part.rest > 0 ? T::L * part.width - part.rest : 0;
    return part.images > 0 && filled * 8 <= part.images * part.width;
  }
  static Shape cut(Shape s) {
    const Part part(s);
    s.N = part.images;
    if (s.last_width >= 0) {
      s.H = s.P = 1;
      s.W = s.Q = part.width;
      s.last_width = -1;
    }
    return s;
  }

  GradInputOverImages(const Shape &s, const float *dy_, const float *x_, const float *w_, float *dx_, int64_t *order_)
      : Shape(cut(s)), dy(dy_), x(x_), w(w_), dx(dx_), left(Reach(*this).left), right(Reach(*this).right),
        padded(left + Q + right), slots((R - 1) * dilation_h / stride_h + 1), panels(nullptr), order(order_) {
    order_columns(*this, order);
    parts = ceil_div(K, most_filters(*this));
    filters = parts == 1 ? K : ceil_div(ceil_div(K, parts), 8) * 8;
    chunk = max64(1, ceil_div(H, ceil_div(TASKS, max64(1, N / T::L))));
    chunks = ceil_div(H, chunk);
  }
  int64_t tasks() const { return N / T::L * chunks; }

  // Columns of the kernel that one phase of pixels takes, at the most.
  static int64_t most_columns(const Shape &s) {
    int64_t most = 1;
    for (int64_t phase = 0; phase < s.stride_w; ++phase) {
      int64_t columns = 0;
      for (int64_t t = 0; t < s.S; ++t) columns += t * s.dilation_w % s.stride_w == phase;
      most = max64(most, columns);
    }
    return most;
  }
  // Bytes of dy that a tile reads for each filter in one row of the kernel.
  static int64_t bytes_of_filter(int64_t columns) { return (IMAGES_PIXELS - 1 + columns) * T::L * 4; }
  static int64_t most_filters(const Shape &s) {
    const int64_t columns = most_columns(s);
    return max64(8, min64(2 * CHAIN / columns, IMAGES_BYTES / bytes_of_filter(columns)) / 8 * 8);
  }
  // K is rounded up in each of its parts, and a tap is loaded early.
  int64_t panel_floats() const { return R * parts * C * S * filters + 1; }
  int64_t pack_tasks() const { return R * parts; }
  void pack(int64_t task) const {
    const int64_t r = task / parts, k_begin = task % parts * filters, k_end = min64(K, k_begin + filters);
    for (int64_t i = 0; i < S; ++i)
      for (int64_t c = 0; c < C; c += 8) {
        const float *const from = w + (r * S + order[i]) * C + c;
        float *const to = panels + ((task * C + c) * S + i) * filters - k_begin;
        int64_t k = k_begin;
#if defined(__AVX2__)
        if (c + 8 <= C)
          for (; k + 8 <= k_end; k += 8) transpose8(from + k * taps, taps, to + k, S * filters);
#endif
        for (; k < k_end; ++k)
          for (int64_t v = 0; v < min64(8, C - c); ++v) to[v * S * filters + k] = from[k * taps + v];
      }
  }

  // Which row of dy tap row r takes for row h of x; negative: none.
  int64_t row_of(int64_t h, int64_t r) const {
    const int64_t ph = h + pad_top - r * dilation_h;
    return ph < 0 || ph % stride_h || ph / stride_h >= P ? -1 : ph / stride_h;
  }

  // The taps of a row's pixels of one phase. `last` ends what all channels' tiles go over before they take what follows.
  int64_t segments_of_row(int64_t h, int64_t phase, Segment *segments) const {
    int64_t columns = 0, count = 0, bytes = 0, chain = 0;
    for (int64_t i = 0; i < S; ++i) columns += (phase + pad_left - order[i] * dilation_w) % stride_w == 0;
    for (int64_t r = 0; r < R && columns > 0; ++r) {
      const int64_t p = row_of(h, r);
      if (p < 0) continue;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t k = part * filters, some = min64(filters, K - k);
        const int64_t more = some * bytes_of_filter(columns), length = columns * some;
        if (count > 0 && (bytes + more > IMAGES_BYTES || chain + length > 2 * CHAIN)) {
          segments[count - 1].last = true;
          bytes = chain = 0;
        }
        bytes += more;
        chain += length;
        int64_t next = -1; // where the last segment's source ends
        for (int64_t i = 0; i < S; ++i) {
          const int64_t qw = phase + pad_left - order[i] * dilation_w;
          if (qw % stride_w) continue;
          const int64_t source = ((p % slots * parts + part) * padded + left + qw / stride_w) * filters;
          const int64_t tap = ((r * parts + part) * C * S + i) * filters;
          if (source == next && tap == segments[count - 1].panel + segments[count - 1].length)
            segments[count - 1].length += some;
          else
            segments[count++] = {source, tap, some, false};
          next = source + some;
        }
      }
    }
    if (count > 0) segments[count - 1].last = true;
    return count;
  }
  int64_t most_segments() const { return R * S * parts; }

  struct Buffers {
    float *rows, *row_sums; // dy: [slots][parts][padded][filters][L], and [slots][padded][L] summed over K
    float *xs, *sum;        // x and then dx: [W][C][L]; a tile's sums: [C][pixels][L]
    float *totals;          // [pixels][L] of dy over all taps
    Segment *segments;
    int64_t *kept;          // which row lies in a slot
    unsigned char *kinds;   // [W][C]
  };
  enum Kind : unsigned char { MEDIANS, DIFFERENCES, ONE_BY_ONE };

  void run(int64_t begin, int64_t end) {
    Scratch<float> rows(slots * parts * padded * filters * T::L), row_sums(slots * padded * T::L), xs(W * C * T::L),
        sum(C * IMAGES_PIXELS * T::L), totals(W * T::L);
    Scratch<Segment> segments(most_segments());
    Scratch<int64_t> kept(slots);
    Scratch<unsigned char> kinds(W * C);
    if (!rows || !row_sums || !xs || !sum || !totals || !segments || !kept || !kinds) return failed.set();
    const Buffers b = {rows, row_sums, xs, sum, totals, segments, kept, kinds};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / chunks * T::L, first = task % chunks * chunk;
      for (int64_t i = 0; i < slots; ++i) kept[i] = -1;
      for (int64_t h = first; h < min64(H, first + chunk); ++h) row(b, image, h);
    }
  }

  // Row h of L images.
  void row(const Buffers &b, int64_t image, int64_t h) const {
    for (int64_t r = 0; r < R; ++r)
      if (const int64_t p = row_of(h, r); p >= 0 && b.kept[p % slots] != p) take(b, image, p);
    const int64_t place = (image * H + h) * W * C;
    interleave<T>(x + place, H * W * C, W * C, b.xs);
    const bool plain = classify(b);
    for (int64_t phase = 0; phase < min64(stride_w, W); ++phase) row_of_tiles(b, h, phase, plain);
    separate<T>(b.xs, W * C, dx + place, H * W * C);
    if (plain) return;
    for (int64_t j = 0; j < W; ++j)
      for (int64_t c = 0; c < C; ++c)
        if (b.kinds[j * C + c] == ONE_BY_ONE)
          for (int64_t lane = 0; lane < T::L; ++lane)
            grad_input_pixel(*this, dy, x, w, dx, ADDER_CLIPPED, image + lane, h, j, c, c + 1);
  }

  // Row p of dy into its slot, with its columns of zeros and its sums over the filters.
  void take(const Buffers &b, int64_t image, int64_t p) const {
    typedef typename T::V V;
    const int64_t pixel = filters * T::L, slot = p % slots;
    const float *const from = dy + (image * P + p) * Q * K;
    for (int64_t part = 0; part < parts; ++part) {
      float *const to = b.rows + (slot * parts + part) * padded * pixel;
      const int64_t some = min64(filters, K - part * filters);
      memset(to, 0, static_cast<size_t>(left * pixel) * sizeof(float));
      memset(to + (left + Q) * pixel, 0, static_cast<size_t>(right * pixel) * sizeof(float));
      if (some == K)
        interleave<T>(from, P * Q * K, Q * K, to + left * pixel);
      else
        for (int64_t q = 0; q < Q; ++q)
          interleave<T>(from + q * K + part * filters, P * Q * K, some, to + (left + q) * pixel);
      float *total = b.row_sums + slot * padded * T::L;
      for (int64_t j = 0; j < padded; ++j, total += T::L) {
        V sum = T::set(0.f), other = part == 0 ? sum : T::load(total);
        int64_t k = 0;
        for (const float *const values = to + j * pixel; k < some; k += 2) {
          sum = sum + T::load(values + k * T::L);
          if (k + 1 < some) other = other + T::load(values + (k + 1) * T::L);
        }
        T::store(total, sum + other);
      }
    }
    b.kept[slot] = p;
  }

  // Which way each pixel and channel goes, by its x in all images. True: all take medians, and nothing was written.
  bool classify(const Buffers &b) const {
    typedef typename T::V V;
    const auto medians = [](V v) { return T::all_le(T::set(-1.f), v) && T::all_le(v, T::set(MEDIAN_LIMIT)); };
    int64_t i = 0;
    while (i < W * C && medians(T::load(b.xs + i * T::L))) ++i;
    if (i == W * C) return true;
    for (i = 0; i < W * C; ++i) {
      const V v = T::load(b.xs + i * T::L);
      b.kinds[i] = medians(v) ? MEDIANS : T::all_le(T::abs(v), T::set(FLT_MAX)) ? DIFFERENCES : ONE_BY_ONE;
    }
    return false;
  }

  // Sum of dy over all that each pixel's taps reach.
  void tap_sums(const Buffers &b, int64_t h, int64_t phase, int64_t pixels) const {
    for (int64_t j = 0; j < pixels * T::L; ++j) b.totals[j] = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = row_of(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        const int64_t qw = phase + pad_left - s * dilation_w;
        if (qw % stride_w) continue;
        const float *from = b.row_sums + (p % slots * padded + left + qw / stride_w) * T::L;
        for (int64_t j = 0; j < pixels * T::L; j += T::L) T::store(b.totals + j, T::load(b.totals + j) + T::load(from + j));
      }
    }
  }

  void row_of_tiles(const Buffers &b, int64_t h, int64_t phase, bool plain) const {
    const int64_t pixels = ceil_div(W - phase, stride_w), step = stride_w * C * T::L;
    const int64_t count = segments_of_row(h, phase, b.segments);
    if (count == 0) { // no output takes these pixels
      for (int64_t j = 0; j < pixels; ++j)
        memset(b.xs + phase * C * T::L + j * step, 0, static_cast<size_t>(C * T::L) * sizeof(float));
      return;
    }
    tap_sums(b, h, phase, pixels);
    const int64_t tiles = ceil_div(pixels, IMAGES_PIXELS);
    const Cut cut(pixels, tiles);
    for (int64_t i = 0, j = 0; i < tiles; j += cut.size(i++)) {
      for (const Segment *begin = b.segments, *const end = begin + count, *stop; begin != end; begin = stop) {
        stop = behind(begin);
        tile(b, phase, j, cut.size(i), begin, stop, plain);
      }
      finish(b, phase, j, cut.size(i), b.segments + count, plain);
    }
  }
  static const Segment *behind(const Segment *segment) {
    while (!segment->last) ++segment;
    return segment + 1;
  }

  // How pixels j to j + mr of a phase go, for channel c.
  Kind kind_of(const Buffers &b, int64_t phase, int64_t j, int64_t mr, int64_t c, bool plain) const {
    Kind worst = MEDIANS;
    for (int64_t m = 0; m < mr && !plain; ++m) {
      const Kind own = static_cast<Kind>(b.kinds[(phase + (j + m) * stride_w) * C + c]);
      if (own > worst) worst = own;
    }
    return worst;
  }

  // Channel c, and those behind it, up to `channels`, of pixels j to j + mr of a phase.
  void tile_as(bool median, const Buffers &b, int64_t phase, int64_t j, int64_t mr, const Segment *begin,
               const Segment *stop, int64_t c, int64_t channels) const {
    images_tile_for<T>(mr, median)(begin, stop, b.rows + j * filters * T::L, filters * T::L, panels + c * S * filters,
                                   S * filters, b.xs + ((phase + j * stride_w) * C + c) * T::L, stride_w * C * T::L, channels,
                                   b.sum + c * mr * T::L, begin == b.segments);
  }

  // All channels of pixels j to j + mr of a phase: what these segments add to their sums.
  void tile(const Buffers &b, int64_t phase, int64_t j, int64_t mr, const Segment *begin, const Segment *stop,
            bool plain) const {
    for (int64_t c = 0, n; c < C; c += n) {
      const Kind way = kind_of(b, phase, j, mr, c, plain);
      for (n = plain ? C - c : 1; c + n < C && kind_of(b, phase, j, mr, c + n, plain) == way;) ++n;
      tile_as(way == MEDIANS, b, phase, j, mr, begin, stop, c, n);
    }
  }

  // Takes the sums to where x was.
  void finish(const Buffers &b, int64_t phase, int64_t j, int64_t mr, const Segment *end, bool plain) const {
    typedef typename T::V V;
    const int64_t step = stride_w * C * T::L;
    float *to = b.xs + (phase + j * stride_w) * C * T::L, *sum = b.sum;
    for (int64_t c = 0; c < C; ++c, to += T::L, sum += mr * T::L) {
      if (kind_of(b, phase, j, mr, c, plain) == MEDIANS) {
        V worst = T::set(0.f);
        for (int64_t m = 0; m < mr; ++m) {
          const V value = T::load(sum + m * T::L) - T::load(to + m * step) * T::load(b.totals + (j + m) * T::L);
          T::store(sum + m * T::L, value);
          worst = T::fma(value, T::set(0.f), worst); // 0, or NaN for what is not finite
        }
        if (!T::all_le(worst, T::set(0.f))) // an infinity in dy, or on the way
          for (const Segment *begin = b.segments, *stop; begin != end; begin = stop) {
            stop = behind(begin);
            tile_as(false, b, phase, j, mr, begin, stop, c, 1);
          }
      }
      for (int64_t m = 0; m < mr; ++m) T::store(to + m * step, T::load(sum + m * T::L));
    }
  }
};

// ---- small groups: lanes over the channels of many groups ---------------------------------------------------------

constexpr int GROUPED_PIXELS = 6;
constexpr int64_t GROUPED_LANES = 16; // that are worked on at a time, so that rows of them stay in the cache

// A pixel's channels spread out so that lanes `first` to first + GROUPED_LANES find their own: to[i][lane], i over the
// per_group channels of a group, each of which lanes_per_group lanes share.
template <class T> struct Spread {
  int64_t per_group, first, count; // count: lanes that there are
  bool permutes;                   // a vector's lanes find theirs among as many channels side by side
  int32_t channel[GROUPED_LANES], order[T::L / 2 * T::L]; // order [i][lane]

  Spread(int64_t per_group_, int64_t lanes_per_group, int64_t first_, int64_t lanes)
      : per_group(per_group_), first(first_), count(min64(GROUPED_LANES, lanes - first)),
        permutes(T::PERMUTES && per_group == lanes_per_group && per_group <= T::L / 2 && T::L % per_group == 0) {
    for (int64_t lane = 0; lane < GROUPED_LANES; ++lane)
      channel[lane] = static_cast<int32_t>((first + lane) / lanes_per_group * per_group);
    for (int64_t i = 0; permutes && i < per_group; ++i)
      for (int64_t lane = 0; lane < T::L; ++lane)
        order[i * T::L + lane] = static_cast<int32_t>(lane / per_group * per_group + i);
  }

  // Row of `count` pixels, `channels` apart, between `left` and `right` of zeros.
  void row(const float *from, int64_t pixels, int64_t channels, int64_t left, int64_t right, float *to) const {
    const int64_t step = per_group * GROUPED_LANES;
    memset(to, 0, static_cast<size_t>((count < GROUPED_LANES ? left + pixels + right : left) * step) * sizeof(float));
    to += left * step;
    for (; pixels > 0; --pixels, from += channels, to += step) pixel(from, to);
    memset(to, 0, static_cast<size_t>(right * step) * sizeof(float));
  }

  void pixel(const float *from, float *to) const {
    int64_t done = 0;
    if constexpr (T::PERMUTES)
      if (permutes)
        for (; done + T::L <= count; done += T::L) {
          const typename T::V v = T::load(from + first + done);
          for (int64_t i = 0; i < per_group; ++i)
            T::store(to + i * GROUPED_LANES + done, T::permute(v, order + i * T::L));
        }
    for (int64_t i = 0; i < per_group; ++i)
      for (int64_t lane = done; lane < count; ++lane) to[i * GROUPED_LANES + lane] = from[channel[lane] + i];
  }
};

// y[m] = -(outside + sum over taps of |x - w|) for MR pixels and one whole vector of output channels.
template <class T, int MR>
__attribute__((noinline)) void grouped_forward_tile(const int64_t *offsets, const int64_t *taps, int64_t count,
                                                    const float *x, int64_t step, const float *w, int64_t w_step,
                                                    const float *outside, const Output<T> &out) {
  typedef typename T::V V;
  const V one = T::opaque(T::set(1.f));
  V acc[MR][1];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) acc[m][0] = T::load(outside);
  for (int64_t t = 0; t < count; ++t) {
    const V wv = T::load(w + taps[t] * w_step);
    const float *xs = x + offsets[t];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = T::accumulate(acc[m][0], T::distance(T::load(xs + m * step), wv), one);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) acc[m][0] = T::set(0.f) - acc[m][0];
  store_tile<T, MR, 1>(out, acc);
}

template <class T> struct GroupedForwardTiles {
  typedef void (*Tile)(const int64_t *, const int64_t *, int64_t, const float *, int64_t, const float *, int64_t,
                       const float *, const Output<T> &);
  Tile of[GROUPED_PIXELS + 1]; // by pixels; there is none of no pixels
  constexpr GroupedForwardTiles() : of() { list<GROUPED_PIXELS>(); }
  template <int MR> constexpr void list() {
    of[MR] = grouped_forward_tile<T, MR>;
    if constexpr (MR > 1) list<MR - 1>();
  }
};

// dx[m] = sum over taps of dy * t(w - x) for MR pixels and one vector of input channels.
template <class T, int MR, int MODE>
__attribute__((noinline)) void grouped_grad_input_tile(const int64_t *offsets, const int64_t *taps, int64_t count,
                                                       const float *dy, int64_t step, const float *w, int64_t w_step,
                                                       const float *x, float *sum) {
  typedef typename T::V V;
  V acc[MR], xs[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) acc[m] = T::set(0.f), xs[m] = T::load(x + m * T::L);
  for (int64_t t = 0; t < count; ++t) {
    const V wv = T::load(w + taps[t] * w_step);
    const float *ds = dy + offsets[t];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m] = T::fma(transfer<T, MODE>(wv, xs[m]), T::load(ds + m * step), acc[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) T::store(sum + m * T::L, acc[m]);
}

typedef void (*GroupedTile)(const int64_t *, const int64_t *, int64_t, const float *, int64_t, const float *, int64_t,
                            const float *, float *);

template <class T, int MODE, int MR = GROUPED_PIXELS> GroupedTile grouped_grad_input_tile_in(int64_t mr) {
  if constexpr (MR == 0) return nullptr;
  else return mr == MR ? grouped_grad_input_tile<T, MR, MODE> : grouped_grad_input_tile_in<T, MODE, MR - 1>(mr);
}

template <class T> GroupedTile grouped_grad_input_tile_for(int mode, int64_t mr) {
  return mode == ADDER_CLIPPED ? grouped_grad_input_tile_in<T, ADDER_CLIPPED>(mr)
         : mode == ADDER_FULL  ? grouped_grad_input_tile_in<T, ADDER_FULL>(mr)
                               : grouped_grad_input_tile_in<T, ADDER_SIGN>(mr);
}

template <class T> struct GroupedForward : Shape {
  const float *x;
  float *y;
  int64_t left, right, lanes; // lanes: K rounded up to vectors
  const float *filters;       // [R][S][Cg][lanes]
  const Epilogue<T> &epilogue;
  Split split;
  Flag failed;

  GroupedForward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_)
      : Shape(shape), x(x_), y(y_), left(pad_left),
        right(max64(0, (Q - 1) * stride_w + (S - 1) * dilation_w + 1 - pad_left - W)),
        lanes(ceil_div(K, T::L) * T::L), filters(packed), epilogue(epilogue_),
        split(N, P, stride_h * W * GROUPED_LANES * Cg * 4, MOST_CHUNK, ceil_div(K, GROUPED_LANES), false) {}

  void run(int64_t begin, int64_t end) {
    const int64_t padded = left + W + right, stride = padded * Cg * GROUPED_LANES;
    const int64_t in_rows = min64(H, (split.chunk - 1) * stride_h + (R - 1) * dilation_h + 1);
    Scratch<float> copy(in_rows * stride);
    Scratch<int64_t> offsets(2 * taps);
    if (!copy || !offsets) return failed.set();
    int64_t *const index = offsets + taps;
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const int64_t h_begin = max64(0, min64(H, task.row_begin * stride_h - pad_top));
      const int64_t h_end =
          max64(h_begin, min64(H, (task.row_end - 1) * stride_h - pad_top + (R - 1) * dilation_h + 1));
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t first = block * GROUPED_LANES;
        const Spread<T> spread(Cg, Kg, first, K);
        for (int64_t h = h_begin; h < h_end; ++h)
          spread.row(x + (task.image * H + h) * W * C, W, C, left, right, copy + (h - h_begin) * stride);
        for (int64_t p = task.row_begin; p < task.row_end; ++p)
          row(task.image, p, h_begin, first, copy, stride, offsets, index);
      }
    }
  }

  // Lanes `first` and those beside it of output row p.
  void row(int64_t image, int64_t p, int64_t h_begin, int64_t first, const float *copy, int64_t stride, int64_t *offsets,
           int64_t *index) const {
    typedef typename T::V V;
    static constexpr GroupedForwardTiles<T> grouped_tiles;
    const int64_t pixel = Cg * GROUPED_LANES, step = stride_w * pixel, tiles = ceil_div(Q, GROUPED_PIXELS);
    int64_t count = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t h = p * stride_h - pad_top + r * dilation_h;
      if (h < 0 || h >= H) continue;
      for (int64_t s = 0; s < S; ++s)
        for (int64_t i = 0; i < Cg; ++i) {
          offsets[count] = (h - h_begin) * stride + s * dilation_w * pixel + i * GROUPED_LANES;
          index[count++] = (r * S + s) * Cg + i;
        }
    }
    for (int64_t k = first; k < min64(K, first + GROUPED_LANES); k += T::L) {
      alignas(64) float outside[T::L], values[GROUPED_PIXELS * T::L];
      V beyond = T::set(0.f);
      for (int64_t r = 0; r < R; ++r) {
        const int64_t h = p * stride_h - pad_top + r * dilation_h;
        for (int64_t t = 0; t < S * Cg && (h < 0 || h >= H); ++t)
          beyond = beyond + T::abs(T::load(filters + (r * S * Cg + t) * lanes + k));
      }
      T::store(outside, beyond);
      Output<T> out = epilogue.output(y, (image * P + p) * Q * K + k, K, k / T::L, 1, min64(T::L, K - k));
      const Output<T> aside = {values, nullptr, T::L, nullptr, nullptr, false, T::L, true}; // vectors that are not whole
      const Cut cut(Q, tiles);
      for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr, out.advance(mr)) {
        mr = cut.size(j);
        grouped_tiles.of[mr](offsets, index, count, copy + q * step + k - first, step, filters + k, lanes, outside,
                             out.whole ? out : aside);
        for (int64_t m = 0; m < mr && !out.whole; ++m)
          store_pixel<T>(out, m, 1, [&](int) ADDER_LAMBDA_INLINE { return T::load(values + m * T::L); });
      }
    }
  }
};

template <class T> struct GroupedGradInput : Shape {
  const float *dy, *x, *w;
  float *dx;
  int mode;
  float limit; // of |x| and |w| for the tiles
  bool good_w; // w keeps it
  int64_t left, right, lanes;
  float *filters; // [R][S][Kg][lanes]
  Split split;
  Flag failed;

  GroupedGradInput(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dx_, int mode_,
                   float *filters_)
      : Shape(shape), dy(dy_), x(x_), w(w_), dx(dx_), mode(mode_), limit(largest_operand(mode_)),
        good_w(all_within<T>(w_, K * taps, limit)), left(Reach(shape).left), right(Reach(shape).right), lanes(ceil_div(C, T::L) * T::L), filters(filters_),
        split(N, H, GROUPED_LANES * (Q * Kg / stride_h + W) * 4, MOST_CHUNK, ceil_div(C, GROUPED_LANES), false) {}

  void pack(int64_t tap) const { // tap: (r * S + s) * Kg + k
    float *to = filters + tap * lanes;
    const int64_t k = tap % Kg, rs = tap / Kg;
    for (int64_t c = 0; c < C; ++c) to[c] = w[((c / Cg * Kg + k) * R * S + rs) * Cg + c % Cg];
    for (int64_t c = C; c < lanes; ++c) to[c] = 0;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t padded = left + Q + right, stride = padded * Kg * GROUPED_LANES;
    const int64_t out_rows = min64(P, (split.chunk + (R - 1) * dilation_h) / stride_h + 1);
    Scratch<float> copy(out_rows * stride);
    const int64_t phases = min64(stride_w, W), room = 1 + 2 * R * S * Kg;
    Scratch<int64_t> taps_of(split.chunk * phases * room); // [row][phase]: how many, their places in dy, and in w
    if (!copy || !taps_of) return failed.set();
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      const int64_t low = task.row_begin + pad_top - (R - 1) * dilation_h, high = task.row_end - 1 + pad_top;
      const int64_t p_begin = low <= 0 ? 0 : min64(P, ceil_div(low, stride_h));
      const int64_t p_end = max64(p_begin, min64(P, high / stride_h + 1));
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const int64_t first = block * GROUPED_LANES;
        const Spread<T> spread(Kg, Cg, first, C);
        for (int64_t p = p_begin; p < p_end; ++p)
          spread.row(dy + (task.image * P + p) * Q * K, Q, K, left, right, copy + (p - p_begin) * stride);
        for (int64_t h = task.row_begin; h < task.row_end; ++h)
          for (int64_t phase = 0; phase < phases; ++phase) {
            int64_t *const taps = taps_of + ((h - task.row_begin) * phases + phase) * room;
            if (block == task.block_begin) find_taps(h, phase, p_begin, stride, taps);
            row(task.image, h, phase, first, copy, taps);
          }
      }
    }
  }

  // The taps that meet a phase of row h.
  void find_taps(int64_t h, int64_t phase, int64_t p_begin, int64_t stride, int64_t *taps) const {
    int64_t count = 0, *const offsets = taps + 1, *const index = offsets + R * S * Kg;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t ph = h + pad_top - r * dilation_h;
      if (ph < 0 || ph % stride_h || ph / stride_h >= P) continue;
      for (int64_t s = 0; s < S; ++s) {
        const int64_t qw = phase + pad_left - s * dilation_w;
        if (qw % stride_w) continue;
        for (int64_t k = 0; k < Kg; ++k) {
          offsets[count] = (ph / stride_h - p_begin) * stride + ((left + qw / stride_w) * Kg + k) * GROUPED_LANES;
          index[count++] = (r * S + s) * Kg + k;
        }
      }
    }
    *taps = count;
  }

  // Lanes `first` and those beside it of a phase of row h of dx.
  void row(int64_t image, int64_t h, int64_t phase, int64_t first, const float *copy, const int64_t *taps) const {
    const int64_t count = *taps, *const offsets = taps + 1, *const index = offsets + R * S * Kg;
    const int64_t pixel = Kg * GROUPED_LANES, step = stride_w * C, origin = ((image * H + h) * W + phase) * C;
    const int64_t pixels = ceil_div(W - phase, stride_w), tiles = ceil_div(pixels, GROUPED_PIXELS);
    const Cut cut(pixels, tiles);
    alignas(64) float xs[GROUPED_PIXELS * T::L], sum[GROUPED_PIXELS * T::L];
    for (int64_t c = first; c < min64(C, first + GROUPED_LANES); c += T::L) {
      const int64_t channels = min64(T::L, C - c);
      for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr) {
        mr = cut.size(j);
        const float *const from = x + origin + q * step + c;
        float *const to = dx + origin + q * step + c;
        bool good = good_w;
        for (int64_t m = 0; m < mr; ++m) {
          if (channels < T::L) {
            T::store(xs + m * T::L, T::set(0.f));
            memcpy(xs + m * T::L, from + m * step, static_cast<size_t>(channels) * sizeof(float));
          } else
            T::store(xs + m * T::L, T::load(from + m * step));
          good &= T::all_le(T::abs(T::load(xs + m * T::L)), T::set(limit));
        }
        if (good) {
          grouped_grad_input_tile_for<T>(mode, mr)(offsets, index, count, copy + q * pixel + c - first, pixel, filters + c,
                                                   lanes, xs, sum);
          for (int64_t m = 0; m < mr; ++m) store_channels<T>(to + m * step, sum + m * T::L, 1, channels);
        } else
          for (int64_t m = 0; m < mr; ++m)
            grad_input_pixel(*this, dy, x, w, dx, mode, image, h, phase + (q + m) * stride_w, c, c + channels);
      }
    }
  }
};

// ---- depthwise: one filter for each channel ------------------------------------------------------------------------

// Lanes go over the channels, and nothing is copied: tiles reach their pixels through pointers, and where there is padding
// these lead to zeros. A tile goes over all channels, as they lie side by side in memory, with all its taps for each vector.
template <class T> bool depthwise(const Shape &s) { return s.groups == s.C && s.C == s.K && s.C >= T::L; }

// Pixels of the tiles, whose dx holds x beside its sums.
template <class T> constexpr int depthwise_pixels(bool x_too) { return x_too && T::REGISTERS < 32 ? 6 : 8; }

// The taps of a row of outputs or of dx, in runs: the next tap of a run meets, at each pixel, what this one meets at the next
// pixel, so a tile loads each column once for all of them. A run of one place among the pointers, where its first tap meets
// the first pixel, and one of its filters.
constexpr int LONGEST_RUN = 3; // whose filters have room in registers
struct Run {
  int64_t place, filter;
};
struct DepthwiseTaps {
  Run *runs; // [LONGEST_RUN][room], by length
  int64_t room, step, count[LONGEST_RUN]; // step: between the filters of a run's taps
  DepthwiseTaps(Run *runs_, int64_t room_, int64_t step_) : runs(runs_), room(room_), step(step_), count() {}
  // Taps whose places follow each other.
  void add(int64_t place, int64_t filter, int64_t taps) {
    for (int64_t n; taps > 0; taps -= n, place += n, filter += n * step) {
      n = min64(taps, LONGEST_RUN);
      runs[(n - 1) * room + count[n - 1]++] = {place, filter};
    }
  }
};

// The pointers to rows of `width` pixels with columns of zeros around them: [row][phase][column of this phase].
struct Columns {
  int64_t width, left, padded, phases, of_phase;
  Columns(int64_t width_, int64_t left_, int64_t right, int64_t phases_)
      : width(width_), left(left_), padded(left_ + width_ + right), phases(phases_), of_phase(ceil_div(padded, phases_)) {}
  int64_t row() const { return phases * of_phase; }
  int64_t place(int64_t column) const { return column % phases * of_phase + column / phases; } // column: of the padded ones
  void point(const float *pixels, int64_t channels, const float *zeros, const float **to) const {
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int64_t i = 0; i < of_phase; ++i) {
        const int64_t column = i * phases + phase - left;
        to[phase * of_phase + i] = column >= 0 && column < width ? pixels + column * channels : zeros;
      }
  }
};

// f(run, LENGTH) for all runs, the longest first.
template <int N> struct Length {
  static constexpr int value = N;
};
template <int N = LONGEST_RUN, class F> ADDER_INLINE void each_run(const DepthwiseTaps &taps, F f) {
  const Run *run = taps.runs + (N - 1) * taps.room;
  for (const Run *const end = run + taps.count[N - 1]; run != end; ++run) f(*run, Length<N>());
  if constexpr (N > 1) each_run<N - 1>(taps, f);
}

// f(m, s, column): tap s of a run meets this column at pixel m.
template <class T, int MR, int N, class F> ADDER_INLINE void each_column(const float *const *columns, int64_t c, F f) {
#pragma GCC unroll 16
  for (int j = 0; j < MR + N - 1; ++j) {
    const typename T::V column = T::load(columns[j] + c);
    __builtin_prefetch(columns[j] + c + 16, 0, 3); // columns lie too far apart for the processor to see it
#pragma GCC unroll 4
    for (int s = 0; s < N; ++s)
      if (j - s >= 0 && j - s < MR) f(j - s, s, column);
  }
}

// f(m, column, filter) for all taps.
template <class T, int MR, class F>
ADDER_INLINE void each_tap(const DepthwiseTaps &taps, const float *const *columns, const float *w, int64_t c, F f) {
  typedef typename T::V V;
  each_run(taps, [&](const Run &run, auto length) ADDER_LAMBDA_INLINE {
    V filters[length.value];
#pragma GCC unroll 4
    for (int s = 0; s < length.value; ++s) filters[s] = T::load(w + run.filter + s * taps.step + c);
    each_column<T, MR, length.value>(columns + run.place, c,
                                     [&](int m, int s, V column) ADDER_LAMBDA_INLINE { f(m, column, filters[s]); });
  });
}

// y[m] = -(outside + sum over taps of |x - w|) for MR pixels and all channels.
template <class T, int MR>
__attribute__((noinline)) void depthwise_forward_tile(const DepthwiseTaps &taps, const float *const *columns, const float *w,
                                                      const float *outside, const Output<T> &out) {
  typedef typename T::V V;
  const V one = T::opaque(T::set(1.f));
  const int64_t channels = out.channels;
  for (int64_t next = 0; next < channels; next += T::L) {
    const int64_t c = min64(next, channels - T::L); // the last vector goes over some channels again
    V acc[MR][1];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = T::load(outside + c);
    each_tap<T, MR>(taps, columns, w, c, [&](int m, V x, V filter) ADDER_LAMBDA_INLINE {
      acc[m][0] = T::accumulate(acc[m][0], T::distance(x, filter), one);
    });
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = T::set(0.f) - acc[m][0];
    store_tile<T, MR, 1>(out.from(c), acc);
  }
}

// dx[m] = sum over taps of dy * t(w - x) for MR pixels and the channels from `next` on, up to the first vector that has an |x|
// beyond `limit`; returns where that is.
template <class T, int MR, int MODE>
__attribute__((noinline)) int64_t depthwise_grad_input_tile(const DepthwiseTaps &taps, const float *const *columns,
                                                            const float *w, const float *x, float *dx, int64_t step,
                                                            int64_t next, int64_t channels, float limit) {
  typedef typename T::V V;
  for (; next < channels; next += T::L) {
    const int64_t c = min64(next, channels - T::L);
    V acc[MR], xs[MR];
    bool good = true;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      acc[m] = T::set(0.f), xs[m] = T::load(x + m * step + c);
      good &= T::all_le(T::abs(xs[m]), T::set(limit));
    }
    if (!good) break;
    each_tap<T, MR>(taps, columns, w, c, [&](int m, V dy, V filter) ADDER_LAMBDA_INLINE {
      acc[m] = T::fma(transfer<T, MODE>(filter, xs[m]), dy, acc[m]);
    });
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) T::store(dx + m * step + c, acc[m]);
  }
  return next;
}

// The tiles by pixels; there is none of no pixels.
template <class T> struct DepthwiseForwardTiles {
  void (*of[depthwise_pixels<T>(false) + 1])(const DepthwiseTaps &, const float *const *, const float *, const float *,
                                             const Output<T> &);
  constexpr DepthwiseForwardTiles() : of() { list<depthwise_pixels<T>(false)>(); }
  template <int MR> constexpr void list() {
    of[MR] = depthwise_forward_tile<T, MR>;
    if constexpr (MR > 1) list<MR - 1>();
  }
};

template <class T, int MODE> struct DepthwiseGradInputTiles {
  int64_t (*of[depthwise_pixels<T>(true) + 1])(const DepthwiseTaps &, const float *const *, const float *, const float *,
                                               float *, int64_t, int64_t, int64_t, float);
  constexpr DepthwiseGradInputTiles() : of() { list<depthwise_pixels<T>(true)>(); }
  template <int MR> constexpr void list() {
    of[MR] = depthwise_grad_input_tile<T, MR, MODE>;
    if constexpr (MR > 1) list<MR - 1>();
  }
};

// Taps of a row of the filters that many columns apart meet neighbouring pixels' columns; S: none do.
static inline int64_t depthwise_apart(const Shape &s) {
  return s.stride_w % s.dilation_w == 0 ? s.stride_w / s.dilation_w : s.S;
}

// Columns of the images as output pixels meet them.
static inline Columns columns_of_images(const Shape &s) {
  const int64_t right = (s.Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1 - s.pad_left - s.W;
  return Columns(s.W, s.pad_left, max64(0, right), s.stride_w);
}

// The taps of output row p whose rows lie inside of the image, and pointers to these rows' pixels.
static inline DepthwiseTaps rows_of(const Shape &s, const float *image, int64_t p, const Columns &columns, int64_t lanes,
                                    const float *zeros, const float **pointers, Run *runs) {
  const int64_t apart = depthwise_apart(s);
  DepthwiseTaps found(runs, s.R * s.S, apart * lanes);
  int64_t rows = 0;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t h = p * s.stride_h - s.pad_top + r * s.dilation_h;
    if (h < 0 || h >= s.H) continue;
    columns.point(image + h * s.W * s.C, s.C, zeros, pointers + rows * columns.row());
    for (int64_t t = 0; t < min64(apart, s.S); ++t)
      found.add(rows * columns.row() + columns.place(t * s.dilation_w), (r * s.S + t) * lanes, ceil_div(s.S - t, apart));
    ++rows;
  }
  return found;
}

template <class T> struct DepthwiseForward : Shape {
  const float *x;
  float *y;
  int64_t lanes;        // C rounded up to vectors
  const float *filters; // [R][S][lanes]
  const Epilogue<T> &epilogue;
  Columns columns;
  Split split;
  Flag failed;

  DepthwiseForward(const Shape &shape, const float *x_, const float *packed, const Epilogue<T> &epilogue_, float *y_)
      : Shape(shape), x(x_), y(y_), lanes(ceil_div(C, T::L) * T::L), filters(packed), epilogue(epilogue_),
        columns(columns_of_images(*this)),
        split(N, P, stride_h * W * C * 4, MOST_CHUNK, 1) {}

  void run(int64_t begin, int64_t end) {
    static constexpr DepthwiseForwardTiles<T> depthwise_tiles;
    Scratch<const float *> pointers(R * columns.row());
    Scratch<float> zeros(2 * C);
    Scratch<Run> runs(LONGEST_RUN * R * S);
    if (!pointers || !zeros || !runs) return failed.set();
    float *const outside = zeros + C;
    memset(zeros, 0, static_cast<size_t>(C) * sizeof(float));
    const int64_t tiles = ceil_div(Q, depthwise_pixels<T>(false));
    const Cut cut(Q, tiles);
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      for (int64_t p = task.row_begin; p < task.row_end; ++p) {
        const DepthwiseTaps found = rows_of(*this, x + task.image * H * W * C, p, columns, lanes, zeros, pointers, runs);
        memset(outside, 0, static_cast<size_t>(C) * sizeof(float));
        for (int64_t r = 0; r < R; ++r) {
          const int64_t h = p * stride_h - pad_top + r * dilation_h;
          for (int64_t s = 0; s < S && (h < 0 || h >= H); ++s)
            for (int64_t c = 0; c < C; ++c) outside[c] += __builtin_fabsf(filters[(r * S + s) * lanes + c]);
        }
        Output<T> out = epilogue.output(y, (task.image * P + p) * Q * C, C, 0, 1, C);
        for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr, out.advance(mr)) {
          mr = cut.size(j);
          depthwise_tiles.of[mr](found, pointers + q, filters, outside, out);
        }
      }
    }
  }
};

template <class T> struct DepthwiseGradInput : Shape {
  const float *dy, *x, *w;
  float *dx;
  int mode;
  float limit; // of |x| and |w| for the tiles
  bool good_w; // w keeps it
  int64_t lanes, apart;
  const float *filters; // [R][S][lanes]
  Columns columns;
  Split split;
  Flag failed;

  DepthwiseGradInput(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dx_, int mode_,
                     const float *packed)
      : Shape(shape), dy(dy_), x(x_), w(w_), dx(dx_), mode(mode_), limit(largest_operand(mode_)),
        good_w(all_within<T>(w_, K * taps, limit)), lanes(ceil_div(C, T::L) * T::L), apart(depthwise_apart(*this)),
        filters(packed), columns(Q, Reach(shape).left, Reach(shape).right, 1),
        split(N, H, (Q / stride_h + W) * C * 4, MOST_CHUNK, 1) {}

  void run(int64_t begin, int64_t end) {
    Scratch<const float *> pointers(R * columns.row());
    Scratch<float> zeros(C);
    Scratch<Run> runs(LONGEST_RUN * R * S);
    if (!pointers || !zeros || !runs) return failed.set();
    memset(zeros, 0, static_cast<size_t>(C) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const Task task(split, i);
      for (int64_t h = task.row_begin; h < task.row_end; ++h) {
        int64_t rows = 0;
        for (int64_t r = 0; r < R; ++r)
          if (const int64_t p = row_of(h, r); p >= 0)
            columns.point(dy + (task.image * P + p) * Q * C, C, zeros, pointers + rows++ * columns.row());
        for (int64_t phase = 0; phase < min64(stride_w, W); ++phase) {
          const DepthwiseTaps found = find_taps(h, phase, runs);
          if (mode == ADDER_CLIPPED) row<ADDER_CLIPPED>(task.image, h, phase, found, pointers);
          else if (mode == ADDER_FULL) row<ADDER_FULL>(task.image, h, phase, found, pointers);
          else row<ADDER_SIGN>(task.image, h, phase, found, pointers);
        }
      }
    }
  }

  // The row of dy that row r of the filters meets from row h of x; -1: none.
  int64_t row_of(int64_t h, int64_t r) const {
    const int64_t ph = h + pad_top - r * dilation_h;
    return ph < 0 || ph % stride_h || ph / stride_h >= P ? -1 : ph / stride_h;
  }

  // The taps that meet a phase of row h. Columns of dy go down as those of the filters go up, so runs begin at their ends.
  DepthwiseTaps find_taps(int64_t h, int64_t phase, Run *runs) const {
    DepthwiseTaps found(runs, R * S, -apart * lanes);
    int64_t rows = 0;
    for (int64_t r = 0; r < R; ++r) {
      if (row_of(h, r) < 0) continue;
      for (int64_t s = 0; s < min64(apart, S); ++s) {
        const int64_t taps = ceil_div(S - s, apart), end = s + (taps - 1) * apart;
        const int64_t qw = phase + pad_left - end * dilation_w;
        if (qw % stride_w == 0)
          found.add(rows * columns.row() + columns.left + qw / stride_w, (r * S + end) * lanes, taps);
      }
      ++rows;
    }
    return found;
  }

  template <int MODE>
  void row(int64_t image, int64_t h, int64_t phase, const DepthwiseTaps &found, const float *const *pointers) const {
    static constexpr DepthwiseGradInputTiles<T, MODE> depthwise_tiles;
    const int64_t step = stride_w * C, origin = ((image * H + h) * W + phase) * C;
    const int64_t pixels = ceil_div(W - phase, stride_w), tiles = ceil_div(pixels, depthwise_pixels<T>(true));
    const Cut cut(pixels, tiles);
    for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr) {
      mr = cut.size(j);
      for (int64_t next = 0; next < C; next += T::L) {
        if (good_w)
          next = depthwise_tiles.of[mr](found, pointers + q, filters, x + origin + q * step, dx + origin + q * step, step,
                                        next, C, limit);
        if (next >= C) break;
        const int64_t c = min64(next, C - T::L);
        for (int64_t m = 0; m < mr; ++m)
          grad_input_pixel(*this, dy, x, w, dx, MODE, image, h, phase + (q + m) * stride_w, c, c + T::L);
      }
    }
  }
};

// ---- dw, tap by tap ------------------------------------------------------------------------------------------------

// dw = sum dy * t(x - w) for operands that may be anything: NaN, and infinities, where x - w has a value and
// sum dy * x - w * sum dy has none.
constexpr int64_t DW_FILTERS = 4, DW_LANES = 32;

struct GradWeight : adder_shape {
  const float *dy, *x, *w;
  float *dw;
  int64_t Cg, Kg, filter_blocks; // filter_blocks: for each group

  GradWeight(const adder_shape &s, const float *dy_, const float *x_, const float *w_, float *dw_)
      : adder_shape(s), dy(dy_), x(x_), w(w_), dw(dw_), Cg(C / groups), Kg(K / groups),
        filter_blocks(ceil_div(Kg, DW_FILTERS)) {}

  int64_t tasks() const { return groups * filter_blocks * R * S; }

  template <int MODE> void task(int64_t i) const {
    const int64_t s = i % S, r = i / S % R, block = i / S / R % filter_blocks, g = i / S / R / filter_blocks;
    const int64_t k0 = g * Kg + block * DW_FILTERS, filters = min64(DW_FILTERS, Kg - block * DW_FILTERS);
    for (int64_t c0 = 0; c0 < Cg; c0 += DW_LANES) {
      const int64_t channels = min64(DW_LANES, Cg - c0);
      alignas(64) float total[DW_FILTERS][DW_LANES] = {}, ws[DW_FILTERS][DW_LANES] = {}, xs[DW_LANES] = {};
      for (int64_t k = 0; k < filters; ++k)
        memcpy(ws[k], w + (((k0 + k) * R + r) * S + s) * Cg + c0, static_cast<size_t>(channels) * sizeof(float));
      for (int64_t n = 0; n < N; ++n)
        for (int64_t p = 0; p < P; ++p) { // sums of a row first: shorter chains
          alignas(64) float sum[DW_FILTERS][DW_LANES] = {};
          const int64_t h = p * stride_h - pad_top + r * dilation_h;
          for (int64_t q = 0; q < Q; ++q) {
            const int64_t column = q * stride_w - pad_left + s * dilation_w;
            if (h >= 0 && h < H && column >= 0 && column < W)
              memcpy(xs, x + ((n * H + h) * W + column) * C + g * Cg + c0, static_cast<size_t>(channels) * sizeof(float));
            else
              memset(xs, 0, sizeof xs);
            const float *const d = dy + ((n * P + p) * Q + q) * K + k0;
            for (int64_t k = 0; k < filters; ++k)
              for (int64_t c = 0; c < DW_LANES; ++c) sum[k][c] += d[k] * transfer_any(xs[c], ws[k][c], MODE);
          }
          for (int64_t k = 0; k < filters; ++k)
            for (int64_t c = 0; c < DW_LANES; ++c) total[k][c] += sum[k][c];
        }
      for (int64_t k = 0; k < filters; ++k)
        memcpy(dw + (((k0 + k) * R + r) * S + s) * Cg + c0, total[k], static_cast<size_t>(channels) * sizeof(float));
    }
  }
};

// The same with the sign, for finite operands: lanes over the taps of a filter's row, which lie side by side in the image
// as well, or over its channels where groups or a dilation part them. sum[k][v] += sum over the outputs of a row of dy *
// sign(x - w); w and sum [MK][NV * L].
template <class T, int MK, int NV>
__attribute__((noinline)) void grad_weight_sign_tile(const float *x, int64_t x_step, const float *dy, int64_t dy_step,
                                                     int64_t count, const float *w, float *sum) {
  typedef typename T::V V;
  V acc[MK][NV];
#pragma GCC unroll 4
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[k][v] = T::set(0.f);
  for (; count > 0; --count, x += x_step, dy += dy_step) {
    V xv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) xv[v] = T::load(x + v * T::L);
#pragma GCC unroll 4
    for (int k = 0; k < MK; ++k) {
      const V d = T::set(dy[k]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        acc[k][v] = T::fma(T::sign_of_difference(xv[v], T::load(w + (k * NV + v) * T::L)), d, acc[k][v]);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      float *const s = sum + (k * NV + v) * T::L;
      T::store(s, T::load(s) + acc[k][v]);
    }
}

template <class T> struct GradWeightSign : adder_shape {
  const float *dy, *x, *w;
  float *dw;
  int64_t Cg, Kg, width, pieces, vectors; // a filter's row: so many pieces of so many taps, each in so many vectors
  int64_t filter_blocks, left, right;
  Flag failed;

  static int64_t width_of(const adder_shape &s) {
    return s.groups == 1 && s.dilation_w == 1 ? s.S * s.C : s.C / s.groups;
  }

  GradWeightSign(const adder_shape &s, const float *dy_, const float *x_, const float *w_, float *dw_)
      : adder_shape(s), dy(dy_), x(x_), w(w_), dw(dw_), Cg(C / groups), Kg(K / groups), width(width_of(s)),
        pieces(S * Cg / width), vectors(ceil_div(width, T::L)), filter_blocks(ceil_div(Kg, DW_FILTERS)), left(pad_left),
        right(max64(0, (Q - 1) * stride_w + (S - 1) * dilation_w + 1 - pad_left - W)) {}

  int64_t tasks() const { return groups * filter_blocks * R * pieces; }

  template <int NV> void tile(int64_t filters, const float *from, const float *d, const float *ws, float *sum) const {
    const int64_t step = stride_w * C;
    filters == 4   ? grad_weight_sign_tile<T, 4, NV>(from, step, d, K, Q, ws, sum)
    : filters == 3 ? grad_weight_sign_tile<T, 3, NV>(from, step, d, K, Q, ws, sum)
    : filters == 2 ? grad_weight_sign_tile<T, 2, NV>(from, step, d, K, Q, ws, sum)
                   : grad_weight_sign_tile<T, 1, NV>(from, step, d, K, Q, ws, sum);
  }

  void task(int64_t i) {
    const int64_t piece = i % pieces, r = i / pieces % R, block = i / pieces / R % filter_blocks;
    const int64_t g = i / pieces / R / filter_blocks;
    const int64_t k0 = g * Kg + block * DW_FILTERS, filters = min64(DW_FILTERS, Kg - block * DW_FILTERS);
    // A row with its padding, and lanes beyond its end; [vectors, two at a time][filters][1 or 2][L].
    const int64_t row_floats = (left + W + right) * C, packed = vectors * filters * T::L;
    Scratch<float> row(row_floats + 2 * T::L), ws(packed), total(packed);
    if (!row || !ws || !total) return failed.set();
    memset(row, 0, static_cast<size_t>(row_floats + 2 * T::L) * sizeof(float));
    memset(total, 0, static_cast<size_t>(packed) * sizeof(float));
    const auto each = [&](auto f) { // f(filter, tap of the piece, place in ws and total)
      for (int64_t v = 0; v < vectors; v += 2) {
        const int64_t lanes = min64(2, vectors - v) * T::L;
        for (int64_t k = 0; k < filters; ++k)
          for (int64_t lane = 0; lane < lanes; ++lane) f(k, v * T::L + lane, v * filters * T::L + k * lanes + lane);
      }
    };
    const auto at = [&](int64_t k, int64_t tap) { return (((k0 + k) * R + r) * S + piece) * Cg + tap; };
    each([&](int64_t k, int64_t tap, int64_t place) { ws[place] = tap < width ? w[at(k, tap)] : 0.f; });
    for (int64_t n = 0; n < N; ++n)
      for (int64_t p = 0; p < P; ++p) {
        const int64_t h = p * stride_h - pad_top + r * dilation_h;
        if (h >= 0 && h < H)
          memcpy(row + left * C, x + (n * H + h) * W * C, static_cast<size_t>(W * C) * sizeof(float));
        else
          memset(row + left * C, 0, static_cast<size_t>(W * C) * sizeof(float));
        const float *const from = row + piece * dilation_w * C + g * Cg, *const d = dy + (n * P + p) * Q * K + k0;
        for (int64_t v = 0; v < vectors; v += 2) {
          const int64_t place = v * filters * T::L;
          if (vectors - v > 1)
            tile<2>(filters, from + v * T::L, d, ws + place, total + place);
          else
            tile<1>(filters, from + v * T::L, d, ws + place, total + place);
        }
      }
    each([&](int64_t k, int64_t tap, int64_t place) {
      if (tap < width) dw[at(k, tap)] = total[place];
    });
  }
};

// ---- dw as a matrix product ----------------------------------------------------------------------------------------

// dw = sum dy * x - w * sum dy for finite operands. A tile holds a block of filters times NV vectors of channels for one tap
// and runs over stretches of pixels that lie in one row, a unit of them for all taps. A task adds up a share of the blocks of
// filters and channels over a part of the images; the parts are then summed in order. There are as many parts as the size of
// the sums allows, whatever the number of threads, which shares make up for.
//
// Filters of a block: their sums, NV vectors of x and a number of dy fill the registers.
template <class T> constexpr int dw_filters(int nv) { return T::REGISTERS < 32 ? 6 : nv == 1 ? 16 : 14; }
// Pixels that a tile adds up in registers: a stretch of x and dy that stays in the first-level cache for all taps.
constexpr int64_t DW_PIXELS = 128;
// Bytes of x and dy that the blocks of filters and channels go over one after the other, to stay in the second-level cache.
constexpr int64_t DW_BYTES = 256 << 10;

struct Stretch {
  int64_t x, dy, pixels;
};

// sum[k][c] += sum over the stretches of dy * x for MK filters; sums lie k_step apart.
template <class T, int MK, int NV>
__attribute__((noinline)) void grad_weight_tile(const Stretch *stretch, int64_t count, const float *x, int64_t x_step,
                                                const float *dy, int64_t dy_step, float *sum, int64_t k_step) {
  typedef typename T::V V;
  V acc[MK][NV];
#pragma GCC unroll 16
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[k][v] = T::set(0.f);
  for (const Stretch *const end = stretch + count; stretch != end; ++stretch) {
    const float *xs = x + stretch->x, *ds = dy + stretch->dy;
    for (int64_t q = stretch->pixels; q > 0; --q) {
      V xv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) xv[v] = T::load(xs + v * T::L);
#pragma GCC unroll 16
      for (int k = 0; k < MK; ++k) {
        const V d = T::set(ds[k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[k][v] = T::fma(d, xv[v], acc[k][v]);
      }
      xs += x_step;
      ds += dy_step;
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float *s = sum + k * k_step + v * T::L;
      T::store(s, T::load(s) + acc[k][v]);
    }
}

typedef void (*GradWeightTile)(const Stretch *, int64_t, const float *, int64_t, const float *, int64_t, float *, int64_t);

template <class T, int NV, int MK = dw_filters<T>(NV)> GradWeightTile grad_weight_tile_for(int64_t k) {
  if constexpr (MK == 0) return nullptr;
  else return k == MK ? grad_weight_tile<T, MK, NV> : grad_weight_tile_for<T, NV, MK - 1>(k);
}

// total[k] += sum of dy over pixels [first, last).
template <class T> void add_pixels(const float *dy, int64_t K, int64_t first, int64_t last, float *total) {
  typedef typename T::V V;
  int64_t k = 0;
  for (; k + 4 * T::L <= K; k += 4 * T::L) {
    V sum[4] = {T::set(0.f), T::set(0.f), T::set(0.f), T::set(0.f)};
    for (int64_t i = first; i < last; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[v] = sum[v] + T::load(dy + i * K + k + v * T::L);
    for (int v = 0; v < 4; ++v) T::store(total + k + v * T::L, T::load(total + k + v * T::L) + sum[v]);
  }
  for (; k + T::L <= K; k += T::L) {
    V sum = T::set(0.f);
    for (int64_t i = first; i < last; ++i) sum = sum + T::load(dy + i * K + k);
    T::store(total + k, T::load(total + k) + sum);
  }
  for (; k < K; ++k) {
    float sum = 0;
    for (int64_t i = first; i < last; ++i) sum += dy[i * K + k];
    total[k] += sum;
  }
}

// dw -= w * sum dy for one filter, whose sums lie `step` apart; whether all of dw is finite then.
template <class T>
bool subtract_filter(const float *w, int64_t taps, const float *dy_sums, int64_t parts, int64_t step, float *dw) {
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += dy_sums[part * step];
  int64_t t = 0;
  for (; t + T::L <= taps; t += T::L) T::store(dw + t, T::load(dw + t) - T::load(w + t) * T::set(sum));
  for (; t < taps; ++t) dw[t] -= w[t] * sum;
  return all_within<T>(dw, taps, FLT_MAX);
}

template <class T> struct GradWeightProduct : adder_shape {
  const float *dy, *x, *w;
  float *dw;
  int64_t taps;
  int64_t images, rows, chunks, units; // a unit: so many images, or so many rows of one
  int64_t k_blocks, c_blocks, parts, shares;
  int64_t cached;        // units whose x and dy stay in the second-level cache
  float *sums, *dy_sums; // [parts][K][R][S][C], [parts][K]
  Flag failed;

  // Grouped filters and channels that fill no vector are better off elsewhere, and 1x1 kernels with many channels: they meet
  // a pixel once, and it lies far from the next.
  static bool suits(const adder_shape &s) {
    return s.groups == 1 && s.C % T::L == 0 && (s.R * s.S > 1 || s.C <= 4 * T::L);
  }

  GradWeightProduct(const adder_shape &s, const float *dy_, const float *x_, const float *w_, float *dw_)
      : adder_shape(s), dy(dy_), x(x_), w(w_), dw(dw_), taps(R * S * C), images(max64(1, DW_PIXELS / (P * Q))),
        rows(images > 1 ? P : min64(P, max64(1, DW_PIXELS / Q))), chunks(ceil_div(P, rows)),
        units(images > 1 ? ceil_div(N, images) : N * chunks), k_blocks(ceil_div(K, dw_filters<T>(C == T::L ? 1 : 2))),
        c_blocks(ceil_div(C, 2 * T::L)), parts(max64(1, min64(min64(units, TASKS), bytes() / (16 * K * taps)))),
        shares(min64(k_blocks * c_blocks, ceil_div(TASKS, parts))),
        cached(max64(1, units * max64(DW_BYTES, 4 * K * taps) / max64(1, bytes()))) {}

  int64_t bytes() const { return 4 * N * (H * W * C + P * Q * K); }
  int64_t tasks() const { return parts * shares; }

  // Neighbouring tasks of a part are done as one: all their blocks go over what the cache holds before more comes.
  void run(int64_t task, int64_t last) {
    for (int64_t next; task < last; task = next) {
      const int64_t part = task / shares;
      next = min64(last, (part + 1) * shares);
      add_part(part, k_blocks * c_blocks * (task - part * shares) / shares,
               k_blocks * c_blocks * (next - part * shares) / shares);
    }
  }

  void add_part(int64_t part, int64_t block, int64_t last) {
    const int64_t begin = units * part / parts, end = units * (part + 1) / parts;
    Scratch<Stretch> stretches(images * rows);
    if (!stretches) return failed.set();
    if (block == 0) memset(dy_sums + part * K, 0, static_cast<size_t>(K) * sizeof(float));
    for (int64_t unit = begin; unit < end; unit += cached)
      for (int64_t i = block; i < last; ++i) add(i, part, unit, min64(end, unit + cached), unit == begin, stretches);
  }

  int64_t filters_of(int64_t block) const { return K * block / k_blocks; }

  // Adds up units of a part for one block of filters and channels.
  void add(int64_t block, int64_t part, int64_t unit, int64_t last_unit, bool begins, Stretch *stretches) {
    const int64_t k = filters_of(block % k_blocks), filters = filters_of(block % k_blocks + 1) - k;
    const int64_t c = block / k_blocks * 2 * T::L;
    const int nv = C - c >= 2 * T::L ? 2 : 1;
    const GradWeightTile tile = nv == 2 ? grad_weight_tile_for<T, 2>(filters) : grad_weight_tile_for<T, 1>(filters);
    float *const sum = sums + (part * K + k) * taps + c;
    for (int64_t f = 0; begins && f < filters; ++f)
      for (int64_t t = 0; t < R * S; ++t)
        for (int v = 0; v < nv; ++v) T::store(sum + f * taps + t * C + v * T::L, T::set(0.f));
    for (; unit < last_unit; ++unit) {
      if (block == 0) sum_dy(part, unit);
      const int64_t first = images > 1 ? unit * images : unit / chunks, row = images > 1 ? 0 : unit % chunks * rows;
      for (int64_t r = 0; r < R; ++r)
        for (int64_t s = 0; s < S; ++s) {
          // Of the outputs in a row those whose tap lies inside the image.
          const int64_t offset = s * dilation_w - pad_left;
          const int64_t begin = offset >= 0 ? 0 : min64(Q, ceil_div(-offset, stride_w));
          const int64_t end = offset >= W ? 0 : min64(Q, (W - 1 - offset) / stride_w + 1);
          if (begin >= end) continue;
          int64_t count = 0;
          for (int64_t n = first; n < min64(N, first + images); ++n)
            for (int64_t p = row; p < min64(P, row + rows); ++p) {
              const int64_t h = p * stride_h - pad_top + r * dilation_h;
              if (h < 0 || h >= H) continue;
              stretches[count++] = {((n * H + h) * W + begin * stride_w + offset) * C + c,
                                    ((n * P + p) * Q + begin) * K + k, end - begin};
            }
          if (count) tile(stretches, count, x, stride_w * C, dy, K, sum + (r * S + s) * C, taps);
        }
    }
  }

  // Adds dy over a unit's pixels, which are about to be used.
  void sum_dy(int64_t part, int64_t unit) const {
    const int64_t first = images > 1 ? unit * images * P * Q : (unit / chunks * P + unit % chunks * rows) * Q;
    const int64_t last = images > 1 ? min64(N, (unit + 1) * images) * P * Q
                                    : (unit / chunks * P + min64(P, (unit % chunks + 1) * rows)) * Q;
    add_pixels<T>(dy, K, first, last, dy_sums + part * K);
  }

  // Whether all of dw[k] is finite.
  bool finish(int64_t k) const {
    for (int64_t t = 0; t < taps; t += T::L) {
      typename T::V sum = T::set(0.f);
      for (int64_t part = 0; part < parts; ++part) sum = sum + T::load(sums + (part * K + k) * taps + t);
      T::store(dw + k * taps + t, sum);
    }
    return subtract_filter<T>(w + k * taps, taps, dy_sums + k, parts, K, dw + k * taps);
  }
};

// dw - w * sum dy for a dw = sum dy * x that a convolution has computed.
template <class T> struct GradWeightRest : adder_shape {
  const float *dy, *w;
  float *dw;
  int64_t taps, stretches, parts; // stretches of DW_PIXELS
  float *dy_sums;                 // [parts][K]

  GradWeightRest(const adder_shape &s, const float *dy_, const float *w_, float *dw_)
      : adder_shape(s), dy(dy_), w(w_), dw(dw_), taps(R * S * (C / groups)), stretches(ceil_div(N * P * Q, DW_PIXELS)),
        parts(min64(stretches, TASKS)) {}

  void sum_dy(int64_t part) const {
    memset(dy_sums + part * K, 0, static_cast<size_t>(K) * sizeof(float));
    for (int64_t i = stretches * part / parts; i < stretches * (part + 1) / parts; ++i)
      add_pixels<T>(dy, K, i * DW_PIXELS, min64(N * P * Q, (i + 1) * DW_PIXELS), dy_sums + part * K);
  }

  bool finish(int64_t k) const { return subtract_filter<T>(w + k * taps, taps, dy_sums + k, parts, K, dw + k * taps); }
};

// sums[tap] += sum of dy * x over MR pixels, all channels; and dy's own sum.
template <class T, int MR>
__attribute__((noinline)) void depthwise_grad_weight_tile(const DepthwiseTaps &taps, const float *const *columns,
                                                          const float *dy, int64_t channels, float *sums, float *dy_sums) {
  typedef typename T::V V;
  for (int64_t next = 0; next < channels; next += T::L) {
    const int64_t c = min64(next, channels - T::L);
    V d[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) d[m] = T::load(dy + m * channels + c);
    if (c < next) { // the last vector goes over some channels again, which are counted
      alignas(64) float kept[T::L];
      for (int64_t lane = 0; lane < T::L; ++lane) kept[lane] = c + lane < next ? 0.f : 1.f;
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) d[m] = d[m] * T::load(kept);
    }
    V total = d[0];
#pragma GCC unroll 8
    for (int m = 1; m < MR; ++m) total = total + d[m];
    T::store(dy_sums + c, T::load(dy_sums + c) + total);
    each_run(taps, [&](const Run &run, auto length) ADDER_LAMBDA_INLINE {
      float *const to = sums + run.filter + c;
      V acc[length.value];
#pragma GCC unroll 4
      for (int s = 0; s < length.value; ++s) acc[s] = T::load(to + s * taps.step);
      each_column<T, MR, length.value>(columns + run.place, c, [&](int m, int s, V column) ADDER_LAMBDA_INLINE {
        acc[s] = T::fma(d[m], column, acc[s]);
      });
#pragma GCC unroll 4
      for (int s = 0; s < length.value; ++s) T::store(to + s * taps.step, acc[s]);
    });
  }
}

template <class T> struct DepthwiseGradWeightTiles {
  void (*of[depthwise_pixels<T>(false) + 1])(const DepthwiseTaps &, const float *const *, const float *, int64_t, float *,
                                             float *);
  constexpr DepthwiseGradWeightTiles() : of() { list<depthwise_pixels<T>(false)>(); }
  template <int MR> constexpr void list() {
    of[MR] = depthwise_grad_weight_tile<T, MR>;
    if constexpr (MR > 1) list<MR - 1>();
  }
};

// dw = sum dy * x - w * sum dy. Like the forward, with sums of a unit of rows first, then of a part, then of all.
template <class T> struct DepthwiseGradWeight : Shape {
  const float *dy, *x, *w;
  float *dw;
  int64_t lanes, floats; // floats: of the sums of a part, [taps + 1][lanes]
  Columns columns;
  int64_t rows, chunks, units, parts;
  float *sums;
  Flag failed, infinite;

  DepthwiseGradWeight(const Shape &shape, const float *dy_, const float *x_, const float *w_, float *dw_)
      : Shape(shape), dy(dy_), x(x_), w(w_), dw(dw_), lanes(ceil_div(C, T::L) * T::L),
        floats((taps + 1) * lanes), columns(columns_of_images(*this)),
        rows(min64(P, max64(1, DW_PIXELS / Q))), chunks(ceil_div(P, rows)), units(N * chunks),
        parts(max64(1, min64(min64(units, TASKS), N * (H * W + P * Q) * C / (4 * floats)))) {}

  void run(int64_t part, int64_t last) {
    static constexpr DepthwiseGradWeightTiles<T> depthwise_tiles;
    Scratch<const float *> pointers(R * columns.row());
    Scratch<float> zeros(C), unit_sums(floats);
    Scratch<Run> runs(LONGEST_RUN * R * S);
    if (!pointers || !zeros || !unit_sums || !runs) return failed.set();
    memset(zeros, 0, static_cast<size_t>(C) * sizeof(float));
    const int64_t tiles = ceil_div(Q, depthwise_pixels<T>(false));
    const Cut cut(Q, tiles);
    for (; part < last; ++part) {
      float *const part_sums = sums + part * floats;
      memset(part_sums, 0, static_cast<size_t>(floats) * sizeof(float));
      for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
        memset(unit_sums, 0, static_cast<size_t>(floats) * sizeof(float));
        const int64_t image = unit / chunks, begin = unit % chunks * rows;
        for (int64_t p = begin; p < min64(P, begin + rows); ++p) {
          const DepthwiseTaps found = rows_of(*this, x + image * H * W * C, p, columns, lanes, zeros, pointers, runs);
          const float *from = dy + (image * P + p) * Q * C;
          for (int64_t j = 0, q = 0, mr; j < tiles; ++j, q += mr, from += mr * C) {
            mr = cut.size(j);
            depthwise_tiles.of[mr](found, pointers + q, from, C, unit_sums, unit_sums + taps * lanes);
          }
        }
        for (int64_t i = 0; i < floats; i += T::L) T::store(part_sums + i, T::load(part_sums + i) + T::load(unit_sums + i));
      }
    }
  }

  // dw of the channels of a vector.
  void finish(int64_t vector) {
    typedef typename T::V V;
    const int64_t first = vector * T::L, channels = min64(T::L, C - first);
    alignas(64) float total[T::L], dy_total[T::L];
    bool finite = true;
    for (int64_t t = taps; t >= 0; --t) { // dy's first
      V sum = T::load(sums + t * lanes + first);
      for (int64_t part = 1; part < parts; ++part) sum = sum + T::load(sums + part * floats + t * lanes + first);
      T::store(t == taps ? dy_total : total, sum);
      for (int64_t c = 0; c < channels && t < taps; ++c) {
        const int64_t at = (first + c) * taps + t;
        dw[at] = total[c] - w[at] * dy_total[c];
        finite &= __builtin_fabsf(dw[at]) <= FLT_MAX;
      }
    }
    if (!finite) infinite.set();
  }
};

// ---- entry points --------------------------------------------------------------------------------------------------

template <class T>
int forward_as(const Shape &shape, const float *x, const float *w, const float *packed, const adder_epilogue *e, float *y,
               bool exact) {
  const double operations = 1. * shape.N * shape.P * shape.Q * shape.taps * shape.K / T::L;
  const bool small = shape.small_groups<T>(shape.Kg);
  const Epilogue<T> epilogue(e, small ? 1 : shape.groups, small ? shape.K : shape.Kg);
  Scratch<float> own(packed ? 1 : packed_floats<T>(shape));
  if (!own || !epilogue.padded) return ADDER_NO_MEMORY;
  if (!packed) pack_filters<T>(shape, w, own);
  const float *const filters = packed ? packed : own;
  if (depthwise<T>(shape)) {
    DepthwiseForward<T> f(shape, x, filters, epilogue, y);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  if (small) {
    GroupedForward<T> f(shape, x, filters, epilogue, y);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  const int nv = max_vectors<T>(shape.Q, false);
  const int64_t count = cut_blocks<T>(shape.groups, shape.Kg, nv, nullptr);
  Scratch<Block> blocks(count);
  if (!blocks) return ADDER_NO_MEMORY;
  cut_blocks<T>(shape.groups, shape.Kg, nv, blocks);
  Forward<T> f(shape, x, filters, epilogue, y, exact, blocks, count);
  parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

// Few output channels are computed in narrow vectors.
static inline bool narrow_forward(const Shape &shape) {
  if (depthwise<Narrow>(shape)) return !depthwise<Widest>(shape);
  return (shape.small_groups<Widest>(shape.Kg) ? shape.K : shape.Kg) <= Narrow::L;
}

inline int64_t packed_size(const adder_shape *s) {
  const Shape shape(*s);
  return narrow_forward(shape) ? packed_floats<Narrow>(shape) : packed_floats<Widest>(shape);
}

inline void pack(const adder_shape *s, const float *w, float *packed) {
  const Shape shape(*s);
  narrow_forward(shape) ? pack_filters<Narrow>(shape, w, packed) : pack_filters<Widest>(shape, w, packed);
}

inline int forward(const adder_shape *s, const float *x, const float *w, const float *packed, const adder_epilogue *e,
                   float *y, int exact) {
  if (s->N * s->P * s->Q == 0) return ADDER_OK;
  const Shape shape(*s);
  return narrow_forward(shape) ? forward_as<Narrow>(shape, x, w, packed, e, y, exact)
                               : forward_as<Widest>(shape, x, w, packed, e, y, exact);
}

// dx of the images that fill lanes.
template <class T>
int grad_input_over_images(const Shape &shape, const float *dy, const float *x, const float *w, float *dx) {
  typedef GradInputOverImages<T> Images;
  Scratch<int64_t> order(shape.S);
  if (!order) return ADDER_NO_MEMORY;
  Images f(shape, dy, x, w, dx, order);
  Scratch<float> panels(f.panel_floats());
  if (!panels) return ADDER_NO_MEMORY;
  f.panels = panels;
  const double operations = 3. * f.N * f.P * f.Q * f.taps * f.K / T::L;
  parallel(f.pack_tasks(), grain_for(1. * f.K * f.taps / T::L, f.pack_tasks()), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.pack(a);
  });
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  if (const int64_t rest = typename Images::Part(shape).rest) {
    const int64_t pixels = f.N * f.W, room = T::L * f.W;
    const size_t own = static_cast<size_t>(rest) * sizeof(float);
    Scratch<float> more(room * (f.K + 2 * f.C));
    if (!more) return ADDER_NO_MEMORY;
    float *const more_dy = more, *const more_x = more_dy + room * f.K, *const more_dx = more_x + room * f.C;
    memset(more_dy, 0, static_cast<size_t>(room * (f.K + f.C)) * sizeof(float));
    memcpy(more_dy, dy + pixels * f.K, own * static_cast<size_t>(f.K));
    memcpy(more_x, x + pixels * f.C, own * static_cast<size_t>(f.C));
    f.dy = more_dy, f.x = more_x, f.dx = more_dx, f.N = T::L;
    f.run(0, f.tasks());
    memcpy(dx + pixels * f.C, more_dx, own * static_cast<size_t>(f.C));
  }
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

template <class T>
int grad_input_as(const Shape &shape, const float *dy, const float *x, const float *w, float *dx, int mode, bool exact) {
  const double operations = 2. * shape.N * shape.P * shape.Q * shape.taps * shape.K / T::L;
  if (depthwise<T>(shape)) {
    Scratch<float> filters(packed_floats<T>(shape));
    if (!filters) return ADDER_NO_MEMORY;
    pack_filters<T>(shape, w, filters);
    DepthwiseGradInput<T> f(shape, dy, x, w, dx, mode, filters);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  if (shape.small_groups<T>(shape.Cg)) {
    Scratch<float> filters(shape.R * shape.S * shape.Kg * ceil_div(shape.C, T::L) * T::L);
    if (!filters) return ADDER_NO_MEMORY;
    GroupedGradInput<T> f(shape, dy, x, w, dx, mode, filters);
    for (int64_t t = 0; t < f.R * f.S * f.Kg; ++t) f.pack(t);
    parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
    return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
  }
  const int nv = GradInput<T>::most_vectors(shape, mode, exact);
  const int64_t vectors = shape.groups * ceil_div(shape.Cg, T::L);
  const int64_t count = cut_blocks<T>(shape.groups, shape.Cg, nv, nullptr);
  Scratch<float> panels(vectors * shape.R * shape.S * shape.Kg * T::L);
  Scratch<int64_t> order(shape.S);
  Scratch<Block> blocks(count);
  if (!panels || !order || !blocks) return ADDER_NO_MEMORY;
  cut_blocks<T>(shape.groups, shape.Cg, nv, blocks);
  GradInput<T> f(shape, dy, x, w, dx, mode, exact, panels, order, blocks, count);
  const int64_t pack_tasks = GradInput<T>::pack_tasks(shape);
  parallel(pack_tasks, grain_for(2. * vectors * f.R * f.S * f.Kg, pack_tasks), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.pack(a);
  });
  parallel(f.split.tasks(), grain_for(operations, f.split.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

inline int grad_input(const adder_shape *s, const float *dy, const float *x, const float *w, float *dx, int mode,
                      int exact) {
  if (s->N * s->H * s->W == 0) return ADDER_OK;
  Shape shape(*s);
  if constexpr (Widest::OVER_IMAGES) {
    typedef GradInputOverImages<Widest> Images;
    if (Images::suits(shape, mode, exact) && all_within<Widest>(w, shape.K * shape.taps, FLT_MAX)) {
      if (const int error = grad_input_over_images<Widest>(shape, dy, x, w, dx)) return error;
      const int64_t done = Images::Part(shape).images;
      if (shape.last_width >= 0 || done == shape.N) return ADDER_OK;
      dy += done * shape.P * shape.Q * shape.K;
      x += done * shape.H * shape.W * shape.C;
      dx += done * shape.H * shape.W * shape.C;
      shape.N -= done;
    }
  }
  const int64_t lanes = shape.small_groups<Widest>(shape.Cg) ? shape.C : shape.Cg;
  const bool narrow = depthwise<Narrow>(shape) ? !depthwise<Widest>(shape) : lanes <= Narrow::L;
  return narrow ? grad_input_as<Narrow>(shape, dy, x, w, dx, mode, exact)
                            : grad_input_as<Widest>(shape, dy, x, w, dx, mode, exact);
}

template <class T>
int grad_weight_sign_as(const adder_shape &s, const float *dy, const float *x, const float *w, float *dw) {
  GradWeightSign<T> f(s, dy, x, w, dw);
  const double operations = 6. * s.N * s.P * s.Q * s.R * f.pieces * f.vectors * s.K;
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.task(a);
  });
  return f.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

inline int grad_weight(const adder_shape *s, const float *dy, const float *x, const float *w, float *dw, int mode) {
  const int64_t Cg = s->C / s->groups;
  if (mode == ADDER_SIGN && all_within<Widest>(x, s->N * s->H * s->W * s->C, FLT_MAX) &&
      all_within<Widest>(w, s->K * s->R * s->S * Cg, FLT_MAX))
    return GradWeightSign<Widest>::width_of(*s) <= Narrow::L ? grad_weight_sign_as<Narrow>(*s, dy, x, w, dw)
                                                             : grad_weight_sign_as<Widest>(*s, dy, x, w, dw);
  const GradWeight f(*s, dy, x, w, dw);
  const double operations = 4. * s->N * s->P * s->Q * s->R * s->S * f.Cg * s->K / Widest::L;
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) mode == ADDER_SIGN ? f.task<ADDER_SIGN>(a) : f.task<ADDER_FULL>(a);
  });
  return ADDER_OK;
}

template <class F> int finish_filters(const F &f) {
  Flag infinite;
  parallel(f.K, grain_for(1. * f.parts * f.K * f.taps / Widest::L, f.K), [&](int64_t a, int64_t b) {
    for (; a < b; ++a)
      if (!f.finish(a)) infinite.set();
  });
  return infinite.value ? ADDER_NOT_FINITE : ADDER_OK;
}

template <class T>
int grad_weight_depthwise(const Shape &shape, const float *dy, const float *x, const float *w, float *dw) {
  DepthwiseGradWeight<T> f(shape, dy, x, w, dw);
  Scratch<float> sums(f.parts * f.floats);
  if (!sums) return ADDER_NO_MEMORY;
  f.sums = sums;
  const double operations = 1. * f.N * f.P * f.Q * f.taps * f.C / T::L;
  parallel(f.parts, grain_for(operations, f.parts), [&](int64_t a, int64_t b) { f.run(a, b); });
  if (f.failed.value) return ADDER_NO_MEMORY;
  const int64_t vectors = f.lanes / T::L;
  parallel(vectors, grain_for(1. * f.parts * f.floats / T::L, vectors), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.finish(a);
  });
  return f.infinite.value ? ADDER_NOT_FINITE : ADDER_OK;
}

inline int grad_weight_product(const adder_shape *s, const float *dy, const float *x, const float *w, float *dw) {
  typedef GradWeightProduct<Widest> Product;
  if (const Shape shape(*s); s->N > 0 && depthwise<Narrow>(shape))
    return depthwise<Widest>(shape) ? grad_weight_depthwise<Widest>(shape, dy, x, w, dw)
                                    : grad_weight_depthwise<Narrow>(shape, dy, x, w, dw);
  if (!Product::suits(*s)) return ADDER_UNSUITED;
  if (s->N == 0) {
    memset(dw, 0, static_cast<size_t>(s->K * s->R * s->S * s->C) * sizeof(float));
    return ADDER_OK;
  }
  Product f(*s, dy, x, w, dw);
  Scratch<float> sums(f.parts * f.K * f.taps), dy_sums(f.parts * f.K);
  if (!sums || !dy_sums) return ADDER_NO_MEMORY;
  f.sums = sums;
  f.dy_sums = dy_sums;
  const double operations = 1. * s->N * s->P * s->Q * s->R * s->S * s->C * s->K / Widest::L;
  parallel(f.tasks(), grain_for(operations, f.tasks()), [&](int64_t a, int64_t b) { f.run(a, b); });
  return f.failed.value ? ADDER_NO_MEMORY : finish_filters(f);
}

inline int grad_weight_from_convolution(const adder_shape *s, const float *dy, const float *w, float *dw) {
  GradWeightRest<Widest> f(*s, dy, w, dw);
  Scratch<float> dy_sums(f.parts * f.K);
  if (!dy_sums) return ADDER_NO_MEMORY;
  f.dy_sums = dy_sums;
  parallel(f.parts, grain_for(1. * s->N * s->P * s->Q * s->K / Widest::L, f.parts), [&](int64_t a, int64_t b) {
    for (; a < b; ++a) f.sum_dy(a);
  });
  return finish_filters(f);
}

inline const char *kernel(const adder_shape *s, int direction) {
  const Shape shape(*s);
  if (direction == ADDER_FORWARD) {
    if (depthwise<Narrow>(shape)) return "depthwise";
    if (shape.small_groups<Widest>(shape.Kg)) return "lanes over groups";
    if (!Forward<Widest>::takes_identity(shape, false)) return narrow_forward(shape) ? "differences, narrow" : "differences";
    return narrow_forward(shape) ? "identity, narrow" : "identity";
  }
  if (direction == ADDER_GRAD_INPUT) {
    if (depthwise<Narrow>(shape)) return "depthwise";
    if (shape.small_groups<Widest>(shape.Cg)) return "lanes over groups";
    if (GradInputOverImages<Widest>::suits(shape, ADDER_CLIPPED, false)) return "medians over images";
    if (shape.Cg <= Narrow::L) return "differences, narrow";
    return GradInput<Widest>::takes_median(shape, ADDER_CLIPPED, false) ? "medians" : "differences";
  }
  if (depthwise<Narrow>(shape)) return "depthwise";
  return GradWeightProduct<Widest>::suits(*s) ? "outer products" : "convolution";
}

constexpr adder::Kernels kernels(const char *isa) {
  return {isa, packed_size, pack, forward, grad_input, grad_weight, grad_weight_product, grad_weight_from_convolution, kernel};
}

} // namespace ADDER_NAMESPACE
#endif
