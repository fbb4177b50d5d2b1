/* Reads raw images from standard input, height x width x channels bytes each, as decoded from a file and not normalised.
 * Prints a line for each: its integer logits, a colon, and the class. */
#include <stdio.h>

#include "network_name.h"

#ifdef NETWORK_TRACE
/* Prints every tensor of every image: a line with its name, then a line for each pixel. */
void network_name_trace(const char *name, const void *values, uint32_t pixels, uint32_t channels, int bytes) {
  uint32_t i, c;
  const uint8_t *narrow = (const uint8_t *)values;
  const int16_t *wide = (const int16_t *)values;
  const int32_t *logits = (const int32_t *)values;
  printf("# %s\n", name);
  for (i = 0; i < pixels; i++)
    for (c = 0; c < channels; c++) {
      const long value = bytes == 1 ? *narrow++ : bytes == 2 ? *wide++ : *logits++;
      printf("%ld%c", value, c + 1 < channels ? ' ' : '\n');
    }
}
#endif

int main(void) {
  static uint8_t image[NETWORK_NAME_IMAGE_BYTES];
  int32_t logits[NETWORK_NAME_CLASSES];
  size_t got;
  while ((got = fread(image, 1, sizeof image, stdin)) == sizeof image) {
    int i, best = 0;
    network_name_run(image, logits);
    for (i = 0; i < NETWORK_NAME_CLASSES; i++) {
      if (logits[i] > logits[best]) best = i;
      printf("%ld%s", (long)logits[i], i + 1 < NETWORK_NAME_CLASSES ? " " : ": ");
    }
    printf("%d\n", best);
  }
  if (got) {
    fprintf(stderr, "the input ends within an image: an image is %d bytes\n", NETWORK_NAME_IMAGE_BYTES);
    return 1;
  }
  return 0;
}
