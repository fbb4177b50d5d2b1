// y = -sum |x - w| over bytes for depthwise layers, where each filter reads one channel: C = G, K = a multiple of C.
//
// A lane is a channel of the output. Bytes are widened to 16 bits as they are loaded, so a tap costs a difference, an
// absolute value and an addition for as many channels as fit a vector; 257 taps fill a lane, and then the sums go to
// memory. Where several filters read the same channel, the copied rows hold that channel once for each of them.
#ifndef ADDER_INT8_DEPTHWISE_H
#define ADDER_INT8_DEPTHWISE_H

#include "int8_output.h"
#include "int8_plan.h"

namespace ADDER_NAMESPACE {

#if defined(__AVX512BW__)
constexpr int LANES = 32;
#elif defined(__AVX2__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef uint8_t NarrowLanes __attribute__((vector_size(LANES)));
typedef int16_t Lanes __attribute__((vector_size(2 * LANES)));
typedef uint16_t UnsignedLanes __attribute__((vector_size(2 * LANES)));
constexpr int64_t TAPS_OF_A_LANE = 65535 / 255;
constexpr int DEPTHWISE_PIXELS = 6;

static bool is_depthwise(const adder_shape &s) { return s.groups == s.C && s.C > 1; }

static int64_t packed_size_of_depthwise(const adder_shape &s) {
  return s.R * s.S * quotient_up(s.K, LANES) * LANES * (int64_t)sizeof(int16_t);
}

// [vector][tap][LANES] of 16 bits, zeros where there is no channel.
static void pack_depthwise(const adder_shape &s, const uint8_t *w, uint8_t *packed) {
  int16_t *out = (int16_t *)packed;
  const int64_t taps = s.R * s.S;
  for (int64_t v = 0; v < quotient_up(s.K, LANES); ++v)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const int64_t k = v * LANES + lane;
        *out++ = k < s.K ? w[k * taps + tap] : 0;
      }
}

