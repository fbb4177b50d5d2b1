// y = -sum |x - w| over bytes, Eq. 2, for filters over several channels; depthwise layers are in int8_depthwise.h.
//
// A *tile* is MR pixels times NV vectors of L filters, its sums in registers. For each word of the patch it broadcasts
// the word of every pixel and takes the word of every filter from the *panel*, the filters packed as [word][NV][L][8
// bytes]. A tile's pixels are reached through MR pointers, so it may span rows of the output, and small images fill it
// too.
#ifndef ADDER_INT8_FORWARD_H
#define ADDER_INT8_FORWARD_H

#include "int8_output.h"
#include "int8_plan.h"
#include "int8_vec.h"

namespace ADDER_NAMESPACE {

// Sums of a tile take MR * NV registers, the filters' words NV, the pixel's word one and the difference one.
constexpr int MOST_VECTORS = Bytes::REGISTERS >= 32 ? 3 : 2;
constexpr int MOST_PIXELS = Bytes::REGISTERS >= 32 ? 8 : 6;
constexpr int64_t MOST_FILTERS = MOST_VECTORS * Bytes::L;

struct Patch {
  const int32_t *offsets;
  int64_t full, count;
  uint64_t tail;
};

template <int MR, int NV>
__attribute__((noinline)) static void sum_tile(const uint8_t *const *pixels, const Patch &patch, const uint8_t *panel,
                                               int32_t *sums) {
  using V = Bytes;
  const uint8_t *x[MR];
  for (int m = 0; m < MR; ++m) x[m] = pixels[m];
  for (int i = 0; i < MR * NV * V::L; ++i) sums[i] = 0;
  for (int64_t begin = 0; begin < patch.count;) {
    const int64_t end = patch.count - begin > V::MOST_WORDS ? begin + V::MOST_WORDS : patch.count;
    V::Sum sum[MR][NV];
#pragma GCC unroll 24
    for (int i = 0; i < MR * NV; ++i) sum[i / NV][i % NV] = V::zero();
    int64_t i = begin;
    for (; i < smaller(end, patch.full); ++i, panel += NV * V::L * 8) {
      const int64_t offset = patch.offsets[i];
      typename V::Reg w[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) w[v] = V::load(panel + v * V::L * 8);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const auto word = V::broadcast(x[m] + offset);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[m][v] = V::add(sum[m][v], word, w[v]);
      }
    }
    for (; i < end; ++i, panel += NV * V::L * 8) {
      const int64_t offset = patch.offsets[i];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const auto word = V::keep(V::broadcast(x[m] + offset), patch.tail);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[m][v] = V::add(sum[m][v], word, V::load(panel + v * V::L * 8));
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) V::add_to(sums + (m * NV + v) * V::L, sum[m][v]);
    begin = end;
  }
}

using SumTile = void (*)(const uint8_t *const *, const Patch &, const uint8_t *, int32_t *);

template <int MR> static SumTile tile_of(int nv) {
  static_assert(MOST_VECTORS <= 3, "a line for each");
  if constexpr (MOST_VECTORS >= 3)
    if (nv == 3) return sum_tile<MR, 3>;
  return nv == 2 ? sum_tile<MR, 2> : sum_tile<MR, 1>;
}

// The tile for `pixels` pixels and nv vectors; the pixels that it sums are rounded up to a size that exists.
static SumTile choose_tile(int64_t pixels, int nv, int *taken) {
  if (pixels > 4) return *taken = MOST_PIXELS, tile_of<MOST_PIXELS>(nv);
  if (pixels > 2) return *taken = 4, tile_of<4>(nv);
  if (pixels > 1) return *taken = 2, tile_of<2>(nv);
  return *taken = 1, tile_of<1>(nv);
}

// The filters of one block: consecutive channels of one group.
struct FilterBlock {
  int64_t group, first, filters; // first: counted over all groups
  int nv;
  FilterBlock(const adder_shape &s, int64_t index) {
    const int64_t Kg = s.K / s.groups, per_group = quotient_up(Kg, MOST_FILTERS);
    group = index / per_group;
    // As equal as they can be: 64 filters are 24, 24 and 16, 32 are 16 and 16.
    const int64_t vectors = quotient_up(Kg, Bytes::L), part = index % per_group;
    const int64_t begin = vectors * part / per_group, end = vectors * (part + 1) / per_group;
    nv = (int)(end - begin);
    first = group * Kg + begin * Bytes::L;
    filters = smaller(Kg, end * Bytes::L) - begin * Bytes::L;
  }
  static int64_t count(const adder_shape &s) { return s.groups * quotient_up(s.K / s.groups, MOST_FILTERS); }
};

static int64_t panel_bytes(const Words &words, int nv) { return words.count() * nv * Bytes::L * 8; }

static int64_t packed_size_of_groups(const adder_shape &s) {
  const Words words(s, 0);
  int64_t size = 0;
  for (int64_t b = 0; b < FilterBlock::count(s); ++b) size += panel_bytes(words, FilterBlock(s, b).nv);
  return size;
}

