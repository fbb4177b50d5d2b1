/* Steps without filters, for layers.h. */
#ifdef NEEDS_MAX_POOL
static void max_pool(const struct pool *l, const uint8_t *x, uint8_t *narrow, uint32_t *patch) {
  (void)patch;
  EACH_PIXEL(l, x, patch) {
      int32_t r, s, c, channel = at;
      const int inside = y0 >= 0 && y0 + l->kernel_height <= l->height && x0 >= 0 && x0 + l->kernel_width <= l->width;
      for (c = 0; c < l->channels; c++, channel++) {
        int32_t row = channel;
        uint8_t largest = 0;
        if (inside) {
          for (r = l->kernel_height; r > 0; r--, row += l->row_bytes) {
            const uint8_t *tap = x + row;
            for (s = l->kernel_width; s > 0; s--, tap += l->channels)
              if (*tap > largest) largest = *tap;
          }
          *narrow++ = largest;
          continue;
        }
        for (r = y0; r < y0 + l->kernel_height; r++, row += l->row_bytes) {
          int32_t tap = row;
          for (s = x0; s < x0 + l->kernel_width; s++, tap += l->channels)
            if (r >= 0 && r < l->height && s >= 0 && s < l->width && x[tap] > largest) largest = x[tap];
        }
        *narrow++ = largest;
      }
    }
  }
}
#endif

#ifdef NEEDS_AVERAGE_POOL
/* The sum over the map of each channel, from bytes or from int16; the other pointer is 0. */
static void average_pool(int32_t pixels, int32_t channels, int32_t zero_point, const struct rescale *by,
                         const uint8_t *bytes, const int16_t *halves, uint8_t *narrow) {
  int32_t c;
  for (c = 0; c < channels; c++) {
    int32_t sum = 0, left, at = c;
    for (left = pixels; left > 0; left--, at += channels) sum += halves ? halves[at] : bytes[at] - zero_point;
    *narrow++ = rescaled(by, sum);
  }
}
#endif

#ifdef NEEDS_NARROW
static void narrowed(uint32_t count, const struct rescale *by, const int16_t *x, uint8_t *narrow) {
  for (; count > 0; count--) *narrow++ = rescaled(by, *x++);
}
#endif

#ifdef NEEDS_LOOKUP
static void lookup(uint32_t pixels, uint32_t channels, const uint8_t *table, const uint8_t *x, uint8_t *narrow) {
  for (; pixels > 0; pixels--) {
    const uint8_t *of_channel = table;
    uint32_t c;
    for (c = 0; c < channels; c++, of_channel += 256) *narrow++ = of_channel[*x++];
  }
}
#endif
