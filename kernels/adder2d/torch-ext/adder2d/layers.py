"""Layers for ``kernels.kernelize``: the forward of an adder layer, on the attributes that the replaced module has."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .operator import adder2d


class Adder2d(nn.Module):
    """Takes the place of the forward of ``adder_zoo.Adder2d``, or of any module with ``nn.Conv2d``'s attributes.

    A module with a method ``padded(x)``, as adder_zoo's, pads by that: the one of ``Adder2dSame`` depends on x's size.
    """

    can_torch_compile = True
    has_backward = True

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] to [N, K, P, Q], float32.

        Raises:
            ValueError: the module's exponent ``p`` is 2, which the kernels do not compute: it is a convolution.
        """
        given, mode = self.padding, getattr(self, "padding_mode", "zeros")
        if hasattr(self, "padded"):
            (x, given), mode = self.padded(x), "zeros"
        if isinstance(given, str):
            totals = [0, 0]
            if given == "same":
                totals = [d * (k - 1) for d, k in zip(self.dilation, self.weight.shape[2:])]
            padding = (totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2)
        else:
            padding = (given[0], given[0], given[1], given[1])
        if mode != "zeros":
            x = F.pad(x, (padding[2], padding[3], padding[0], padding[1]), mode=mode)
            padding = (0, 0, 0, 0)
        return adder2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            getattr(self, "weight_grad", "full"),
            getattr(self, "input_grad", "clipped"),
            getattr(self, "p", 1.0),
        )
