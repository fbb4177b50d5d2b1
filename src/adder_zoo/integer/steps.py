"""The steps of an integer network, and the tensors of uint8 and int16 between them.

Symbols: x an input's levels, w a filter's, a[k] the integer sum of filter k, v what batch norm makes of it:

    a[k] = -Σ|x - w|        (kind "distance")        or        a[k] = Σ x·w        (kind "product")
    v[k] = (M[k]·a[k] + B[k]) >> s[k]                >> rounds down; B holds the half that makes it round to nearest

``reference.py`` computes them, and every export must give the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """A tensor between two steps: its name, (height, width, channels), and "uint8", "int16" or "int32"."""

    name: str
    shape: tuple[int, int, int]
    dtype: str

    @property
    def elements(self) -> int:
        height, width, channels = self.shape
        return height * width * channels


@dataclass(frozen=True)
class Requantize:
    """``v[k] = (M[k]·a[k] + B[k]) >> s[k]``, all int64 [K]; every intermediate result fits int32."""

    multiplier: Tensor
    offset: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Rescale:
    """``level = clamp(((m·v + 2^(s-1)) >> s) + zero_point, 0, top)``: whole numbers to uint8."""

    multiplier: int
    shift: int
    zero_point: int
    top: int


@dataclass(frozen=True)
class Step:
    """What all steps have: where they are in the network, and what they read."""

    name: str
    x: Placed


@dataclass(frozen=True)
class Lookup(Step):
    """``y = table[channel][x]``, uint8 to uint8: normalised images as levels of the first layer."""

    table: Tensor  # uint8 [C, 256]
    narrow: Placed


@dataclass(frozen=True)
class Weighted(Step):
    """A layer with filters, and what follows it.

        v = requantize(a);  v += shortcut;  v = max(v, 0) where relu;  v = min(v, most) where there is ``most``
        wide = clamp(v, -32768, 32767), or v itself as logits (int32)
        narrow = clamp(v + zero_point, 0, top), or rescaled from v where there is ``rescale``

    Attributes:
        kind: "distance" or "product".
        weight: int64 [K, R, S, C/groups]: 0 to 255 for a distance, -256 to 256 for a product.
        pad: [C], the level that a padded pixel has.
        padding: (top, bottom, left, right).
        shortcut: An int16 tensor in the unit of v, or None.
        wide, narrow: What is kept of v; one of them at least.
        dilation: How far apart the taps of a filter are.
        groups: Divides C and K; filter k sees the channels of its group alone.
        most: What ReLU6 lets through, in the unit of v, or None.
    """

    kind: str
    weight: Tensor
    pad: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    requantize: Requantize
    shortcut: Placed | None
    relu: bool
    wide: Placed | None
    narrow: Placed | None
    rescale: Rescale  # with multiplier 1 and shift 0 where v is in the unit of ``narrow``
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    most: int | None = None


@dataclass(frozen=True)
class MaxPool(Step):
    """The largest level of each window; what lies beyond the border takes no part."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    narrow: Placed


@dataclass(frozen=True)
class AveragePool(Step):
    """The sum over the whole map, uint8 or int16, rescaled to uint8: the division is in the scale."""

    zero_point: int  # of the input
    rescale: Rescale
    narrow: Placed


@dataclass(frozen=True)
class Narrow(Step):
    """An int16 tensor as uint8 levels, for a reader whose range is not the first reader's."""

    rescale: Rescale
    narrow: Placed
