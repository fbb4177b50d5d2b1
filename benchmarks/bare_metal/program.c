/* Runs an exported network on the images of images.h, without an operating system or a library, and prints for each
 * image its logits, class and the number of instructions. RISC-V: qemu's `virt`; ARM: qemu's `mps2-an385`, `mps2-an386`. */
#include "images.h"
#include "exported.h"

#if defined(__riscv)
static volatile uint8_t *const console = (volatile uint8_t *)0x10000000;
static void put(char c) { *console = (uint8_t)c; }

/* minstret, which qemu counts exactly with -icount. */
static uint64_t instructions(void) {
  uint32_t low, high, again;
  do {
    __asm__ volatile(".option push\n.option arch, +zicsr\n"
                     "csrr %0, minstreth\ncsrr %1, minstret\ncsrr %2, minstreth\n.option pop"
                     : "=r"(high), "=r"(low), "=r"(again));
  } while (high != again);
  return ((uint64_t)high << 32) | low;
}

static void finish(void) { *(volatile uint32_t *)0x100000 = 0x5555; }
#else
/* The board's timer 0 counts down at 25 MHz. With -icount shift=0 an instruction takes a nanosecond: 40 for a tick. */
static volatile uint32_t *const timer = (volatile uint32_t *)0x40000000;
static volatile uint32_t *const uart = (volatile uint32_t *)0x40004000;
static void put(char c) { uart[0] = (uint8_t)c; }

static uint64_t instructions(void) {
  const uint64_t ticks = 0xffffffffu - timer[1];
  return (ticks << 5) + (ticks << 3);
}

static void finish(void) {
  register uint32_t operation __asm__("r0") = 0x18, reason __asm__("r1") = 0x20026; /* semihosting: exit, well */
  __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(reason));
}
#endif

/* By subtraction: no division on a processor without one. */
static void print(uint64_t value) {
  static const uint64_t powers[] = {10000000000000u, 1000000000000u, 100000000000u, 10000000000u, 1000000000u,
                                    100000000u,      10000000u,      1000000u,      100000u,      10000u,
                                    1000u,           100u,           10u,           1u};
  int i, begun = 0;
  for (i = 0; i < 14; i++) {
    char digit = '0';
    for (; value >= powers[i]; value -= powers[i]) digit++;
    begun |= digit != '0' || i == 13;
    if (begun) put(digit);
  }
}

void begin(void) {
  static int32_t logits[CLASSES];
  const uint8_t *image = images;
  uint32_t n;
#if !defined(__riscv)
  uart[4] = 16;
  uart[2] = 1;
  timer[2] = timer[1] = 0xffffffffu;
  timer[0] = 1;
#endif
  for (n = 0; n < IMAGES; n++, image += IMAGE_BYTES) {
    const uint64_t before = instructions();
    uint64_t after;
    int i, best = 0;
    RUN(image, logits);
    after = instructions();
    for (i = 0; i < CLASSES; i++) {
      if (logits[i] > logits[best]) best = i;
      if (logits[i] < 0) put('-');
      print((uint64_t)(logits[i] < 0 ? -(int64_t)logits[i] : logits[i]));
      put(i + 1 < CLASSES ? ' ' : ':');
    }
    put(' ');
    print((uint64_t)best);
    put(' ');
    print(after - before);
    put('\n');
  }
  finish();
  for (;;) {
  }
}
