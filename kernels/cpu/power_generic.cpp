#define ADDER_NAMESPACE adder_generic
#include "power_kernels.h"
