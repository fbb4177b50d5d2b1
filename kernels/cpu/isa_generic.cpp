#define ADDER_NAMESPACE adder_generic
#include "kernels.h"

namespace adder {
extern const Kernels generic = ADDER_NAMESPACE::kernels("generic");
}
