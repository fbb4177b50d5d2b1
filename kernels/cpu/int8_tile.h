// The register tile of the int8 forward: MR pixels times F filters.
#ifndef ADDER_INT8_TILE_H
#define ADDER_INT8_TILE_H

#include "int8_output.h"
#include "int8_plan.h"
#include "tiles.h"

namespace ADDER_NAMESPACE {

struct Patch {
  const WordRun *runs, *full, *end; // runs of full words, up to `full`, then of masked ones
  uint64_t tail;
  int64_t other; // from a pixel of the group to the same pixel of the next one, for tiles of two groups
};

// For each word of the patch, the word of F filters and the word of each pixel. A tile's pixels are reached by
// pointers, so that it may go on in the next row of outputs. PAIR: of two groups, whose filters are half of a vector
// each.
template <class V, int MR, bool PAIR>
__attribute__((noinline)) static void sum_tile(const uint8_t *const *pixels, const Patch &patch, const uint8_t *panel,
                                               const Output<V> &out, int64_t pixel) {
  constexpr int64_t WORD = V::F * 8;
  constexpr bool FILLS = V::MOST_WORDS < INT32_MAX;
  static_assert(!(PAIR && FILLS), "a pair's sums are never emptied");
  // What the loops do not need waits in memory: GCC would put it into vector registers, from where it comes back only
  // after the tile before has left them.
  const Patch *volatile const patch_later = &patch;
  const Output<V> *volatile const out_later = &out;
  volatile const int64_t pixel_later = pixel;
  const uint8_t *x[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) x[m] = pixels[m];
  typename V::Sums sums[MR];
  typename V::Ints totals[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) sums[m] = V::zero(), totals[m] = typename V::Ints{};
  [[maybe_unused]] int64_t words = 0;
  const auto make_room = [&](int64_t next) ADDER_LAMBDA_INLINE {
    if constexpr (FILLS) {
      words += next;
      if (words <= V::MOST_WORDS) return;
      words = next;
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) totals[m] += V::total(sums[m]), sums[m] = V::zero();
    }
  };
  const auto step = [&](int64_t i) ADDER_LAMBDA_INLINE {
    const auto w = V::load(panel);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      if constexpr (PAIR) sums[m] = V::add_pair(sums[m], x[m] + i, x[m] + (i + patch.other), w);
      else sums[m] = V::add(sums[m], x[m] + i, w);
      V::pin(sums[m]);
    }
    panel += WORD;
  };
  const WordRun *run = patch.runs;
  for (; run < patch_later->full; ++run) {
    make_room(run->words);
    int64_t i = run->offset;
    const int64_t last = i + 8 * run->words;
    for (; i + 8 < last; i += 16) step(i), step(i + 8);
    if (i < last) step(i);
  }
  for (const WordRun *const end = patch_later->end; run < end; ++run, panel += WORD) {
    make_room(1);
    const auto w = V::load(panel);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const uint8_t *const at = x[m] + run->offset;
      if constexpr (PAIR) sums[m] = V::add_pair_masked(sums[m], at, at + patch.other, w, patch.tail);
      else sums[m] = V::add_masked(sums[m], at, w, patch.tail);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    if constexpr (PAIR) totals[m] = V::total_of_pair(sums[m]);
    else totals[m] = FILLS ? totals[m] + V::total(sums[m]) : V::total(sums[m]);
  }
  out_later->template write<MR>(totals, pixel_later);
}

} // namespace ADDER_NAMESPACE
#endif
