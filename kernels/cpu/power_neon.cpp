#define ADDER_NAMESPACE adder_neon
#define ADDER_NEON
#include "power_kernels.h"
