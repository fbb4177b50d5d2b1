// The vectors of the int8 kernels: F filters side by side, eight bytes (channels) of each.
//
//   Word               eight bytes of each of the F filters
//   Sums               running sums of F filters, which hold MOST_WORDS words
//   load(p)            a Word from the panel
//   add(sums, x, w)    sums plus |x - w| added up over the eight bytes, x being the eight bytes at an address
//   add_masked(...)    the same for the bytes of x whose mask is 255; the others count as 0
//   total(sums)        -sum |x - w| as F 32-bit integers, filter after filter
//   PAIRS              whether there are add_pair, add_pair_masked and total_of_pair: the first half of the filters
//                      meets x, the others, of the next group, meet `other`; the panel has them in their order
//   PIXELS             of a tile. With AVX2 their sums take twelve registers, w two, and x and its differences two.
//                      More pixels would share the loads of w, but each needs a pointer, of which x86 has fifteen.
//   bytes(ints)        the low byte of each
//   store_bytes(...)   MR times F integers from 0 to 255 as bytes, each F to an address of their own
//   widen(p)           2 F bytes at p as 16-bit integers
//   half(v, upper)     F of 2 F unsigned 16-bit integers as 32-bit ones
//
// On x86 psadbw adds up the differences of eight bytes into a 64-bit lane. The lanes are then added up by vaddpd, which
// adds *floats*: read as a double, an integer below 2^52 is a denormal, that many times the smallest one, and the sum
// of denormals is exact. So it gives the integers' sum, and it has units of its own, where an integer addition takes
// turns with psadbw. This needs a processor that does not take denormals for zero, see int8_mode.h. At the end a
// shuffle takes the low halves of two registers together. Filters lie in the panel in the order in which it finds them,
// see `place_of`.
#ifndef ADDER_INT8_VEC_H
#define ADDER_INT8_VEC_H

#include "inline.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(ADDER_NEON)
#include <arm_neon.h>
#endif

namespace ADDER_NAMESPACE {

// Where in a Word of the panel filter f's eight bytes begin: of four filters that share 128 bits of the sums, the first
// two are in the first register, the others in the second.
constexpr int64_t place_of(int64_t f, int64_t F) {
  const int64_t quarter = f / 4, in_quarter = f % 4;
  return 8 * (in_quarter / 2 * (F / 2) + 2 * quarter + in_quarter % 2);
}

// Vectors of F numbers, as the compiler knows them.
template <int F> struct Numbers {
  typedef int32_t Ints __attribute__((vector_size(4 * F)));
  typedef float Floats __attribute__((vector_size(4 * F)));
  typedef uint8_t Bytes __attribute__((vector_size(F)));
  typedef int16_t Shorts __attribute__((vector_size(4 * F))); // twice as many
};

// store_bytes, a pixel at a time.
template <class B, int MR, class Ints> ADDER_INLINE void store_one_by_one(const Ints (&v)[MR], uint8_t *to,
                                                                          int64_t step) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const auto bytes = B::bytes(v[m]);
    memcpy(to + m * step, &bytes, sizeof bytes);
  }
}

// store_bytes, four pixels at a time: B::pack has their bytes side by side.
template <class B, int MR, class Ints> ADDER_INLINE void store_four_at_a_time(const Ints (&v)[MR], uint8_t *to,
                                                                              int64_t step) {
  constexpr int LAST = MR - 1;
#pragma GCC unroll 2
  for (int m = 0; m < MR; m += 4) {
    const auto all =
        B::pack(v[m], v[m + 1 < MR ? m + 1 : LAST], v[m + 2 < MR ? m + 2 : LAST], v[m + 3 < MR ? m + 3 : LAST]);
    uint8_t *const here = to + m * step;
    B::template store_pixel<0>(all, here);
    if (m + 1 < MR) B::template store_pixel<1>(all, here + step);
    if (m + 2 < MR) B::template store_pixel<2>(all, here + 2 * step);
    if (m + 3 < MR) B::template store_pixel<3>(all, here + 3 * step);
  }
}

#if defined(__AVX2__)
// Adds |x - w| to sums, for both halves of w; `first` is a register to use, and x becomes one. By hand, for left alone
// GCC reads w from memory again for each pixel, and copies sums from register to register.
#define ADDER_ADD_DIFFERENCES(ADD)                                                                          \
  asm("vpsadbw %[w_low], %[x], %[first]\n\t"                                                                \
      "vpsadbw %[w_high], %[x], %[x]\n\t" ADD " %[first], %[low], %[low]\n\t" ADD " %[x], %[high], %[high]" \
      : [low] "+v"(sums.low), [high] "+v"(sums.high), [x] "+v"(x), [first] "=&v"(first)                     \
      : [w_low] "v"(w.low), [w_high] "v"(w.high))

