// What the register tiles of the int8 kernels can do by themselves, in the first-level cache: taps a cycle.
//
//   mkdir -p build
//   g++ -O3 -mavx2 -std=c++17 -Ikernels/cpu benchmarks/int8_tiles.cpp -o build/int8_tiles && build/int8_tiles
//
// For AVX-512 take -mavx512bw -mavx512vl and not -mavx2. A cycle is the time of an addition that waits for the one
// before; thread CPU time, the median over rounds that take turns. A tile is named by its pixels; it has 8 filters with
// AVX2 and 16 with AVX-512, and each step takes eight channels of each.
#define ADDER_NAMESPACE tiles
#include "int8_vec.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#if defined(__AVX512BW__)
typedef __m512i V;
typedef __m512 Floats;
#define OP(name) _mm512_##name
#else
typedef __m256i V;
typedef __m256 Floats;
#define OP(name) _mm256_##name
#endif

static ADDER_INLINE V shuffle(V a, V b) { return (V)OP(shuffle_ps)((Floats)a, (Floats)b, 0x88); }
static ADDER_INLINE V add_floats(V a, V b) { return (V)OP(add_ps)((Floats)a, (Floats)b); }
static ADDER_INLINE V opaque(V v) { // a value that the compiler may neither move to memory nor compute in another order
  asm("" : "+v"(v));
  return v;
}
static ADDER_INLINE V sad(V a, V b) { return OP(sad_epu8)(a, b); }
static ADDER_INLINE V add(V a, V b) { return OP(add_epi32)(a, b); }

// A tile's step: x meets both registers of the filters' words; SUMS registers of sums for each pixel.
template <bool DENORMAL> struct TwoAdditions { // the kernels' own
  static constexpr int SUMS = 2;
  static ADDER_INLINE void step(V *sums, V x, V low, V high) {
    typename tiles::Widest<DENORMAL>::Sums both = {sums[0], sums[1]};
    both = tiles::Widest<DENORMAL>::add(both, x, {low, high});
    sums[0] = opaque(both.low), sums[1] = opaque(both.high);
  }
};
struct Shuffled {
  static constexpr int SUMS = 1;
  static ADDER_INLINE void step(V *sums, V x, V low, V high) {
    sums[0] = opaque(add(sums[0], shuffle(sad(x, low), sad(x, high))));
  }
};
struct ShuffledFloats {
  static constexpr int SUMS = 1;
  static ADDER_INLINE void step(V *sums, V x, V low, V high) {
    sums[0] = opaque(add_floats(sums[0], shuffle(sad(x, low), sad(x, high))));
  }
};
struct Packed {
  static constexpr int SUMS = 1;
  static ADDER_INLINE void step(V *sums, V x, V low, V high) {
    sums[0] = opaque(add(sums[0], OP(packus_epi32)(sad(x, low), sad(x, high))));
  }
};
struct Saturating { // |x - w| by two subtractions that saturate; psadbw adds up two words' differences at a time
  static constexpr int SUMS = 1;
  static ADDER_INLINE void step(V *sums, V x, V low, V high) {
    const V first = OP(add_epi8)(OP(subs_epu8)(x, low), OP(subs_epu8)(low, x));
    const V second = OP(add_epi8)(OP(subs_epu8)(x, high), OP(subs_epu8)(high, x));
    sums[0] = opaque(OP(adds_epu8)(sums[0], OP(adds_epu8)(first, second)));
  }
};

template <class Step, int PIXELS>
__attribute__((noinline)) static void tile(const uint8_t *image, const uint8_t *panel, int words, uint8_t *out) {
  constexpr int SUMS = Step::SUMS, STRIDE = 64;
  V sums[PIXELS][SUMS];
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 2
    for (int s = 0; s < SUMS; ++s) sums[p][s] = V{};
  const auto step = [&](int i) __attribute__((always_inline)) {
    const V low = *(const V *)panel, high = *(const V *)(panel + sizeof(V));
#pragma GCC unroll 16
    for (int p = 0; p < PIXELS; ++p) {
      Step::step(sums[p], tiles::Widest<true>::broadcast(image + p * STRIDE + i), low, high);
    }
    panel += 2 * sizeof(V);
  };
  for (int i = 0; i < 8 * words; i += 16) step(i), step(i + 8);
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 2
    for (int s = 0; s < SUMS; ++s) *(V *)(out + (p * SUMS + s) * sizeof(V)) = sums[p][s];
}

