"""The operators under ``torch.vmap``: a call for all samples at once, instead of a loop over them.

Where every sample has the same filters, samples lie beside each other in the batch, [B·N, C, H, W]. Where the image is
the same, their filters lie beside each other, [B·K, C/G, R, S]. Otherwise each sample is a group of channels: images
[N, B·C, H, W], filters [B·K, C/G, R, S], B·G groups. B is the number of samples, the rest as in ``reference.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .geometry import Geometry


def forward(operator: Any, B: int, in_dims: tuple, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, int]:
    geometry, options = Geometry.of(*rest[:4]), rest[4:]
    x_dim, w_dim = in_dims[:2]
    if w_dim is None:
        x = _first(x, x_dim, B)
        return operator(x.flatten(0, 1), weight, *geometry.arguments, *options).unflatten(0, x.shape[:2]), 0
    weight = _first(weight, w_dim, B)
    if x_dim is None:
        y = operator(x, _within_groups(weight, 1, geometry.groups), *geometry.arguments, *options)
        return _of_samples(y, 1, geometry.groups, B), 0
    geometry = geometry.times_groups(B)
    y = operator(_as_groups(x, x_dim, B), weight.flatten(0, 1), *geometry.arguments, *options)
    return y.unflatten(1, (B, -1)), 1


def fused(operator: Any, B: int, in_dims: tuple, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, int]:
    scale, shift, residual = rest[:3]
    geometry, options = Geometry.of(*rest[3:7]), rest[7:]
    x_dim, w_dim, scale_dim, shift_dim, residual_dim = in_dims[:5]
    if (w_dim, scale_dim, shift_dim) == (None, None, None):
        x = _first(x, x_dim, B)
        residual = None if residual is None else _first(residual, residual_dim, B).flatten(0, 1)
        y = operator(x.flatten(0, 1), weight, scale, shift, residual, *geometry.arguments, *options)
        return y.unflatten(0, x.shape[:2]), 0
    per_filter = ((weight, w_dim), (scale, scale_dim), (shift, shift_dim))
    weight, scale, shift = (_first(t, dim, B).flatten(0, 1) for t, dim in per_filter)
    residual = None if residual is None else _as_groups(residual, residual_dim, B)
    geometry = geometry.times_groups(B)
    y = operator(_as_groups(x, x_dim, B), weight, scale, shift, residual, *geometry.arguments, *options)
    return y.unflatten(1, (B, -1)), 1


def grad_input(
    operator: Any, B: int, in_dims: tuple, dy: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    geometry, options = Geometry.of(*rest[:4]), rest[4:]
    dy_dim, x_dim, w_dim = in_dims[:3]
    if w_dim is None:
        dy, x = _first(dy, dy_dim, B), _first(x, x_dim, B)
        dx = operator(dy.flatten(0, 1), x.flatten(0, 1), weight, *geometry.arguments, *options)
        return dx.unflatten(0, x.shape[:2]), 0
    weight = _first(weight, w_dim, B).flatten(0, 1)
    geometry = geometry.times_groups(B)
    dx = operator(_as_groups(dy, dy_dim, B), _as_groups(x, x_dim, B), weight, *geometry.arguments, *options)
    return dx.unflatten(1, (B, -1)), 1


def grad_weight(
    operator: Any, B: int, in_dims: tuple, dy: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    geometry, options = Geometry.of(*rest[:4]), rest[4:]
    dy_dim, x_dim, w_dim = in_dims[:3]
    weight = _first(weight, w_dim, B)
    if x_dim is None:
        dy = _within_groups(_first(dy, dy_dim, B), 2, geometry.groups)
        dw = operator(dy, x, _within_groups(weight, 1, geometry.groups), *geometry.arguments, *options)
        return _of_samples(dw, 0, geometry.groups, B), 0
    dy, x = _as_groups(dy, dy_dim, B), _as_groups(x, x_dim, B)
    dw = operator(dy, x, weight.flatten(0, 1), *geometry.times_groups(B).arguments, *options)
    return dw.unflatten(0, (B, -1)), 0


def gradients(
    operator: Any, B: int, in_dims: tuple, dy: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """By the operators for one of them: the layouts that suit these differ."""
    operands, options = (dy, x, weight, *rest[:4]), rest[4:]
    dx, x_dim = grad_input(torch.ops.adder_zoo.adder2d_grad_input, B, in_dims, *operands, "sign", *options)
    dw, w_dim = grad_weight(torch.ops.adder_zoo.adder2d_grad_weight, B, in_dims, *operands, "sign", *options)
    return (dx, dw), (x_dim, w_dim)


def _first(t: Tensor, dim: int | None, B: int) -> Tensor:
    """t of each sample, [B, ...]; one that is the same for all is not copied."""
    return t.movedim(dim, 0) if dim is not None else t.expand(B, *t.shape)


def _as_groups(t: Tensor, dim: int | None, B: int) -> Tensor:
    """Images [N, C, H, W] of each sample as [N, B·C, H, W]."""
    return _first(t, dim, B).transpose(0, 1).flatten(1, 2)


def _within_groups(t: Tensor, dim: int, groups: int) -> Tensor:
    """Filters (or output channels) of each sample, [B, ..., G·K/G, ...] with K at ``dim``, as [..., G·B·K/G, ...]."""
    t = t.unflatten(dim, (groups, -1))  # [B, ..., G, K/G, ...]
    return t.movedim(0, dim).flatten(dim - 1, dim + 1)


def _of_samples(t: Tensor, dim: int, groups: int, B: int) -> Tensor:
    """The way back: [..., G·B·K/G, ...] with that at ``dim`` as [B, ..., K, ...]."""
    return t.unflatten(dim, (groups, B, -1)).movedim(dim + 1, 0).flatten(dim + 1, dim + 2)
