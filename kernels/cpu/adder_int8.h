/* The int8 operator's C interface: y = -sum |x - w| over bytes, exact.
 *
 * Tensors are dense and channels last: images x [N, H, W, C] and filters w [K, R, S, C/groups] of uint8, results
 * [N, P, Q, K]. x and w share one scale and one zero point, so the difference of two bytes is the difference of what
 * they stand for; a pixel of padding is the byte `pad`, which stands for 0. Sums are exact integers whatever the
 * instruction set and the number of threads: R * S * C/groups taps of at most 255 each must stay below 2^31.
 */
#ifndef ADDER_INT8_H
#define ADDER_INT8_H

#include "adder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What follows the sum in the same pass. In float32, each operation rounded by itself (no fused multiply-add), so that
 * every instruction set gives the same bits:
 *
 *   v = act(scale[k] * y + shift[k] + residual)
 *   wide = v,   narrow = clamp(round_half_even(v * inverse_step) + zero_point, 0, top)
 */
typedef struct {
  const float *scale, *shift; /* [K] */
  const float *residual;      /* [N, P, Q, K]; NULL: none */
  int32_t relu;               /* act: 0 nothing, 1 ReLU */
  float inverse_step;         /* levels of the next layer's input for each unit of v */
  int32_t zero_point;         /* the level that stands for 0 there */
  int32_t top;                /* the highest level there: 255, or less for fewer than 8 bits */
  float *wide;                /* [N, P, Q, K]; NULL: not wanted */
  uint8_t *narrow;            /* [N, P, Q, K]; NULL: not wanted */
} adder_int8_epilogue;

/* The most taps that a filter may have. */
#define ADDER_INT8_MOST_TAPS (INT32_MAX / 255)

/* One of y and epilogue is NULL: the bare sums as int32, or what the epilogue makes of them. */
ADDER_API int adder_int8_forward(const adder_shape *shape, const uint8_t *x, const uint8_t *w, uint8_t pad,
                                 const adder_int8_epilogue *epilogue, int32_t *y);
/* levels[i] = clamp(round_half_even(v[i] * inverse_step) + zero_point, 0, top), as the epilogue's narrow; a NaN gives
 * 0. */
ADDER_API void adder_int8_levels(int64_t count, const float *v, float inverse_step, int32_t zero_point, int32_t top,
                                 uint8_t *levels);
/* The instruction set in use and all that this CPU runs, as for adder_isa; adder_int8_use returns 0 where it is not
 * there. */
ADDER_API const char *adder_int8_isa(void);
ADDER_API const char *adder_int8_isas(void);
ADDER_API int adder_int8_use(const char *isa);

#ifdef __cplusplus
}
#endif
#endif
