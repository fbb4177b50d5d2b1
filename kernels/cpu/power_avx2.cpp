#define ADDER_NAMESPACE adder_avx2
#include "power_kernels.h"
