#define ADDER_NAMESPACE adder_avx2
#include "kernels.h"

namespace adder {
extern const Kernels avx2 = ADDER_NAMESPACE::make_table("avx2");
}