// DENORMAL: sums are added up as the comment at the top says; otherwise as integers.
template <bool DENORMAL> struct Bytes256 {
  static constexpr int F = 8, PIXELS = 6;
  static constexpr bool PAIRS = true;
  static constexpr int64_t MOST_WORDS = INT32_MAX;
  typedef Numbers<F>::Ints Ints;
  typedef Numbers<F>::Bytes Bytes;
  typedef Numbers<F>::Shorts Shorts;
  struct Word {
    __m256i low, high;
  };
  typedef Word Sums;
  static ADDER_INLINE Word load(const uint8_t *p) {
    return {_mm256_load_si256((const __m256i *)p), _mm256_load_si256((const __m256i *)(p + 32))};
  }
  static ADDER_INLINE __m256i broadcast(const uint8_t *p) {
    int64_t word;
    memcpy(&word, p, 8);
    return _mm256_set1_epi64x(word);
  }
  static ADDER_INLINE Sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static ADDER_INLINE __m256i plus(__m256i a, __m256i b) {
    if constexpr (DENORMAL) return _mm256_castpd_si256(_mm256_add_pd(_mm256_castsi256_pd(a), _mm256_castsi256_pd(b)));
    else return _mm256_add_epi32(a, b);
  }
  static ADDER_INLINE Sums add_pair(Sums sums, __m256i x, __m256i other, const Word &w) {
    return {plus(sums.low, _mm256_sad_epu8(x, w.low)), plus(sums.high, _mm256_sad_epu8(other, w.high))};
  }
  static ADDER_INLINE Sums add(Sums sums, __m256i x, const Word &w) {
    __m256i first;
    if constexpr (DENORMAL) ADDER_ADD_DIFFERENCES("vaddpd");
    else ADDER_ADD_DIFFERENCES("vpaddd");
    return sums;
  }
  static ADDER_INLINE Sums add(Sums sums, const uint8_t *x, const Word &w) { return add(sums, broadcast(x), w); }
  // Keeps them in registers, and the words in their order: left alone, GCC takes words together and spills.
  static ADDER_INLINE void pin(Sums &sums) { asm("" : "+x"(sums.low), "+x"(sums.high)); }
  static ADDER_INLINE Sums add_masked(Sums sums, const uint8_t *x, const Word &w, uint64_t mask) {
    return add(sums, _mm256_and_si256(broadcast(x), _mm256_set1_epi64x((int64_t)mask)), w);
  }
  static ADDER_INLINE Ints total(Sums sums) {
    const __m256 low = _mm256_castsi256_ps(sums.low), high = _mm256_castsi256_ps(sums.high);
    return -(Ints)_mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
  }
  static ADDER_INLINE Sums add_pair(Sums sums, const uint8_t *x, const uint8_t *other, const Word &w) {
    return add_pair(sums, broadcast(x), broadcast(other), w);
  }
  static ADDER_INLINE Sums add_pair_masked(Sums sums, const uint8_t *x, const uint8_t *other, const Word &w,
                                           uint64_t mask) {
    const __m256i masks = _mm256_set1_epi64x((int64_t)mask);
    return add_pair(sums, _mm256_and_si256(broadcast(x), masks), _mm256_and_si256(broadcast(other), masks), w);
  }
  static ADDER_INLINE Ints total_of_pair(Sums sums) {
    return (Ints)_mm256_permute4x64_epi64((__m256i)total(sums), _MM_SHUFFLE(3, 1, 2, 0));
  }
  static ADDER_INLINE Shorts widen(const uint8_t *p) {
    return (Shorts)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
  }
  static ADDER_INLINE Ints half(Shorts v, bool upper) {
    const __m256i all = (__m256i)v;
    return (Ints)_mm256_cvtepu16_epi32(upper ? _mm256_extracti128_si256(all, 1) : _mm256_castsi256_si128(all));
  }
  static ADDER_INLINE Bytes bytes(Ints v) {
    const __m256i first = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));
    return (Bytes)_mm_cvtsi128_si64(
        _mm_unpacklo_epi32(_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1)));
  }
  static ADDER_INLINE __m256i pack(Ints a, Ints b, Ints c, Ints d) {
    const __m256i first = _mm256_packs_epi32((__m256i)a, (__m256i)b),
                  second = _mm256_packs_epi32((__m256i)c, (__m256i)d);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  template <int PIXEL> static ADDER_INLINE void store_pixel(__m256i all, uint8_t *to) {
    const __m128i half = _mm256_extracti128_si256(all, PIXEL / 2);
    if constexpr (PIXEL % 2) _mm_storeh_pi((__m64 *)to, _mm_castsi128_ps(half));
    else _mm_storel_epi64((__m128i *)to, half);
  }
  template <int MR> static ADDER_INLINE void store_bytes(const Ints (&v)[MR], uint8_t *to, int64_t step) {
    store_four_at_a_time<Bytes256, MR>(v, to, step);
  }
};
#endif

