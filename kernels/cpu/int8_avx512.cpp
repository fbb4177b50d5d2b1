#define ADDER_NAMESPACE adder_int8_avx512
#include "int8_kernels.h"

namespace adder {
extern const Int8Kernels int8_avx512 = ADDER_NAMESPACE::int8_kernels("avx512");
extern const Int8Kernels int8_avx512_denormal = ADDER_NAMESPACE::int8_kernels("avx512-denormal", true);
} // namespace adder
