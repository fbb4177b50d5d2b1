"""``BinaryConv2d`` and ``BinaryLinear``: the paper's third similarity, weights and activations of one bit.

The AdderNet paper holds its networks against binary ones that are trained as in DoReFa-Net (its reference [38], arXiv
1606.06160) at one bit::

    w_b = E(|w|) · sign(w)             Eq. 7 there, E over the whole layer, sign(0) = 1; dL/dw = dL/dw_b
    x_b = round(clip(x, 0, 1))         Eq. 5 and sec. 2.5; dL/dx = dL/dx_b where 0 <= x <= 1, else 0
    y   = Σ x_b · w_b                  an XNOR and an addition for each tap, and one scale for the layer

The sums are computed by torch's convolution on the binary values: this is what such a network learns and answers, not
how fast hardware for it would be.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _BinaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        scale = weight.abs().mean()
        return torch.where(weight < 0, -scale, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class _BinaryInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1).round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.where((x >= 0) & (x <= 1), grad, 0.0)


def binary_weight(weight: Tensor) -> Tensor:
    """``E(|w|)·sign(w)``, any shape; the straight-through estimator passes its gradient on unchanged."""
    return _BinaryWeight.apply(weight)  # type: ignore[no-untyped-call]


def binary_input(x: Tensor) -> Tensor:
    """``round(clip(x, 0, 1))``, any shape, 0 or 1; gradients pass where x lies in [0, 1]. A NaN stays one."""
    return _BinaryInput.apply(x)  # type: ignore[no-untyped-call]


class BinaryConv2d(nn.Conv2d):
    """``nn.Conv2d`` on weights and inputs of one bit (DoReFa-Net, arXiv 1606.06160); arguments and shapes are its own.

    ``weight`` holds the real values that training moves. Batch norm must not be folded into them.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(binary_input(input), binary_weight(self.weight), self.bias)


class BinaryLinear(nn.Linear):
    """``nn.Linear`` on weights and inputs of one bit (DoReFa-Net, arXiv 1606.06160); same arguments and shapes."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(binary_input(input), binary_weight(self.weight), self.bias)
