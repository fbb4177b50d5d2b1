/* Sums of absolute differences in WebAssembly with SIMD, for layers.h: 16 differences in three instructions. */
#include <wasm_simd128.h>

static inline v128_t add_differences(v128_t sum, v128_t x, v128_t w) {
  const v128_t differences = wasm_v128_or(wasm_u8x16_sub_sat(x, w), wasm_u8x16_sub_sat(w, x));
  return wasm_i16x8_add(sum, wasm_u16x8_extadd_pairwise_u8x16(differences));
}

/* sums[k] of four vectors of four: their columns are added up. */
static inline void add_up(const v128_t *part, int32_t *sums) {
  const v128_t a = wasm_i32x4_add(wasm_i32x4_shuffle(part[0], part[1], 0, 4, 1, 5),
                                  wasm_i32x4_shuffle(part[0], part[1], 2, 6, 3, 7));
  const v128_t b = wasm_i32x4_add(wasm_i32x4_shuffle(part[2], part[3], 0, 4, 1, 5),
                                  wasm_i32x4_shuffle(part[2], part[3], 2, 6, 3, 7));
  wasm_v128_store(sums, wasm_i32x4_add(wasm_i32x4_shuffle(a, b, 0, 1, 4, 5), wasm_i32x4_shuffle(a, b, 2, 3, 6, 7)));
}

/* Of four filters at once, which share the patch; `apart` bytes lie between them. 2,048 bytes add at most 65,280 to a
 * lane of 16 bits. */
static void distances_of_four(const uint8_t *patch, const uint8_t *w, uint32_t taps, uint32_t apart, int32_t *sums) {
  const v128_t zero = wasm_i32x4_splat(0);
  const uint8_t *const others[4] = {w, w + apart, w + apart + apart, w + apart + apart + apart};
  v128_t total[4] = {zero, zero, zero, zero};
  uint32_t i = 0, k;
  while (i < taps) {
    const uint32_t end = taps - i > 2048 ? i + 2048 : taps;
    v128_t sum[4] = {zero, zero, zero, zero};
    for (; end - i >= 16; i += 16) {
      const v128_t x = wasm_v128_load(patch + i);
      for (k = 0; k < 4; k++) sum[k] = add_differences(sum[k], x, wasm_v128_load(others[k] + i));
    }
    for (; i < end; i += 4) {
      const v128_t x = wasm_v128_load32_zero(patch + i);
      for (k = 0; k < 4; k++) sum[k] = add_differences(sum[k], x, wasm_v128_load32_zero(others[k] + i));
    }
    for (k = 0; k < 4; k++) total[k] = wasm_i32x4_add(total[k], wasm_u32x4_extadd_pairwise_u16x8(sum[k]));
  }
  add_up(total, sums);
}
