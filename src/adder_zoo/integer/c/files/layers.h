/* The steps of an integer network: static functions for one network's source file to include.
 *
 *     a[k] = -sum |x - w|                       or  sum x * w         (CONVOLUTION)
 *     v[k] = (M[k] * a[k] + B[k]) >> s[k]       >> is arithmetic: it rounds down
 *     v += shortcut;  v = max(v, 0);  wide = v;  narrow = clamp(((m * v + half) >> n) + zero_point, 0, top)
 *
 * With MULTIPLIER_FREE, M, m and w are sums of signed powers of two, and nothing here multiplies, also no index: all
 * addresses are stepped. C99; no library, no heap, no floating point. Memory is read four bytes at a time, so a word's
 * first byte must be its lowest. A right shift of a negative number must be arithmetic, as all compilers of note have it.
 *
 * Four ways to add up the differences of a patch and a filter, all exact, chosen by the processor:
 *
 *     usada8    Cortex-M4 and its kin: four differences and their sum in one instruction
 *     wasm      WebAssembly with SIMD: 16 differences in three instructions (wasm.h)
 *     vectors   x86, 64-bit ARM: a plain loop, which compilers turn into psadbw, uabd, ...
 *     lanes     others: two 16-bit lanes in a register, by  sum |x - w| = 2 * sum max(x - w, 0) - sum x + sum w
 */
#ifndef ADDER_LAYERS_H
#define ADDER_LAYERS_H

#include <stdint.h>

#if (-1 >> 1) != -1
#error "needs an arithmetic right shift"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "needs a little-endian processor"
#endif

#if defined(USE_LANES) /* by -DUSE_LANES, to try it elsewhere */
#elif defined(__ARM_FEATURE_SIMD32)
#define USE_DSP 1
#elif defined(__wasm_simd128__)
#define USE_WASM 1
#elif defined(__SSE2__) || defined(__ARM_NEON)
#define USE_VECTORS 1
#else
#define USE_LANES 1
#endif

/* A sum of signed powers of two: each byte has the exponent in bits 0 to 4, and 0x80 where it is taken away. */
#define NO_TERM 0x40

struct filter {
  int32_t offset; /* B */
  int32_t sum;    /* of the filter's levels, for a distance */
#ifdef MULTIPLIER_FREE
  uint8_t terms[2]; /* M */
#else
  int16_t multiplier; /* M */
#endif
  uint8_t shift; /* s */
};

struct rescale {
#ifdef MULTIPLIER_FREE
  uint8_t terms[4]; /* m */
#else
  int32_t multiplier; /* m */
#endif
  int32_t half;
  int32_t zero_point;
  int32_t top;
  uint8_t shift; /* n */
};

#ifdef NEEDS_GROUPS
struct groups {
  int32_t channels;                /* of a group */
  uint32_t filters, words;         /* of a group; words: of all its filters */
  int32_t dilation_y, dilation_x;
  int32_t row_step, column_step;   /* dilation_y * row_bytes, dilation_x * channels of x */
  uint8_t plain;                   /* one group, no dilation */
};
#endif

struct layer {
  const uint32_t *weight; /* [filters][words], each filter filled up with zeros */
  const struct filter *filter;
  const uint8_t *pad;                /* [channels] */
  uint32_t filters, words;           /* words: of a patch, four bytes each */
  int32_t height, width, channels;   /* of x */
  int32_t kernel_height, kernel_width;
  int32_t row_taps;                  /* kernel_width * channels */
  int32_t row_words;                 /* row_taps / 4 where rows are whole words, else 0 */
  int32_t row_bytes;                 /* width * channels */
  int32_t top, left, corner;         /* padding; corner = top * row_bytes + left * channels */
  int32_t stride_y, stride_x;
  int32_t row_step, column_step;     /* stride_y * row_bytes, stride_x * channels */
  uint32_t out_height, out_width;
  uint8_t relu, through_wide;        /* through_wide: narrow is rescaled from an int16 value */
  struct rescale rescale;
#ifdef NEEDS_GROUPS
  struct groups groups;
#endif
#ifdef NEEDS_RELU6
  int32_t most;
#endif
};

