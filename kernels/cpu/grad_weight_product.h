// dw = sum dy x - w sum dy as a matrix product, its own or a convolution's.
#ifndef ADDER_GRAD_WEIGHT_PRODUCT_H
#define ADDER_GRAD_WEIGHT_PRODUCT_H

#include "plan.h"
#include "tiles.h"
#include "values.h"

namespace ADDER_NAMESPACE {

// dw = sum dy * x - w * sum dy for finite operands. A tile holds a block of filters times NV vectors of channels for
// one tap and runs over stretches of pixels that lie in one row, a unit of them for all taps. A task adds up some of
// the blocks of filters and channels over a part of the images; the parts are then summed in order. The number of parts
// depends on the size of the sums and not on the number of threads. If there are few, their blocks are shared out among
// more tasks.
//
// Filters of a block: their sums, NV vectors of x and a number of dy fill the registers.
template <class T> constexpr int dw_filters(int nv) { return T::REGISTERS < 32 ? 6 : nv == 1 ? 16 : 14; }
// Pixels that a tile adds up in registers: a stretch of x and dy that stays in the first-level cache for all taps.
constexpr int64_t DW_PIXELS = 128;
// Bytes of x and dy that the blocks of filters and channels go over one after the other, to stay in the second-level
// cache.
constexpr int64_t DW_BYTES = 256 << 10;

// Pixels that lie side by side: the first one's place in x and in dy, and their number.
struct Stretch {
  int64_t x, dy, pixels;
};

// sum[k][c] += sum over the stretches of dy * x for MK filters; sums lie k_step apart.
template <class T, int MK, int NV>
__attribute__((noinline)) void grad_weight_tile(const Stretch *stretch, int64_t count, const float *x, int64_t x_step,
                                                const float *dy, int64_t dy_step, float *sum, int64_t k_step) {
  typedef typename T::V V;
  V acc[MK][NV];
#pragma GCC unroll 16
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[k][v] = T::set(0.f);
  for (const Stretch *const end = stretch + count; stretch != end; ++stretch) {
    const float *xs = x + stretch->x, *ds = dy + stretch->dy;
    for (int64_t q = stretch->pixels; q > 0; --q) {
      V xv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) xv[v] = T::load(xs + v * T::L);
#pragma GCC unroll 16
      for (int k = 0; k < MK; ++k) {
        const V d = T::set(ds[k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[k][v] = T::fma(d, xv[v], acc[k][v]);
      }
      xs += x_step;
      ds += dy_step;
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < MK; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float *s = sum + k * k_step + v * T::L;
      T::store(s, T::load(s) + acc[k][v]);
    }
}

// The tiles of NV vectors by number of filters.
template <class T, int NV> auto grad_weight_tiles() {
  return tiles_of<dw_filters<T>(NV)>([](auto filters) { return grad_weight_tile<T, filters.value, NV>; });
}

// total[k] += sum of dy over pixels [first, last).
template <class T> void add_pixels(const float *dy, int64_t K, int64_t first, int64_t last, float *total) {
  typedef typename T::V V;
  int64_t k = 0;
  for (; k + 4 * T::L <= K; k += 4 * T::L) {
    V sum[4] = {T::set(0.f), T::set(0.f), T::set(0.f), T::set(0.f)};
    for (int64_t i = first; i < last; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[v] = sum[v] + T::load(dy + i * K + k + v * T::L);
    for (int v = 0; v < 4; ++v) T::store(total + k + v * T::L, T::load(total + k + v * T::L) + sum[v]);
  }
  for (; k + T::L <= K; k += T::L) {
    V sum = T::set(0.f);
    for (int64_t i = first; i < last; ++i) sum = sum + T::load(dy + i * K + k);
    T::store(total + k, T::load(total + k) + sum);
  }
  for (; k < K; ++k) {
    float sum = 0;
    for (int64_t i = first; i < last; ++i) sum += dy[i * K + k];
    total[k] += sum;
  }
}

// dw -= w * sum dy for one filter, whose sums lie `step` apart; whether all of dw is finite then.
template <class T>
bool subtract_filter(const float *w, int64_t taps, const float *dy_sums, int64_t parts, int64_t step, float *dw) {
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += dy_sums[part * step];
  int64_t t = 0;
  for (; t + T::L <= taps; t += T::L) T::store(dw + t, T::load(dw + t) - T::load(w + t) * T::set(sum));
  for (; t < taps; ++t) dw[t] -= w[t] * sum;
  return all_within<T>(dw, taps, FLT_MAX);
}

template <class T> struct OuterProducts : Geometry {
  const float *dy, *x, *w;
  float *dw;
  int64_t images, rows, chunks, units; // a unit is `images` images, or `rows` rows of one image
  int64_t k_blocks, c_blocks, parts, shares;
  int64_t cached;        // units whose x and dy stay in the second-level cache
  float *sums, *dy_sums; // [parts][K][R][S][C], [parts][K]
  Flag failed;

  OuterProducts(const Geometry &s, const float *dy_, const float *x_, const float *w_, float *dw_)
      : Geometry(s), dy(dy_), x(x_), w(w_), dw(dw_), images(max64(1, DW_PIXELS / (P * Q))),
        rows(images > 1 ? P : min64(P, max64(1, DW_PIXELS / Q))), chunks(ceil_div(P, rows)),
        units(images > 1 ? ceil_div(N, images) : N * chunks), k_blocks(ceil_div(K, dw_filters<T>(C == T::L ? 1 : 2))),
        c_blocks(ceil_div(C, 2 * T::L)), parts(max64(1, min64(min64(units, TASKS), bytes() / (16 * K * taps)))),
        shares(min64(k_blocks * c_blocks, ceil_div(TASKS, parts))),
        cached(max64(1, units * max64(DW_BYTES, 4 * K * taps) / max64(1, bytes()))) {}

  int64_t bytes() const { return 4 * N * (H * W * C + P * Q * K); }
  int64_t tasks() const { return parts * shares; }
  double operations() const { return 1. * N * P * Q * taps * K / T::L; }

  // Neighbouring tasks of a part are done as one: all their blocks go over what the cache holds before more comes.
  void run(int64_t task, int64_t last) {
    for (int64_t next; task < last; task = next) {
      const int64_t part = task / shares;
      next = min64(last, (part + 1) * shares);
      add_part(part, k_blocks * c_blocks * (task - part * shares) / shares,
               k_blocks * c_blocks * (next - part * shares) / shares);
    }
  }

  void add_part(int64_t part, int64_t block, int64_t last) {
    const int64_t begin = units * part / parts, end = units * (part + 1) / parts;
    Scratch<Stretch> stretches(images * rows);
    if (!stretches) return failed.set();
    if (block == 0) memset(dy_sums + part * K, 0, static_cast<size_t>(K) * sizeof(float));
    for (int64_t unit = begin; unit < end; unit += cached)
      for (int64_t i = block; i < last; ++i) add(i, part, unit, min64(end, unit + cached), unit == begin, stretches);
  }

  int64_t filters_of(int64_t block) const { return K * block / k_blocks; }

  // Adds up units of a part for one block of filters and channels.
  void add(int64_t block, int64_t part, int64_t unit, int64_t last_unit, bool begins, Stretch *stretches) {
    const int64_t k = filters_of(block % k_blocks), filters = filters_of(block % k_blocks + 1) - k;
    const int64_t c = block / k_blocks * 2 * T::L;
    const int nv = C - c >= 2 * T::L ? 2 : 1;
    const auto tile = (nv == 2 ? grad_weight_tiles<T, 2>() : grad_weight_tiles<T, 1>())[filters];
    float *const sum = sums + (part * K + k) * taps + c;
    for (int64_t f = 0; begins && f < filters; ++f)
      for (int64_t t = 0; t < R * S; ++t)
        for (int v = 0; v < nv; ++v) T::store(sum + f * taps + t * C + v * T::L, T::set(0.f));
    for (; unit < last_unit; ++unit) {
      if (block == 0) sum_dy(part, unit);
      for (int64_t r = 0; r < R; ++r)
        for (int64_t s = 0; s < S; ++s)
          if (const int64_t count = find_stretches(unit, r, s, c, k, stretches))
            tile(stretches, count, x, stride_w * C, dy, K, sum + (r * S + s) * C, taps);
    }
  }

  // The outputs of a unit whose tap (r, s) lies inside of the image, for channels from c on and filters from k on.
  int64_t find_stretches(int64_t unit, int64_t r, int64_t s, int64_t c, int64_t k, Stretch *stretches) const {
    const int64_t offset = s * dilation_w - pad_left;
    const int64_t begin = offset >= 0 ? 0 : min64(Q, ceil_div(-offset, stride_w));
    const int64_t end = offset >= W ? 0 : min64(Q, (W - 1 - offset) / stride_w + 1);
    if (begin >= end) return 0;
    const int64_t first = images > 1 ? unit * images : unit / chunks, row = images > 1 ? 0 : unit % chunks * rows;
    int64_t count = 0;
    for (int64_t n = first; n < min64(N, first + images); ++n)
      for (int64_t p = row; p < min64(P, row + rows); ++p) {
        const int64_t h = x_row(p, r);
        if (h < 0) continue;
        stretches[count++] = {((n * H + h) * W + begin * stride_w + offset) * C + c, ((n * P + p) * Q + begin) * K + k,
                              end - begin};
      }
    return count;
  }

  // Adds dy over a unit's pixels, which are about to be used.
  void sum_dy(int64_t part, int64_t unit) const {
    const int64_t first = images > 1 ? unit * images * P * Q : (unit / chunks * P + unit % chunks * rows) * Q;
    const int64_t last = images > 1 ? min64(N, (unit + 1) * images) * P * Q
                                    : (unit / chunks * P + min64(P, (unit % chunks + 1) * rows)) * Q;
    add_pixels<T>(dy, K, first, last, dy_sums + part * K);
  }

  // Whether all of dw[k] is finite.
  bool finish(int64_t k) const {
    for (int64_t t = 0; t < taps; t += T::L) {
      typename T::V sum = T::set(0.f);
      for (int64_t part = 0; part < parts; ++part) sum = sum + T::load(sums + (part * K + k) * taps + t);
      T::store(dw + k * taps + t, sum);
    }
    return subtract_filter<T>(w + k * taps, taps, dy_sums + k, parts, K, dw + k * taps);
  }
};

// dw - w * sum dy for a dw = sum dy * x that a convolution has computed.
template <class T> struct AfterConvolution : Geometry {
  const float *dy, *w;
  float *dw;
  int64_t stretches, parts; // stretches of DW_PIXELS
  float *dy_sums;           // [parts][K]
  Flag failed;              // never: dy_sums is the only memory that it needs

  AfterConvolution(const Geometry &s, const float *dy_, const float *w_, float *dw_)
      : Geometry(s), dy(dy_), w(w_), dw(dw_), stretches(ceil_div(N * P * Q, DW_PIXELS)),
        parts(min64(stretches, TASKS)) {}

  int64_t tasks() const { return parts; }
  double operations() const { return 1. * N * P * Q * K / T::L; }

  void run(int64_t part, int64_t last) const {
    for (; part < last; ++part) {
      memset(dy_sums + part * K, 0, static_cast<size_t>(K) * sizeof(float));
      for (int64_t i = stretches * part / parts; i < stretches * (part + 1) / parts; ++i)
        add_pixels<T>(dy, K, i * DW_PIXELS, min64(N * P * Q, (i + 1) * DW_PIXELS), dy_sums + part * K);
    }
  }

  // Whether all of dw[k] is finite.
  bool finish(int64_t k) const { return subtract_filter<T>(w + k * taps, taps, dy_sums + k, parts, K, dw + k * taps); }
};

// Runs a kernel of dw and finishes its filters, one by one.
template <class T, class Kernel> int launch_and_finish(Kernel &kernel) {
  if (const int status = launch(kernel)) return status;
  Flag infinite;
  for_each(kernel.K, 1. * kernel.parts * kernel.K * kernel.taps / T::L, [&](int64_t k) {
    if (!kernel.finish(k)) infinite.set();
  });
  return infinite.value ? ADDER_NOT_FINITE : ADDER_OK;
}

template <class T>
int grad_weight_by_products(const Geometry &s, const float *dy, const float *x, const float *w, float *dw) {
  OuterProducts<T> kernel(s, dy, x, w, dw);
  Scratch<float> sums(kernel.parts * kernel.K * kernel.taps), dy_sums(kernel.parts * kernel.K);
  if (!sums || !dy_sums) return ADDER_NO_MEMORY;
  kernel.sums = sums;
  kernel.dy_sums = dy_sums;
  return launch_and_finish<T>(kernel);
}

template <class T>
int grad_weight_after_convolution(const Geometry &s, const float *dy, const float *w, float *dw) {
  AfterConvolution<T> kernel(s, dy, w, dw);
  Scratch<float> dy_sums(kernel.parts * kernel.K);
  if (!dy_sums) return ADDER_NO_MEMORY;
  kernel.dy_sums = dy_sums;
  return launch_and_finish<T>(kernel);
}

} // namespace ADDER_NAMESPACE
#endif
