"""``adder2d``: the kernels as a differentiable function, for users who have them without the adder_zoo package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .forward import adder2d_forward
from .grad_input import adder2d_grad_input
from .grad_weight import adder2d_grad_weight


class _Adder2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: tuple, weight_grad: str, input_grad: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = geometry, weight_grad, input_grad
        return adder2d_forward(x, weight, *geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        dx, dw = _Adder2dGradients.apply(dy, *ctx.saved_tensors, *ctx.options, *ctx.needs_input_grad[:2])
        return dx, dw, None, None, None


class _Adder2dGradients(torch.autograd.Function):
    # A function of its own, so that a second derivative raises wherever it is asked for, through x and weight too.
    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: tuple,
        weight_grad: str,
        input_grad: str,
        needs_dx: bool,
        needs_dw: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        dx = adder2d_grad_input(dy, x, weight, *geometry, input_grad) if needs_dx else None
        dw = adder2d_grad_weight(dy, x, weight, *geometry, weight_grad) if needs_dw else None
        return dx, dw

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        raise RuntimeError(
            "adder2d has no second derivative: its gradient is a surrogate (arXiv 1912.13200, Eq. 5 to 7), and "
            "differentiating that would not give a derivative of anything. Use create_graph=False."
        )


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
) -> Tensor:
    """y = bias - Σ|x - w| (Eq. 2), with the paper's surrogate gradients (Eq. 5 to 7).

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16.
        weight: [K, C/groups, R, S], likewise.
        bias: [K] or None.
        stride, dilation: (height, width).
        padding: (top, bottom, left, right).
        groups: Divides C and K.
        weight_grad: "full" (Eq. 5) or "sign" (Eq. 4).
        input_grad: "clipped" (Eq. 6, 7), "full" or "sign".

    Returns:
        [N, K, P, Q], float32 whatever the input's precision: y is large with a small spread.
    """
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"adder2d: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit with groups = {groups}; expected "
            "[N, C, H, W] and [K, C/groups, R, S]"
        )
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    y = _Adder2d.apply(x, weight, geometry, weight_grad, input_grad)
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
