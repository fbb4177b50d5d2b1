// What has to be inlined: a call would pass a tile's registers through memory.
#ifndef ADDER_INLINE_H
#define ADDER_INLINE_H

#define ADDER_INLINE inline __attribute__((always_inline))
#define ADDER_LAMBDA_INLINE __attribute__((always_inline))

#endif
