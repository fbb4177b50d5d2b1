#define ADDER_NAMESPACE adder_neon
#define ADDER_NEON
#include "kernels.h"

namespace adder {
extern const Kernels neon = ADDER_NAMESPACE::make_table("neon");
}
