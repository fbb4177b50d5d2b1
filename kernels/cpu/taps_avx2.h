// Loops over taps that are written out for AVX2, for the tiles that most layers spend their time in.
#ifndef ADDER_TAPS_AVX2_H
#define ADDER_TAPS_AVX2_H

#include "vec.h"

namespace ADDER_NAMESPACE {

constexpr int64_t UNROLLED = 4; // taps

// clang-format off
#if defined(__AVX2__) && !defined(__AVX512VL__) && defined(__x86_64__)
// A multiple of UNROLLED taps of the forward's most frequent tiles, two vectors of AVX2 for five or four pixels. The
// processor decodes six instructions a cycle, and a tap with its loop needs all six. Unrolled, the loop costs less. The compiler does not do it within 16 registers (its two taps take 1.5 times as long as two of one).
#define ADDER_FILTERS(U) "vmovups 32*" #U "(%%rdx), %%ymm12\n\tvmovups 32*" #U "(%%rdx,%[stride],4), %%ymm13\n\t"
#define ADDER_BY_FMA(FROM, TO) "vfmadd231ps %[one], " FROM ", " TO "\n\t"
#define ADDER_BY_ADD(FROM, TO) "vaddps " FROM ", " TO ", " TO "\n\t"
#define ADDER_PIXEL(SUM, U, M, X) \
  "vbroadcastss 4*" #U "(" X "), %%ymm14\n\tvmaxps %%ymm12, %%ymm14, %%ymm15\n\tvmaxps %%ymm13, %%ymm14, %%ymm14\n\t" \
      SUM("%%ymm15", "%[a" #M "]") SUM("%%ymm14", "%[b" #M "]")
#define ADDER_FOUR(SUM, U) \
  ADDER_FILTERS(U) ADDER_PIXEL(SUM, U, 0, "%%rax") ADDER_PIXEL(SUM, U, 1, "%%rax,%[o1],4") \
      ADDER_PIXEL(SUM, U, 2, "%%rax,%[o2],4") ADDER_PIXEL(SUM, U, 3, "%%rax,%[o3],4")
#define ADDER_FIVE(SUM, U) ADDER_FOUR(SUM, U) ADDER_PIXEL(SUM, U, 4, "%%rax,%[o4],4")
#define ADDER_LOOP(TAP, SUM) \
  "mov %[xs], %%rax\n\tmov %[ws], %%rdx\n\tmov %[count], %%rcx\n\t.p2align 5\n1:\n\t" \
      TAP(SUM, 0) TAP(SUM, 1) TAP(SUM, 2) TAP(SUM, 3) \
  "add $16, %%rax\n\tadd $128, %%rdx\n\tsub $4, %%rcx\n\tjnz 1b"
#define ADDER_SUMS(M) [a##M] "+x"(acc[M][0]), [b##M] "+x"(acc[M][1])
#define ADDER_INPUTS \
  [xs] "r"(xs), [ws] "r"(ws), [stride] "r"(panel_stride), [count] "r"(count), [one] "x"(one), [o1] "r"(offset[1]), \
      [o2] "r"(offset[2]), [o3] "r"(offset[3])
#define ADDER_CLOBBERS "rax", "rcx", "rdx", "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory"

template <class T, int MR, int NV, bool EXACT> constexpr bool has_unrolled_taps() {
  return !EXACT && T::L == 8 && NV == 2 && (MR == 4 || MR == 5);
}
#define ADDER_TAPS_OF_FIVE(SUM) \
  asm volatile(ADDER_LOOP(ADDER_FIVE, SUM) \
               : ADDER_SUMS(0), ADDER_SUMS(1), ADDER_SUMS(2), ADDER_SUMS(3), ADDER_SUMS(4) \
               : ADDER_INPUTS, [o4] "r"(offset[4]) \
               : ADDER_CLOBBERS)
#define ADDER_TAPS_OF_FOUR(SUM) \
  asm volatile(ADDER_LOOP(ADDER_FOUR, SUM) \
               : ADDER_SUMS(0), ADDER_SUMS(1), ADDER_SUMS(2), ADDER_SUMS(3) \
               : ADDER_INPUTS \
               : ADDER_CLOBBERS)
template <bool ADDS, class V, int MR, int NV>
ADDER_INLINE void unrolled_taps(V (&acc)[MR][NV], const float *xs, const int64_t *offset, const float *ws,
                                int64_t panel_stride, int64_t count, V one) {
  if constexpr (MR == 5 && ADDS) ADDER_TAPS_OF_FIVE(ADDER_BY_ADD);
  else if constexpr (MR == 5) ADDER_TAPS_OF_FIVE(ADDER_BY_FMA);
  else if constexpr (ADDS) ADDER_TAPS_OF_FOUR(ADDER_BY_ADD);
  else ADDER_TAPS_OF_FOUR(ADDER_BY_FMA);
}

// The same for the most frequent tile of dx with lanes over images: three pixels, medians.
#define ADDER_IMAGES_TAP(U, W, NEXT, SUMS) \
  "vbroadcastss 4*" #U "+4(%[ws]), %%ymm" #NEXT "\n\t" \
  "vpminsd %[h0], %%ymm" #W ", %%ymm14\n\tvmaxps %[l0], %%ymm14, %%ymm14\n\t" \
  "vfmadd231ps 32*" #U "(%[ds]), %%ymm14, %[" #SUMS "0]\n\t" \
  "vpminsd %[h1], %%ymm" #W ", %%ymm15\n\tvmaxps %[l1], %%ymm15, %%ymm15\n\t" \
  "vpminsd %[h2], %%ymm" #W ", %%ymm" #W "\n\t" \
  "vfmadd231ps 32*" #U "(%[ds],%[step]), %%ymm15, %[" #SUMS "1]\n\t" \
  "vmaxps %[l2], %%ymm" #W ", %%ymm" #W "\n\t" \
  "vfmadd231ps 32*" #U "(%[ds],%[step],2), %%ymm" #W ", %[" #SUMS "2]\n\t"
template <class T, int MR, bool MEDIAN> constexpr bool has_unrolled_images() { return T::L == 8 && MR == 3 && MEDIAN; }
template <class V, int SUMS, int MR>
ADDER_INLINE void unrolled_images(V (&acc)[SUMS][MR], const V (&low)[MR], const V (&high)[MR], const float *ds, int64_t step,
                                  const float *ws, int64_t count) {
  asm volatile("vbroadcastss (%[ws]), %%ymm12\n\t.p2align 5\n1:\n\t" ADDER_IMAGES_TAP(0, 12, 13, a)
                   ADDER_IMAGES_TAP(1, 13, 12, b) ADDER_IMAGES_TAP(2, 12, 13, a) ADDER_IMAGES_TAP(3, 13, 12, b)
               "add $16, %[ws]\n\tadd $128, %[ds]\n\tsub $4, %[count]\n\tjnz 1b"
               : [a0] "+x"(acc[0][0]), [a1] "+x"(acc[0][1]), [a2] "+x"(acc[0][2]), [b0] "+x"(acc[1][0]),
                 [b1] "+x"(acc[1][1]), [b2] "+x"(acc[1][2]), [ws] "+r"(ws), [ds] "+r"(ds), [count] "+r"(count)
               : [step] "r"(4 * step), [l0] "x"(low[0]), [l1] "x"(low[1]), [l2] "x"(low[2]), [h0] "x"(high[0]),
                 [h1] "x"(high[1]), [h2] "x"(high[2])
               : "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}
#else
template <class T, int MR, int NV, bool EXACT> constexpr bool has_unrolled_taps() { return false; }
template <bool ADDS, class... A> void unrolled_taps(A &&...) {}
template <class T, int MR, bool MEDIAN> constexpr bool has_unrolled_images() { return false; }
template <class... A> void unrolled_images(A &&...) {}
#endif
// clang-format on

} // namespace ADDER_NAMESPACE
#endif
