"""Eq. 1 of the AdderNet paper leaves open what compares a patch with a filter: its networks exist in three kinds.

adder    S(x, w) = -|x - w|       the paper's networks
conv     S(x, w) = x·w            the CNNs it holds them against
xnor     S(x, w) = x_b·w_b        its binary networks, weights and activations of one bit
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..binary import BinaryConv2d, BinaryLinear
from ..layers import Adder2d, AdderLayer, AdderLinear

CONVOLUTIONS: dict[str, type[nn.Module]] = {"adder": Adder2d, "conv": nn.Conv2d, "xnor": BinaryConv2d}
LINEARS: dict[str, type[nn.Module]] = {"adder": AdderLinear, "conv": nn.Linear, "xnor": BinaryLinear}
SIMILARITIES = tuple(CONVOLUTIONS)


def conv2d(similarity: str, in_channels: int, out_channels: int, kernel_size: Any, **kwargs: Any) -> nn.Module:
    """A layer that compares patches by ``similarity``, without bias unless ``bias=True``; batch norm should follow."""
    return _settled(CONVOLUTIONS[similarity](in_channels, out_channels, kernel_size, **{"bias": False, **kwargs}))


def linear(similarity: str, in_features: int, out_features: int, **kwargs: Any) -> nn.Module:
    """A fully connected layer without bias that compares features by ``similarity``; batch norm is to follow."""
    return _settled(LINEARS[similarity](in_features, out_features, bias=False, **kwargs))


def _settled(layer: nn.Module) -> nn.Module:
    """Says of an adder layer that one of ``norms.py`` follows."""
    if isinstance(layer, AdderLayer):
        layer.float32_behind = True
    return layer