struct pool {
  int32_t height, width, channels, row_bytes;
  int32_t kernel_height, kernel_width, stride_y, stride_x, top, left;
  int32_t row_step, column_step, corner;
  uint32_t out_height, out_width;
};

#ifdef MULTIPLIER_FREE
static inline int32_t term(int32_t value, uint8_t power) {
  uint32_t size = value < 0 ? (uint32_t)-value : (uint32_t)value;
  if (power & NO_TERM) return 0;
  size <<= power & 31;
  return (value < 0) != (power >= 0x80) ? -(int32_t)size : (int32_t)size;
}
#endif

static inline int32_t requantized(const struct filter *f, int32_t a) {
#ifdef MULTIPLIER_FREE
  return (f->offset + term(a, f->terms[0]) + term(a, f->terms[1])) >> f->shift;
#else
  return (f->multiplier * a + f->offset) >> f->shift;
#endif
}

static inline uint8_t rescaled(const struct rescale *by, int32_t v) {
  int32_t level;
#ifdef MULTIPLIER_FREE
  level = by->half + term(v, by->terms[0]) + term(v, by->terms[1]) + term(v, by->terms[2]) + term(v, by->terms[3]);
#else
  level = by->multiplier * v + by->half;
#endif
  level = (level >> by->shift) + by->zero_point;
  return (uint8_t)(level < 0 ? 0 : level > by->top ? by->top : level);
}

/* ---- the patch of a pixel: kernel_height x kernel_width x channels bytes, filled up to words ---- */

static inline uint8_t *copied(uint8_t *to, const uint8_t *from, int32_t count) {
  while (count-- > 0) *to++ = *from++;
  return to;
}

static uint8_t *gathered_row(const struct layer *l, uint8_t *to, const uint8_t *x, int32_t x0, int32_t at, int inside) {
  int32_t s;
  for (s = 0; s < l->kernel_width; s++, x0++, at += l->channels)
    to = copied(to, inside && x0 >= 0 && x0 < l->width ? x + at : l->pad, l->channels);
  return to;
}

static void gather(const struct layer *l, uint32_t *patch, const uint8_t *x, int32_t y0, int32_t x0, int32_t at) {
  uint8_t *to = (uint8_t *)patch;
  const int inside_x = x0 >= 0 && x0 + l->kernel_width <= l->width;
  int32_t r, i;
  patch[l->words - 1] = 0;
  for (r = 0; r < l->kernel_height; r++, y0++, at += l->row_bytes) {
    const int inside = y0 >= 0 && y0 < l->height;
    if (!inside || !inside_x) {
      to = gathered_row(l, to, x, x0, at, inside);
    } else if (l->row_words) {
      const uint32_t *from = (const uint32_t *)(const void *)(x + at);
      uint32_t *words = (uint32_t *)(void *)to;
      for (i = l->row_words; i > 0; i--) *words++ = *from++;
      to = (uint8_t *)words;
    } else {
      to = copied(to, x + at, l->row_taps);
    }
  }
}

/* ---- sums ---- */
#define LANES 0x00ff00ffu
#define ABOVE 0x01000100u

/* Even and odd bytes of each word in lanes of 16 bits, with `mark` set; answers with the sum of all bytes. */
#if defined(USE_LANES) || defined(USE_DSP)
static inline int32_t spread(const uint32_t *patch, uint32_t words, uint32_t *lanes, uint32_t mark) {
  uint32_t sum = 0;
  for (; words > 0; words--) {
    const uint32_t word = *patch++, even = word & LANES, odd = (word >> 8) & LANES;
    lanes[0] = even | mark;
    lanes[1] = odd | mark;
    lanes += 2;
    sum += (even & 0xffff) + (even >> 16) + (odd & 0xffff) + (odd >> 16);
  }
  return (int32_t)sum;
}
#endif

