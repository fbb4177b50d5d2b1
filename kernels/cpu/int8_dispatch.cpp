// The int8 C interface: which instruction set runs. Compiled for the oldest CPU.
#include "int8_table.h"

#include <cstring>
#if defined(ADDER_X86)
#include <cpuid.h>
#endif

namespace adder {

extern const Int8Kernels int8_generic;
#if defined(ADDER_X86)
extern const Int8Kernels int8_avx2, int8_avx2_denormal, int8_avx512, int8_avx512_denormal;
#endif
#if defined(ADDER_ARM64)
extern const Int8Kernels int8_neon;
#endif

#if defined(ADDER_X86)
// Zen 3 and later. Elsewhere such an addition may be interrupted for more than a hundred cycles, and on Intel's cores
// it would gain nothing: theirs have one unit for psadbw and others for additions.
static bool adds_denormals_at_full_speed() {
  unsigned a, b, c, d;
  __builtin_cpu_init();
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &a, &b, &c, &d)) return false;
  const unsigned family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
  return family >= 0x19;
}
#endif

static bool runs(const Int8Kernels &kernels) {
#if defined(ADDER_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (&kernels == &int8_avx2) return avx2;
  if (&kernels == &int8_avx512) return avx512;
  if (&kernels == &int8_avx2_denormal) return avx2 && adds_denormals_at_full_speed();
  if (&kernels == &int8_avx512_denormal) return avx512 && adds_denormals_at_full_speed();
#endif
#if defined(ADDER_ARM64)
  if (&kernels == &int8_neon) return true; // part of every such CPU
#endif
  return &kernels == &int8_generic;
}

// Best first.
static const Int8Kernels *const all_int8[] = {
#if defined(ADDER_X86)
    &int8_avx512_denormal,
    &int8_avx512,
    &int8_avx2_denormal,
    &int8_avx2,
#endif
#if defined(ADDER_ARM64)
    &int8_neon,
#endif
    &int8_generic};

static const Int8Kernels *best_int8() {
  for (const Int8Kernels *kernels : all_int8)
    if (runs(*kernels)) return kernels;
  return &int8_generic;
}

static const Int8Kernels *current_int8 = best_int8();

} // namespace adder

extern "C" {

const char *adder_int8_isa(void) { return adder::current_int8->isa; }

const char *adder_int8_isas(void) {
  static char names[128];
  size_t length = 0;
  for (const adder::Int8Kernels *kernels : adder::all_int8)
    if (adder::runs(*kernels)) {
      if (length) names[length++] = ' ';
      std::strcpy(names + length, kernels->isa);
      length += std::strlen(kernels->isa);
    }
  return names;
}

int adder_int8_use(const char *isa) {
  for (const adder::Int8Kernels *kernels : adder::all_int8)
    if (std::strcmp(kernels->isa, isa) == 0 && adder::runs(*kernels)) {
      adder::current_int8 = kernels;
      return 1;
    }
  return 0;
}

int adder_int8_forward(const adder_shape *shape, const uint8_t *x, const uint8_t *w, uint8_t pad,
                       const adder_int8_epilogue *epilogue, int32_t *y) {
  return adder::current_int8->forward(shape, x, w, pad, epilogue, y);
}

void adder_int8_levels(int64_t count, const float *v, float inverse_step, int32_t zero_point, int32_t top,
                       uint8_t *levels) {
  adder::current_int8->levels(count, v, inverse_step, zero_point, top, levels);
}
}
