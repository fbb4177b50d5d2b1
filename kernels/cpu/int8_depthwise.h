// y = -sum |x - w| over bytes for depthwise layers, where each filter reads one channel: C = G, K = a multiple of C.
//
// A lane is a channel of the output. Bytes are widened to 16 bits as they are loaded, so a tap costs a difference, an
// absolute value and an addition for as many channels as fit a vector; 257 taps fill a lane. Where several filters read
// the same channel, the copied rows hold that channel once for each of them.
#ifndef ADDER_INT8_DEPTHWISE_H
#define ADDER_INT8_DEPTHWISE_H

#include "int8_mode.h"
#include "int8_output.h"
#include "int8_plan.h"
#include "tiles.h"

namespace ADDER_NAMESPACE {

constexpr int HALF = WidestBytes::F, LANES = 2 * HALF; // lanes whose sums fit a vector in 32 bits, and in 16
constexpr int64_t TAPS_OF_A_LANE = 65535 / 255;
constexpr int DEPTHWISE_PIXELS = 8;

static inline bool is_depthwise(const adder_shape &s) { return s.groups == s.C && s.C > 1; }

static inline int64_t packed_size_of_depthwise(const Geometry &s) {
  return s.taps * ceil_div(s.K, LANES) * LANES * static_cast<int64_t>(sizeof(int16_t));
}

// [vector][tap][LANES] of 16 bits, zeros where there is no channel.
static inline void pack_depthwise(const Geometry &s, const uint8_t *w, uint8_t *packed) {
  for (int64_t k = 0; k < s.K; k += LANES)
    for (int64_t tap = 0; tap < s.taps; ++tap, packed += LANES * sizeof(int16_t)) {
      int16_t lanes[LANES] = {};
      for (int64_t lane = 0; lane < min64(LANES, s.K - k); ++lane) lanes[lane] = w[(k + lane) * s.taps + tap];
      memcpy(packed, lanes, sizeof lanes);
    }
}

// The outputs of two halves of LANES channels.
struct HalfOutputs {
  Output<WidestBytes> low, high;
  HalfOutputs(const Geometry &s, const adder_int8_epilogue *epilogue, int32_t *y, int64_t k)
      : low(epilogue, y, s.K, k, min64(HALF, s.K - k)),
        high(epilogue, y, s.K, k + HALF, max64(0, min64(HALF, s.K - k - HALF))) {}
};

typedef WidestBytes::Shorts Differences;
typedef uint16_t Lanes __attribute__((vector_size(sizeof(Differences))));
typedef Numbers<HALF>::Ints Ints;

// Adds |x - w| of `taps` taps to `sums`, which must have room.
template <int MR>
ADDER_INLINE void add_depthwise(const uint8_t *const (&x)[MR], const int64_t *offsets, int64_t taps,
                                const uint8_t *panel, Lanes (&sums)[MR]) {
  for (const int64_t *const end = offsets + taps; offsets < end; ++offsets, panel += sizeof(Lanes)) {
    Differences w;
    memcpy(&w, panel, sizeof w);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const Differences difference = WidestBytes::widen(x[m] + *offsets) - w;
      sums[m] += (Lanes)(difference > -difference ? difference : -difference);
    }
  }
}

// -sum |x - w| of half of the lanes.
static ADDER_INLINE Ints half_of(const Lanes &sums, int half) {
  return -WidestBytes::half((Differences)sums, half != 0);
}

// LONG: the taps may be more than a lane holds.
template <int MR, bool LONG>
__attribute__((noinline)) static void depthwise_tile(const uint8_t *const *pixels, const int64_t *offsets, int64_t taps,
                                                     const uint8_t *panel, const HalfOutputs &out, int64_t pixel) {
  const uint8_t *x[MR];
  Lanes sums[MR];
  [[maybe_unused]] Ints totals[2][MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) x[m] = pixels[m], sums[m] = Lanes{};
  if constexpr (LONG) memset(totals, 0, sizeof totals);
  for (; LONG && taps > TAPS_OF_A_LANE; taps -= TAPS_OF_A_LANE) {
    Lanes some[MR] = {};
    add_depthwise<MR>(x, offsets, TAPS_OF_A_LANE, panel, some);
    for (int m = 0; m < MR; ++m) totals[0][m] += half_of(some[m], 0), totals[1][m] += half_of(some[m], 1);
    offsets += TAPS_OF_A_LANE, panel += TAPS_OF_A_LANE * static_cast<int64_t>(sizeof(Lanes));
  }
  add_depthwise<MR>(x, offsets, taps, panel, sums);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Output<WidestBytes> &to = half ? out.high : out.low;
    if (to.channels == 0) return;
    Ints sum[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      sum[m] = half_of(sums[m], half);
      if constexpr (LONG) sum[m] += totals[half][m];
    }
    to.template write<MR>(sum, pixel);
  }
}

