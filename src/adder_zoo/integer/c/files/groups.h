/* Layers with groups or dilation, for layers.h: each group of a pixel has a patch of its own. */

static void gather_group(const struct layer *l, uint32_t *patch, const uint8_t *x, int32_t y0, int32_t x0, int32_t at,
                         int32_t first) {
  const struct groups *const g = &l->groups;
  uint8_t *to = (uint8_t *)patch;
  int32_t r, s;
  if (g->plain) {
    gather(l, patch, x, y0, x0, at);
    return;
  }
  patch[l->words - 1] = 0;
  for (r = l->kernel_height; r > 0; r--, y0 += g->dilation_y, at += g->row_step) {
    const int inside = y0 >= 0 && y0 < l->height;
    int32_t column = x0, tap = at + first;
    for (s = l->kernel_width; s > 0; s--, column += g->dilation_x, tap += g->column_step)
      to = copied(to, inside && column >= 0 && column < l->width ? x + tap : l->pad + first, g->channels);
  }
}

/* Both pointers are stepped by groups: a compiler makes a multiplication of a pointer's value behind a loop. */
#define EACH_GROUP(l)                                                                                          \
  const uint32_t *w, *next = (l)->weight;                                                                      \
  const struct filter *f, *end = (l)->filter;                                                                  \
  int32_t first;                                                                                               \
  for (first = 0; first < (l)->channels &&                                                                     \
                  (w = next, next += (l)->groups.words, f = end, end += (l)->groups.filters,                   \
                  gather_group(l, patch, x, y0, x0, at, first), 1);                                            \
       first += (l)->groups.channels)