#ifdef NEEDS_DISTANCE
#if defined(USE_DSP)
#define ADD_DIFFERENCES(sum, x, w) __asm__("usada8 %0, %1, %2, %0" : "+r"(sum) : "r"(x), "r"(w))
/* Of two filters at once, which share the patch. */
static inline void distances_of_two(const uint32_t *patch, const uint32_t *w, uint32_t words, int32_t *sums) {
  uint32_t first = 0, second = 0;
  const uint32_t *const end = w + words, *other = end;
  for (; end - w >= 2; patch += 2, w += 2, other += 2) {
    const uint32_t x0 = patch[0], x1 = patch[1];
    ADD_DIFFERENCES(first, x0, w[0]);
    ADD_DIFFERENCES(second, x0, other[0]);
    ADD_DIFFERENCES(first, x1, w[1]);
    ADD_DIFFERENCES(second, x1, other[1]);
  }
  if (w != end) {
    ADD_DIFFERENCES(first, *patch, *w);
    ADD_DIFFERENCES(second, *patch, *other);
  }
  sums[0] = (int32_t)first;
  sums[1] = (int32_t)second;
}

static inline int32_t distance(const uint32_t *patch, const uint32_t *w, uint32_t words) {
  uint32_t sum = 0;
  for (; words > 0; words--, patch++, w++) ADD_DIFFERENCES(sum, *patch, *w);
  return (int32_t)sum;
}
#elif defined(USE_WASM)
#include "wasm.h"
#elif defined(USE_VECTORS)
static inline int32_t distance(const uint8_t *patch, const uint8_t *w, uint32_t taps) {
  int32_t sum = 0;
  uint32_t i;
  for (i = 0; i < taps; i++) {
    const int32_t difference = patch[i] - w[i];
    sum += difference < 0 ? -difference : difference;
  }
  return sum;
}
#else
/* A lane is 0x100 + x - w: where its ninth bit is set, x >= w and the low byte is x - w. */
static inline uint32_t above(uint32_t x, uint32_t w) {
  const uint32_t lane = x - w, at_least = lane & ABOVE;
  return lane & (at_least - (at_least >> 8));
}

#define BOTH(sum) (((sum) & 0xffff) + ((sum) >> 16))

/* sum max(x - w, 0). 128 words add at most 65,280 to a lane. */
static inline uint32_t above_of_one(const uint32_t *lanes, const uint32_t *w, uint32_t words) {
  uint32_t total = 0;
  while (words > 0) {
    const uint32_t some = words > 128 ? 128 : words;
    const uint32_t *const end = w + some;
    uint32_t sum = 0;
    words -= some;
    do {
      const uint32_t f = *w++;
      sum += above(lanes[0], f & LANES);
      sum += above(lanes[1], (f >> 8) & LANES);
      lanes += 2;
    } while (w != end);
    total += BOTH(sum);
  }
  return total;
}

#if !((defined(__thumb__) && !defined(__thumb2__)) || defined(__riscv_32e) || defined(__riscv_e))
#define TWO_FILTERS 1 /* where there are registers enough */
/* The same of two filters, which share the patch. */
static inline void above_of_two(const uint32_t *lanes, const uint32_t *w, uint32_t words, uint32_t *totals) {
  const uint32_t *other = w + words;
  totals[0] = totals[1] = 0;
  while (words > 0) {
    const uint32_t some = words > 128 ? 128 : words;
    const uint32_t *const end = w + some;
    uint32_t first = 0, second = 0;
    words -= some;
    do {
      const uint32_t even = lanes[0], odd = lanes[1], f = *w++, g = *other++;
      lanes += 2;
      first += above(even, f & LANES);
      second += above(even, g & LANES);
      first += above(odd, (f >> 8) & LANES);
      second += above(odd, (g >> 8) & LANES);
    } while (w != end);
    totals[0] += BOTH(first);
    totals[1] += BOTH(second);
  }
}
#endif
#endif
#endif

