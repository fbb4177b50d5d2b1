"""What the integers are: each step in int64 torch, from the equations of ``steps.py``.

Sums are exact in any order, so two ways to get them give the same: from the equation (``plain``), or from the package's
int8 operator and a convolution in float64, which holds such sums without rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.int8.library import adder2d_int8
from .steps import (
    AveragePool,
    Lookup,
    MaxPool,
    Narrow,
    Placed,
    Requantize,
    Rescale,
    Step,
    Weighted,
)

LARGEST = {"int16": 2**15 - 1, "int32": 2**31 - 1}


def reads(step: Step) -> list[str]:
    """The names of the tensors that a step reads."""
    shortcut = step.shortcut if isinstance(step, Weighted) else None
    return [step.x.name, *([shortcut.name] if shortcut else [])]


def writes(step: Step) -> list[Placed]:
    """The tensors that a step writes."""
    if isinstance(step, Weighted):
        return [placed for placed in (step.wide, step.narrow) if placed is not None]
    assert isinstance(step, (Lookup, MaxPool, AveragePool, Narrow))
    return [step.narrow]


def run_step(step: Step, values: dict[str, Tensor], plain: bool = False) -> dict[str, Tensor]:
    """What a step writes, by name, from tensors [N, H, W, C], int64."""
    x = values[step.x.name]
    if isinstance(step, Weighted):
        v = requantize(sums(step, x, plain), step.requantize)
        return finish(step, v, values)
    if isinstance(step, Lookup):
        return {step.narrow.name: step.table.long()[torch.arange(x.shape[-1]), x]}
    if isinstance(step, MaxPool):
        top, bottom, left, right = step.padding
        padded = F.pad(x, (0, 0, left, right, top, bottom), value=-1)
        windows = padded.unfold(1, step.kernel[0], step.stride[0]).unfold(2, step.kernel[1], step.stride[1])
        return {step.narrow.name: windows.flatten(-2).amax(-1)}
    if isinstance(step, AveragePool):
        total = (x - step.zero_point).sum((1, 2), keepdim=True)
        return {step.narrow.name: rescale(total, step.rescale)}
    assert isinstance(step, Narrow)
    return {step.narrow.name: rescale(x, step.rescale)}


def sums(step: Weighted, x: Tensor, plain: bool = False) -> Tensor:
    """a, int64 [N, P, Q, K]."""
    top, bottom, left, right = step.padding
    reach = [d * (size - 1) + 1 for d, size in zip(step.dilation, step.weight.shape[1:3], strict=True)]
    P = (x.shape[1] + top + bottom - reach[0]) // step.stride[0] + 1
    Q = (x.shape[2] + left + right - reach[1]) // step.stride[1] + 1
    padded = step.pad.expand(len(x), x.shape[1] + top + bottom, x.shape[2] + left + right, -1).clone()
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    if not plain:
        return _fast_sums(step, padded)
    a = torch.zeros(len(x), P, Q, len(step.weight), dtype=torch.int64)
    for r in range(step.weight.shape[1]):
        for s in range(step.weight.shape[2]):
            row, column = r * step.dilation[0], s * step.dilation[1]
            of_groups = padded[:, row :: step.stride[0], column :: step.stride[1]][:, :P, :Q].chunk(step.groups, -1)
            for k, w in enumerate(step.weight[:, r, s]):  # [C/groups]
                taps = of_groups[k * step.groups // len(step.weight)]
                a[..., k] += -(taps - w).abs().sum(-1) if step.kind == "distance" else (taps * w).sum(-1)
    return a


def _fast_sums(step: Weighted, padded: Tensor) -> Tensor:
    x, weight = padded.permute(0, 3, 1, 2), step.weight.permute(0, 3, 1, 2)
    if step.kind == "distance":
        # The channels of both lie innermost, as the native kernels like it.
        levels = x.to(torch.uint8), weight.to(torch.uint8)
        a = adder2d_int8(*levels, 0, step.stride, (0, 0, 0, 0), step.dilation, step.groups)
    else:
        a = F.conv2d(x.double(), weight.double(), None, step.stride, 0, step.dilation, step.groups)
    return a.permute(0, 2, 3, 1).long()


def requantize(a: Tensor, by: Requantize) -> Tensor:
    """v of a, [..., K]."""
    return (by.multiplier * a + by.offset) >> by.shift


def rescale(v: Tensor, by: Rescale) -> Tensor:
    """Levels of v."""
    half = (1 << by.shift) >> 1
    return (((by.multiplier * v + half) >> by.shift) + by.zero_point).clamp(0, by.top)


def finish(step: Weighted, v: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shortcut, ReLU, and what is kept of v."""
    if step.shortcut is not None:
        v = v + values[step.shortcut.name]
    if step.relu:
        v = v.clamp(0, step.most)
    written = {}
    if step.wide is not None:
        largest = LARGEST[step.wide.dtype]
        v = v.clamp(-largest - 1, largest)
        written[step.wide.name] = v
    elif step.shortcut is not None or (step.rescale.multiplier, step.rescale.shift) != (1, 0):
        v = v.clamp(-LARGEST["int16"] - 1, LARGEST["int16"])
    if step.narrow is not None:
        written[step.narrow.name] = rescale(v, step.rescale)
    return written