static void pack_groups(const adder_shape &s, const uint8_t *w, uint8_t *packed) {
  // In a filter the words of a piece lie side by side, as in the image.
  const Words words(s, 0);
  const int64_t filter_bytes = s.R * s.S * (s.C / s.groups);
  for (int64_t b = 0; b < FilterBlock::count(s); ++b) {
    const FilterBlock block(s, b);
    const int64_t lanes = block.nv * Bytes::L;
    for (int64_t i = 0; i < words.count(); ++i) {
      const bool masked = i >= words.full();
      const int64_t piece = masked ? i - words.full() : i / words.whole;
      const int64_t at = piece * words.bytes + 8 * (masked ? words.whole : i % words.whole);
      for (int64_t lane = 0; lane < lanes; ++lane, packed += 8) {
        std::memset(packed, 0, 8);
        if (lane < block.filters)
          std::memcpy(packed, w + (block.first + lane) * filter_bytes + at, masked ? words.bytes % 8 : 8);
      }
    }
  }
}

struct GroupsCall {
  const adder_shape &s;
  const uint8_t *x, *packed;
  const adder_int8_epilogue *epilogue;
  int32_t *y;
  Rows rows;
  Words words;
  Tasks tasks;
  const int32_t *offsets;
  const int64_t *panels; // offset of each block's panel
  int32_t status;

  void run_task(int64_t index);
  void write_tile(const int32_t *sums, int64_t pixels, const FilterBlock &block, int64_t at) const;
  void run_block(const FilterBlock &block, const uint8_t *panel, const uint8_t *source, int64_t first_pixel,
                 int64_t pixels) const;
};

// The sums of a tile of `pixels` pixels, the first of which begins at element `at` of [N, P, Q, K].
inline void GroupsCall::write_tile(const int32_t *sums, int64_t pixels, const FilterBlock &block, int64_t at) const {
  constexpr int L = Bytes::L;
  const auto write = block.nv == 1 ? write_pixel<L> : block.nv == 2 ? write_pixel<2 * L> : write_pixel<3 * L>;
  for (int64_t m = 0; m < pixels; ++m)
    write(sums + m * block.nv * L, block.first, at + m * s.K + block.first, block.filters, epilogue, y);
}

// Outputs [first_pixel, first_pixel + pixels), counted over the image rows whose input begins at `source`.
inline void GroupsCall::run_block(const FilterBlock &block, const uint8_t *panel, const uint8_t *source,
                                  int64_t first_pixel, int64_t pixels) const {
  const Patch patch{offsets, words.full(), words.count(), words.tail};
  const uint8_t *group = source + block.group * (s.C / s.groups);
  alignas(64) int32_t sums[MOST_PIXELS * MOST_FILTERS];
  for (int64_t begin = 0; begin < pixels;) {
    int taken;
    const SumTile tile = choose_tile(pixels - begin, block.nv, &taken);
    const int64_t here = smaller(taken, pixels - begin);
    const uint8_t *at[MOST_PIXELS];
    for (int m = 0; m < taken; ++m) {
      const int64_t pixel = begin + smaller(m, here - 1); // a pixel that is not there is summed for nothing
      at[m] = group + pixel / s.Q * s.stride_h * rows.bytes + pixel % s.Q * s.stride_w * s.C;
    }
    tile(at, patch, panel, sums);
    write_tile(sums, here, block, (first_pixel + begin) * s.K);
    begin += here;
  }
}

inline void GroupsCall::run_task(int64_t index) {
  const int64_t part = index % tasks.parts, chunk = index / tasks.parts % tasks.chunks;
  const int64_t image = index / tasks.parts / tasks.chunks;
  const int64_t row_begin = chunk * tasks.rows, row_end = smaller(s.P, row_begin + tasks.rows);
  uint8_t *copy = nullptr;
  if (!rows.in_place) {
    copy = (uint8_t *)adder::allocate(rows.size(row_end - row_begin));
    if (copy == nullptr) {
      __atomic_store_n(&status, ADDER_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
  }
  const uint8_t *source = rows.read(x + image * s.H * s.W * s.C, row_begin, row_end, copy);
  for (int64_t b = tasks.blocks * part / tasks.parts; b < tasks.blocks * (part + 1) / tasks.parts; ++b)
    run_block(FilterBlock(s, b), packed + panels[b], source, (image * s.P + row_begin) * s.Q,
              (row_end - row_begin) * s.Q);
  if (copy) adder::release(copy);
}

static int forward_groups(const adder_shape &s, const uint8_t *x, const uint8_t *packed, uint8_t pad,
                          const adder_int8_epilogue *epilogue, int32_t *y) {
  const Rows rows(s, pad, Words(s, 0).tail != 0);
  const Words words(s, rows.bytes);
  const int64_t blocks = FilterBlock::count(s);
  int64_t *panels = (int64_t *)adder::allocate(blocks * sizeof(int64_t) + words.count() * sizeof(int32_t));
  if (panels == nullptr) return ADDER_NO_MEMORY;
  int32_t *offsets = (int32_t *)(panels + blocks);
  words.offsets(offsets);
  for (int64_t b = 0, at = 0; b < blocks; ++b) {
    panels[b] = at;
    at += panel_bytes(words, FilterBlock(s, b).nv);
  }
  GroupsCall call{s, x, packed, epilogue, y, rows, words, Tasks(s, rows.bytes, blocks), offsets, panels, ADDER_OK};
  adder::parallel_for(
      call.tasks.count, 1,
      [](int64_t begin, int64_t end, void *context) {
        for (int64_t i = begin; i < end; ++i) ((GroupsCall *)context)->run_task(i);
      },
      &call);
  adder::release(panels);
  return call.status;
}

} // namespace ADDER_NAMESPACE
#endif
