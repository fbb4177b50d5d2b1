// Forward, dx and dw for one instruction set; included by isa_*.cpp with that set's flags and namespace.
//
//   N, H, W, C      input         x  [N, H, W, C]
//   P, Q, K         output        y, dy [N, P, Q, K]
//   R, S            kernel        w  [K, R, S, Cg],  Cg = C / G, Kg = K / G
//
// All kernels are implicit matrix products without im2col. A *tile* is MR pixels of one row times NV vectors of L
// channels, held in registers; it runs over *segments*, stretches of the reduction that lie side by side in memory both
// in the image and in the *panel*, the filters packed as [vector][tap][L]. The pixels of a tile are a constant step
// apart, so a tile needs no table of pointers. Tap rows that fall outside the image are left out of the segments of a
// row of pixels; columns of padding, if there are any, come from a copy of the rows with the padding written out. So
// no tile has a branch for the border. Depthwise layers are no matrix products: see there.
//
// What one output adds up, and in which order, does not depend on how the work is cut into tasks: the result has the
// same bits with any number of threads. The last bits may differ with the number of images: those that do not fill a
// vector have dx added up in another order, and pixels that share a tile pass the test of y's identity together.
#ifndef ADDER_KERNELS_H
#define ADDER_KERNELS_H

#include "choose.h"

namespace ADDER_NAMESPACE {

constexpr adder::Kernels kernels(const char *isa) {
  return {isa,   packed_size, pack, forward, grad_input, grad_weight, grad_weight_product, grad_weight_from_convolution,
          kernel};
}

} // namespace ADDER_NAMESPACE
#endif
