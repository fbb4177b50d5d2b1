"""``adder2d``: the kernels as operators of torch, with gradients, for autograd, ``torch.compile`` and export.

They are registered in the namespace that the build gives to this version (``_ops.py``), so that several versions of
this project can be loaded in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._ops import add_op_namespace_prefix, ops
from .kernels import adder2d_forward, adder2d_grad_input, adder2d_grad_weight
from .kernels._launch import Geometry, memory_format
from .kernels.grad_input import MODES as INPUT_GRADS
from .kernels.grad_weight import MODES as WEIGHT_GRADS


def adder2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    weight_grad: str = "full",
    input_grad: str = "clipped",
    p: float = 1.0,
) -> Tensor:
    """y = bias - Σ|x - w|^p (Eq. 2 for p = 1), with the paper's surrogate gradients (Eq. 5 to 7).

    For p > 1 (arXiv 2105.14202) the gradients are the derivative, whatever ``weight_grad`` and ``input_grad`` say.

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16.
        weight: [K, C/groups, R, S], likewise.
        bias: [K] or None.
        stride, dilation: (height, width).
        padding: (top, bottom, left, right).
        groups: Divides C and K.
        weight_grad: "full" (Eq. 5) or "sign" (Eq. 4).
        input_grad: "clipped" (Eq. 6, 7), "full" or "sign".
        p: From 1 to below 2.

    Returns:
        [N, K, P, Q], float32 whatever the input's precision: y is large with a small spread.

    Raises:
        ValueError: shapes that do not fit, another p, or an unknown gradient.
        RuntimeError: x or weight has a forward-mode tangent; or, in backward(), a second derivative is asked for.
    """
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"adder2d: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit with groups = {groups}; expected "
            "[N, C, H, W] and [K, C/groups, R, S]"
        )
    if not isinstance(p, (int, float)) or not 1 <= p < 2:
        raise ValueError(f"adder2d: p must be a number from 1 to below 2, got {p!r}")
    if weight_grad not in WEIGHT_GRADS or input_grad not in INPUT_GRADS:
        raise ValueError(
            f"adder2d: weight_grad must be one of {WEIGHT_GRADS} and input_grad one of {INPUT_GRADS}, got "
            f"{weight_grad!r} and {input_grad!r}"
        )
    _refuse_tangents(x, weight)
    y = ops.adder2d(x, weight, list(stride), list(padding), list(dilation), groups, weight_grad, input_grad, float(p))
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def _refuse_tangents(*tensors: Tensor) -> None:
    """Raises where torch would answer a tangent of zero: operators of Python have no forward-mode derivative."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            "adder2d has no forward-mode derivative (torch.func.jvp, jacfwd). Use reverse mode: backward() or "
            "torch.autograd.grad."
        )


def _exactly(launch: Any, device: str, *args: Any) -> Tensor:
    """``launch(*args)`` with autocast off: every kernel adds up in float32 whatever comes in."""
    with torch.autocast(device, enabled=False):
        return launch(*args)


@torch.library.custom_op(add_op_namespace_prefix("adder2d"), mutates_args=())
def _adder2d(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    weight_grad: str,
    input_grad: str,
    p: float,
) -> Tensor:
    return _exactly(adder2d_forward, x.device.type, x, weight, stride, padding, dilation, groups, p)


@torch.library.custom_op(add_op_namespace_prefix("adder2d_grad_input"), mutates_args=())
def _grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_grad: str,
    p: float,
) -> Tensor:
    return _exactly(adder2d_grad_input, x.device.type, dy, x, weight, stride, padding, dilation, groups, input_grad, p)


@torch.library.custom_op(add_op_namespace_prefix("adder2d_grad_weight"), mutates_args=())
def _grad_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    weight_grad: str,
    p: float,
) -> Tensor:
    geometry = stride, padding, dilation, groups
    return _exactly(adder2d_grad_weight, x.device.type, dy, x, weight, *geometry, weight_grad, p)


@_adder2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    weight_grad: str,
    input_grad: str,
    p: float,
) -> Tensor:
    g = Geometry.of(x, weight, stride, padding, dilation, groups)
    return torch.empty((g.N, g.K, g.P, g.Q), dtype=torch.float32, device=x.device, memory_format=memory_format(x))


@_grad_input.register_fake
def _(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@_grad_weight.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, *ctx.geometry, ctx.weight_grad, ctx.input_grad, ctx.p = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    needs_dx, needs_dw = ctx.needs_input_grad[:2]
    dx = ops.adder2d_grad_input(dy, x, weight, *ctx.geometry, ctx.input_grad, ctx.p) if needs_dx else None
    dw = ops.adder2d_grad_weight(dy, x, weight, *ctx.geometry, ctx.weight_grad, ctx.p) if needs_dw else None
    return (dx, dw, *(None,) * 7)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple:
    raise RuntimeError(
        "adder2d has no second derivative: for p = 1 its gradient is a surrogate (arXiv 1912.13200, Eq. 5 to 7), and "
        "differentiating that would not give a derivative of anything; for p > 1 none is implemented. Use "
        "create_graph=False."
    )


_adder2d.register_autograd(_backward, setup_context=_keep)
_grad_input.register_autograd(_no_second_derivative)
_grad_weight.register_autograd(_no_second_derivative)