#if defined(__AVX512BW__)
template <bool DENORMAL> struct Bytes512 {
  static constexpr int F = 16, PIXELS = 8;
  static constexpr bool PAIRS = false;
  static constexpr int64_t MOST_WORDS = INT32_MAX;
  typedef Numbers<F>::Ints Ints;
  typedef Numbers<F>::Bytes Bytes;
  typedef Numbers<F>::Shorts Shorts;
  struct Word {
    __m512i low, high;
  };
  typedef Word Sums;
  static ADDER_INLINE Word load(const uint8_t *p) { return {_mm512_load_si512(p), _mm512_load_si512(p + 64)}; }
  static ADDER_INLINE __m512i broadcast(const uint8_t *p) {
    int64_t word;
    memcpy(&word, p, 8);
    return _mm512_set1_epi64(word);
  }
  static ADDER_INLINE Sums zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  static ADDER_INLINE Sums add(Sums sums, __m512i x, const Word &w) {
    __m512i first;
    if constexpr (DENORMAL) ADDER_ADD_DIFFERENCES("vaddpd");
    else ADDER_ADD_DIFFERENCES("vpaddd");
    return sums;
  }
  static ADDER_INLINE void pin(Sums &sums) { asm("" : "+v"(sums.low), "+v"(sums.high)); }
  static ADDER_INLINE Sums add(Sums sums, const uint8_t *x, const Word &w) { return add(sums, broadcast(x), w); }
  static ADDER_INLINE Sums add_masked(Sums sums, const uint8_t *x, const Word &w, uint64_t mask) {
    return add(sums, _mm512_and_si512(broadcast(x), _mm512_set1_epi64((int64_t)mask)), w);
  }
  static ADDER_INLINE Ints total(Sums sums) {
    const __m512 low = _mm512_castsi512_ps(sums.low), high = _mm512_castsi512_ps(sums.high);
    return -(Ints)_mm512_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
  }
  static ADDER_INLINE Shorts widen(const uint8_t *p) {
    return (Shorts)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
  }
  static ADDER_INLINE Ints half(Shorts v, bool upper) {
    const __m512i all = (__m512i)v;
    return (Ints)_mm512_cvtepu16_epi32(upper ? _mm512_extracti64x4_epi64(all, 1) : _mm512_castsi512_si256(all));
  }
  static ADDER_INLINE Bytes bytes(Ints v) {
    __m128i low = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
    asm("" : "+v"(low)); // in a register: vpmovdb into memory is slow on Zen 4
    return (Bytes)low;
  }
  static ADDER_INLINE __m512i pack(Ints a, Ints b, Ints c, Ints d) {
    const __m512i first = _mm512_packs_epi32((__m512i)a, (__m512i)b),
                  second = _mm512_packs_epi32((__m512i)c, (__m512i)d);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
  }
  template <int PIXEL> static ADDER_INLINE void store_pixel(__m512i all, uint8_t *to) {
    _mm_storeu_si128((__m128i *)to, _mm512_extracti32x4_epi32(all, PIXEL));
  }
  template <int MR> static ADDER_INLINE void store_bytes(const Ints (&v)[MR], uint8_t *to, int64_t step) {
    store_four_at_a_time<Bytes512, MR>(v, to, step);
  }
};
#endif

#undef ADDER_ADD_DIFFERENCES

