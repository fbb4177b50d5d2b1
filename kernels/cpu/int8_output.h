// What becomes of the sums of a tile: bare integers, or batch norm, shortcut, ReLU and the next layer's bytes.
//
// It is done in the tile's own registers, F channels of a pixel at a time.
#ifndef ADDER_INT8_OUTPUT_H
#define ADDER_INT8_OUTPUT_H

#include "adder_int8.h"
#include "int8_vec.h"
#include "tiles.h"

namespace ADDER_NAMESPACE {

// Added to a float between -2^22 and 2^22 it leaves the nearest integer, halves to even, in the low bits of the sum.
constexpr float TO_INTEGER = 12582912.f; // 1.5 * 2^23
constexpr int32_t TO_INTEGER_BITS = 0x4b400000;

// The levels of the next layer's input that stand for values v, as integers.
template <class B> struct Levels {
  typedef typename Numbers<B::F>::Ints Ints;
  typedef typename Numbers<B::F>::Floats Floats;
  Floats inverse_step, low, high; // low and high: of v / step, so without the zero point
  Ints offset;

  // relu: below 0 there are no values.
  Levels(float inverse_step_, int32_t zero_point, int32_t top, bool relu)
      : inverse_step(Floats{} + inverse_step_), low(relu ? Floats{} : Floats{} - (float)zero_point),
        high(Floats{} + (float)(top - zero_point)), offset(Ints{} + (TO_INTEGER_BITS - zero_point)) {}

  // The clamp comes first: both of its ends are integers, so it may.
  ADDER_INLINE Ints of(Floats v) const {
    Floats level = v * inverse_step;
    level = level > low ? level : low; // a NaN too
    level = level < high ? level : high;
    return (Ints)(level + TO_INTEGER) - offset;
  }

  __attribute__((noinline)) void write(int64_t count, const float *v, uint8_t *out) const {
    constexpr int F = B::F;
    Floats values;
    for (; count >= F; count -= F, v += F, out += F) {
      memcpy(&values, v, sizeof values);
      const auto levels = B::bytes(of(values));
      memcpy(out, &levels, sizeof levels);
    }
    values = Floats{};
    memcpy(&values, v, static_cast<size_t>(count) * sizeof(float));
    const auto levels = B::bytes(of(values));
    memcpy(out, &levels, static_cast<size_t>(count));
  }
};

// Outputs of F channels from channel `k` on, `channels` of which are real.
template <class B> struct Output {
  static constexpr int F = B::F;
  typedef typename Numbers<F>::Ints Ints;
  typedef typename Numbers<F>::Floats Floats;

  const adder_int8_epilogue *epilogue; // null: the sums go to y
  int32_t *y;
  int64_t K, k, channels;
  Floats scale, shift;
  Levels<B> levels;
  bool relu; // of v; otherwise the lowest level is the ReLU, if there is one

  Output(const adder_int8_epilogue *epilogue_, int32_t *y_, int64_t K_, int64_t k_, int64_t channels_)
      : epilogue(epilogue_), y(y_), K(K_), k(k_), channels(channels_), scale{}, shift{}, levels(of(epilogue_)),
        relu(epilogue_ && epilogue_->relu && (epilogue_->wide || !is_level(epilogue_->inverse_step))) {
    if (epilogue == nullptr) return;
    if (channels == F) {
      memcpy(&scale, epilogue->scale + k, sizeof scale);
      memcpy(&shift, epilogue->shift + k, sizeof shift);
    } else {
      memcpy(&scale, epilogue->scale + k, static_cast<size_t>(channels) * sizeof(float));
      memcpy(&shift, epilogue->shift + k, static_cast<size_t>(channels) * sizeof(float));
    }
  }

  // Writes what becomes of a tile's -sum |x - w|, MR pixels from `pixel` on, counted over [N, P, Q].
  template <int MR> ADDER_INLINE void write(const Ints (&sums)[MR], int64_t pixel) const {
    if (channels == F) return write_pixels<MR>(sums, pixel, Constant<F>());
    // Groups of four channels, and what eight leave of most numbers of channels.
    if constexpr (F == 8)
      if (channels == F / 2) return write_pixels<MR>(sums, pixel, Constant<F / 2>());
    Ints copy[MR]; // its address is taken, which must not happen to the registers that are summed in
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) copy[m] = sums[m];
    const auto *const writers = tiles_of<F - 1>([](auto count) ADDER_LAMBDA_INLINE { return write_some<count.value>; });
    writers[channels](*this, copy, MR, pixel);
  }

private:
  // Whether v < 0 comes out below the level of 0, and v = 0 at it.
  static bool is_level(float inverse_step) { return inverse_step > 0 && inverse_step < __builtin_inff(); }
  static Levels<B> of(const adder_int8_epilogue *e) {
    if (e == nullptr) return Levels<B>(0, 0, 0, false);
    return Levels<B>(e->inverse_step, e->zero_point, e->top, e->relu && is_level(e->inverse_step));
  }
  // The number of channels is known when this is compiled, or each copy would be a call.
  template <class V, class E, class N> static ADDER_INLINE V load(const E *from, N channels) {
    V v{};
    memcpy(&v, from, sizeof(E) * channels.value);
    return v;
  }
  template <class V, class E, class N> static ADDER_INLINE void store(E *to, const V &v, N channels) {
    memcpy(to, &v, sizeof(E) * channels.value);
  }

  template <int CHANNELS>
  __attribute__((noinline)) static void write_some(const Output &out, const Ints *sums, int pixels, int64_t pixel) {
    for (int m = 0; m < pixels; ++m) {
      const Ints one[1] = {sums[m]};
      out.template write_pixels<1>(one, pixel + m, Constant<CHANNELS>());
    }
  }

  // Stage by stage for all pixels, so that each question is asked once.
  template <int MR, class N> ADDER_INLINE void write_pixels(const Ints (&sums)[MR], int64_t pixel, N count) const {
    const int64_t step = K, at = pixel * step + k; // a store of bytes might change a member, for all that C++ knows
    if (epilogue == nullptr) {
      int32_t *const to = y + at;
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) store(to + m * step, sums[m], count);
      return;
    }
    const adder_int8_epilogue &e = *epilogue;
    Floats v[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) v[m] = scale * __builtin_convertvector(sums[m], Floats) + shift;
    if (const float *const residual = e.residual) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) v[m] += load<Floats>(residual + at + m * step, count);
    }
    if (relu) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) v[m] = v[m] > 0 ? v[m] : Floats{};
    }
    if (float *const wide = e.wide) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) store(wide + at + m * step, v[m], count);
    }
    if (uint8_t *const narrow = e.narrow) {
      Ints of_v[MR];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) of_v[m] = levels.of(v[m]);
      if constexpr (N::value == F) return B::template store_bytes<MR>(of_v, narrow + at, step);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) store(narrow + at + m * step, B::bytes(of_v[m]), count);
    }
  }
};

} // namespace ADDER_NAMESPACE
#endif
