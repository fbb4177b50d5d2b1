// Vectors of floats, one struct of static functions for each width, so that a kernel is written once.
//
// Which structs there are depends on the flags that this file is compiled with: Vec16 with AVX-512, Vec8 with AVX2,
// Neon with ADDER_NEON, and always Vec4 (the compiler's vectors, with what the target has: SSE2 on x86-64). `Widest` is
// the best of them and `Narrow` the one for layers with fewer channels than half of it.
#ifndef ADDER_VEC_H
#define ADDER_VEC_H

#include "inline.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(ADDER_NEON)
#include <arm_neon.h>
#endif

namespace ADDER_NAMESPACE {

// Prefetches the cache line of *p for writing. Stores wait for their lines in order, and a tile's outputs lie far
// apart.
static ADDER_INLINE void prefetch_to_write(const float *p) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" ::"m"(*p)); // the builtin takes it only if the compiler targets it
#else
  __builtin_prefetch(p, 1, 3);
#endif
}

// The bits of L floats.
template <int L> struct Uints {
  typedef uint32_t V __attribute__((vector_size(4 * L)));
};

struct Vec4 {
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  static constexpr int L = 4;                // lanes
  static constexpr int REGISTERS = 16;       // to plan tiles for
  static constexpr bool MEDIAN = false;      // whether a median is cheaper than a difference and a clamp
  static constexpr bool OVER_IMAGES = false; // whether dx with a lane for each image is cheaper
  static constexpr bool IDENTITY = true;     // whether a maximum is cheaper than the magnitude of a difference
  static constexpr bool EITHER_SUM = false;  // whether additions or fmas are faster, adder::adds says
  static constexpr bool TWICE_SIGN = false;  // whether twice the sign is cheaper than the sign
  static constexpr bool PERMUTES = false;    // whether it can reorder a vector's lanes in one instruction
  static ADDER_INLINE V load(const float *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static ADDER_INLINE void store(float *p, V v) { memcpy(p, &v, sizeof v); }
  static ADDER_INLINE V set(float f) { return V{f, f, f, f}; }
  static ADDER_INLINE V max(V a, V b) { return a > b ? a : b; }
  static ADDER_INLINE V distance(V a, V b) { return abs(a - b); }
  static ADDER_INLINE V min(V a, V b) { return a < b ? a : b; } // b if either is NaN
  static ADDER_INLINE V abs(V a) { return (V)((I)a & I{0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff}); }
  // acc + v. The AVX versions add by fma with 1, which leaves the adders to max; `one` must be opaque to the compiler.
  static ADDER_INLINE V accumulate(V acc, V v, V) { return acc + v; }
  static ADDER_INLINE V fma(V a, V b, V c) { return a * b + c; }
  static ADDER_INLINE V opaque(V v) { return v; }
  // Clamp to [-1, 1]; unspecified for NaN.
  static ADDER_INLINE V clamp1(V a) {
    V b = a < set(1.f) ? a : set(1.f);
    return b > set(-1.f) ? b : set(-1.f);
  }
  // (b > a) - (b < a) of finite operands.
  static ADDER_INLINE V sign_of_difference(V b, V a) {
    const I one = (I)set(1.f), minus = (I)set(-1.f);
    return (V)(((b > a) & one) | ((b < a) & minus));
  }
  // Is b <= a in every lane? Not in a lane with a NaN.
  static ADDER_INLINE bool all_le(V b, V a) {
    const I m = b <= a;
    return (m[0] & m[1] & m[2] & m[3]) != 0;
  }
  static ADDER_INLINE float sum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  // The sums of L vectors, in order.
  static ADDER_INLINE V sums(const V *v) { return V{sum(v[0]), sum(v[1]), sum(v[2]), sum(v[3])}; }
};

#if defined(ADDER_NEON)
struct Neon {
  typedef float32x4_t V;
  static constexpr int L = 4;
  static constexpr int REGISTERS = 32;
  static constexpr bool MEDIAN = true;
  static constexpr bool OVER_IMAGES = false;
  static constexpr bool EITHER_SUM = false;
  static constexpr bool IDENTITY = false; // the magnitude of a difference is one instruction
  static constexpr bool TWICE_SIGN = false;
  static constexpr bool PERMUTES = false;
  static ADDER_INLINE V load(const float *p) { return vld1q_f32(p); }
  static ADDER_INLINE void store(float *p, V v) { vst1q_f32(p, v); }
  static ADDER_INLINE V set(float f) { return vdupq_n_f32(f); }
  static ADDER_INLINE V max(V a, V b) { return vmaxq_f32(a, b); } // NaN if either is
  static ADDER_INLINE V min(V a, V b) { return vminq_f32(a, b); }
  static ADDER_INLINE V abs(V a) { return vabsq_f32(a); }
  static ADDER_INLINE V distance(V a, V b) { return vabdq_f32(a, b); }
  static ADDER_INLINE V accumulate(V acc, V v, V) { return vaddq_f32(acc, v); }
  static ADDER_INLINE V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static ADDER_INLINE V opaque(V v) { return v; }
  static ADDER_INLINE V clamp1(V a) { return vmaxq_f32(vminq_f32(a, set(1.f)), set(-1.f)); }
  static ADDER_INLINE V median(V w, V low, V high) { return vminq_f32(vmaxq_f32(w, low), high); }
  static ADDER_INLINE V sign_of_difference(V b, V a) {
    const uint32x4_t up = vandq_u32(vcgtq_f32(b, a), vreinterpretq_u32_f32(set(1.f)));
    return vreinterpretq_f32_u32(vorrq_u32(up, vandq_u32(vcltq_f32(b, a), vreinterpretq_u32_f32(set(-1.f)))));
  }
  static ADDER_INLINE bool all_le(V b, V a) { return vminvq_u32(vcleq_f32(b, a)) != 0; }
  static ADDER_INLINE float sum(V v) { return vaddvq_f32(v); }
  static ADDER_INLINE V sums(const V *v) { return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])); }
};
#endif

