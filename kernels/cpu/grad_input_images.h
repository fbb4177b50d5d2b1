// dx with a lane for each of several images.
#ifndef ADDER_GRAD_INPUT_IMAGES_H
#define ADDER_GRAD_INPUT_IMAGES_H

#include "grad_input_images_tile.h"

namespace ADDER_NAMESPACE {

// How many images fill lanes: a multiple of L. The pixels of a matrix product count as images of one row, `width`
// pixels wide; so few that there are many tasks.
template <class T> struct LaneFill {
  int64_t images, width;
  int64_t rest = 0; // pixels of a matrix product that are left

  explicit LaneFill(const Shape &s) : images(s.N / T::L * T::L), width(s.W) {
    if (!s.is_product()) return;
    const int64_t pixels = s.pixels();
    const int64_t widest = min64(FLAT_ROW, IMAGES_ROW / ((s.C + s.K) * T::L * 4));
    width = min64(pixels / (T::L * TASKS), widest) / IMAGES_PIXELS * IMAGES_PIXELS;
    width = max64(IMAGES_PIXELS, width);
    images = pixels / width / T::L * T::L;
    rest = pixels - images * width;
  }

  // A rest of a matrix product is filled up with zeros, where that is little; other images that fill no lanes take
  // other kernels.
  bool suits() const {
    const int64_t filled = rest > 0 ? T::L * width - rest : 0;
    return images > 0 && filled * 8 <= images * width;
  }

  // The images that fill whole vectors.
  Shape of(Shape s) const {
    s.N = images;
    if (s.is_product()) {
      s.H = s.P = 1;
      s.W = s.Q = width;
      s.last_width = -1;
    }
    return s;
  }
};

template <class T> struct GradInputImageLanes : Shape {
  const float *dy, *x, *w;
  float *dx;
  DyPadding pad;          // columns of zeros beside dy
  int64_t padded;         // all columns
  int64_t slots;          // rows of dy that a row of x meets: they stay, row p in slot p % slots
  int64_t parts, filters; // of a part: K is cut, so that dy stays in the first-level cache
  const float shift;      // added to x and w, see median_shift
  float *panels;          // [R][parts][C][S in order_columns][filters]
  int64_t *order;
  int64_t chunk, chunks; // rows of a task
  Flag failed;

  GradInputImageLanes(const Shape &s, const float *dy_, const float *x_, const float *w_, float *dx_, int64_t *order_)
      : Shape(LaneFill<T>(s).of(s)), dy(dy_), x(x_), w(w_), dx(dx_), pad(*this), padded(pad.left + Q + pad.right),
        slots((R - 1) * dilation_h / stride_h + 1), shift(median_shift(x, pixels() * C)), panels(nullptr),
        order(order_) {
    order_columns(*this, order);
    parts = ceil_div(K, max_filters());
    filters = parts == 1 ? K : ceil_div(ceil_div(K, parts), 8) * 8;
    chunk = max64(1, ceil_div(H, ceil_div(TASKS, max64(1, N / T::L))));
    chunks = ceil_div(H, chunk);
  }
  int64_t tasks() const { return N / T::L * chunks; }
  double operations() const { return 3. * N * P * Q * taps * K / T::L; }

  // The most columns of the kernel that belong to one phase of pixels.
  int64_t max_columns() const {
    int64_t largest = 1;
    for (int64_t phase = 0; phase < stride_w; ++phase) {
      int64_t columns = 0;
      for (int64_t t = 0; t < S; ++t) columns += t * dilation_w % stride_w == phase;
      largest = max64(largest, columns);
    }
    return largest;
  }
  // Bytes of dy that a tile reads for each filter in one row of the kernel.
  static int64_t bytes_of_filter(int64_t columns) { return (IMAGES_PIXELS - 1 + columns) * T::L * 4; }
  int64_t max_filters() const {
    const int64_t columns = max_columns();
    return max64(8, min64(2 * CHAIN / columns, IMAGES_BYTES / bytes_of_filter(columns)) / 8 * 8);
  }
  // K is rounded up in each of its parts, and a tap is loaded early.
  int64_t panel_floats() const { return R * parts * C * S * filters + 1; }
  int64_t pack_tasks() const { return R * parts; }
  void pack(int64_t task) const {
    const int64_t r = task / parts, k_begin = task % parts * filters, k_end = min64(K, k_begin + filters);
    for (int64_t i = 0; i < S; ++i)
      for (int64_t c = 0; c < C; c += 8) {
        const float *const from = w + (r * S + order[i]) * C + c;
        float *const to = panels + ((task * C + c) * S + i) * filters - k_begin;
        int64_t k = k_begin;
#if defined(__AVX2__)
        if (c + 8 <= C)
          for (; k + 8 <= k_end; k += 8) transpose8(from + k * taps, taps, to + k, S * filters);
#endif
        for (; k < k_end; ++k)
          for (int64_t v = 0; v < min64(8, C - c); ++v) to[v * S * filters + k] = from[k * taps + v];
        for (int64_t v = 0; v < min64(8, C - c) && shift != 0; ++v)
          for (k = k_begin; k < k_end; ++k) to[v * S * filters + k] += shift;
      }
  }

  // The taps of a row's pixels of one phase. `last` ends what all channels' tiles go over before they take what
  // follows.
  int64_t segments_of_row(int64_t h, int64_t phase, Segment *segments) const {
    int64_t columns = 0, count = 0, bytes = 0, chain = 0;
    for (int64_t i = 0; i < S; ++i) columns += column_meets(phase, order[i]);
    for (int64_t r = 0; r < R && columns > 0; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t in_part = min64(filters, K - part * filters);
        const int64_t more = in_part * bytes_of_filter(columns), length = columns * in_part;
        if (count > 0 && (bytes + more > IMAGES_BYTES || chain + length > 2 * CHAIN)) {
          segments[count - 1].last = true;
          bytes = chain = 0;
        }
        bytes += more;
        chain += length;
        int64_t next = -1; // where the last segment's source ends
        for (int64_t i = 0; i < S; ++i) {
          if (!column_meets(phase, order[i])) continue;
          const int64_t column = pad.left + dy_column(phase, order[i]);
          const int64_t source = ((p % slots * parts + part) * padded + column) * filters;
          const int64_t tap = ((r * parts + part) * C * S + i) * filters;
          if (source == next && tap == segments[count - 1].panel + segments[count - 1].length)
            segments[count - 1].length += in_part;
          else segments[count++] = {source, tap, in_part, false};
          next = source + in_part;
        }
      }
    }
    if (count > 0) segments[count - 1].last = true;
    return count;
  }
  int64_t max_segments() const { return R * S * parts; }

