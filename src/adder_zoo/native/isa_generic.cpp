#define ADDER_NAMESPACE adder_generic
#include "kernels.h"

namespace adder {
extern const Kernels generic = {"generic", ADDER_NAMESPACE::forward, ADDER_NAMESPACE::grad_input, ADDER_NAMESPACE::grad_weight};
}
