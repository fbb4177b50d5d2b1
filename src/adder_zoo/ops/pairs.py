"""The distances of all pairs as ``torch.library`` operators.

    adder_zoo::cdist       d[b, n, m] = Σ_i |x[b, n, i] - y[b, m, i]|
    adder_zoo::cdist_grad  its derivative by x or by y, with sgn(0) = 0
    adder_zoo::cdist_grads  both at once

Each batch is an adder layer with a 1x1 kernel: the rows of x are pixels, the rows of y are filters. So they run on the
kernels of ``adder2d``, and nothing larger than inputs and output is held. Without kernels (float64, other devices)
``torch.cdist`` computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .autograd import register_autograd
from .backends import REFERENCE, Backend, resolve
from .geometry import Geometry
from .reference import compute_dtype
from .registration import LIBRARY, operator

# The kernel for dw, with rows of y as filters, reads x in strides of its rows. With more coordinates, or with few rows
# of x, it is slower than a transposed copy of dy and the kernel for dx.
MOST_COORDINATES_FOR_DW = 256
FEWEST_ROWS_FOR_DW = 32
POINTS = Geometry.of([1, 1], [0, 0, 0, 0], [1, 1], 1)


def _fake_cdist(x, y, impl):
    return x.new_empty((*x.shape[:2], y.shape[1]), dtype=compute_dtype(x))


def _vmap_cdist(operator: Any, B: int, in_dims: tuple, x: Tensor, y: Tensor, impl: str) -> tuple[Tensor, int]:
    x, y = (_samples_first(t, dim, B) for t, dim in zip((x, y), in_dims, strict=False))
    return operator(x.flatten(0, 1), y.flatten(0, 1), impl).unflatten(0, x.shape[:2]), 0


@operator(_fake_cdist, _vmap_cdist)
def cdist(x: Tensor, y: Tensor, impl: str) -> Tensor:
    _check(x, y)
    shape, dtype = (*x.shape[:2], y.shape[1]), compute_dtype(x)
    if 0 in shape or x.shape[2] == 0:
        return x.new_zeros(shape, dtype=dtype)
    backend = _backend(impl, x)
    if backend is None:
        return torch.cdist(x.to(dtype), y.to(dtype), p=1.0)
    # A layer's output is the negative distance.
    if len(x) == 1:
        return backend.forward(_points(x[0]), _points(y[0]), POINTS).abs_().view(shape)
    result = x.new_empty(shape, dtype=dtype)
    for batch in range(len(x)):
        torch.abs(backend.forward(_points(x[batch]), _points(y[batch]), POINTS).flatten(1), out=result[batch])
    return result


def _fake_cdist_grad(dy, x, y, by_y, impl):
    return torch.empty_like(y if by_y else x, memory_format=torch.contiguous_format)


def _vmap_cdist_grad(operator: Any, B: int, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    dy, x, y = (_samples_first(t, dim, B) for t, dim in zip(args[:3], in_dims[:3], strict=True))
    return operator(dy.flatten(0, 1), x.flatten(0, 1), y.flatten(0, 1), *args[3:]).unflatten(0, x.shape[:2]), 0


@operator(_fake_cdist_grad, _vmap_cdist_grad)
def cdist_grad(dy: Tensor, x: Tensor, y: Tensor, by_y: bool, impl: str) -> Tensor:
    _check(x, y)
    _check_dy(dy, x, y)
    backend = _backend(impl, x)
    few = x.shape[1] < FEWEST_ROWS_FOR_DW
    if by_y and (backend is None or few or x.shape[2] > MOST_COORDINATES_FOR_DW):  # the distance is symmetric
        dy, x, y, by_y = dy.mT, y, x, False
    if dy.numel() == 0 or x.shape[2] == 0:
        return torch.zeros_like(y if by_y else x, memory_format=torch.contiguous_format)
    if backend is None:
        result = torch.empty_like(y if by_y else x, memory_format=torch.contiguous_format)
        dy, x, y = (t.to(compute_dtype(x)).contiguous() for t in (dy, x, y))
        # The last argument is the distances; with p = 1 nothing reads them.
        return result.copy_(torch.ops.aten._cdist_backward(dy, x, y, 1.0, dy))
    gradient = backend.grad_weight if by_y else backend.grad_input
    found = _of_distances(lambda dy, x, y: (gradient(dy, x, y, POINTS, "sign"),), dy, x, y)
    assert found is not None
    return found[0]


def _fake_cdist_grads(dy, x, y, impl):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, y))


def _vmap_cdist_grads(operator: Any, B: int, in_dims: tuple, *args: Any) -> tuple[tuple, tuple[int, int]]:
    dy, x, y = (_samples_first(t, dim, B) for t, dim in zip(args[:3], in_dims[:3], strict=True))
    dx, dy_ = operator(dy.flatten(0, 1), x.flatten(0, 1), y.flatten(0, 1), *args[3:])
    return (dx.unflatten(0, x.shape[:2]), dy_.unflatten(0, x.shape[:2])), (0, 0)


@operator(_fake_cdist_grads, _vmap_cdist_grads)
def cdist_grads(dy: Tensor, x: Tensor, y: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    _check(x, y)
    _check_dy(dy, x, y)
    backend = _backend(impl, x)
    if backend is not None and backend.gradients is not None and dy.numel() and x.shape[2]:
        both = backend.gradients
        found = _of_distances(lambda dy, x, y: both(dy, x, y, POINTS), dy, x, y)
        if found is not None:
            return found
    return cdist_grad(dy, x, y, False, impl), cdist_grad(dy, x, y, True, impl)


def _of_distances(gradients: Callable[..., tuple | None], dy: Tensor, x: Tensor, y: Tensor) -> Any:
    """What ``gradients(dy, x, y)`` of a layer gives for each batch, as derivatives of distances; None if it gives None.

    A layer's output is the negative distance. The gradients are linear in dy, so either dy or they are negated: what is
    smaller.
    """
    negate_dy = dy.shape[1] * dy.shape[2] < x.shape[1] * x.shape[2]
    results: tuple[Tensor, ...] = ()
    for batch in range(len(x)):
        layer_dy = dy[batch, :, :, None, None]
        found = gradients(-layer_dy if negate_dy else layer_dy, _points(x[batch]), _points(y[batch]))
        if found is None:
            return None
        parts = [t.flatten(1) if negate_dy else t.flatten(1).neg_() for t in found]
        if len(x) == 1:
            return tuple(t.unsqueeze(0) for t in parts)
        results = results or tuple(t.new_empty((len(x), *t.shape)) for t in parts)
        for result, part in zip(results, parts, strict=True):
            result[batch] = part
    return results


def _setup_context(ctx, inputs, output):
    x, y, ctx.impl = inputs
    ctx.save_for_backward(x, y)


def _backward(ctx, dy):
    x, y = ctx.saved_tensors
    if all(ctx.needs_input_grad[:2]):
        return *cdist_grads(dy, x, y, ctx.impl), None
    dx = cdist_grad(dy, x, y, False, ctx.impl) if ctx.needs_input_grad[0] else None
    return dx, cdist_grad(dy, x, y, True, ctx.impl) if ctx.needs_input_grad[1] else None, None


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("cdist: no second derivative is implemented; use create_graph=False")


register_autograd(LIBRARY, "cdist", _backward, _setup_context)
register_autograd(LIBRARY, "cdist_grad", _no_second_derivative)
register_autograd(LIBRARY, "cdist_grads", _no_second_derivative)


def _backend(impl: str, x: Tensor) -> Backend | None:
    """What computes; None stands for torch.cdist."""
    backend = resolve(impl, x, 1.0)
    return None if backend is REFERENCE and impl == "auto" else backend


def _points(rows: Tensor) -> Tensor:
    """[N, D] as pixels or filters of a 1x1 layer."""
    return rows[:, :, None, None]


def _samples_first(t: Tensor, dim: int | None, B: int) -> Tensor:
    return t.movedim(dim, 0) if dim is not None else t.expand(B, *t.shape)


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 3 or y.dim() != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise ValueError(f"cdist: expected [B, N, D] and [B, M, D], got {list(x.shape)} and {list(y.shape)}")


def _check_dy(dy: Tensor, x: Tensor, y: Tensor) -> None:
    if list(dy.shape) != [*x.shape[:2], y.shape[1]]:
        raise ValueError(f"cdist: dy must have shape {[*x.shape[:2], y.shape[1]]}, got {list(dy.shape)}")
