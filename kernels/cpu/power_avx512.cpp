#define ADDER_NAMESPACE adder_avx512
#include "power_kernels.h"
