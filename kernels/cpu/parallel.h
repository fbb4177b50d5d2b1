// What the kernels of every instruction set share: memory, threads, and the table they are reached through. Defined in
// dispatch.cpp, which is compiled for the oldest CPU; nothing here is inline, or the linker could pick a copy that was
// compiled for a newer one.
#ifndef ADDER_PARALLEL_H
#define ADDER_PARALLEL_H

#include "adder.h"

#include <cstddef>

namespace adder {

// 64-byte aligned, uninitialised; null if there is no memory. A count of 0 is allowed.
void *allocate(size_t bytes);
void release(void *memory);

void parallel_for(int64_t count, int64_t grain, adder_body body, void *context);

// What runs the loops of kernels that this thread calls from now on; null: what adder_set_parallel_for named. Returns
// what did so before.
adder_parallel_for use_here(adder_parallel_for threads);

// Whether AVX2 sums maxima faster by additions than by fma(., 1). Intel's cores from Golden Cove on add on a port
// without maxima; AMD's add on the ports without fma.
extern bool adds;

struct Kernels {
  const char *isa;
  int (*forward)(const adder_shape *, const float *x, const float *w, const adder_epilogue *, float *y, int exact);
  int (*grad_input)(const adder_shape *, const float *dy, const float *x, const float *w, float *dx, int mode,
                    int exact);
  int (*grad_weight)(const adder_shape *, const float *dy, const float *x, const float *w, float *dw, int mode);
  int (*grad_weight_product)(const adder_shape *, const float *dy, const float *x, const float *w, float *dw);
  int (*grad_weight_from_convolution)(const adder_shape *, const float *dy, const float *w, float *dw);
  int (*power_forward)(const adder_shape *, const float *x, const float *w, const adder_power *, float *y);
  int (*power_grad_input)(const adder_shape *, const float *dy, const float *x, const float *w, const adder_power *,
                          float *dx);
  int (*power_grad_weight)(const adder_shape *, const float *dy, const float *x, const float *w, const adder_power *,
                           float *dw);
  int (*gradients)(const adder_shape *, const float *dy, const float *x, const float *w, const adder_power *, float *dx,
                   float *dw);
  const char *(*kernel)(const adder_shape *, int direction);
};

} // namespace adder
#endif
