"""A layer's filters as whole numbers, and the line that makes its values of its integer sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..int8.layers import QuantizedAdder2d, Range
from ..layers import AdderLinear
from .graph import Layer, NoIntegerForm

MOST = 127  # of an int8 filter, symmetric
SPREAD = 7  # exponents of the two powers of two are 0 to 7
TRIED_SCALES = 64


@dataclass(frozen=True)
class Filters:
    """See ``network.Weighted``; values are ``scale[k]·a[k] + shift[k]``, ``largest[k]`` the largest |a[k]|."""

    kind: str
    weight: Tensor
    pad: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    scale: Tensor
    shift: Tensor
    largest: Tensor
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def filters_of(layer: Layer, levels: tuple[Tensor, Tensor, Range], multiplier_free: bool) -> Filters:
    """The filters of a layer whose input's channel c is ``step[c]·(level - zero_point[c])``.

    Args:
        levels: step and zero_point, float64 [C], and the range.

    Raises:
        NoIntegerForm: padding that is not with zeros, or another exponent than 1.
    """
    module = layer.module
    if isinstance(module, QuantizedAdder2d):
        return _quantized(layer, module)
    if isinstance(module, AdderLinear):
        return _adder_linear(layer, module, levels[2])
    return _product(layer, levels, multiplier_free)


def _quantized(layer: Layer, module: QuantizedAdder2d) -> Filters:
    kernel, stride, padding, dilation, groups = module.geometry
    if module.same:
        height, width, _ = layer.x.shape
        top, bottom, left, right = module._same_padding(torch.empty(1, 1, height, width))
    else:
        top, bottom, left, right = _sides(layer, padding)
    linear = module.weight.dim() == 2
    weight = (_kernel(layer, module.weight) if linear else module.weight.permute(0, 2, 3, 1)).long()
    return _distance(
        layer, weight, module.input_range, tuple(stride), (top, bottom, left, right), module.scale.double(),
        module.shift.double(), tuple(dilation), groups,
    )  # fmt: skip


def _adder_linear(layer: Layer, module: AdderLinear, covered: Range) -> Filters:
    if module.p != 1:
        raise NoIntegerForm(f"{layer.name}: its exponent p is not 1")
    w = _kernel(layer, module.weight.detach().double())
    cut_off = (covered.low - w).clamp_min(0) + (w - covered.high).clamp_min(0)
    weight = covered.levels(w.float()).long()
    scale = torch.full((len(w),), covered.step, dtype=torch.float64)
    shift = -cut_off.flatten(1).sum(1)
    scale, shift = _normed(layer, scale, shift, module.bias)
    return _distance(layer, weight, covered, (1, 1), (0, 0, 0, 0), scale, shift)


def _distance(
    layer: Layer,
    weight: Tensor,
    covered: Range,
    stride: Any,
    padding: Any,
    scale: Tensor,
    shift: Tensor,
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Filters:
    pad = torch.full((layer.x.shape[2],), covered.zero_point)
    largest = torch.maximum(weight, 255 - weight).flatten(1).sum(1)
    return Filters("distance", weight, pad, stride, padding, scale, shift, largest, dilation, groups)


def _product(layer: Layer, levels: tuple[Tensor, Tensor, Range], multiplier_free: bool) -> Filters:
    module: Any = layer.module
    step, zero_point, _ = levels
    stride, padding, dilation, groups = (1, 1), (0, 0, 0, 0), (1, 1), 1
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            raise NoIntegerForm(f"{layer.name}: padding_mode {module.padding_mode!r}; only zeros has an integer form")
        stride, padding = tuple(module.stride), _sides(layer, module.padding)  # type: ignore[assignment]
        dilation, groups = tuple(module.dilation), module.groups  # type: ignore[assignment]
        w = module.weight.detach().double().permute(0, 2, 3, 1)
    else:
        w = _kernel(layer, module.weight.detach().double())
    # Σ step·(x - z)·w = Σ x·(step·w) - Σ z·step·w, which makes the zero point and the normalisation a constant.
    scaled = w * _of_filters(step, len(w), groups)
    zero = _of_filters(zero_point, len(w), groups)
    quantised = _sums_of_two_powers if multiplier_free else _int8
    weight, size = quantised(scaled.flatten(1))
    weight = weight.view(w.shape)
    # Of the filters as they are rounded: a level of z means 0 again.
    constant = -(weight.double() * zero).flatten(1).sum(1) * size
    scale, shift = _normed(layer, size, constant, module.bias)
    # A pixel of the zero point is rounded where it is padded.
    pad = zero_point.round().long()
    largest = 255 * torch.maximum(weight.clamp_min(0).flatten(1).sum(1), (-weight).clamp_min(0).flatten(1).sum(1))
    return Filters("product", weight, pad, stride, padding, scale, shift, largest, dilation, groups)


def _kernel(layer: Layer, w: Tensor) -> Tensor:
    """Filters of a linear layer, [K, H·W·C] in torch's order, as [K, H, W, C] over the map that it reads."""
    height, width, channels = layer.x.shape
    return w.view(len(w), channels, height, width).permute(0, 2, 3, 1)


def _normed(layer: Layer, scale: Tensor, shift: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The line with the layer's bias and the batch norm behind it, float64 [K]."""
    if bias is not None:
        shift = shift + bias.detach().double()
    norm: Any = layer.norm
    if norm is None:
        return scale, shift
    by = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        by = by * norm.weight.detach().double()
    shift = (shift - norm.running_mean.double()) * by
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale * by, shift


def _int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """int8 filters, symmetric, and the size of their unit, [K]."""
    size = w.abs().amax(1).clamp_min(1e-30) / MOST
    return (w / size[:, None]).round().long(), size


def _sums_of_two_powers(w: Tensor) -> tuple[Tensor, Tensor]:
    """Filters of ±2^p ± 2^q, p and q from 0 to 7, and the size of their unit: of some sizes the one that fits best."""
    powers = 2.0 ** torch.arange(SPREAD + 1, dtype=torch.float64)
    sums = (powers[:, None, None] + torch.tensor([-1.0, 1.0])[:, None] * powers).flatten()
    values = torch.cat([sums, -sums]).unique()  # with 0
    largest = w.abs().amax(1).clamp_min(1e-30)
    best, error = torch.zeros_like(w), torch.full((len(w),), torch.inf, dtype=torch.float64)
    size = torch.ones(len(w), dtype=torch.float64)
    for top in torch.linspace(96, 256, TRIED_SCALES, dtype=torch.float64):
        unit = largest / top
        middle = (values[1:] + values[:-1]) / 2
        levels = values[torch.bucketize(w / unit[:, None], middle)]
        lost = ((levels * unit[:, None] - w) ** 2).sum(1)
        better = lost < error
        best[better], size[better], error = levels[better], unit[better], torch.minimum(lost, error)
    return best.long(), size


def _of_filters(of_channel: Tensor, filters: int, groups: int) -> Tensor:
    """What each filter's channels have, [K, 1, 1, C/groups], from [C]."""
    return of_channel.view(groups, 1, 1, -1).repeat_interleave(filters // groups, 0)


def _sides(layer: Layer, padding: Any) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of torch's padding."""
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        module: Any = layer.module
        totals = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        return totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2
    top, left = (padding, padding) if isinstance(padding, int) else padding
    return top, top, left, left
