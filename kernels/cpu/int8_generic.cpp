#define ADDER_NAMESPACE adder_int8_generic
#include "int8_kernels.h"

namespace adder {
extern const Int8Kernels int8_generic = ADDER_NAMESPACE::int8_kernels("generic");
}
