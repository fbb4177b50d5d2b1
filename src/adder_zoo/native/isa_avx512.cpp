#define ADDER_NAMESPACE adder_avx512
#include "kernels.h"

namespace adder {
extern const Kernels avx512 = {"avx512", ADDER_NAMESPACE::forward, ADDER_NAMESPACE::grad_input, ADDER_NAMESPACE::grad_weight};
}
