"""Real scales as whole numbers: a multiplier and a shift, or two signed powers of two.

    scale·a + shift ≈ (M·a + B) >> s

M·a + B has to fit int32 for every sum a that the layer can have, so M has as many bits as its sums leave.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .steps import Requantize, Rescale

LIMIT = 2**30  # half of int32: what two shifted terms and the offset add up to stays below
BITS = 15  # of a multiplier
MOST_SHIFT = 24
TERMS_OF_A_TENSOR = 4  # signed powers of two for the one scale of a whole tensor


def signed_powers(value: int) -> list[tuple[int, int]]:
    """``value`` as a sum of signed powers of two, the fewest there are: [(sign, exponent)], largest first.

    The non-adjacent form (Reitwiesner, 1960).
    """
    terms = []
    exponent = 0
    while value:
        if value & 1:
            digit = 2 - (value & 3)
            terms.append((digit, exponent))
            value -= digit
        value >>= 1
        exponent += 1
    return terms[::-1]


def requantize(
    scale: Tensor, shift: Tensor, largest: Tensor, multiplier_free: bool = False, around: Tensor | None = None
) -> Requantize:
    """M, B and s for each filter.

    Args:
        scale, shift: float64 [K], v = scale·a + shift.
        largest: int64 [K], what |a| can be at most.
        multiplier_free: M is a sum of two signed powers of two, at most 9.1 % off.
        around: float64 [K], a sum at which v stays as it is, whatever M loses; the layer's mean sum is the best.

    Raises:
        ValueError: a scale or shift is not finite, or too large for int32.
    """
    rows = [
        _row(float(c), float(b), max(1, int(top)), multiplier_free, float(mean))
        for c, b, top, mean in zip(
            scale, shift, largest, around if around is not None else torch.zeros_like(scale), strict=True
        )
    ]
    return Requantize(*(torch.tensor(column, dtype=torch.int64) for column in zip(*rows, strict=True)))


def _row(scale: float, shift: float, largest: int, multiplier_free: bool, around: float) -> tuple[int, int, int]:
    if not (math.isfinite(scale) and math.isfinite(shift)):
        raise ValueError("a scale or shift of batch norm is not finite; is the network sound?")
    for s in range(MOST_SHIFT, -1, -1):
        multiplier = _multiplier(scale * 2**s, multiplier_free)
        offset = (shift + (scale - multiplier / 2**s) * around) * 2**s + ((1 << s) >> 1)
        # |M| doubled: the larger of two signed powers may be nearly twice their sum.
        if abs(multiplier) < 2**BITS and 2 * abs(multiplier) * largest + abs(offset) < 2 * LIMIT - 1:
            return multiplier, round(offset), s
    raise ValueError(f"a scale of {scale:.4g} and a shift of {shift:.4g} in levels are too large for int32")


def _multiplier(wanted: float, multiplier_free: bool) -> int:
    """The whole number nearest to ``wanted``, one of two signed powers of two if it must be."""
    nearest = round(wanted)
    if not multiplier_free or len(signed_powers(nearest)) <= 2:
        return nearest
    top = 2 ** (nearest.bit_length() if nearest > 0 else (-nearest).bit_length())  # above |wanted|
    candidates = [top - top // 2**i for i in range(1, top.bit_length())]  # from a half up
    candidates += [top // 2 + top // 2**i for i in range(2, top.bit_length())] + [top]
    return (1 if wanted > 0 else -1) * min(candidates, key=lambda candidate: abs(candidate - abs(wanted)))


def rescale(scale: float, zero_point: int, top: int, largest: int, multiplier_free: bool = False) -> Rescale:
    """One scale for a tensor of whole numbers up to ``largest``, as a ``Rescale`` to uint8."""
    for s in range(MOST_SHIFT, -1, -1):
        multiplier = round(scale * 2**s)
        if multiplier_free:
            terms = signed_powers(multiplier)[:TERMS_OF_A_TENSOR]
            multiplier = sum(sign << exponent for sign, exponent in terms)
        if abs(multiplier) < 2**BITS and 2 * abs(multiplier) * largest + (1 << s) < 2 * LIMIT - 1:
            return Rescale(multiplier, s, zero_point, top)
    raise ValueError(f"a scale of {scale:.4g} is too large for int32")
