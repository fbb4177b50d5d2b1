// The table through which the int8 kernels of an instruction set are reached.
#ifndef ADDER_INT8_TABLE_H
#define ADDER_INT8_TABLE_H

#include "adder_int8.h"

namespace adder {

struct Int8Kernels {
  const char *isa;
  int (*forward)(const adder_shape *, const uint8_t *x, const uint8_t *w, uint8_t pad, const adder_int8_epilogue *,
                 int32_t *y);
  void (*levels)(int64_t count, const float *v, float inverse_step, int32_t zero_point, int32_t top, uint8_t *levels);
};

} // namespace adder
#endif
