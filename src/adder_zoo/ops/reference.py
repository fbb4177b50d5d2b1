"""The written definition of the adder operator in eager torch: slow, plain, on any device, in bounded memory.

Shapes: x [N, C, H, W], weight [K, C/G, R, S], dy and y [N, K, P, Q]. Equations as in ``adder_zoo.adder2d``, whose Eq.
numbers are the paper's (arXiv 1912.13200).

Everything is written on differences d = x - w of shape [G, M, K/G, C/G·R·S], where M counts output pixels, a chunk of
them at a time. Half precision is computed in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry

CHUNK_ELEMENTS = 1 << 22  # differences held at a time: 16 MiB in float32


def forward(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    p: float = 1.0,
) -> Tensor:
    """y = -Σ|x - w|^p (Eq. 2 for p = 1), [N, K, P, Q], contiguous."""
    dtype = compute_dtype(x)
    windows = _windows(_pad(x.to(dtype), geometry), weight, geometry)
    w = _filters(weight.to(dtype), geometry.groups)
    N, G, P, Q = windows.shape[:4]
    y = torch.empty(N, G, w.shape[1], P, Q, dtype=dtype, device=x.device)
    for n, rows in _chunks(windows, w):
        distance = _differences(windows[n, :, rows], w).abs().pow(p).sum(-1)  # [G, M, K/G]
        y[n, :, :, rows] = -distance.transpose(1, 2).unflatten(2, (-1, Q))
    return y.flatten(1, 2)


def epilogue(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """``act(scale[k]·y + shift[k] + residual)`` in the dtype of y, [N, K, P, Q]; a NaN stays one."""
    y = y * scale.to(y.dtype).view(-1, 1, 1) + shift.to(y.dtype).view(-1, 1, 1)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return y.relu() if relu else y


def forward_then_epilogue(
    forward: Callable[[Tensor, Tensor, Geometry], Tensor],
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    geometry: Geometry,
    relu: bool,
) -> Tensor:
    """What ``adder2d_fused`` means: ``forward``, then ``epilogue``, in two passes."""
    return epilogue(forward(x, weight, geometry), scale, shift, residual, relu)


def grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    input_grad: str,
    p: float = 1.0,
) -> Tensor:
    """dx = Σ_{k,r,s} dy·HT(w - x) (Eq. 6 and 7, or its variants), [N, C, H, W], contiguous, in the dtype of x."""
    dtype = compute_dtype(x)
    xp = _pad(x.to(dtype), geometry)
    windows = _windows(xp, weight, geometry)
    w = _filters(weight.to(dtype), geometry.groups)
    dy = dy.to(dtype).unflatten(1, (geometry.groups, -1))  # [N, G, K/G, P, Q]
    dx = torch.zeros_like(xp, memory_format=torch.contiguous_format)
    Q, R, S = windows.shape[3], *weight.shape[2:]
    stride, dilation = geometry.stride, geometry.dilation
    for n, rows in _chunks(windows, w):
        t = _differences(windows[n, :, rows], w).neg_()  # w - x
        if p > 1:
            t = p * t.abs().pow(p - 1) * _sgn(t)
        elif input_grad == "clipped":
            t = t.clamp_(-1, 1)
        elif input_grad == "sign":
            t = _sgn(t)
        taps = torch.einsum("gkm,gmkt->gtm", dy[n, :, :, rows].flatten(2), t)  # [G, C/G·R·S, M]
        taps = taps.unflatten(1, (-1, R, S)).flatten(0, 1).unflatten(3, (-1, Q))  # [C, R, S, rows, Q]
        first, count = rows.start, taps.shape[3]
        for r in range(R):
            for s in range(S):
                top = first * stride[0] + r * dilation[0]
                left = s * dilation[1]
                dx[n, :, top : top + (count - 1) * stride[0] + 1 : stride[0],
                   left : left + (Q - 1) * stride[1] + 1 : stride[1]] += taps[:, r, s]  # fmt: skip
    top, bottom, left, right = geometry.padding
    return F.pad(dx, (-left, -right, -top, -bottom)).to(x.dtype)


def grad_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    weight_grad: str,
    p: float = 1.0,
) -> Tensor:
    """dw = Σ_{n,p,q} dy·(x - w) (Eq. 5) or Σ dy·sgn(x - w) (Eq. 4), [K, C/G, R, S], in the dtype of weight."""
    dtype = compute_dtype(x)
    windows = _windows(_pad(x.to(dtype), geometry), weight, geometry)
    w = _filters(weight.to(dtype), geometry.groups)
    dy = dy.to(dtype).unflatten(1, (geometry.groups, -1))
    dw = torch.zeros_like(w)
    for n, rows in _chunks(windows, w):
        t = _differences(windows[n, :, rows], w)  # x - w
        if p > 1:
            t = p * t.abs().pow(p - 1) * _sgn(t)
        elif weight_grad == "sign":
            t = _sgn(t)
        dw += torch.einsum("gkm,gmkt->gkt", dy[n, :, :, rows].flatten(2), t)
    return dw.view(weight.shape).to(weight.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision that the operator computes and answers in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _pad(x: Tensor, geometry: Geometry) -> Tensor:
    top, bottom, left, right = geometry.padding
    return F.pad(x, (left, right, top, bottom)) if any(geometry.padding) else x


def _windows(xp: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A view of the padded image as patches, [N, G, P, Q, C/G, R, S]; nothing is copied."""
    (N, C, H, W), (R, S) = xp.shape, weight.shape[2:]
    P, Q = dataclasses.replace(geometry, padding=(0, 0, 0, 0)).output_size((H, W), (R, S))
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    sn, sc, sh, sw = xp.stride()
    return xp.as_strided(
        (N, groups, P, Q, C // groups, R, S),
        (sn, C // groups * sc, stride[0] * sh, stride[1] * sw, sc, dilation[0] * sh, dilation[1] * sw),
    )


def _filters(weight: Tensor, groups: int) -> Tensor:
    """[G, K/G, C/G·R·S]."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _chunks(windows: Tensor, w: Tensor) -> Iterator[tuple[int, slice]]:
    """Images and ranges of output rows whose differences fit in CHUNK_ELEMENTS (one row at the least)."""
    N, _, P, Q = windows.shape[:4]
    step = max(1, CHUNK_ELEMENTS // max(1, Q * w.numel()))
    for n in range(N):
        for first in range(0, P, step):
            yield n, slice(first, min(first + step, P))


def _differences(windows: Tensor, w: Tensor) -> Tensor:
    """x - w for windows [G, rows, Q, C/G, R, S]: [G, M, K/G, C/G·R·S]."""
    return windows.flatten(3).flatten(1, 2).unsqueeze(2) - w.unsqueeze(1)


def _sgn(t: Tensor) -> Tensor:
    return torch.where(t.isnan(), t, t.sign())  # torch.sign(nan) is 0, which would hide it
