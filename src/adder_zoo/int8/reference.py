"""The written definition of the int8 operator, in eager torch on any device: exact integers, slow.

    y[n, k, p, q] = -Σ_{c,r,s} |x[n, c, p·stride + r·dilation, q·stride + s·dilation] - w[k, c, r, s]|

x and w are bytes that share one scale and one zero point, so their difference needs neither; a padded pixel is the zero
point's byte. (AdderNet, arXiv 1912.13200, Eq. 2.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_TAPS = (2**31 - 1) // 255  # more could overflow the sum, an int32
MOST_ELEMENTS = 2**24  # differences that are held at a time


def forward(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y as int32, [N, K, P, Q], from uint8 x [N, C, H, W] and weight [K, C/groups, R, S]."""
    N, K, Cg = x.shape[0], weight.shape[0], weight.shape[1]
    top, bottom, left, right = padding
    padded = F.pad(x.to(torch.int16), (left, right, top, bottom), value=zero_point)
    P = (padded.shape[2] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    Q = (padded.shape[3] - dilation[1] * (weight.shape[3] - 1) - 1) // stride[1] + 1
    filters = weight.to(torch.int16).unflatten(0, (groups, K // groups))
    y = torch.zeros(N, groups, K // groups, P, Q, dtype=torch.int32, device=x.device)
    together = max(1, MOST_ELEMENTS // max(1, N * groups * Cg * P * Q))
    for r in range(weight.shape[2]):
        for s in range(weight.shape[3]):
            rows = slice(r * dilation[0], r * dilation[0] + (P - 1) * stride[0] + 1, stride[0])
            columns = slice(s * dilation[1], s * dilation[1] + (Q - 1) * stride[1] + 1, stride[1])
            taps = padded[:, :, rows, columns].unflatten(1, (groups, 1, Cg))  # [N, G, 1, Cg, P, Q]
            for first in range(0, K // groups, together):
                some = filters[:, first : first + together, :, r, s, None, None]  # [G, Kg, Cg, 1, 1]
                y[:, :, first : first + together] -= (taps - some).abs().sum(3, dtype=torch.int32)
    return y.flatten(1, 2)


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