#ifdef NEEDS_PRODUCT
#if defined(MULTIPLIER_FREE)
/* A weight is +-2^p +-2^q: bits 0 to 2 and 4 to 6 are p and q; bits 3 and 7 take away. */
static inline int32_t product(const uint8_t *patch, const uint8_t *w, uint32_t taps) {
  int32_t sum = 0;
  const uint8_t *const end = w + taps;
  while (w != end) {
    const uint8_t code = *w++, x = *patch++;
    const int32_t first = (int32_t)((uint32_t)x << (code & 7)), second = (int32_t)((uint32_t)x << ((code >> 4) & 7));
    sum += code & 8 ? -first : first;
    sum += code & 128 ? -second : second;
  }
  return sum;
}
#elif defined(USE_DSP)
static inline int32_t product(const uint32_t *lanes, const uint32_t *w, uint32_t words) {
  int32_t sum = 0;
  const uint32_t *const end = w + words;
  while (w != end) {
    uint32_t even, odd;
    __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(*w));
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(*w));
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(lanes[0]), "r"(even));
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(lanes[1]), "r"(odd));
    lanes += 2;
    w++;
  }
  return sum;
}
#elif defined(USE_VECTORS) || defined(USE_WASM)
static inline int32_t product(const uint8_t *patch, const int8_t *w, uint32_t taps) {
  int32_t sum = 0;
  uint32_t i;
  for (i = 0; i < taps; i++) sum += patch[i] * w[i];
  return sum;
}
#elif defined(PRODUCTS_BY_BITS)
/* A product for a processor without a multiplier: additions for the bits of x. By -DPRODUCTS_BY_BITS. */
static inline int32_t product(const uint8_t *patch, const int8_t *w, uint32_t taps) {
  int32_t sum = 0;
  const int8_t *const end = w + taps;
  while (w != end) {
    uint32_t x = *patch++;
    int32_t multiple = *w++;
    for (; x != 0; x >>= 1, multiple += multiple)
      if (x & 1) sum += multiple;
  }
  return sum;
}
#else
static inline int32_t product(const uint8_t *patch, const int8_t *w, uint32_t taps) {
  int32_t sum = 0;
  const int8_t *const end = w + taps;
  while (w != end) { /* patches are filled up to four bytes */
    sum += patch[0] * w[0];
    sum += patch[1] * w[1];
    sum += patch[2] * w[2];
    sum += patch[3] * w[3];
    patch += 4;
    w += 4;
  }
  return sum;
}
#endif
#endif

/* What of a pixel's v is kept. Each pointer is where the next value goes, or 0. */
struct output {
  const int16_t *shortcut;
  int32_t *logits;
  int16_t *wide;
  uint8_t *narrow;
};

static inline void finish(const struct layer *l, const struct filter *f, int32_t a, struct output *out) {
  int32_t v = requantized(f, a);
  if (out->shortcut) v += *out->shortcut++;
  if (l->relu && v < 0) v = 0;
#ifdef NEEDS_RELU6
  if (v > l->most) v = l->most;
#endif
  if (out->logits) {
    *out->logits++ = v;
    return;
  }
  if (l->through_wide) {
    v = v < -32768 ? -32768 : v > 32767 ? 32767 : v;
    if (out->wide) *out->wide++ = (int16_t)v;
    if (out->narrow) *out->narrow++ = rescaled(&l->rescale, v);
    return;
  }
  v += l->rescale.zero_point;
  *out->narrow++ = (uint8_t)(v < 0 ? 0 : v > l->rescale.top ? l->rescale.top : v);
}

