"""Fake quantisation: float values rounded to those that a layer's bytes stand for, so that training sees the rounding.

An adder layer that is fine-tuned for few bits (``fine_tune.py``) carries the range of its bytes, ``input_range``, and
computes with these values of its input and filters, in float32. ``quantize`` gives the same layer in integers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fake_quantized(x: Tensor, weight: Tensor, input_range: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input and filters as multiples of one step, and a correction of each filter's sum.

    The input is clipped to the range. The filters are not: for every x in it, what is beyond adds the same to a sum as
    the clipped filter and a constant (see ``QuantizedAdder2d``), and AdderNet's gradient needs to know on which side of
    the input a filter is, and how far. (At clipped filters it grew from layer to layer, to a thousand times its size in
    ResNet-20.) The constant that ``quantize`` adds is computed from the filters before they are rounded; hence the
    correction.

    The gradient passes the rounding as it is (the straight-through estimator, arXiv 1308.3432), and is 0 for
    inputs beyond the range.

    Args:
        x: Any shape, floating point.
        weight: [K, C/groups, R, S].
        input_range: What ``range_integers`` makes of a ``Range``.

    Returns:
        x and weight, float32, and the correction, [K].
    """
    step = input_range[0].view(torch.float64)
    step, inverse = step.float(), (1 / step).float()
    zero_point, top = input_range[1].float(), input_range[2].float()
    lowest, highest = -zero_point, top - zero_point
    w = weight.float()
    rounded = _Rounded.apply(w, step, inverse)
    low, high = lowest * step, highest * step
    correction = (_beyond(rounded, low, high) - _beyond(w, low, high)).detach()
    return _Clipped.apply(x.float(), step, inverse, lowest, highest), rounded, correction


def _beyond(weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What clipping to the range takes off each filter, [K]."""
    return ((low - weight).clamp_min(0) + (weight - high).clamp_min(0)).flatten(1).sum(1)


class _Rounded(torch.autograd.Function):
    """``step·round(w / step)``, straight through in the backward pass."""

    @staticmethod
    def forward(ctx, w, step, inverse):  # type: ignore[no-untyped-def]
        return (w * inverse).round_().mul_(step)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        return dy, None, None


class _Clipped(torch.autograd.Function):
    """``step·clamp(round(x / step), lowest, highest)``; in the backward pass straight through where nothing clips."""

    @staticmethod
    def forward(ctx, x, step, inverse, lowest, highest):  # type: ignore[no-untyped-def]
        level = (x * inverse).round_()
        inside = level.clamp(lowest, highest)
        ctx.save_for_backward(inside == level)
        return inside.mul_(step)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        (inside,) = ctx.saved_tensors
        return dy * inside, None, None, None, None
