// Filters of bytes as the int8 tiles read them.
//
// A *panel* is a block of F filters of one group: for each word of the patch their eight bytes side by side, in the
// order of place_of, zeros where there is no filter or no tap. Where the filters of two groups fill a vector, a block
// has both, in their own order.
#ifndef ADDER_INT8_PACK_H
#define ADDER_INT8_PACK_H

#include "int8_plan.h"
#include "int8_vec.h"

namespace ADDER_NAMESPACE {

// The filters of one block.
struct FilterBlock {
  int64_t group, first, filters; // first: counted over all groups
  bool narrow;                   // in vectors of NarrowBytes
  bool pair;                     // of this group and the next
  int64_t panel;                 // offset in bytes

  int64_t lanes() const { return narrow ? NarrowBytes::F : WidestBytes::F; }
};

// Whether the filters of two groups fill a vector.
static inline bool in_pairs(const Geometry &s) { return NarrowBytes::PAIRS && 2 * s.Kg == NarrowBytes::F; }

static inline int64_t blocks_of_a_group(const Geometry &s) { return ceil_div(s.Kg, WidestBytes::F); }

// Block `index` of a layer whose patches have `words` words.
static inline FilterBlock filter_block(const Geometry &s, int64_t words, int64_t index) {
  constexpr int64_t F = WidestBytes::F;
  if (in_pairs(s)) {
    const int64_t first_group = 2 * index, both = min64(2, s.groups - first_group);
    const int64_t panel = index * NarrowBytes::F * words * 8;
    return {first_group, first_group * s.Kg, both * s.Kg, NarrowBytes::F < F, both == 2, panel};
  }
  const int64_t per_group = blocks_of_a_group(s), group = index / per_group, first = index % per_group * F;
  const int64_t filters = min64(F, s.Kg - first);
  const int64_t last = s.Kg - (per_group - 1) * F; // filters of a group's last block
  const int64_t last_lanes = last <= NarrowBytes::F ? NarrowBytes::F : F;
  const int64_t lanes_before = group * ((per_group - 1) * F + last_lanes) + first;
  return {group, group * s.Kg + first,    filters, filters <= NarrowBytes::F && NarrowBytes::F < F,
          false, lanes_before * words * 8};
}

static inline int64_t filter_blocks(const Geometry &s) {
  return in_pairs(s) ? ceil_div(s.groups, 2) : s.groups * blocks_of_a_group(s);
}

static inline int64_t packed_size_of_channels(const Geometry &s) {
  const int64_t words = Words(s, 0).count();
  const FilterBlock last = filter_block(s, words, filter_blocks(s) - 1);
  return last.panel + last.lanes() * words * 8;
}

// Four words of the filters of one 128-bit quarter of a Word, as the loop in pack_block would: `from` are the quarter's
// four filters.
#if defined(__AVX2__)
template <int F> ADDER_INLINE void pack_quarter(const uint8_t *const *from, int64_t at, uint8_t *panel) {
  for (int pair = 0; pair < 2; ++pair, panel += place_of(2, F)) {
    const __m256i a = _mm256_loadu_si256((const __m256i *)(from[2 * pair] + at));
    const __m256i b = _mm256_loadu_si256((const __m256i *)(from[2 * pair + 1] + at));
    const __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
    _mm_store_si128((__m128i *)panel, _mm256_castsi256_si128(even));
    _mm_store_si128((__m128i *)(panel + 8 * F), _mm256_castsi256_si128(odd));
    _mm_store_si128((__m128i *)(panel + 16 * F), _mm256_extracti128_si256(even, 1));
    _mm_store_si128((__m128i *)(panel + 24 * F), _mm256_extracti128_si256(odd, 1));
  }
}
#endif

template <int F>
void pack_block(const Geometry &s, const Words &words, const FilterBlock &block, const uint8_t *w, uint8_t *panel) {
  static const uint8_t nothing[8] = {};
  const uint8_t *filters[F];
  int64_t step[F]; // 0 where there is no filter
  for (int f = 0; f < F; ++f) {
    const bool there = f < block.filters;
    const int64_t filter = block.pair ? place_of(f, F) / 8 : f; // which is to stand where filter f would
    filters[f] = there ? w + (block.first + filter) * s.taps : nothing;
    step[f] = there;
  }
  for (int64_t piece = 0; piece < words.pieces; ++piece) {
    int64_t at = piece * words.bytes;
    const int64_t end = at + 8 * words.whole;
#if defined(__AVX2__)
    for (; block.filters == F && at + 32 <= end; at += 32, panel += F * 32)
      for (int quarter = 0; quarter < F / 4; ++quarter)
        pack_quarter<F>(filters + 4 * quarter, at, panel + 16 * quarter);
#endif
    for (; at < end; at += 8, panel += F * 8)
#pragma GCC unroll 16
      for (int f = 0; f < F; ++f) memcpy(panel + place_of(f, F), filters[f] + at * step[f], 8);
  }
  memset(panel, 0, static_cast<size_t>(words.masked() * F * 8));
  for (int64_t piece = 0; piece < words.masked(); ++piece, panel += F * 8)
    for (int64_t f = 0; f < block.filters; ++f)
      memcpy(panel + place_of(f, F), filters[f] + piece * words.bytes + 8 * words.whole,
             static_cast<size_t>(words.bytes % 8));
}

static inline void pack_channels(const Geometry &s, const uint8_t *w, uint8_t *packed) {
  const Words words(s, 0); // in a filter the words of a piece lie side by side, as in the image
  const double instructions = 0.22 * static_cast<double>(s.K * s.taps); // counted, with AVX2
  for_each(filter_blocks(s), instructions, [&](int64_t b) {
    const FilterBlock block = filter_block(s, words.count(), b);
    const auto pack = block.narrow ? pack_block<NarrowBytes::F> : pack_block<WidestBytes::F>;
    pack(s, words, block, w, packed + block.panel);
  });
}

} // namespace ADDER_NAMESPACE
#endif