#if defined(__AVX512VL__)
// vfixupimm's table, a hexadecimal digit for each kind of number: 1 (A) and -1 (9) for positive and negative ones, 0
// (8) for zeros, NaN stays (0).
constexpr int SIGNS = static_cast<int>(0xA9A9A800);
#endif

#if defined(__AVX2__)
// to[j * to_step + i] = from[i * from_step + j] for i, j < 8.
static ADDER_INLINE void transpose8(const float *from, int64_t from_step, float *to, int64_t to_step) {
  __m256 row[8], pair[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from + i * from_step);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      row[i + 2 * j] = _mm256_shuffle_ps(pair[i + j], pair[i + 2 + j], 0x44);
      row[i + 2 * j + 1] = _mm256_shuffle_ps(pair[i + j], pair[i + 2 + j], 0xee);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * to_step, _mm256_permute2f128_ps(row[j], row[4 + j], 0x20));
    _mm256_storeu_ps(to + (4 + j) * to_step, _mm256_permute2f128_ps(row[j], row[4 + j], 0x31));
  }
}

struct Vec8 {
  typedef __m256 V;
  static constexpr int L = 8;
#if defined(__AVX512VL__)
  static constexpr int REGISTERS = 32;
  static constexpr bool MEDIAN = false;
  static constexpr bool OVER_IMAGES = false;
  static constexpr bool IDENTITY = true;
  static constexpr bool EITHER_SUM = false;
  static constexpr bool TWICE_SIGN = false;
#else
  static constexpr int REGISTERS = 16;
  static constexpr bool MEDIAN = true;
  static constexpr bool OVER_IMAGES = true;
  static constexpr bool IDENTITY = true;
  static constexpr bool EITHER_SUM = true;
  static constexpr bool TWICE_SIGN = true;
#endif
  static constexpr bool PERMUTES = true;
  // Lane i of the result is lane order[i] of v.
  static ADDER_INLINE V permute(V v, const int32_t *order) {
    return _mm256_permutevar8x32_ps(v, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(order)));
  }
  static ADDER_INLINE V load(const float *p) { return _mm256_loadu_ps(p); }
  static ADDER_INLINE void store(float *p, V v) { _mm256_storeu_ps(p, v); }
  static ADDER_INLINE V set(float f) { return _mm256_set1_ps(f); }
  static ADDER_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }
  static ADDER_INLINE V distance(V a, V b) { return abs(a - b); }
  static ADDER_INLINE V min(V a, V b) { return _mm256_min_ps(a, b); }
  static ADDER_INLINE V abs(V a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
  static ADDER_INLINE V accumulate(V acc, V v, V one) { return _mm256_fmadd_ps(v, one, acc); }
  static ADDER_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
#if defined(__AVX512VL__)
  static ADDER_INLINE V opaque(V v) {
    asm("" : "+v"(v));
    return v;
  }
  static ADDER_INLINE V clamp1(V a) { return _mm256_range_ps(a, set(1.f), 2); } // the smaller magnitude, a's sign
#else
  static ADDER_INLINE V opaque(V v) {
    asm("" : "+x"(v));
    return v;
  }
  // min(max(w, low), high) for high >= 0. Compared as integers, floats are in order unless both are negative.
  static ADDER_INLINE V median(V w, V low, V high) {
    return _mm256_castsi256_ps(_mm256_min_epi32(_mm256_castps_si256(_mm256_max_ps(w, low)), _mm256_castps_si256(high)));
  }
  // On the bits as integers: signed min with 1.0 leaves negative floats, unsigned min with -1.0 positive ones alone.
  // Integer minima run beside the float adders; float minima would wait for them.
  static ADDER_INLINE V clamp1(V a) {
    const __m256i one = _mm256_castps_si256(set(1.f)), minus = _mm256_castps_si256(set(-1.f));
    return _mm256_castsi256_ps(_mm256_min_epu32(_mm256_min_epi32(_mm256_castps_si256(a), one), minus));
  }
#endif
#if defined(__AVX512VL__)
  static ADDER_INLINE V sign_of_difference(V b, V a) {
    const V z = b - a;
    return _mm256_fixupimm_ps(z, z, _mm256_set1_epi32(SIGNS), 0);
  }
#else
  // Twice the sign, for b that is not -0. The bits of z = b - a are a positive integer, a negative one or 0, as z is
  // (-0 would be a negative integer, and needs b = -0), and the integer -0x40000000 has the bits of -2.0f.
  static ADDER_INLINE V twice_sign(V b, V a) {
    return _mm256_castsi256_ps(_mm256_sign_epi32(_mm256_castps_si256(set(2.f)), _mm256_castps_si256(b - a)));
  }
  static ADDER_INLINE V sign_of_difference(V b, V a) { // 2 and -2 with a smaller exponent; 0 stays
    const __m256i twos = _mm256_castps_si256(twice_sign(b + set(0.f), a));
    return _mm256_castsi256_ps(_mm256_subs_epu16(twos, _mm256_set1_epi32(0x00800000)));
  }
#endif
  static ADDER_INLINE bool all_le(V b, V a) { return _mm256_movemask_ps(_mm256_cmp_ps(b, a, _CMP_LE_OQ)) == 0xff; }
  static ADDER_INLINE float sum(V v) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
  }
  static ADDER_INLINE V sums(const V *v) {
    const V a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const V b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
};
#endif

