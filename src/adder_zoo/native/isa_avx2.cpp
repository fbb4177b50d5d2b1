#define ADDER_NAMESPACE adder_avx2
#include "kernels.h"

namespace adder {
extern const Kernels avx2 = {"avx2", ADDER_NAMESPACE::forward, ADDER_NAMESPACE::grad_input, ADDER_NAMESPACE::grad_weight};
}
