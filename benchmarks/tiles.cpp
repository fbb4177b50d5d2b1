// What the register tiles of the CPU kernels can do by themselves, in the first-level cache.
//
//   mkdir -p build
//   g++ -O3 -mavx2 -mfma -std=c++17 benchmarks/tiles.cpp -o build/tiles && build/tiles
//
// For AVX-512 take -mavx512f -mavx512dq -mprefer-vector-width=512 and not -mavx2 -mfma.
//
// Thread CPU time for one vector of one tap, as a multiple of an fma tile's (a convolution's) in the same process; the
// median over rounds that take turns. A tile is named by its pixels and vectors, of 8 lanes with AVX2 and 16 with
// AVX-512.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#if defined(__AVX512F__)
typedef __m512 V;
static inline V load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, V v) { _mm512_storeu_ps(p, v); }
static inline V set(float f) { return _mm512_set1_ps(f); }
static inline V max(V a, V b) { return _mm512_max_ps(a, b); }
static inline V min(V a, V b) { return _mm512_min_ps(a, b); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V bits_min(V a, V b) {
  return _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
static inline V bits_max(V a, V b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
static inline V clamp(V a) { return _mm512_range_ps(a, set(1.f), 2); }
static inline V opaque(V v) {
  asm("" : "+v"(v));
  return v;
}
#else
typedef __m256 V;
static inline V load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, V v) { _mm256_storeu_ps(p, v); }
static inline V set(float f) { return _mm256_set1_ps(f); }
static inline V max(V a, V b) { return _mm256_max_ps(a, b); }
static inline V min(V a, V b) { return _mm256_min_ps(a, b); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline V bits_min(V a, V b) {
  return _mm256_castsi256_ps(_mm256_min_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
static inline V bits_max(V a, V b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
static inline V clamp(V a) {
  const V b = bits_min(a, set(1.f));
  return _mm256_castsi256_ps(_mm256_min_epu32(_mm256_castps_si256(b), _mm256_castps_si256(set(-1.f))));
}
static inline V opaque(V v) {
  asm("" : "+x"(v));
  return v;
}
#endif
constexpr int L = sizeof(V) / sizeof(float), TAPS = 144;

enum Kind { CONV, FORWARD, FORWARD_ADD, FORWARD_INT, DX_CLAMP, DX_MEDIAN, DX_MEDIAN_FLOAT };

// MR pixels x NV vectors; own: what a pixel keeps of its own, x - 1 and x + 1 or x.
template <Kind KIND, int MR, int NV>
__attribute__((noinline)) void tile(const float *x, const float *w, const float *own, float *sum) {
  V acc[MR][NV], low[MR][NV], high[MR][NV];
  const V one = opaque(set(1.f));
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[m][v] = set(0.f);
      low[m][v] = load(own + (m * NV + v) * 2 * L);
      high[m][v] = load(own + (m * NV + v) * 2 * L + L);
    }
  for (int64_t taps = TAPS; taps > 0; --taps, ++x, w += L) {
    V ws[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) ws[v] = load(w + v * TAPS * L);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const V b = set(x[m * 16]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        V &a = acc[m][v];
        if (KIND == CONV) a = fma(b, ws[v], a);
        if (KIND == FORWARD) a = fma(max(b, ws[v]), one, a);
        if (KIND == FORWARD_ADD) a = a + max(b, ws[v]);
        if (KIND == FORWARD_INT) a = fma(bits_max(b, ws[v]), one, a);
        if (KIND == DX_CLAMP) a = fma(clamp(ws[v] - low[m][v]), b, a);
        if (KIND == DX_MEDIAN) a = fma(bits_min(max(ws[v], low[m][v]), high[m][v]), b, a);
        if (KIND == DX_MEDIAN_FLOAT) a = fma(min(max(ws[v], low[m][v]), high[m][v]), b, a);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(sum + (m * NV + v) * L, acc[m][v]);
}

// dx of 3 pixels and one channel for a vector of images: dy of the images lies side by side, so that an fma takes it
// from memory. An fma takes four cycles: two sums for each pixel, for even and odd taps. The next tap's filter is
// loaded early.
__attribute__((noinline)) void images(const float *dy, const float *w, const float *own, float *sum) {
  constexpr int MR = 3, ROW = (TAPS + 16) * L;
  V acc[2][MR], low[MR], high[MR];
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
    acc[0][m] = acc[1][m] = set(0.f);
    low[m] = load(own + m * 2 * L);
    high[m] = load(own + m * 2 * L + L);
  }
  V next = set(*w);
  for (int64_t taps = TAPS; taps > 0; taps -= 2, w += 2, dy += 2 * L) {
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) {
      const V tap = next;
      next = set(w[t + 1]);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m)
        acc[t][m] = fma(max(bits_min(tap, high[m]), low[m]), load(dy + m * ROW + t * L), acc[t][m]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) store(sum + m * L, acc[0][m] + acc[1][m]);
}

static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Candidate {
  const char *name;
  void (*run)(const float *, const float *, const float *, float *);
  int vectors;
};

int main() {
  alignas(64) static float x[16384], w[16384], own[2048], sum[1024];
  for (float &v : x) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  for (float &v : own) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  for (float &v : w) v = 2 * static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 1;
  const Candidate all[] = {
#if defined(__AVX512F__)
      {"convolution, 12 x 2", tile<CONV, 12, 2>, 24},
      {"convolution, 7 x 4", tile<CONV, 7, 4>, 28},
      {"forward, 12 x 2, fma", tile<FORWARD, 12, 2>, 24},
      {"forward, 12 x 2, additions", tile<FORWARD_ADD, 12, 2>, 24},
      {"forward, 6 x 4, fma", tile<FORWARD, 6, 4>, 24},
      {"dx, 6 x 2, clamp", tile<DX_CLAMP, 6, 2>, 12},
      {"dx, 12 x 1, clamp", tile<DX_CLAMP, 12, 1>, 12},
      {"dx, 8 x 1, median", tile<DX_MEDIAN, 8, 1>, 8},
      {"dx, 8 x 1, median, float minimum", tile<DX_MEDIAN_FLOAT, 8, 1>, 8},
      {"dx, 3 pixels x 16 images, median", images, 3},
#else
      {"convolution, 6 x 2", tile<CONV, 6, 2>, 12},
      {"forward, 5 x 2, fma", tile<FORWARD, 5, 2>, 10},
      {"forward, 4 x 2, fma", tile<FORWARD, 4, 2>, 8},
      {"forward, 6 x 2, fma", tile<FORWARD, 6, 2>, 12},
      {"forward, 5 x 2, integer max, fma", tile<FORWARD_INT, 5, 2>, 10},
      {"forward, 5 x 2, additions", tile<FORWARD_ADD, 5, 2>, 10},
      {"forward, 4 x 2, additions", tile<FORWARD_ADD, 4, 2>, 8},
      {"forward, 6 x 2, additions", tile<FORWARD_ADD, 6, 2>, 12},
      {"dx, 4 x 2, clamp", tile<DX_CLAMP, 4, 2>, 8},
      {"dx, 3 x 2, clamp", tile<DX_CLAMP, 3, 2>, 6},
      {"dx, 5 x 1, clamp", tile<DX_CLAMP, 5, 1>, 5},
      {"dx, 6 x 1, clamp", tile<DX_CLAMP, 6, 1>, 6},
      {"dx, 5 x 1, median", tile<DX_MEDIAN, 5, 1>, 5},
      {"dx, 4 x 1, median, float minimum", tile<DX_MEDIAN_FLOAT, 4, 1>, 4},
      {"dx, 3 pixels x 8 images, median", images, 3},
#endif
  };
  constexpr int count = sizeof all / sizeof *all, rounds = 101;
  std::vector<double> times[count];
  for (int round = 0; round < rounds; ++round)
    for (int i = 0; i < count; ++i) {
      const double began = now();
      for (int k = 0; k < 2000; ++k) all[i].run(x + k % 8 * 16, w, own, sum);
      times[i].push_back((now() - began) / (2000. * TAPS * all[i].vectors));
    }
  for (int i = 0; i < count; ++i) {
    std::nth_element(times[i].begin(), times[i].begin() + rounds / 2, times[i].end());
    std::printf("%-34s %.2f\n", all[i].name, times[i][rounds / 2] / times[0][rounds / 2]);
  }
}
