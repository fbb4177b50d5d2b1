// The C interface: which kernels run, on which threads, in which memory. Compiled for the oldest CPU.
#include "adder.h"
#include "parallel.h"

#include <cstdlib>
#include <cstring>
#if defined(ADDER_X86)
#include <cpuid.h>
#endif

namespace adder {

extern const Kernels generic;
#if defined(ADDER_X86)
extern const Kernels avx2, avx512;
#endif
#if defined(ADDER_ARM64)
extern const Kernels neon;
#endif

void *allocate(size_t bytes) {
  const size_t rounded = (bytes + 63) / 64 * 64;
  return rounded < bytes ? nullptr : std::aligned_alloc(64, rounded ? rounded : 64);
}

void release(void *memory) { std::free(memory); }

static adder_parallel_for threads = nullptr;
static thread_local adder_parallel_for threads_here = nullptr;

adder_parallel_for use_here(adder_parallel_for other) {
  const adder_parallel_for before = threads_here;
  threads_here = other;
  return before;
}

void parallel_for(int64_t count, int64_t grain, adder_body body, void *context) {
  if (count <= 0) return;
  const adder_parallel_for run = threads_here ? threads_here : threads;
  if (run == nullptr || count <= grain || run(0, count, grain, body, context) != 0) body(0, count, context);
}

static bool runs(const Kernels &kernels) {
#if defined(ADDER_X86)
  __builtin_cpu_init();
  if (&kernels == &avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&kernels == &avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#endif
#if defined(ADDER_ARM64)
  if (&kernels == &neon) return true; // part of every such CPU
#endif
  return &kernels == &generic;
}

// Best first.
static const Kernels *const all[] = {
#if defined(ADDER_X86)
    &avx512, &avx2,
#endif
#if defined(ADDER_ARM64)
    &neon,
#endif
    &generic};

static const Kernels *best() {
  for (const Kernels *kernels : all)
    if (runs(*kernels)) return kernels;
  return &generic;
}

static const Kernels *current = best();

static bool adds_are_faster() {
#if defined(ADDER_X86)
  unsigned a, b, c, d;
  constexpr unsigned AVX_VNNI = 1u << 4; // came with those cores
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX_VNNI);
#else
  return false;
#endif
}

bool adds = adds_are_faster();

} // namespace adder

#if !defined(ADDER_INTERFACE)
#define ADDER_INTERFACE ""
#endif

extern "C" {

const char *adder_interface(void) { return ADDER_INTERFACE; }

const char *adder_isa(void) { return adder::current->isa; }

const char *adder_isas(void) {
  static char names[64];
  size_t length = 0;
  for (const adder::Kernels *kernels : adder::all)
    if (adder::runs(*kernels)) {
      if (length) names[length++] = ' ';
      std::strcpy(names + length, kernels->isa);
      length += std::strlen(kernels->isa);
    }
  return names;
}

int adder_use(const char *isa) {
  for (const adder::Kernels *kernels : adder::all)
    if (std::strcmp(kernels->isa, isa) == 0 && adder::runs(*kernels)) {
      adder::current = kernels;
      return 1;
    }
  return 0;
}

void adder_set_adds(int adds) { adder::adds = adds < 0 ? adder::adds_are_faster() : adds != 0; }

void adder_set_parallel_for(adder_parallel_for parallel_for) { adder::threads = parallel_for; }

int adder_forward(const adder_shape *shape, const float *x, const float *w, const adder_epilogue *epilogue, float *y,
                  int exact) {
  return adder::current->forward(shape, x, w, epilogue, y, exact);
}

int adder_grad_input(const adder_shape *shape, const float *dy, const float *x, const float *w, float *dx, int mode,
                     int exact) {
  return adder::current->grad_input(shape, dy, x, w, dx, mode, exact);
}

int adder_grad_weight(const adder_shape *shape, const float *dy, const float *x, const float *w, float *dw, int mode) {
  return adder::current->grad_weight(shape, dy, x, w, dw, mode);
}

int adder_grad_weight_product(const adder_shape *shape, const float *dy, const float *x, const float *w, float *dw) {
  return adder::current->grad_weight_product(shape, dy, x, w, dw);
}

int adder_grad_weight_from_convolution(const adder_shape *shape, const float *dy, const float *w, float *dw) {
  return adder::current->grad_weight_from_convolution(shape, dy, w, dw);
}

int adder_power_forward(const adder_shape *shape, const float *x, const float *w, const adder_power *power, float *y) {
  return adder::current->power_forward(shape, x, w, power, y);
}

int adder_power_grad_input(const adder_shape *shape, const float *dy, const float *x, const float *w,
                           const adder_power *power, float *dx) {
  return adder::current->power_grad_input(shape, dy, x, w, power, dx);
}

int adder_power_grad_weight(const adder_shape *shape, const float *dy, const float *x, const float *w,
                            const adder_power *power, float *dw) {
  return adder::current->power_grad_weight(shape, dy, x, w, power, dw);
}

int adder_gradients(const adder_shape *shape, const float *dy, const float *x, const float *w, const adder_power *power,
                    float *dx, float *dw) {
  return adder::current->gradients(shape, dy, x, w, power, dx, dw);
}

const char *adder_kernel(const adder_shape *shape, int direction) { return adder::current->kernel(shape, direction); }
}
