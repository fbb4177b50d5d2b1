// How this thread's processor computes with floats while the int8 kernels run.
#ifndef ADDER_INT8_MODE_H
#define ADDER_INT8_MODE_H

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ADDER_NAMESPACE {

// While it lives, this thread computes as IEEE says: it rounds to nearest, keeps denormals, and traps nothing. A
// program may have asked for something else (torch.set_flush_denormal, fesetround), which holds again afterwards. What
// is to be computed so must not be inlined beside it, for the compiler may move arithmetic over it.
class IeeeMode {
#if defined(__SSE2__)
  static constexpr unsigned IEEE = 0x1f80; // MXCSR: all exceptions masked
  const unsigned before = _mm_getcsr();
  static void set(unsigned mode) { _mm_setcsr(mode); }
#elif defined(ADDER_ARM64)
  static constexpr uint64_t IEEE = 0; // FPCR
  const uint64_t before = get();
  static uint64_t get() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else // other processors: as the program wants
  static constexpr int IEEE = 0, before = 0;
  static void set(int) {}
#endif

public:
  IeeeMode() { set(IEEE); }
  ~IeeeMode() { set(before); }
  IeeeMode(const IeeeMode &) = delete;
};

} // namespace ADDER_NAMESPACE
#endif