  struct Buffers {
    float *rows, *row_sums; // dy: [slots][parts][padded][filters][L], and [slots][padded][L] summed over K
    float *xs, *sum;        // x and then dx: [W][C][L]; a tile's sums: [C][pixels][L]
    float *totals;          // [pixels][L] of dy over all taps
    Segment *segments;
    int64_t *row_in_slot; // which row of dy lies in a slot; -1: none
    unsigned char *kinds; // [W][C]
  };
  enum Kind : unsigned char { MEDIANS, DIFFERENCES, ONE_BY_ONE };

  void run(int64_t begin, int64_t end) {
    Scratch<float> rows(slots * parts * padded * filters * T::L), row_sums(slots * padded * T::L), xs(W * C * T::L),
        sum(C * IMAGES_PIXELS * T::L), totals(W * T::L);
    Scratch<Segment> segments(max_segments());
    Scratch<int64_t> row_in_slot(slots);
    Scratch<unsigned char> kinds(W * C);
    if (!rows || !row_sums || !xs || !sum || !totals || !segments || !row_in_slot || !kinds) return failed.set();
    const Buffers b = {rows, row_sums, xs, sum, totals, segments, row_in_slot, kinds};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / chunks * T::L, first = task % chunks * chunk;
      for (int64_t i = 0; i < slots; ++i) row_in_slot[i] = -1;
      for (int64_t h = first; h < min64(H, first + chunk); ++h) row_of_images(b, image, h);
    }
  }

  // Row h of L images.
  void row_of_images(const Buffers &b, int64_t image, int64_t h) const {
    for (int64_t r = 0; r < R; ++r)
      if (const int64_t p = dy_row(h, r); p >= 0 && b.row_in_slot[p % slots] != p) take_dy(b, image, p);
    const int64_t place = (image * H + h) * W * C;
    interleave<T>(x + place, H * W * C, W * C, b.xs);
    for (int64_t i = 0; i < W * C * T::L && shift != 0; ++i) b.xs[i] += shift;
    const bool plain = classify(b);
    for (int64_t phase = 0; phase < phases(); ++phase) row_of_tiles(b, h, phase, plain);
    separate<T>(b.xs, W * C, dx + place, H * W * C);
    if (plain) return;
    for (int64_t j = 0; j < W; ++j)
      for (int64_t c = 0; c < C; ++c)
        if (b.kinds[j * C + c] == ONE_BY_ONE)
          for (int64_t lane = 0; lane < T::L; ++lane)
            grad_input_pixel(*this, dy, x, w, dx, ADDER_CLIPPED, image + lane, h, j, c, c + 1);
  }

  // Row p of dy into its slot, with its columns of zeros and its sums over the filters.
  void take_dy(const Buffers &b, int64_t image, int64_t p) const {
    typedef typename T::V V;
    const int64_t pixel = filters * T::L, slot = p % slots;
    const float *const from = dy + (image * P + p) * Q * K;
    for (int64_t part = 0; part < parts; ++part) {
      float *const to = b.rows + (slot * parts + part) * padded * pixel;
      const int64_t in_part = min64(filters, K - part * filters);
      memset(to, 0, static_cast<size_t>(pad.left * pixel) * sizeof(float));
      memset(to + (pad.left + Q) * pixel, 0, static_cast<size_t>(pad.right * pixel) * sizeof(float));
      if (in_part == K) interleave<T>(from, P * Q * K, Q * K, to + pad.left * pixel);
      else
        for (int64_t q = 0; q < Q; ++q)
          interleave<T>(from + q * K + part * filters, P * Q * K, in_part, to + (pad.left + q) * pixel);
      float *total = b.row_sums + slot * padded * T::L;
      for (int64_t j = 0; j < padded; ++j, total += T::L) {
        V sum = T::set(0.f), other = part == 0 ? sum : T::load(total);
        int64_t k = 0;
        for (const float *const values = to + j * pixel; k < in_part; k += 2) {
          sum = sum + T::load(values + k * T::L);
          if (k + 1 < in_part) other = other + T::load(values + (k + 1) * T::L);
        }
        T::store(total, sum + other);
      }
    }
    b.row_in_slot[slot] = p;
  }

  // Which way each pixel and channel is computed, by its x in all images. True: all by medians, and nothing was
  // written.
  bool classify(const Buffers &b) const {
    typedef typename T::V V;
    const auto medians = [](V v) { return T::all_le(T::set(-1.f), v) && T::all_le(v, T::set(MEDIAN_LIMIT)); };
    int64_t i = 0;
    while (i < W * C && medians(T::load(b.xs + i * T::L))) ++i;
    if (i == W * C) return true;
    for (i = 0; i < W * C; ++i) {
      const V v = T::load(b.xs + i * T::L);
      b.kinds[i] = medians(v) ? MEDIANS : T::all_le(T::abs(v), T::set(FLT_MAX)) ? DIFFERENCES : ONE_BY_ONE;
    }
    return false;
  }

  // Sum of dy over all that each pixel's taps meet.
  void tap_sums(const Buffers &b, int64_t h, int64_t phase, int64_t pixels) const {
    for (int64_t j = 0; j < pixels * T::L; ++j) b.totals[j] = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t p = dy_row(h, r);
      if (p < 0) continue;
      for (int64_t s = 0; s < S; ++s) {
        if (!column_meets(phase, s)) continue;
        const float *from = b.row_sums + (p % slots * padded + pad.left + dy_column(phase, s)) * T::L;
        for (int64_t j = 0; j < pixels * T::L; j += T::L)
          T::store(b.totals + j, T::load(b.totals + j) + T::load(from + j));
      }
    }
  }

  void row_of_tiles(const Buffers &b, int64_t h, int64_t phase, bool plain) const {
    const int64_t pixels = ceil_div(W - phase, stride_w), step = stride_w * C * T::L;
    const int64_t count = segments_of_row(h, phase, b.segments);
    if (count == 0) { // no output takes these pixels
      for (int64_t j = 0; j < pixels; ++j)
        memset(b.xs + phase * C * T::L + j * step, 0, static_cast<size_t>(C * T::L) * sizeof(float));
      return;
    }
    tap_sums(b, h, phase, pixels);
    const int64_t tiles = ceil_div(pixels, IMAGES_PIXELS);
    const EvenParts sizes(pixels, tiles);
    for (int64_t i = 0, j = 0; i < tiles; j += sizes.size(i++)) {
      for (const Segment *begin = b.segments, *const end = begin + count, *stop; begin != end; begin = stop) {
        stop = end_of_chain(begin);
        tile(b, phase, j, sizes.size(i), begin, stop, plain);
      }
      finish(b, phase, j, sizes.size(i), b.segments + count, plain);
    }
  }
  static const Segment *end_of_chain(const Segment *segment) {
    while (!segment->last) ++segment;
    return segment + 1;
  }

  // Which way pixels j to j + mr of a phase are computed, for channel c.
  Kind kind_of(const Buffers &b, int64_t phase, int64_t j, int64_t mr, int64_t c, bool plain) const {
    Kind worst = MEDIANS;
    for (int64_t m = 0; m < mr && !plain; ++m) {
      const Kind kind = static_cast<Kind>(b.kinds[(phase + (j + m) * stride_w) * C + c]);
      if (kind > worst) worst = kind;
    }
    return worst;
  }

  // `channels` channels from c on, of pixels j to j + mr of a phase.
  void tile_as(bool median, const Buffers &b, int64_t phase, int64_t j, int64_t mr, const Segment *begin,
               const Segment *stop, int64_t c, int64_t channels) const {
    images_tiles<T>(median)[mr](begin, stop, b.rows + j * filters * T::L, filters * T::L, panels + c * S * filters,
                                S * filters, b.xs + ((phase + j * stride_w) * C + c) * T::L, stride_w * C * T::L,
                                channels, b.sum + c * mr * T::L, begin == b.segments);
  }

  // All channels of pixels j to j + mr of a phase: what these segments add to their sums.
  void tile(const Buffers &b, int64_t phase, int64_t j, int64_t mr, const Segment *begin, const Segment *stop,
            bool plain) const {
    for (int64_t c = 0, n; c < C; c += n) {
      const Kind kind = kind_of(b, phase, j, mr, c, plain);
      for (n = plain ? C - c : 1; c + n < C && kind_of(b, phase, j, mr, c + n, plain) == kind;) ++n;
      tile_as(kind == MEDIANS, b, phase, j, mr, begin, stop, c, n);
    }
  }

  // Moves the sums to where x was.
  void finish(const Buffers &b, int64_t phase, int64_t j, int64_t mr, const Segment *end, bool plain) const {
    typedef typename T::V V;
    const int64_t step = stride_w * C * T::L;
    float *to = b.xs + (phase + j * stride_w) * C * T::L, *sum = b.sum;
    for (int64_t c = 0; c < C; ++c, to += T::L, sum += mr * T::L) {
      if (kind_of(b, phase, j, mr, c, plain) == MEDIANS) {
        V worst = T::set(0.f);
        for (int64_t m = 0; m < mr; ++m) {
          const V value = T::load(sum + m * T::L) - T::load(to + m * step) * T::load(b.totals + (j + m) * T::L);
          T::store(sum + m * T::L, value);
          worst = T::fma(value, T::set(0.f), worst); // 0, or NaN for what is not finite
        }
        if (!T::all_le(worst, T::set(0.f))) // an infinity in dy, or on the way
          for (const Segment *begin = b.segments, *stop; begin != end; begin = stop) {
            stop = end_of_chain(begin);
            tile_as(false, b, phase, j, mr, begin, stop, c, 1);
          }
      }
      for (int64_t m = 0; m < mr; ++m) T::store(to + m * step, T::load(sum + m * T::L));
    }
  }
};