#if defined(__AVX512F__)
struct Vec16 {
  typedef __m512 V;
  static constexpr int L = 16;
  static constexpr int REGISTERS = 32;
  static constexpr bool MEDIAN = false; // the clamp is one instruction
  static constexpr bool OVER_IMAGES = false;
  static constexpr bool IDENTITY = true;
  static constexpr bool EITHER_SUM = false;
  static constexpr bool TWICE_SIGN = false;
  static constexpr bool PERMUTES = true;
  static ADDER_INLINE V permute(V v, const int32_t *order) {
    return _mm512_permutexvar_ps(_mm512_loadu_si512(order), v);
  }
  static ADDER_INLINE V load(const float *p) { return _mm512_loadu_ps(p); }
  static ADDER_INLINE void store(float *p, V v) { _mm512_storeu_ps(p, v); }
  static ADDER_INLINE V set(float f) { return _mm512_set1_ps(f); }
  static ADDER_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }
  static ADDER_INLINE V distance(V a, V b) { return abs(a - b); }
  static ADDER_INLINE V min(V a, V b) { return _mm512_min_ps(a, b); }
  static ADDER_INLINE V abs(V a) { return _mm512_abs_ps(a); }
  static ADDER_INLINE V accumulate(V acc, V v, V one) { return _mm512_fmadd_ps(v, one, acc); }
  static ADDER_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static ADDER_INLINE V opaque(V v) {
    asm("" : "+v"(v));
    return v;
  }
  static ADDER_INLINE V clamp1(V a) { return _mm512_range_ps(a, set(1.f), 2); }
  static ADDER_INLINE V sign_of_difference(V b, V a) {
    const V z = b - a;
    return _mm512_fixupimm_ps(z, z, _mm512_set1_epi32(SIGNS), 0);
  }
  static ADDER_INLINE bool all_le(V b, V a) { return _mm512_cmp_ps_mask(b, a, _CMP_LE_OQ) == 0xffff; }
  static ADDER_INLINE float sum(V v) { return _mm512_reduce_add_ps(v); }
  static ADDER_INLINE V sums(const V *v) {
    __m256 half[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    return _mm512_insertf32x8(_mm512_castps256_ps512(Vec8::sums(half)), Vec8::sums(half + 8), 1);
  }
};
#endif

#if defined(__AVX512F__)
typedef Vec16 Widest;
typedef Vec8 Narrow;
#elif defined(__AVX2__)
typedef Vec8 Widest;
typedef Vec4 Narrow;
#elif defined(ADDER_NEON)
typedef Neon Widest;
typedef Neon Narrow;
#else
typedef Vec4 Widest;
typedef Vec4 Narrow;
#endif

} // namespace ADDER_NAMESPACE
#endif
