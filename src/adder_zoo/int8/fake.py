"""Fake quantisation: float values rounded to those that a layer's bytes stand for, so that training sees the rounding.

An adder layer that is fine-tuned for few bits (``fine_tune.py``) carries the range of its bytes, ``input_range``, and
computes with these values of its input and filters, in float32. ``quantize`` gives the same layer in integers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fake_quantized(x: Tensor, weight: Tensor, input_range: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input and filters on the levels of one range, and what clipping the filters to it took from each sum.

    Both round as ``ops/int8/reference.py`` does. The gradient passes the rounding as it is (the straight-through
    estimator, arXiv 1308.3432); it is 0 for inputs beyond the range, and passes for filters there, which
    AdderNet's rule moves by ``x - w`` wherever they are.

    Args:
        x: Any shape, floating point.
        weight: [K, C/groups, R, S].
        input_range: What ``range_integers`` makes of a ``Range``.

    Returns:
        x and weight, float32, each ``step·(level - zero_point)``; and the offset of each filter's sum, [K].
    """
    step, inverse, zero_point, top = numbers(input_range)
    low, high = -zero_point * step, (top - zero_point) * step
    x = _Rounded.apply(x.float(), step, inverse, zero_point, top, False)
    w = weight.float()
    offset = -((low - w).clamp_min(0) + (w - high).clamp_min(0)).detach().flatten(1).sum(1)
    return x, _Rounded.apply(w, step, inverse, zero_point, top, True), offset


def numbers(input_range: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """step, 1 / step, zero point and top, as float32 on the range's device."""
    step = input_range[0].view(torch.float64)
    return step.float(), (1 / step).float(), input_range[1].float(), input_range[2].float()


class _Rounded(torch.autograd.Function):
    """``step·(clamp(round(x / step) + zero_point, 0, top) - zero_point)``, straight through in the backward pass."""

    @staticmethod
    def forward(ctx, x, step, inverse, zero_point, top, beyond):  # type: ignore[no-untyped-def]
        level = (x * inverse).round_()
        inside = level.clamp(-zero_point, top - zero_point)
        ctx.save_for_backward(None if beyond else inside == level)
        return inside.mul_(step)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        (inside,) = ctx.saved_tensors
        return (dy if inside is None else dy * inside), None, None, None, None, None
