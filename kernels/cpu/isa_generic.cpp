#define ADDER_NAMESPACE adder_generic
#include "kernels.h"

namespace adder {
extern const Kernels generic = ADDER_NAMESPACE::make_table("generic");
}
