"""The written definition of the int8 operator, in eager torch on any device: exact integers, slow.

    y[n, k, p, q] = -Σ_{c,r,s} |x[n, c, p·stride + r·dilation, q·stride + s·dilation] - w[k, c, r, s]|

x and w are bytes that share one scale and one zero point, so their difference needs neither; a padded pixel is the zero
point's byte. (AdderNet, arXiv 1912.13200, Eq. 2.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Geometry

MOST_TAPS = (2**31 - 1) // 255  # more could overflow the sum, an int32
MOST_ELEMENTS = 2**24  # differences that are held at a time


@dataclass(frozen=True)
class Epilogue:
    """What follows the sums in a network; ``adder2d_int8_fused`` says what each part means."""

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    relu: bool
    wide: bool
    inverse_step: float
    next_zero_point: int
    top: int
    narrow: bool


def forward(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    geometry: Geometry,
) -> Tensor:
    """y as int32, [N, K, P, Q], from uint8 x [N, C, H, W] and weight [K, C/groups, R, S]."""
    N, K, Cg = x.shape[0], weight.shape[0], weight.shape[1]
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    top, bottom, left, right = geometry.padding
    padded = F.pad(x.to(torch.int16), (left, right, top, bottom), value=zero_point)
    P, Q = geometry.output_size(x.shape[2:], weight.shape[2:])
    filters = weight.to(torch.int16).unflatten(0, (groups, K // groups))
    y = torch.zeros(N, groups, K // groups, P, Q, dtype=torch.int32, device=x.device)
    together = max(1, MOST_ELEMENTS // max(1, N * groups * Cg * P * Q))
    for r in range(weight.shape[2]):
        for s in range(weight.shape[3]):
            rows = slice(r * dilation[0], r * dilation[0] + (P - 1) * stride[0] + 1, stride[0])
            columns = slice(s * dilation[1], s * dilation[1] + (Q - 1) * stride[1] + 1, stride[1])
            taps = padded[:, :, rows, columns].unflatten(1, (groups, 1, Cg))  # [N, G, 1, Cg, P, Q]
            for first in range(0, K // groups, together):
                chunk = filters[:, first : first + together, :, r, s, None, None]  # [G, Kg, Cg, 1, 1]
                y[:, :, first : first + together] -= (taps - chunk).abs().sum(3, dtype=torch.int32)
    return y.flatten(1, 2)


def forward_fused(
    x: Tensor, weight: Tensor, zero_point: int, after: Epilogue, geometry: Geometry
) -> tuple[Tensor | None, Tensor | None]:
    """v, float32, and levels, uint8, both [N, K, P, Q]; None where not wanted."""
    y = forward(x, weight, zero_point, geometry)
    v = epilogue(y, after.scale, after.shift, after.residual, after.relu)
    out = levels(v, after.inverse_step, after.next_zero_point, after.top) if after.narrow else None
    return v if after.wide else None, out


def epilogue(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """``act(scale[k]·y + shift[k] + residual)`` in float32, each operation rounded by itself; relu makes a NaN 0."""
    v = scale.view(-1, 1, 1) * y.to(torch.float32) + shift.view(-1, 1, 1)
    if residual is not None:
        v = v + residual
    return torch.where(v > 0, v, torch.zeros_like(v)) if relu else v


def levels(v: Tensor, inverse_step: float, zero_point: int, top: int) -> Tensor:
    """``clamp(round(v·inverse_step) + zero_point, 0, top)`` as uint8, halves rounded to even; a NaN becomes 0."""
    level = (v * torch.tensor(inverse_step, dtype=torch.float32)).round() + zero_point
    return level.nan_to_num(0, top, 0).clamp(0, top).to(torch.uint8)