/* patch: words, then twice as many for lanes. */
#define EACH_PIXEL(l, x, patch)                                                                       \
  uint32_t p, q;                                                                                      \
  int32_t y0 = -(l)->top, row_at = -(l)->corner;                                                      \
  for (p = 0; p < (l)->out_height; p++, y0 += (l)->stride_y, row_at += (l)->row_step) {               \
    int32_t x0 = -(l)->left, at = row_at;                                                             \
    for (q = 0; q < (l)->out_width; q++, x0 += (l)->stride_x, at += (l)->column_step)

#define TAPS(words) ((words) << 2)

#ifdef NEEDS_GROUPS
#include "groups.h"
#else
/* A loop for networks without groups would cost registers, and so a fifth of all instructions on small processors. */
#define EACH_GROUP(l)                                                  \
  const uint32_t *w = (l)->weight;                                     \
  const struct filter *f = (l)->filter, *const end = f + (l)->filters; \
  gather(l, patch, x, y0, x0, at);
#endif

#ifdef NEEDS_DISTANCE
static void distances(const struct layer *l, const uint8_t *x, struct output out, uint32_t *patch) {
  EACH_PIXEL(l, x, patch) {
      EACH_GROUP(l) {
#if defined(USE_LANES)
        uint32_t *const lanes = patch + l->words;
        const int32_t sum = spread(patch, l->words, lanes, ABOVE);
#if defined(TWO_FILTERS)
        for (; end - f >= 2; f += 2, w += l->words + l->words) {
          uint32_t totals[2];
          above_of_two(lanes, w, l->words, totals);
          finish(l, f, sum - f->sum - (int32_t)(totals[0] << 1), &out);
          finish(l, f + 1, sum - f[1].sum - (int32_t)(totals[1] << 1), &out);
        }
#endif
        for (; f != end; f++, w += l->words)
          finish(l, f, sum - f->sum - (int32_t)(above_of_one(lanes, w, l->words) << 1), &out);
#elif defined(USE_DSP)
        for (; end - f >= 2; f += 2, w += l->words + l->words) {
          int32_t sums[2];
          distances_of_two(patch, w, l->words, sums);
          finish(l, f, -sums[0], &out);
          finish(l, f + 1, -sums[1], &out);
        }
        if (f != end) {
          finish(l, f, -distance(patch, w, l->words), &out);
          f++, w += l->words;
        }
#elif defined(USE_WASM)
        while (f != end) { /* the last three one by one, each as four equal ones */
          const uint32_t four = end - f >= 4, apart = four ? TAPS(l->words) : 0;
          int32_t sums[4], *sum = sums;
          distances_of_four((const uint8_t *)patch, (const uint8_t *)w, TAPS(l->words), apart, sums);
          do {
            finish(l, f++, -*sum++, &out);
            w += l->words;
          } while (four && sum != sums + 4);
        }
#else
        for (; f != end; f++, w += l->words)
          finish(l, f, -distance((const uint8_t *)patch, (const uint8_t *)w, TAPS(l->words)), &out);
#endif
      }
    }
  }
}
#endif

#ifdef NEEDS_PRODUCT
static void products(const struct layer *l, const uint8_t *x, struct output out, uint32_t *patch) {
  EACH_PIXEL(l, x, patch) {
      EACH_GROUP(l) {
#if defined(MULTIPLIER_FREE)
        for (; f != end; f++, w += l->words)
          finish(l, f, product((const uint8_t *)patch, (const uint8_t *)w, TAPS(l->words)), &out);
#elif defined(USE_DSP)
        spread(patch, l->words, patch + l->words, 0);
        for (; f != end; f++, w += l->words) finish(l, f, product(patch + l->words, w, l->words), &out);
#else
        for (; f != end; f++, w += l->words)
          finish(l, f, product((const uint8_t *)patch, (const int8_t *)w, TAPS(l->words)), &out);
#endif
      }
    }
  }
}
#endif

#include "steps.h"
#endif
