#define ADDER_NAMESPACE adder_avx512
#include "kernels.h"

namespace adder {
extern const Kernels avx512 = ADDER_NAMESPACE::make_table("avx512");
}