#if defined(ADDER_NEON)
// uabd and uadalp add to eight 16-bit lanes, four for each filter, which 128 words fill.
struct BytesNeon {
  static constexpr int F = 4, PIXELS = 8;
  static constexpr bool PAIRS = false;
  static constexpr int64_t MOST_WORDS = 65535 / (2 * 255);
  typedef Numbers<F>::Ints Ints;
  typedef Numbers<F>::Bytes Bytes;
  typedef Numbers<F>::Shorts Shorts;
  struct Sums {
    uint16x8_t low, high;
  };
  struct Word {
    uint8x16_t low, high;
  };
  static ADDER_INLINE Word load(const uint8_t *p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
  static ADDER_INLINE uint8x16_t broadcast(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return vreinterpretq_u8_u64(vdupq_n_u64(word));
  }
  static ADDER_INLINE Sums zero() { return {vdupq_n_u16(0), vdupq_n_u16(0)}; }
  static ADDER_INLINE Sums add(Sums sums, uint8x16_t x, const Word &w) {
    return {vpadalq_u8(sums.low, vabdq_u8(x, w.low)), vpadalq_u8(sums.high, vabdq_u8(x, w.high))};
  }
  static ADDER_INLINE void pin(Sums &sums) { asm("" : "+w"(sums.low), "+w"(sums.high)); }
  static ADDER_INLINE Sums add(Sums sums, const uint8_t *x, const Word &w) { return add(sums, broadcast(x), w); }
  static ADDER_INLINE Sums add_masked(Sums sums, const uint8_t *x, const Word &w, uint64_t mask) {
    return add(sums, vandq_u8(broadcast(x), vreinterpretq_u8_u64(vdupq_n_u64(mask))), w);
  }
  static ADDER_INLINE Ints total(Sums sums) { return -(Ints)vpaddq_u32(vpaddlq_u16(sums.low), vpaddlq_u16(sums.high)); }
  static ADDER_INLINE Shorts widen(const uint8_t *p) { return (Shorts)vmovl_u8(vld1_u8(p)); }
  static ADDER_INLINE Ints half(Shorts v, bool upper) {
    const uint16x8_t all = (uint16x8_t)v;
    return (Ints)vmovl_u16(upper ? vget_high_u16(all) : vget_low_u16(all));
  }
  static ADDER_INLINE Bytes bytes(Ints v) { return __builtin_convertvector(v, Bytes); }
  template <int MR> static ADDER_INLINE void store_bytes(const Ints (&v)[MR], uint8_t *to, int64_t step) {
    store_one_by_one<BytesNeon, MR>(v, to, step);
  }
};
#endif

// Four filters, each in two 64-bit integers' worth of bytes: what any compiler makes of it.
struct BytesPlain {
  static constexpr int F = 4, PIXELS = 8;
  static constexpr bool PAIRS = false;
  static constexpr int64_t MOST_WORDS = INT32_MAX;
  typedef Numbers<F>::Ints Ints;
  typedef Numbers<F>::Bytes Bytes;
  typedef Numbers<F>::Shorts Shorts;
  typedef Ints Sums;
  struct Word {
    const uint8_t *at;
  };
  static ADDER_INLINE Word load(const uint8_t *p) { return {p}; }
  static ADDER_INLINE Sums zero() { return Sums{}; }
  static ADDER_INLINE Sums add(Sums sums, const uint8_t *x, const Word &w) {
    for (int f = 0; f < F; ++f)
      for (int i = 0; i < 8; ++i) {
        const int difference = x[i] - w.at[place_of(f, F) + i];
        sums[f] -= difference < 0 ? -difference : difference;
      }
    return sums;
  }
  static ADDER_INLINE void pin(Sums &) {}
  static ADDER_INLINE Sums add_masked(Sums sums, const uint8_t *x, const Word &w, uint64_t mask) {
    uint64_t word;
    memcpy(&word, x, 8);
    word &= mask;
    uint8_t bytes[8];
    memcpy(bytes, &word, 8);
    return add(sums, bytes, w);
  }
  static ADDER_INLINE Ints total(Sums sums) { return sums; }
  static ADDER_INLINE Shorts widen(const uint8_t *p) {
    typedef uint8_t Narrow __attribute__((vector_size(2 * F)));
    Narrow bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Shorts);
  }
  static ADDER_INLINE Ints half(Shorts v, bool upper) {
    typedef uint16_t Half __attribute__((vector_size(2 * F)));
    Half halves[2];
    memcpy(halves, &v, sizeof halves);
    return __builtin_convertvector(halves[upper], Ints);
  }
  static ADDER_INLINE Bytes bytes(Ints v) { return __builtin_convertvector(v, Bytes); }
  template <int MR> static ADDER_INLINE void store_bytes(const Ints (&v)[MR], uint8_t *to, int64_t step) {
    store_one_by_one<BytesPlain, MR>(v, to, step);
  }
};

// Widest is the best of them, and Narrow the one for what is left of a layer's filters where half of it is enough.
#if defined(__AVX512BW__)
template <bool DENORMAL> using Widest = Bytes512<DENORMAL>;
template <bool DENORMAL> using Narrow = Bytes256<DENORMAL>;
#elif defined(__AVX2__)
template <bool DENORMAL> using Widest = Bytes256<DENORMAL>;
template <bool DENORMAL> using Narrow = Bytes256<DENORMAL>;
#elif defined(ADDER_NEON)
template <bool> using Widest = BytesNeon;
template <bool> using Narrow = BytesNeon;
#else
template <bool> using Widest = BytesPlain;
template <bool> using Narrow = BytesPlain;
#endif
typedef Widest<false> WidestBytes;
typedef Narrow<false> NarrowBytes;

} // namespace ADDER_NAMESPACE
#endif
