"""Compares what an implementation answers with the truth, within the error that rounding explains."""

from __future__ import annotations

import numpy as np
import torch
import truth
from torch import Tensor

# Roundings in a term besides those of the sum: the difference, the product, a power, the conversion of the result.
PER_TERM = 8


def bound(expected, computed: str = "float32", stored: str = "float32", chain: float | None = None) -> np.ndarray:
    """How far from ``expected = (value, magnitude, terms)`` a result may be.

    Args:
        computed, stored: The dtype that is summed in, and that the result is rounded to.
        chain: The longest chain of additions, where it is known to be shorter than the number of terms.
    """
    value, magnitude, terms = expected
    error = truth.gamma((terms if chain is None else chain) + PER_TERM, truth.UNIT_ROUNDOFF[computed]) * magnitude
    if computed == "float64":
        return 2 * error  # the truth is no better
    error = error + (terms + 1) * 2.0**-149  # products that underflow
    if stored != computed:
        info = torch.finfo(getattr(torch, stored))
        error = error * (1 + info.eps) + truth.UNIT_ROUNDOFF[stored] * np.abs(value) + info.smallest_normal * info.eps
    return error


def clipped_bound(expected, dy, x, weight_shape, geometry, stored: str = "float32") -> np.ndarray:
    """How far the CPU kernels' clipped dx may be off, which may add up medians: grad_input_tile.h, MEDIAN_LIMIT.

    What is added is at most |dy|·(|x| + 1), twice, and not |dy|·|t|. Where some x are below -1, a whole number up to 4
    is added to x and the filters first, which rounds both, and in all tiles.
    """
    value, magnitude, terms = expected
    moved = 4 * (np.nanmin(np.where(np.isfinite(x), x, 0), initial=0) < -1)
    dy, x = (np.where(np.isfinite(t), np.abs(t), 0) for t in (dy, x))
    sums = truth.grad_input(dy, -np.ones(x.shape), np.ones(weight_shape), *geometry, mode="sign")[0]
    error = bound((value, np.maximum(magnitude, sums * (2 * np.minimum(x + moved, 8) + 2)), terms), stored=stored)
    return error + (2 * truth.UNIT_ROUNDOFF["float32"] * sums * (x + moved + 1) if moved else 0)


def assert_within(got: Tensor, expected, error: np.ndarray, what: object, skip: np.ndarray | None = None) -> None:
    """The same NaN and infinities as the truth, and finite values within ``error`` (except where ``skip``)."""
    value = expected[0]
    assert tuple(got.shape) == value.shape, f"{what}: shape {tuple(got.shape)}, expected {value.shape}"
    numbers = got.detach().cpu().double().numpy()
    with np.errstate(invalid="ignore"):
        good = np.where(
            np.isfinite(value),
            np.abs(numbers - value) <= error,
            np.where(np.isnan(value), np.isnan(numbers), numbers == value),
        )
    if skip is not None:
        good = good | skip
    if not good.all():
        bad = np.argwhere(~good)
        at = tuple(bad[0])
        raise AssertionError(
            f"{what}: {len(bad)} of {good.size} elements wrong; at {tuple(map(int, at))} got {numbers[at]}, "
            f"expected {value[at]}, {abs(numbers[at] - value[at])} off where {np.broadcast_to(error, value.shape)[at]} "
            f"is allowed"
        )