// Rows of K channels with their padding, from rows of C: a channel stands there once for each filter that reads it.
static inline void repeat_channels(const uint8_t *source, int64_t count, int64_t multiple, uint8_t *out) {
  for (int64_t i = 0; i < count; ++i, out += multiple) memset(out, source[i], static_cast<size_t>(multiple));
}

struct DepthwiseKernel {
  const Geometry s;
  const uint8_t *const x, *const packed;
  const adder_int8_epilogue *const epilogue;
  int32_t *const y;
  const ByteRows rows;
  const ByteSplit split;
  const Scratch<int64_t> offsets;
  Flag failed;

  // In place only where no vector reads beyond a pixel.
  DepthwiseKernel(const adder_shape &shape, const uint8_t *x_, const uint8_t *packed_, uint8_t pad,
                  const adder_int8_epilogue *epilogue_, int32_t *y_)
      : s(shape), x(x_), packed(packed_), epilogue(epilogue_), y(y_), rows(s, pad, s.K % LANES == 0 && s.K == s.C, s.C),
        split(s, DEPTHWISE_PIXELS, rows.width * s.K, 0, ceil_div(s.K, LANES), true), offsets(s.taps) {
    if (!offsets) failed.set();
    for (int64_t tap = 0; offsets && tap < s.taps; ++tap)
      offsets[tap] = (tap / s.S * s.dilation_h * rows.width + tap % s.S * s.dilation_w) * s.K;
  }

  int64_t tasks() const { return failed.value ? 0 : split.split.tasks(); }
  double operations() const {
    return static_cast<double>(s.N * s.P * s.Q) * static_cast<double>(ceil_div(s.K, LANES) * s.taps * 4);
  }

  void run(int64_t begin, int64_t end) {
    // A vector of the last channels reads up to LANES bytes too far.
    const int64_t size = rows.size(split.most_rows());
    const int64_t repeated = s.K > s.C ? rows.height(split.most_rows()) * rows.width * s.K : 0;
    const Scratch<uint8_t> copy(size + repeated + 2 * LANES);
    if (!copy) return failed.set();
    const IeeeMode for_the_tiles;
    for (; begin < end; ++begin) {
      const ByteTask task(split, s.P, begin);
      const uint8_t *source = rows.read(x + task.image * s.H * s.W * s.C, 0, task.row_begin, task.row_end, copy);
      if (repeated) {
        repeat_channels(source, rows.height(task.row_end - task.row_begin) * rows.bytes, s.K / s.C, copy + size);
        source = copy + size;
      }
      for (int64_t v = task.block_begin; v < task.block_end; ++v) run_vector(task, v, source);
    }
  }

  void run_vector(const ByteTask &task, int64_t vector, const uint8_t *source) const {
    const HalfOutputs out(s, epilogue, y, vector * LANES);
    const auto *const short_tiles =
        tiles_of<DEPTHWISE_PIXELS>([](auto pixels) ADDER_LAMBDA_INLINE { return depthwise_tile<pixels.value, false>; });
    const auto *const long_tiles =
        tiles_of<DEPTHWISE_PIXELS>([](auto pixels) ADDER_LAMBDA_INLINE { return depthwise_tile<pixels.value, true>; });
    const auto *const tiles = s.taps > TAPS_OF_A_LANE ? long_tiles : short_tiles;
    const uint8_t *const panel = packed + vector * s.taps * LANES * static_cast<int64_t>(sizeof(int16_t));
    const int64_t pixels = (task.row_end - task.row_begin) * s.Q, count = ceil_div(pixels, DEPTHWISE_PIXELS);
    const EvenParts parts(pixels, count);
    PixelWalk walk(source + vector * LANES, s.Q, s.stride_w * s.K, s.stride_h * rows.width * s.K);
    for (int64_t i = 0, pixel = (task.image * s.P + task.row_begin) * s.Q; i < count; ++i) {
      const uint8_t *at[DEPTHWISE_PIXELS];
      const int64_t mr = parts.size(i);
      walk.next<DEPTHWISE_PIXELS>(mr, at);
      tiles[mr](at, offsets, s.taps, panel, out, pixel);
      pixel += mr;
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