#if defined(__AVX512BW__)
// Rows of three taps by vdbpsadbw: 32 pixels times four taps, of which three count. PIXELS: vectors of 32 pixels.
template <int PIXELS, int FILTERS>
__attribute__((noinline)) static void sliding(const uint8_t *image, const uint8_t *panel, int words, uint8_t *out) {
  V sums[FILTERS][PIXELS];
#pragma GCC unroll 16
  for (int f = 0; f < FILTERS; ++f)
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; ++p) sums[f][p] = V{};
  for (int i = 0; i < words; ++i, panel += 4 * FILTERS) {
    V x[PIXELS];
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; ++p) x[p] = opaque(_mm512_loadu_si512(image + 64 * p + i));
#pragma GCC unroll 16
    for (int f = 0; f < FILTERS; ++f) {
      int row;
      memcpy(&row, panel + 4 * f, 4);
      const V w = _mm512_set1_epi32(row);
#pragma GCC unroll 4
      for (int p = 0; p < PIXELS; ++p)
        sums[f][p] = opaque(_mm512_add_epi16(sums[f][p], _mm512_dbsad_epu8(w, x[p], 0x94)));
    }
  }
#pragma GCC unroll 16
  for (int f = 0; f < FILTERS; ++f)
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; ++p) *(V *)(out + (f * PIXELS + p) * sizeof(V)) = sums[f][p];
}
#endif

static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

static double cycle() {
  double best = 1;
  for (int round = 0; round < 5; ++round) {
    const double begin = now();
    uint64_t v = 1;
    for (int i = 0; i < 100000; ++i)
      asm volatile("add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\t"
                   "add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0"
                   : "+r"(v));
    best = std::min(best, (now() - begin) / 800000);
  }
  return best;
}

struct Candidate {
  const char *name;
  void (*run)(const uint8_t *, const uint8_t *, int, uint8_t *);
  double taps; // of a word
  std::vector<double> rates;
};

int main() {
  constexpr int WORDS = 144, CALLS = 500, FILTER_TAPS = sizeof(V) * 2; // 128 channels of a 3x3 kernel
  alignas(64) static uint8_t panel[FILTER_TAPS * WORDS], image[8192], out[8192];
  for (uint8_t &byte : panel) byte = static_cast<uint8_t>(rand());
  for (uint8_t &byte : image) byte = static_cast<uint8_t>(rand());
#define TILE(what, Step, PIXELS)                                                      \
  {                                                                                   \
    what ", " #PIXELS " pixels", tile<Step, PIXELS>, double(FILTER_TAPS * PIXELS), {} \
  }
  std::vector<Candidate> candidates = {
      TILE("2 sad, 2 vpaddd", TwoAdditions<false>, 6),
      TILE("2 sad, 2 vaddpd", TwoAdditions<true>, 6),
      TILE("2 sad, shuffle, vpaddd", Shuffled, 6),
      TILE("2 sad, shuffle, vpaddd", Shuffled, 8),
      TILE("2 sad, shuffle, vpaddd", Shuffled, 10),
      TILE("2 sad, shuffle, vaddps", ShuffledFloats, 8),
      TILE("2 sad, vpackusdw, vpaddd", Packed, 8),
      TILE("saturating bytes", Saturating, 8),
#if defined(__AVX512BW__)
      TILE("2 sad, 2 vpaddd", TwoAdditions<false>, 8),
      TILE("2 sad, 2 vaddpd", TwoAdditions<true>, 8),
      TILE("2 sad, 2 vaddpd", TwoAdditions<true>, 12),
      TILE("2 sad, shuffle, vpaddd", Shuffled, 12),
      {"vdbpsadbw, vpaddw, 12 filters x 64 pixels (three taps of four)", sliding<2, 12>, 12 * 64 * 3, {}},
      {"vdbpsadbw, vpaddw, 8 filters x 96 pixels (three taps of four)", sliding<3, 8>, 8 * 96 * 3, {}},
#endif
  };
  for (int round = 0; round < 31; ++round)
    for (Candidate &candidate : candidates) {
      const double one = cycle(), begin = now();
      for (int i = 0; i < CALLS; ++i) candidate.run(image, panel, WORDS, out);
      candidate.rates.push_back(CALLS * WORDS * candidate.taps / ((now() - begin) / one));
    }
  for (Candidate &candidate : candidates) {
    std::sort(candidate.rates.begin(), candidate.rates.end());
    std::printf("%5.1f taps a cycle: %s\n", candidate.rates[candidate.rates.size() / 2], candidate.name);
  }
}
