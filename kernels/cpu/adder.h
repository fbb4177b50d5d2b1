/* The CPU library's C interface. Plain C types only: no torch headers, so one build serves every Python and torch.
 *
 * Tensors are dense float32, channels last: images x [N, H, W, C], y and dy [N, P, Q, K], filters [K, R, S, C/groups].
 * Equations and symbols as in adder_zoo.adder2d (arXiv 1912.13200).
 */
#ifndef ADDER_H
#define ADDER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ADDER_API __declspec(dllexport)
#else
#define ADDER_API __attribute__((visibility("default")))
#endif

typedef struct {
  int64_t N, C, H, W;    /* input */
  int64_t K, R, S, P, Q; /* filters and output */
  int64_t groups;        /* divides C and K */
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left; /* bottom and right follow from P and Q */
  int64_t dilation_h, dilation_w;
} adder_shape;

/* Runs body(begin, end, context) over [begin, end) in pieces, on as many threads as it likes. */
typedef void (*adder_body)(int64_t begin, int64_t end, void *context);
typedef int32_t (*adder_parallel_for)(int64_t begin, int64_t end, int64_t grain, adder_body body, void *context);

enum { ADDER_CLIPPED = 0, ADDER_FULL = 1, ADDER_SIGN = 2 }; /* which gradient */
enum { ADDER_OK = 0, ADDER_NO_MEMORY = 1, ADDER_UNSUITED = 2, ADDER_NOT_FINITE = 3 };

/* Which version of this header and of adder_int8.h the library was built from: 16 digits of their SHA-256, "" where the
 * build did not say. */
ADDER_API const char *adder_interface(void);
/* The instruction set that adder_use chose, or the list of all that this CPU runs, separated by spaces. */
ADDER_API const char *adder_isa(void);
ADDER_API const char *adder_isas(void);
/* Chooses another instruction set than the best one; returns 0 if this CPU or build lacks it. */
ADDER_API int adder_use(const char *isa);
/* Whether AVX2 adds up by additions (1) or by fma(., 1) (0), which take the CPU's ports differently and give the same
 * bits; -1, the default: whichever is faster on this CPU. */
ADDER_API void adder_set_adds(int adds);
/* NULL: one thread. */
ADDER_API void adder_set_parallel_for(adder_parallel_for parallel_for);

/* What is done to y in the same pass: y <- act(scale[k] y + shift[k] + residual), batch norm at inference and what
 * follows. */
typedef struct {
  const float *scale, *shift; /* [K] */
  const float *residual;      /* [N, P, Q, K]; NULL: none. It must not be y's own memory. */
  int32_t relu;               /* act: 0 nothing, 1 ReLU (a NaN stays one) */
} adder_epilogue;

/* y = -sum |x - w|, Eq. 2. exact = 0 lets finite tiles without cancellation take 2 sum max(x, w) - sum x - sum w.
 * epilogue may be NULL. */
ADDER_API int adder_forward(const adder_shape *shape, const float *x, const float *w, const adder_epilogue *epilogue,
                            float *y, int exact);
/* dx = sum dy t(w - x), Eq. 6 and 7: t clamps (ADDER_CLIPPED), is the identity (ADDER_FULL) or the sign. exact = 0 lets
 * tiles take sum dy median(w, x - 1, x + 1) - x sum dy for the clamp, where all x lie in [-1, 8] after the same whole
 * number, 0 to 4, was added to x and w. */
ADDER_API int adder_grad_input(const adder_shape *shape, const float *dy, const float *x, const float *w, float *dx,
                               int mode, int exact);
/* dw = sum dy t(x - w), Eq. 4 (ADDER_SIGN) and 5 (ADDER_FULL), tap by tap: for the sign, and for infinities. */
ADDER_API int adder_grad_weight(const adder_shape *shape, const float *dy, const float *x, const float *w, float *dw,
                                int mode);
/* dw = sum dy x - w sum dy, which is Eq. 5 for finite operands; ADDER_NOT_FINITE if dw is not; then call
 * adder_grad_weight for Eq. 5. ADDER_UNSUITED (and dw untouched) if a convolution's weight gradient is faster:
 * grouped filters, 1x1 kernels with many channels, channels that do not fill vectors. */
ADDER_API int adder_grad_weight_product(const adder_shape *shape, const float *dy, const float *x, const float *w,
                                        float *dw);
/* The same from a convolution's weight gradient: dw holds sum dy x. */
ADDER_API int adder_grad_weight_from_convolution(const adder_shape *shape, const float *dy, const float *w, float *dw);

/* 1 < p < 2: y = -sum |x - w|^p, and its derivatives dx = sum dy p |w - x|^(p-1) sgn(w - x) and
 * dw = sum dy p |x - w|^(p-1) sgn(x - w). The polynomial sum coefficients[i] (m - 1.5)^i stands for a power of m,
 * 1 <= m < 2: of degree 6 and for m^p, with p as exponent, forwards; of degree 9 and for p m^(p-2), with p - 2 as
 * exponent, for the derivatives. ADDER_NOT_FINITE, and nothing written, if an x or w is not finite or beyond 2^60. */
#define ADDER_POWER_DEGREE 9
#define ADDER_POWER_FORWARD_DEGREE 6
typedef struct {
  double exponent;
  float coefficients[ADDER_POWER_DEGREE + 1];
} adder_power;
ADDER_API int adder_power_forward(const adder_shape *shape, const float *x, const float *w, const adder_power *power,
                                  float *y);
ADDER_API int adder_power_grad_input(const adder_shape *shape, const float *dy, const float *x, const float *w,
                                     const adder_power *power, float *dx);
ADDER_API int adder_power_grad_weight(const adder_shape *shape, const float *dy, const float *x, const float *w,
                                      const adder_power *power, float *dw);
/* Both derivatives in one pass, for the sign (power is NULL: dx as with ADDER_SIGN and dw as Eq. 4) or for 1 < p < 2.
 * ADDER_UNSUITED, and nothing written, where groups are smaller than a vector or do not fill vectors, or with signs
 * channels are few; ADDER_NOT_FINITE as above. Then call the functions for one. */
ADDER_API int adder_gradients(const adder_shape *shape, const float *dy, const float *x, const float *w,
                              const adder_power *power, float *dx, float *dw);

enum { ADDER_FORWARD = 0, ADDER_GRAD_INPUT = 1, ADDER_GRAD_WEIGHT = 2 }; /* direction */
/* Which kernel a shape takes under the current instruction set (ADDER_CLIPPED, ADDER_FULL), for measurements. */
ADDER_API const char *adder_kernel(const adder_shape *shape, int direction);

#ifdef __cplusplus
}
#endif
#endif
