// The difference to a power, for 1 < p < 2: t(d) = p |d|^(p-1) sgn(d), and |d|^p = d t(d) / p.
//
// d = ±m 2^e with 1 <= m < 2, so |d|^(p-2) = m^(p-2) 2^(e (p-2)). The first factor is a polynomial of degree DEGREE in
// m - 1.5, whose coefficients the caller gives (with the factor p in them, or without). The second is the product of
// numbers from short tables: a vector holds a table, and a permutation reads it in all lanes by some bits of the
// exponent. Then t(d) = d |d|^(p-2): it has the sign of d, and is 0 for d = 0.
//
// Relative error of t, in units of 2^-24: 1.3 of the polynomial's fit, its coefficients rounded; 4 of its evaluation,
// since |m - 1.5| <= 1/2 and coefficients that fall by 2/3 make an addition's error count a third of the next one's,
// and the sum is at least half of its largest part; 3 of numbers in tables, 2 of their products, 2 of the products with
// sum and d; 1 of d. That is 13.3. The tests hold the kernels to it. Differences below the smallest normal number,
// 2^-126, have a t that is too small, by 2^-126 p at most in |d|^p.
#ifndef ADDER_POWER_H
#define ADDER_POWER_H

#include "adder.h"
#include "vec.h"

#include <cmath>

namespace ADDER_NAMESPACE {

template <int L> struct Uints {
  typedef uint32_t V __attribute__((vector_size(4 * L)));
};

// 2^(r e) by bits of the exponent field e + 127. Three tables of eight, or two of sixteen, or one of all: `look_up`
// takes the low bits of each lane. What lies above the exponent is the sign, so tables repeat.
template <class T> struct PowersOfTwo {
  typedef typename Uints<T::L>::V Bits;
  static constexpr int BITS = T::L == 16 ? 4 : T::L == 8 ? 3 : 8, TABLES = (8 + BITS - 1) / BITS;
  static constexpr int SIZE = 1 << BITS;
  alignas(64) float table[TABLES][SIZE];

  // Each table's exponents are moved by what keeps the product, and all that is on the way to it, in float's range.
  explicit PowersOfTwo(double r) {
    for (int t = 0; t < TABLES; ++t)
      for (int i = 0; i < SIZE; ++i) {
        const int step = 1 << (BITS * t), field = i * step & 255;
        const int middle = t == TABLES - 1 ? 127 - lower_middles() : t == 0 ? 0 : SIZE / 2 * step;
        table[t][i] = static_cast<float>(std::exp2(r * (field - middle)));
      }
  }
  static constexpr int lower_middles() {
    int sum = 0;
    for (int t = 1; t < TABLES - 1; ++t) sum += SIZE / 2 << (BITS * t);
    return sum;
  }
  static ADDER_INLINE typename T::V look_up(const float *table, Bits index) {
#if defined(__AVX512F__)
    if constexpr (T::L == 16) return _mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(table));
#endif
#if defined(__AVX2__)
    if constexpr (T::L == 8) return _mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)index);
#endif
    typename T::V v;
    for (int lane = 0; lane < T::L; ++lane) v[lane] = table[index[lane] & (SIZE - 1)];
    return v;
  }
  ADDER_INLINE typename T::V of(Bits bits) const {
    typename T::V product = look_up(table[0], bits >> 23);
    if constexpr (TABLES > 1) product = product * look_up(table[1], bits >> (23 + BITS));
    if constexpr (TABLES > 2) product = product * look_up(table[TABLES - 1], bits >> (23 + 2 * BITS));
    return product;
  }
};

template <class T> struct Power {
  typedef typename T::V V;
  typedef typename PowersOfTwo<T>::Bits Bits;
  static constexpr int DEGREE = ADDER_POWER_DEGREE;
  PowersOfTwo<T> powers;
  alignas(64) float coefficients[DEGREE + 1][T::L];

  explicit Power(const adder_power &power) : powers(power.exponent) {
    for (int i = 0; i <= DEGREE; ++i)
      for (int lane = 0; lane < T::L; ++lane) coefficients[i][lane] = power.coefficients[i];
  }

  // t(d) of finite d.
  ADDER_INLINE V operator()(V d) const {
    const Bits bits = (Bits)d;
    const V s = (V)((bits & 0x007fffff) | 0x3f800000) - T::set(1.5f);
    V sum = T::load(coefficients[DEGREE]);
#pragma GCC unroll 16
    for (int i = DEGREE - 1; i >= 0; --i) sum = T::fma(sum, s, T::load(coefficients[i]));
    return d * (sum * powers.of(bits));
  }
};

} // namespace ADDER_NAMESPACE
#endif
