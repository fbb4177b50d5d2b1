#define ADDER_NAMESPACE adder_int8_neon
#define ADDER_NEON
#include "int8_kernels.h"

namespace adder {
extern const Int8Kernels int8_neon = ADDER_NAMESPACE::int8_kernels("neon");
}
