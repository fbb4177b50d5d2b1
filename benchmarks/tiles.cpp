// What the register tiles of the CPU kernels can do by themselves, in the first-level cache (AVX2).
//
//   g++ -O3 -mavx2 -mfma -std=c++17 benchmarks/tiles.cpp -o build/tiles && build/tiles
//
// Thread CPU time for 8 lanes of one tap, as a multiple of an fma tile's (6 pixels x 16 filters: a convolution) in the same
// process; the median over rounds that take turns.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

typedef __m256 V;
static inline V load(const float *p) { return _mm256_loadu_ps(p); }
static inline V bits_min(V a, V b) {
  return _mm256_castsi256_ps(_mm256_min_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
static inline V bits_max(V a, V b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
static inline V clamp(V a) {
  const V b = bits_min(a, _mm256_set1_ps(1.f));
  return _mm256_castsi256_ps(
      _mm256_min_epu32(_mm256_castps_si256(b), _mm256_castps_si256(_mm256_set1_ps(-1.f))));
}

enum Kind { CONV, FORWARD, FORWARD_INT, DX_CLAMP, DX_MEDIAN, DX_MEDIAN_FLOAT };

// MR pixels x NV vectors; own: what a pixel keeps of its own, x - 1 and x + 1 or x.
template <Kind KIND, int MR, int NV>
__attribute__((noinline)) void tile(int64_t taps, const float *x, const float *w, const float *own, float *sum) {
  V acc[MR][NV], low[MR][NV], high[MR][NV], one = _mm256_set1_ps(1.f);
  asm("" : "+x"(one));
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[m][v] = _mm256_setzero_ps();
      low[m][v] = load(own + (m * NV + v) * 16);
      high[m][v] = load(own + (m * NV + v) * 16 + 8);
    }
  for (; taps > 0; --taps, ++x, w += 8) {
    V ws[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) ws[v] = load(w + v * 1152);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const V b = _mm256_broadcast_ss(x + m * 16);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        V &a = acc[m][v];
        if (KIND == CONV) a = _mm256_fmadd_ps(b, ws[v], a);
        if (KIND == FORWARD) a = _mm256_fmadd_ps(_mm256_max_ps(b, ws[v]), one, a);
        if (KIND == FORWARD_INT) a = _mm256_fmadd_ps(bits_max(b, ws[v]), one, a);
        if (KIND == DX_CLAMP) a = _mm256_fmadd_ps(clamp(ws[v] - low[m][v]), b, a);
        if (KIND == DX_MEDIAN) a = _mm256_fmadd_ps(bits_min(_mm256_max_ps(ws[v], low[m][v]), high[m][v]), b, a);
        if (KIND == DX_MEDIAN_FLOAT)
          a = _mm256_fmadd_ps(_mm256_min_ps(_mm256_max_ps(ws[v], low[m][v]), high[m][v]), b, a);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) _mm256_storeu_ps(sum + (m * NV + v) * 8, acc[m][v]);
}

// dx of 3 pixels and one channel for 8 images: dy of the images lies side by side, so that an fma takes it from memory. An
// fma takes four cycles: two sums for each pixel, for even and odd taps. The next tap's filter is loaded a tap early.
__attribute__((noinline)) void images(int64_t taps, const float *dy, const float *w, const float *own, float *sum) {
  constexpr int MR = 3, ROW = 160 * 8;
  V acc[2][MR], low[MR], high[MR];
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
    acc[0][m] = acc[1][m] = _mm256_setzero_ps();
    low[m] = load(own + m * 16);
    high[m] = load(own + m * 16 + 8);
  }
  V next = _mm256_broadcast_ss(w);
  for (; taps > 0; taps -= 2, w += 2, dy += 16) {
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) {
      const V tap = next;
      next = _mm256_broadcast_ss(w + t + 1);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m)
        acc[t][m] = _mm256_fmadd_ps(_mm256_max_ps(bits_min(tap, high[m]), low[m]), load(dy + m * ROW + t * 8), acc[t][m]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) _mm256_storeu_ps(sum + m * 8, acc[0][m] + acc[1][m]);
}

static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Candidate {
  const char *name;
  void (*run)(int64_t, const float *, const float *, const float *, float *);
  int vectors;
};

int main() {
  alignas(64) static float x[4096], w[4096], own[1024], sum[512];
  for (float &v : x) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  for (float &v : own) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX);
  for (float &v : w) v = 2 * static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 1;
  const Candidate all[] = {
      {"convolution, 6 x 16", tile<CONV, 6, 2>, 12},
      {"forward, 5 x 16", tile<FORWARD, 5, 2>, 10},
      {"forward, 4 x 16", tile<FORWARD, 4, 2>, 8},
      {"forward, 6 x 16", tile<FORWARD, 6, 2>, 12},
      {"forward, 5 x 16, integer max", tile<FORWARD_INT, 5, 2>, 10},
      {"dx, 4 x 16, clamp", tile<DX_CLAMP, 4, 2>, 8},
      {"dx, 3 x 16, clamp", tile<DX_CLAMP, 3, 2>, 6},
      {"dx, 5 x 8, clamp", tile<DX_CLAMP, 5, 1>, 5},
      {"dx, 6 x 8, clamp", tile<DX_CLAMP, 6, 1>, 6},
      {"dx, 5 x 8, median", tile<DX_MEDIAN, 5, 1>, 5},
      {"dx, 4 x 8, median, float minimum", tile<DX_MEDIAN_FLOAT, 4, 1>, 4},
      {"dx, 3 pixels x 8 images, median", images, 3},
  };
  constexpr int count = sizeof all / sizeof *all, rounds = 101, taps = 144;
  std::vector<double> times[count];
  for (int round = 0; round < rounds; ++round)
    for (int i = 0; i < count; ++i) {
      const double began = now();
      for (int k = 0; k < 2000; ++k) all[i].run(taps, x + k % 8 * 16, w, own, sum);
      times[i].push_back((now() - began) / (2000. * taps * all[i].vectors));
    }
  for (int i = 0; i < count; ++i) {
    std::nth_element(times[i].begin(), times[i].begin() + rounds / 2, times[i].end());
    std::printf("%-34s %.2f\n", all[i].name, times[i][rounds / 2] / times[0][rounds / 2]);
  }
}
