/* What the page calls: a place for the image, and a run that answers with where the logits are. */
#include "network.h"

#define EXPORTED(name) __attribute__((export_name(name)))
#define IMPORTED(name) __attribute__((import_module("page"), import_name(name)))

static uint8_t image[NETWORK_IMAGE_BYTES];
static int32_t logits[NETWORK_CLASSES];

EXPORTED("image") uint8_t *image_of_page(void) { return image; }

EXPORTED("run") int32_t *run_for_page(void) {
  network_run(image, logits);
  return logits;
}

IMPORTED("trace")
void trace_of_page(const char *tensor, const void *values, uint32_t pixels, uint32_t channels, int bytes);

void network_trace(const char *tensor, const void *values, uint32_t pixels, uint32_t channels, int bytes) {
  trace_of_page(tensor, values, pixels, channels, bytes);
}
