"""The parts of the adder operator that are linear, computed by torch's own convolution.

Eq. 5 of arXiv 1912.13200, ``dw = Σ dy·(x - w) = conv_weight_grad(x, dy) - w·Σ dy``, serves every implementation's
``weight_grad="full"``. For p = 2 the whole operator is a convolution and two norms (arXiv 2105.14202):
``-Σ(x - w)² = 2·<x, w> - ‖x‖² - ‖w‖²``, with twice the "full" gradients.

Shapes and argument names as in ``reference.py``. The convolutions run in float32 (float64 for float64); on a GPU
``torch.backends.cudnn.allow_tf32`` decides whether they may round their inputs to TF32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry
from .reference import compute_dtype


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """y = 2·<x, w> - ‖x‖² - ‖w‖² for p = 2, [N, K, P, Q]."""
    dtype = compute_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    x, pads = _symmetric(x, geometry)
    where = (None, geometry.stride, pads, geometry.dilation, geometry.groups)
    inner = F.conv2d(x, weight, *where)
    ones = weight.new_ones(geometry.groups, *weight.shape[1:])
    x_norm = F.conv2d(x.square(), ones, *where)  # [N, G, P, Q]
    y = 2 * inner - weight.square().sum((1, 2, 3)).view(-1, 1, 1)
    return y - x_norm.repeat_interleave(weight.shape[0] // geometry.groups, 1)


def grad_input(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, input_grad: str = "full") -> Tensor:
    """dx = Σ dy·2(w - x) for p = 2, whatever ``input_grad``."""
    return 2 * full_grad_input(dy, x, weight, geometry)


def grad_weight(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, weight_grad: str = "full") -> Tensor:
    """dw = Σ dy·2(x - w) for p = 2, whatever ``weight_grad``."""
    return 2 * full_grad_weight(dy, x, weight, geometry)


def full_grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> Tensor:
    """dx = Σ dy·(w - x) = conv_input_grad(dy, w) - x·conv_input_grad(Σ_k dy, 1), [N, C, H, W] in the dtype of x."""
    dtype = compute_dtype(x)
    xp, pads = _symmetric(x.to(dtype), geometry)
    dy, weight = dy.to(dtype), weight.to(dtype)
    dx = _convolution_backward(dy, xp, weight, geometry, pads, 0)
    groups = geometry.groups
    dy_sum = dy.unflatten(1, (groups, -1)).sum(2)  # [N, G, P, Q]
    one = weight.new_ones(groups, 1, *weight.shape[2:])
    coverage = _convolution_backward(dy_sum, xp[:, :: xp.shape[1] // groups], one, geometry, pads, 0)
    dx = dx - xp * coverage.repeat_interleave(xp.shape[1] // groups, 1)
    if xp.shape != x.shape:  # the padding was made of real pixels: drop their gradient
        top, _, left, _ = geometry.padding
        dx = dx[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return dx.to(x.dtype)


def full_grad_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> Tensor:
    """dw = Σ dy·(x - w) (Eq. 5), [K, C/G, R, S] in the dtype of weight.

    Where an element is not finite the two sums may have met as ∞ - ∞ or 0·∞ although Σ dy·(x - w) has a value: a
    caller that promises the equation for infinities computes those again.
    """
    dw = grad_weight_product(dy, x, weight, geometry)
    return (dw - weight.to(dw.dtype) * dy.to(dw.dtype).sum((0, 2, 3)).view(-1, 1, 1, 1)).to(weight.dtype)


def grad_weight_product(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> Tensor:
    """Σ dy·x, [K, C/G, R, S] in the dtype that is computed with: what Eq. 5 has in common with a convolution."""
    dtype = compute_dtype(x)
    x, pads = _symmetric(x.to(dtype), geometry)
    return _convolution_backward(dy.to(dtype), x, weight.to(dtype), geometry, pads, 1)


def _symmetric(x: Tensor, geometry: Geometry) -> tuple[Tensor, list[int]]:
    """x and the (height, width) padding that a convolution takes; padding that differs by side is put into x."""
    top, bottom, left, right = geometry.padding
    if top == bottom and left == right:
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, pads: list[int], which: int
) -> Tensor:
    """The convolution's gradient of its input (``which`` = 0) or of its filters (1)."""
    stride = list(geometry.stride)
    mask = [which == i for i in range(3)]
    if which == 1 and weight.shape[2:] == (1, 1) and x.device.type == "cpu" and max(stride) > 1:
        x, stride, pads = _met_pixels(x, dy, stride, pads), [1, 1], [0, 0]
    dy, x, weight = _usual_strides(dy), _usual_strides(x), _usual_strides(weight)
    args = (None, stride, pads, list(geometry.dilation), False, [0, 0], geometry.groups, mask)
    return torch.ops.aten.convolution_backward(dy, x, weight, *args)[which]


def _met_pixels(x: Tensor, dy: Tensor, stride: list[int], pads: list[int]) -> Tensor:
    """The pixels that a strided 1x1 kernel meets, [N, C, P, Q].

    oneDNN gathers them itself, and up to 3.12 writes behind its workspace where x is channels_last with fewer channels
    than a vector holds (uxlfoundation/oneDNN issue 6035): a wrong dw, or a heap in pieces.
    """
    if any(pads):
        x = F.pad(x, (pads[1], pads[1], pads[0], pads[0]))
    return x[:, :, :: stride[0], :: stride[1]][:, :, : dy.shape[2], : dy.shape[3]]


def _usual_strides(t: Tensor) -> Tensor:
    """The same memory. A dimension of size 1 may have any stride, and torch 2.14 gives a wrong dw for some (groups)."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if t.is_contiguous(memory_format=memory_format):
            return t.as_strided(t.shape, torch.empty(t.shape, device="meta", memory_format=memory_format).stride())
    return t