// dx of the images that fill whole vectors, for finite filters.
template <class T>
int grad_input_by_images(const Shape &shape, const float *dy, const float *x, const float *w, float *dx) {
  Scratch<int64_t> order(shape.S);
  if (!order) return ADDER_NO_MEMORY;
  GradInputImageLanes<T> kernel(shape, dy, x, w, dx, order);
  Scratch<float> panels(kernel.panel_floats());
  if (!panels) return ADDER_NO_MEMORY;
  kernel.panels = panels;
  for_each(kernel.pack_tasks(), 1. * kernel.K * kernel.taps / T::L, [&](int64_t task) { kernel.pack(task); });
  if (const int status = launch(kernel)) return status;
  const int64_t rest = LaneFill<T>(shape).rest;
  if (rest == 0) return ADDER_OK;
  // The remaining pixels of a matrix product, filled up with zeros, as one more vector of images.
  const int64_t pixels = kernel.N * kernel.W, room = T::L * kernel.W;
  const size_t bytes = static_cast<size_t>(rest) * sizeof(float); // of a channel
  Scratch<float> copy(room * (kernel.K + 2 * kernel.C));
  if (!copy) return ADDER_NO_MEMORY;
  float *const rest_dy = copy, *const rest_x = rest_dy + room * kernel.K, *const rest_dx = rest_x + room * kernel.C;
  memset(rest_dy, 0, static_cast<size_t>(room * (kernel.K + kernel.C)) * sizeof(float));
  memcpy(rest_dy, dy + pixels * kernel.K, bytes * static_cast<size_t>(kernel.K));
  memcpy(rest_x, x + pixels * kernel.C, bytes * static_cast<size_t>(kernel.C));
  kernel.dy = rest_dy, kernel.x = rest_x, kernel.dx = rest_dx, kernel.N = T::L;
  kernel.run(0, kernel.tasks());
  memcpy(dx + pixels * kernel.C, rest_dx, bytes * static_cast<size_t>(kernel.C));
  return kernel.failed.value ? ADDER_NO_MEMORY : ADDER_OK;
}

} // namespace ADDER_NAMESPACE
#endif
