// The vectors of the int8 kernels: L filters side by side, eight bytes (channels) of each in a 64-bit lane.
//
//   broadcast(p)       the eight bytes at p in every lane
//   keep(v, mask)      the bytes of v whose mask is 255, zero elsewhere
//   add(sum, x, w)     sum plus |x - w| added up over each lane's bytes
//   add_to(out, sum)   adds the L sums to out[0 .. L)
//   MOST_WORDS         how often `add` may be called before a sum could overflow its lane
#ifndef ADDER_INT8_VEC_H
#define ADDER_INT8_VEC_H

#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(ADDER_NEON)
#include <arm_neon.h>
#endif

namespace ADDER_NAMESPACE {

#if defined(__AVX512BW__)
struct Bytes {
  using Reg = __m512i;
  using Sum = __m512i;
  static constexpr int L = 8, REGISTERS = 32;
  static constexpr int64_t MOST_WORDS = INT64_MAX;
  static Reg load(const uint8_t *p) { return _mm512_load_si512(p); }
  static Reg broadcast(const uint8_t *p) {
    int64_t word;
    std::memcpy(&word, p, 8);
    return _mm512_set1_epi64(word);
  }
  static Reg keep(Reg v, uint64_t mask) { return _mm512_and_si512(v, _mm512_set1_epi64((int64_t)mask)); }
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum add(Sum sum, Reg x, Reg w) { return _mm512_add_epi64(sum, _mm512_sad_epu8(x, w)); }
  static void add_to(int32_t *out, Sum sum) {
    const __m256i sums = _mm512_maskz_cvtepi64_epi32(0xff, sum);
    _mm256_storeu_si256((__m256i *)out, _mm256_add_epi32(_mm256_loadu_si256((const __m256i *)out), sums));
  }
};
#elif defined(__AVX2__)
struct Bytes {
  using Reg = __m256i;
  using Sum = __m256i;
  static constexpr int L = 4, REGISTERS = 16;
  static constexpr int64_t MOST_WORDS = INT64_MAX;
  static Reg load(const uint8_t *p) { return _mm256_load_si256((const __m256i *)p); }
  static Reg broadcast(const uint8_t *p) {
    int64_t word;
    std::memcpy(&word, p, 8);
    return _mm256_set1_epi64x(word);
  }
  static Reg keep(Reg v, uint64_t mask) { return _mm256_and_si256(v, _mm256_set1_epi64x((int64_t)mask)); }
  static Sum zero() { return _mm256_setzero_si256(); }
  static Sum add(Sum sum, Reg x, Reg w) { return _mm256_add_epi32(sum, _mm256_sad_epu8(x, w)); }
  static void add_to(int32_t *out, Sum sum) {
    // The low halves of the four lanes, side by side.
    const __m256i pairs = _mm256_shuffle_epi32(sum, _MM_SHUFFLE(2, 0, 2, 0));
    const __m128i sums = _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, _MM_SHUFFLE(2, 0, 2, 0)));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm_loadu_si128((const __m128i *)out), sums));
  }
};
#elif defined(ADDER_NEON)
// Two filters in a register. uabd and uadalp add to eight 16-bit lanes, four for each filter, which 128 words fill.
struct Bytes {
  using Reg = uint8x16_t;
  using Sum = uint16x8_t;
  static constexpr int L = 2, REGISTERS = 32;
  static constexpr int64_t MOST_WORDS = 65535 / (2 * 255);
  static Reg load(const uint8_t *p) { return vld1q_u8(p); }
  static Reg broadcast(const uint8_t *p) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    return vreinterpretq_u8_u64(vdupq_n_u64(word));
  }
  static Reg keep(Reg v, uint64_t mask) { return vandq_u8(v, vreinterpretq_u8_u64(vdupq_n_u64(mask))); }
  static Sum zero() { return vdupq_n_u16(0); }
  static Sum add(Sum sum, Reg x, Reg w) { return vpadalq_u8(sum, vabdq_u8(x, w)); }
  static void add_to(int32_t *out, Sum sum) {
    out[0] += (int32_t)vaddlv_u16(vget_low_u16(sum));
    out[1] += (int32_t)vaddlv_u16(vget_high_u16(sum));
  }
};
#else
struct Bytes {
  struct Reg {
    uint8_t byte[8];
  };
  using Sum = uint32_t;
  static constexpr int L = 1, REGISTERS = 16;
  static constexpr int64_t MOST_WORDS = INT64_MAX;
  static Reg load(const uint8_t *p) {
    Reg v;
    std::memcpy(v.byte, p, 8);
    return v;
  }
  static Reg broadcast(const uint8_t *p) { return load(p); }
  static Reg keep(Reg v, uint64_t mask) {
    uint64_t word;
    std::memcpy(&word, v.byte, 8);
    word &= mask;
    std::memcpy(v.byte, &word, 8);
    return v;
  }
  static Sum zero() { return 0; }
  static Sum add(Sum sum, Reg x, Reg w) {
    uint32_t differences = 0;
    for (int i = 0; i < 8; ++i) differences += x.byte[i] > w.byte[i] ? x.byte[i] - w.byte[i] : w.byte[i] - x.byte[i];
    return sum + differences;
  }
  static void add_to(int32_t *out, Sum sum) { *out += (int32_t)sum; }
};
#endif

} // namespace ADDER_NAMESPACE
#endif
