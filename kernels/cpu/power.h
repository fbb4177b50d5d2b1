// The difference to a power, for 1 < p < 2: |d|^p and its derivative t(d) = p |d|^(p-1) sgn(d).
//
// d = ±m 2^e with 1 <= m < 2, so |d|^r = m^r 2^(e r). The first factor is a polynomial in m - 1.5, whose coefficients
// the caller gives (with the factor p in them, or without). The second is the product of numbers from short tables: a
// vector holds a table, and a permutation reads it in all lanes by some bits of the exponent. |d|^p is computed with
// r = p. The derivative is d |d|^(p-2), with r = p - 2: so it has the sign of d, and is 0 for d = 0. It takes a
// polynomial of higher degree.
//
// Relative error of t, in units of 2^-24: 1.8 of the polynomial's fit, its coefficients rounded; 4 of its evaluation,
// since |m - 1.5| <= 1/2 and coefficients that fall by 2/3 make an addition's error count a third of the next one's,
// and the sum is at least half of its largest part; 3 of numbers in tables, 2 of their products, 2 of the products with
// sum and d; 1 of d. That is 13.8. Of |d|^p: 3.7 of the fit, 2 of the evaluation, whose coefficients fall faster, 3 of
// the tables, 2 of their products, 1 of the product with the sum, p of d: less than 14. The tests hold the kernels to
// 14.8. Differences below the smallest normal number, 2^-126, have a t that is too small, and |d|^p below it may be 0.
#ifndef ADDER_POWER_H
#define ADDER_POWER_H

#include "adder.h"
#include "vec.h"

#include <cmath>

namespace ADDER_NAMESPACE {

// 2^(r e) by bits of the exponent field e + 127. Three tables of eight, or two of sixteen, or one of all: `look_up`
// takes the low bits of each lane. What lies above the exponent is the sign, so tables repeat.
template <class T> struct PowersOfTwo {
  typedef typename Uints<T::L>::V Bits;
  static constexpr int BITS = T::L == 16 ? 4 : T::L == 8 ? 3 : 8, TABLES = (8 + BITS - 1) / BITS;
  static constexpr int SIZE = 1 << BITS;
  alignas(64) float table[TABLES][SIZE];

  // Each table's exponents are moved by what keeps the product, and all that is on the way to it, in float's range. For
  // r > 1 the lower tables have 1 as their largest number, so that the last one is no smaller than the product.
  explicit PowersOfTwo(double r) {
    int moved = 0;
    for (int t = 0; t < TABLES; ++t) {
      const int step = 1 << (BITS * t), highest = step * (SIZE - 1);
      const int middle = t == TABLES - 1 ? 127 - moved : r > 0 ? highest : t == 0 ? 0 : SIZE / 2 * step;
      moved += middle;
      for (int i = 0; i < SIZE; ++i) table[t][i] = static_cast<float>(std::exp2(r * ((i * step & 255) - middle)));
    }
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

// What both have in common: |d|^r as the product of a polynomial, `sum_of`, and `powers.of`.
template <class T, int DEGREE> struct PowerParts {
  typedef typename T::V V;
  typedef typename PowersOfTwo<T>::Bits Bits;
  PowersOfTwo<T> powers;
  alignas(64) float coefficients[DEGREE + 1][T::L];

  explicit PowerParts(const adder_power &power) : powers(power.exponent) {
    for (int i = 0; i <= DEGREE; ++i)
      for (int lane = 0; lane < T::L; ++lane) coefficients[i][lane] = power.coefficients[i];
  }

  ADDER_INLINE V sum_of(Bits bits) const {
    const V s = (V)((bits & 0x007fffff) | 0x3f800000) - T::set(1.5f);
    V sum = T::load(coefficients[DEGREE]);
#pragma GCC unroll 16
    for (int i = DEGREE - 1; i >= 0; --i) sum = T::fma(sum, s, T::load(coefficients[i]));
    return sum;
  }
};

// t(d) of finite d.
template <class T> struct DerivativeOfPower : PowerParts<T, ADDER_POWER_DEGREE> {
  typedef PowerParts<T, ADDER_POWER_DEGREE> Parts;
  using Parts::Parts;
  ADDER_INLINE typename T::V operator()(typename T::V d) const {
    const typename Parts::Bits bits = (typename Parts::Bits)d;
    return d * (this->sum_of(bits) * this->powers.of(bits));
  }
};

// sum + |d|^p of finite d.
template <class T> struct AddPower : PowerParts<T, ADDER_POWER_FORWARD_DEGREE> {
  typedef PowerParts<T, ADDER_POWER_FORWARD_DEGREE> Parts;
  typedef typename T::V V;
  typedef typename Parts::Bits Bits;
  using Parts::Parts;
  ADDER_INLINE V operator()(V d, V sum) const {
    const Bits bits = (Bits)d;
    const V polynomial = this->sum_of(bits), power = this->powers.of(bits); // not 0 for d = 0
#if defined(__AVX512F__)
    if constexpr (T::L == 16) {
      const __mmask16 some = _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x7fffffff));
      return _mm512_mask3_fmadd_ps(polynomial, power, sum, some);
    }
#endif
    return T::fma(polynomial, (V)((Bits)power & (Bits)(d != T::set(0.f))), sum);
  }
};

} // namespace ADDER_NAMESPACE
#endif
