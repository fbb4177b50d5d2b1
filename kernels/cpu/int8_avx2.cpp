#define ADDER_NAMESPACE adder_int8_avx2
#include "int8_kernels.h"

namespace adder {
extern const Int8Kernels int8_avx2 = ADDER_NAMESPACE::int8_kernels("avx2");
extern const Int8Kernels int8_avx2_denormal = ADDER_NAMESPACE::int8_kernels("avx2-denormal", true);
} // namespace adder
