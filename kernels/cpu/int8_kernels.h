// The int8 kernels of one instruction set; included by int8_*.cpp with that set's flags and namespace.
#ifndef ADDER_INT8_KERNELS_H
#define ADDER_INT8_KERNELS_H

#include "int8_depthwise.h"
#include "int8_forward.h"
#include "int8_table.h"

namespace ADDER_NAMESPACE {

static int64_t packed_size(const adder_shape *s) {
  return is_depthwise(*s) ? packed_size_of_depthwise(Geometry(*s)) : packed_size_of_channels(Geometry(*s));
}

static void pack(const adder_shape *s, const uint8_t *w, uint8_t *packed) {
  is_depthwise(*s) ? pack_depthwise(Geometry(*s), w, packed) : pack_channels(Geometry(*s), w, packed);
}

template <class Kernel>
int run(const adder_shape &s, const uint8_t *x, const uint8_t *packed, uint8_t pad, const adder_int8_epilogue *epilogue,
        int32_t *y) {
  Kernel kernel(s, x, packed, pad, epilogue, y);
  return launch(kernel);
}

template <bool DENORMAL>
static int forward(const adder_shape *s, const uint8_t *x, const uint8_t *w, uint8_t pad,
                   const adder_int8_epilogue *epilogue, int32_t *y) {
  if (s->N * s->P * s->Q == 0) return ADDER_OK;
  const Scratch<uint8_t> packed(packed_size(s));
  if (!packed) return ADDER_NO_MEMORY;
  pack(s, w, packed);
  const auto kernel = is_depthwise(*s) ? run<DepthwiseKernel> : run<ChannelsKernel<DENORMAL>>;
  return kernel(*s, x, packed, pad, epilogue, y);
}

static void levels(int64_t count, const float *v, float inverse_step, int32_t zero_point, int32_t top, uint8_t *out) {
  constexpr int64_t PIECE = 1 << 14;
  const Levels<WidestBytes> levels(inverse_step, zero_point, top, false);
  const int64_t pieces = ceil_div(count, PIECE);
  for_each(pieces, static_cast<double>(count), [&](int64_t i) {
    const int64_t begin = i * PIECE;
    const IeeeMode for_the_levels;
    levels.write(min64(PIECE, count - begin), v + begin, out + begin);
  });
}

// denormal: see int8_vec.h.
static constexpr adder::Int8Kernels int8_kernels(const char *isa, bool denormal = false) {
  return {isa, denormal ? forward<true> : forward<false>, levels};
}

} // namespace ADDER_NAMESPACE
#endif
