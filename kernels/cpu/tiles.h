// How a kernel picks a tile. A tile's loops are compiled for its size and for the gradient's mode.
#ifndef ADDER_TILES_H
#define ADDER_TILES_H

#include "adder.h"
#include "inline.h"

namespace ADDER_NAMESPACE {

// A number that is known when a lambda's body is compiled. (Not std::integral_constant: nothing inline of the standard
// library may be compiled for one instruction set and linked for all.)
template <int N> struct Constant {
  static constexpr int value = N;
};

template <class Tile, int MAX> struct TileTable {
  Tile of[MAX + 1]; // by size; there is no tile of size 0
  template <class F> constexpr explicit TileTable(F tile) : of() { list<MAX>(tile); }
  template <int SIZE, class F> constexpr void list(F tile) {
    of[SIZE] = tile(Constant<SIZE>());
    if constexpr (SIZE > 1) list<SIZE - 1>(tile);
  }
};

// The tiles of one kind by their size, 1 to MAX: `tile`, a lambda without captures, names the one of a Constant.
//
//   tiles_of<MAX>([](auto pixels) { return some_tile<T, pixels.value>; })[mr](...)
template <int MAX, class F> ADDER_INLINE auto tiles_of(F tile) {
  typedef decltype(tile(Constant<1>())) Tile;
  static constexpr TileTable<Tile, MAX> table(tile);
  return static_cast<const Tile *>(table.of);
}

// f of the gradient's mode as a Constant.
template <class F> ADDER_INLINE auto with_mode(int mode, F f) {
  return mode == ADDER_CLIPPED ? f(Constant<ADDER_CLIPPED>())
         : mode == ADDER_FULL  ? f(Constant<ADDER_FULL>())
                               : f(Constant<ADDER_SIGN>());
}

} // namespace ADDER_NAMESPACE
#endif