template <int MR>
__attribute__((noinline)) static void sum_depthwise(const uint8_t *const *pixels, const int32_t *offsets, int64_t taps,
                                                    const int16_t *panel, int32_t *sums) {
  for (int i = 0; i < MR * LANES; ++i) sums[i] = 0;
  for (int64_t begin = 0; begin < taps; begin += TAPS_OF_A_LANE) {
    UnsignedLanes sum[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) sum[m] = UnsignedLanes{};
    for (int64_t tap = begin; tap < smaller(taps, begin + TAPS_OF_A_LANE); ++tap, panel += LANES) {
      Lanes w;
      std::memcpy(&w, panel, sizeof w);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        NarrowLanes bytes;
        std::memcpy(&bytes, pixels[m] + offsets[tap], sizeof bytes);
        const Lanes difference = __builtin_convertvector(bytes, Lanes) - w;
        sum[m] += (UnsignedLanes)(difference < 0 ? -difference : difference);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
      for (int i = 0; i < LANES; ++i) sums[m * LANES + i] += sum[m][i];
  }
}

// Rows of K channels with their padding, from rows of C: a channel stands there once for each filter that reads it.
static void repeat_channels(const adder_shape &s, const Rows &rows, const uint8_t *source, int64_t height,
                            uint8_t *out) {
  const int64_t multiple = s.K / s.C;
  for (int64_t i = 0; i < height * rows.width * s.C; ++i, out += multiple) std::memset(out, source[i], multiple);
}

struct DepthwiseCall {
  const adder_shape &s;
  const uint8_t *x, *packed;
  const adder_int8_epilogue *epilogue;
  int32_t *y;
  Rows rows;
  Tasks tasks;
  const int32_t *offsets;
  int32_t status;

  void run_task(int64_t index);
  void run_vector(int64_t vector, const uint8_t *source, int64_t first_pixel, int64_t pixels) const;
};

inline void DepthwiseCall::run_vector(int64_t vector, const uint8_t *source, int64_t first_pixel,
                                      int64_t pixels) const {
  const int64_t taps = s.R * s.S, k = vector * LANES, row_bytes = rows.width * s.K;
  const int16_t *panel = (const int16_t *)packed + vector * taps * LANES;
  alignas(64) int32_t sums[DEPTHWISE_PIXELS * LANES];
  for (int64_t begin = 0; begin < pixels; begin += DEPTHWISE_PIXELS) {
    const int64_t here = smaller(DEPTHWISE_PIXELS, pixels - begin);
    const uint8_t *at[DEPTHWISE_PIXELS];
    for (int m = 0; m < DEPTHWISE_PIXELS; ++m) {
      const int64_t pixel = begin + smaller(m, here - 1);
      at[m] = source + k + pixel / s.Q * s.stride_h * row_bytes + pixel % s.Q * s.stride_w * s.K;
    }
    if (here == 1) sum_depthwise<1>(at, offsets, taps, panel, sums);
    else sum_depthwise<DEPTHWISE_PIXELS>(at, offsets, taps, panel, sums);
    for (int64_t m = 0; m < here; ++m)
      write_pixel<LANES>(sums + m * LANES, k, (first_pixel + begin + m) * s.K + k, smaller(LANES, s.K - k), epilogue,
                         y);
  }
}

inline void DepthwiseCall::run_task(int64_t index) {
  const int64_t part = index % tasks.parts, chunk = index / tasks.parts % tasks.chunks;
  const int64_t image = index / tasks.parts / tasks.chunks;
  const int64_t row_begin = chunk * tasks.rows, row_end = smaller(s.P, row_begin + tasks.rows);
  const int64_t height = rows.height(row_end - row_begin), repeated = s.K > s.C ? height * rows.width * s.K : 0;
  // A vector of the last channels reads up to LANES bytes too far.
  uint8_t *copy = (uint8_t *)adder::allocate(rows.size(row_end - row_begin) + repeated + 2 * LANES);
  if (copy == nullptr) {
    __atomic_store_n(&status, ADDER_NO_MEMORY, __ATOMIC_RELAXED);
    return;
  }
  const uint8_t *source = rows.read(x + image * s.H * s.W * s.C, row_begin, row_end, copy);
  if (repeated) {
    uint8_t *out = copy + rows.size(row_end - row_begin);
    repeat_channels(s, rows, source, height, out);
    source = out;
  }
  for (int64_t v = tasks.blocks * part / tasks.parts; v < tasks.blocks * (part + 1) / tasks.parts; ++v)
    run_vector(v, source, (image * s.P + row_begin) * s.Q, (row_end - row_begin) * s.Q);
  adder::release(copy);
}

static int forward_depthwise(const adder_shape &s, const uint8_t *x, const uint8_t *packed, uint8_t pad,
                             const adder_int8_epilogue *epilogue, int32_t *y) {
  const Rows rows(s, pad, s.K % LANES != 0 || s.K > s.C); // in place only where no vector reads beyond a pixel
  const int64_t taps = s.R * s.S;
  int32_t *offsets = (int32_t *)adder::allocate(taps * sizeof(int32_t));
  if (offsets == nullptr) return ADDER_NO_MEMORY;
  for (int64_t tap = 0; tap < taps; ++tap)
    offsets[tap] = (int32_t)((tap / s.S * s.dilation_h * rows.width + tap % s.S * s.dilation_w) * s.K);
  DepthwiseCall call{s,       x,       packed, epilogue, y, rows, Tasks(s, rows.width * s.K, quotient_up(s.K, LANES)),
                     offsets, ADDER_OK};
  adder::parallel_for(
      call.tasks.count, 1,
      [](int64_t begin, int64_t end, void *context) {
        for (int64_t i = begin; i < end; ++i) ((DepthwiseCall *)context)->run_task(i);
      },
      &call);
  adder::release(offsets);
  return call.status;
}

} // namespace ADDER_NAMESPACE
#endif
