"""``to_integers``: a quantised network as whole numbers from the pixels to the logits.

Each value gets an encoding: uint8 levels in the range of the layer that reads it, and int16 where it is added as a
shortcut. All values that meet in additions share one unit, so that an addition is one. Then each layer's scale and
shift become integers (``fixed_point.py``), in order; without multiplications, each is fitted around the mean of the
sums that the integer layers before it make of the calibration images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..int8.layers import QuantizedAdder2d, Range
from ..layers import AdderLayer
from . import fixed_point, reference
from .filters import Filters, filters_of
from .graph import POOLS, Layer, Network, NoIntegerForm, Value, read
from .network import IntegerNetwork
from .steps import AveragePool, Lookup, MaxPool, Narrow, Placed, Requantize, Rescale, Step, Weighted

MOST_IMAGES = 256
INT16 = 32_000  # what the largest value seen becomes; the rest is room for larger ones
LOGITS = 2**14


def to_integers(
    network: nn.Module,
    images: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    multiplier_free: bool = False,
) -> IntegerNetwork:
    """A network in whole numbers alone: uint8 images in, integer logits out, every step stated and exact.

    Args:
        network: What ``adder_zoo.quantize`` returned; or a convolutional network in eval mode (``similarity="conv"``),
            whose layers are then quantised to int8 filters, one scale for each, as a twin to compare with.
        images: uint8 [N, H, W, C], as decoded from files, not normalised. They set the ranges of what ``quantize`` left
            in float32; a hundred are enough, and 256 are used at the most.
        mean, std: For each channel, on the scale from 0 to 1. Default: as the network's ``pretrained_cfg`` says.
        multiplier_free: Make every scale of a filter, and every weight of a layer with products, a sum of two signed
            powers of two, and every scale of a whole tensor one of four.

    Returns:
        The integer network. Calling it gives the integers that exported programs give.

    Raises:
        TypeError: images are not uint8.
        ValueError: images have another shape; mean or std is missing or has the wrong length; or (``NoIntegerForm``)
            the network was not quantised, or a layer, which is named, has no integer form.

    Example:
        >>> import adder_zoo, timm, torch
        >>> model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
        >>> pixels = torch.randint(0, 256, (64, 32, 32, 1), dtype=torch.uint8)
        >>> small = adder_zoo.quantize(model, (pixels.permute(0, 3, 1, 2) / 255 - 0.1307) / 0.3081)
        >>> adder_zoo.to_integers(small, pixels)(pixels).shape
        torch.Size([64, 10])
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError("to_integers: images must be a uint8 tensor [N, H, W, C], as decoded from files")
    if images.dim() != 4 or not len(images):
        raise ValueError(f"to_integers: images must be [N, H, W, C] with at least one image, got {list(images.shape)}")
    _check_quantised(network)
    images = images[:MOST_IMAGES]
    scales = _normalisation(network, images.shape[-1], mean, std)
    normalised = ((images.permute(0, 3, 1, 2) / 255) - scales[0].view(-1, 1, 1)) / scales[1].view(-1, 1, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.fx._symbolic_trace.*")
        graph = read(network, normalised.float())
    return _Lowering(graph, scales, multiplier_free).lower(images)


def _check_quantised(network: nn.Module) -> None:
    modules = list(network.modules())
    if any(module.training for module in modules):
        raise ValueError("to_integers: the network is in training mode; call eval() first")
    if any(isinstance(m, AdderLayer) for m in modules) and not any(isinstance(m, QuantizedAdder2d) for m in modules):
        raise NoIntegerForm(
            "to_integers: this network was not quantised. Call small = adder_zoo.quantize(model, images) first, and "
            "give small."
        )


def _normalisation(network: nn.Module, channels: int, mean: Any, std: Any) -> tuple[Tensor, Tensor]:
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    found = []
    for name, given in (("mean", mean), ("std", std)):
        values = given if given is not None else config.get(name)
        if values is None:
            raise ValueError("to_integers: the network does not say how images are normalised; give mean and std")
        tensor = torch.tensor(list(values), dtype=torch.float64)
        if len(tensor) == 1:
            tensor = tensor.expand(channels)
        if len(tensor) != channels:
            raise ValueError(f"to_integers: {name} has {len(tensor)} values, and the images have {channels} channels")
        found.append(tensor)
    return found[0], found[1]


class _Lowering:
    def __init__(self, graph: Network, scales: tuple[Tensor, Tensor], multiplier_free: bool) -> None:
        self.graph = graph
        self.mean, self.std = scales
        self.multiplier_free = multiplier_free
        self.steps: list[Step] = []
        self.readers: dict[str, list[Layer]] = {}
        for layer in graph.layers:
            self.readers.setdefault(layer.x.name, []).append(layer)
        self.shortcuts = {layer.shortcut.name for layer in graph.layers if layer.shortcut is not None}
        self.units = self._units()
        self.ranges: dict[str, list[Range]] = {}
        self.narrow: dict[tuple[str, Range], Placed] = {}
        self.wide: dict[str, Placed] = {}

    # ---- encodings ----

    def _units(self) -> dict[str, float]:
        """What one unit of an int16 tensor is worth, the same for all values that meet in additions."""
        group: dict[str, set[str]] = {}
        values: dict[str, Value] = {}
        for layer in self.graph.layers:
            if layer.shortcut is not None:
                pair = group.get(layer.y.name, {layer.y.name}) | group.get(layer.shortcut.name, {layer.shortcut.name})
                values |= {layer.y.name: layer.y, layer.shortcut.name: layer.shortcut}
                for name in pair:
                    group[name] = pair
        largest = {n: max(max(values[m].high, -values[m].low) for m in members) for n, members in group.items()}
        return {name: max(top, 1e-12) / INT16 for name, top in largest.items()}

    def _needed(self, value: Value) -> list[Range]:
        """The ranges in which readers want a value's levels, each once."""
        if value.name not in self.ranges:
            wanted = [self._wanted(layer) for layer in self.readers.get(value.name, [])]
            self.ranges[value.name] = list(dict.fromkeys(r for r in wanted if r is not None))
        return self.ranges[value.name]

    def _wanted(self, layer: Layer) -> Range | None:
        if isinstance(layer.module, QuantizedAdder2d):
            return layer.module.input_range
        if isinstance(layer.module, nn.MaxPool2d):
            below = self._needed(layer.y)
            if len(below) > 1:
                raise NoIntegerForm(f"{layer.name}: what reads it wants levels of {len(below)} different ranges")
            return below[0] if below else _covering(layer.x)
        if isinstance(layer.module, POOLS):
            return None if layer.x.name in self.units else _covering(layer.x)
        return _covering(layer.x)

    def _placed(self, value: Value, dtype: str, number: int = 0) -> Placed:
        name = value.name.replace(".", "_") + (f"_{number + 1}" if number else "")
        return Placed(name + ("_wide" if dtype == "int16" else ""), value.shape, dtype)

    # ---- steps ----

    def lower(self, images: Tensor) -> IntegerNetwork:
        self.values = {"image": images.long()}
        self._image()
        for layer in self.graph.layers:
            if isinstance(layer.module, nn.MaxPool2d):
                self._add(self._max_pool(layer, layer.module))
            elif isinstance(layer.module, POOLS):
                self._add(self._average_pool(layer))
            else:
                self._weighted(layer)
        logits = self.graph.logits
        assert logits is not None
        if logits.name not in self.wide:
            raise NoIntegerForm("the network's last step is not a layer with filters")
        return IntegerNetwork(
            tuple(self.steps), self.graph.image.shape, self.wide[logits.name], self.logit_step, self.multiplier_free
        )

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        if self.multiplier_free:  # their sums are needed
            self.values |= reference.run_step(step, self.values)

    def _image(self) -> None:
        """The image's levels for each reader: as it is for products, by a table for distances."""
        image = self.graph.image
        placed = Placed("image", image.shape, "uint8")
        self.image_range = Range(1 / 255, 0, 255)
        for number, covered in enumerate(self._needed(image)):
            readers = [layer for layer in self.readers[image.name] if self._wanted(layer) == covered]
            if not isinstance(readers[0].module, QuantizedAdder2d):
                self.narrow[image.name, covered] = placed
                continue
            pixels = (torch.arange(256) / 255 - self.mean[:, None]) / self.std[:, None]  # [C, 256]
            table = covered.levels(pixels.float())
            if torch.equal(table, torch.arange(256, dtype=torch.uint8).expand_as(table)):
                self.narrow[image.name, covered] = placed
                continue
            levels = Placed("levels" + (f"_{number + 1}" if number else ""), image.shape, "uint8")
            self.narrow[image.name, covered] = levels
            self._add(Lookup(levels.name, placed, table, levels))

    def _max_pool(self, layer: Layer, module: nn.MaxPool2d) -> MaxPool:
        if _pair(module.dilation) != (1, 1) or module.ceil_mode or module.return_indices:
            raise NoIntegerForm(f"{layer.name} (MaxPool2d) has dilation, ceil_mode or return_indices")
        covered = self._wanted(layer)
        assert covered is not None
        for reader_range in self._needed(layer.y) or [covered]:
            self.narrow[layer.y.name, reader_range] = self._placed(layer.y, "uint8")
        if layer.y.name in self.shortcuts:
            raise NoIntegerForm(f"{layer.name} (MaxPool2d) is added as a shortcut")
        (top, left), x = _pair(module.padding), self.narrow[layer.x.name, covered]
        return MaxPool(
            layer.name, x, _pair(module.kernel_size), _pair(module.stride), (top, top, left, left),
            self.narrow[layer.y.name, covered],
        )  # fmt: skip

    def _average_pool(self, layer: Layer) -> AveragePool:
        height, width, _ = layer.x.shape
        if layer.y.shape[:2] != (1, 1):
            raise NoIntegerForm(f"{layer.name} ({type(layer.module).__name__}) averages less than the whole map")
        (covered,) = self._needed(layer.y) or [_covering(layer.y)]
        placed = self._placed(layer.y, "uint8")
        self.narrow[layer.y.name, covered] = placed
        own = _covering(layer.x)
        wide = layer.x.name in self.units
        x = self.wide[layer.x.name] if wide else self.narrow[layer.x.name, own]
        unit = self.units[layer.x.name] if wide else own.step
        scale = unit / (height * width) / covered.step
        largest = height * width * (2**15 if wide else 255)
        by = fixed_point.rescale(scale, covered.zero_point, covered.top, largest, self.multiplier_free)
        return AveragePool(layer.name, x, 0 if wide else own.zero_point, by, placed)

    def _weighted(self, layer: Layer) -> None:
        filters = filters_of(layer, self._input(layer), self.multiplier_free)
        step = self._step(layer, filters)
        self._add(step)
        for covered, placed in self._later_ranges(layer):
            wide = self.wide[layer.y.name]
            self._add(Narrow(placed.name, wide, self._rescale(layer.y, covered), placed))

    def _input(self, layer: Layer) -> Any:
        """The range of a layer's input: for pixels, what a level is worth by channel."""
        covered = self._wanted(layer)
        if layer.x is self.graph.image and not isinstance(layer.module, QuantizedAdder2d):
            return 1 / (255 * self.std), self.mean * 255, Range(1.0, 0, 255)
        assert covered is not None
        channels = torch.ones(layer.x.shape[2], dtype=torch.float64)
        return covered.step * channels, covered.zero_point * channels, covered

    def _step(self, layer: Layer, filters: Filters) -> Weighted:
        covered = self._wanted(layer)
        assert covered is not None
        x = self.narrow[layer.x.name, covered]
        ranges = self._needed(layer.y)
        is_logits = layer.y is self.graph.logits
        wide_unit = self._wide_unit(layer, is_logits, len(ranges))
        unit = wide_unit if wide_unit is not None else ranges[0].step
        keep_wide = is_logits or layer.y.name in self.shortcuts or len(ranges) > 1 or self._pooled_wide(layer.y)
        wide = self._placed(layer.y, "int32" if is_logits else "int16") if keep_wide else None
        if wide is not None:
            self.wide[layer.y.name] = wide
        narrow, by = None, Rescale(1, 0, 0, 255)
        if ranges:
            narrow = self._placed(layer.y, "uint8")
            self.narrow[layer.y.name, ranges[0]] = narrow
            by = self._rescale(layer.y, ranges[0]) if wide_unit is not None else by
            if wide_unit is None:
                by = Rescale(1, 0, ranges[0].zero_point, ranges[0].top)
        shortcut = self.wide[layer.shortcut.name] if layer.shortcut is not None else None
        step = Weighted(
            layer.name, x, filters.kind, filters.weight, filters.pad, filters.stride, filters.padding,
            Requantize(*torch.zeros(3, len(filters.weight), dtype=torch.int64)), shortcut, layer.relu, wide, narrow, by,
            filters.dilation, filters.groups, None if layer.most is None else round(layer.most / unit),
        )  # fmt: skip
        return self._requantized(step, filters, unit)

    def _requantized(self, step: Weighted, filters: Filters, unit: float) -> Weighted:
        around = self._middle(step, filters, unit) if self.multiplier_free else None
        try:
            by = fixed_point.requantize(
                filters.scale / unit, filters.shift / unit, filters.largest, self.multiplier_free, around
            )
        except ValueError as error:
            raise NoIntegerForm(f"{step.name}: {error}") from error
        return replace(step, requantize=by)

    def _middle(self, step: Weighted, filters: Filters, unit: float) -> Tensor:
        """The mean sum of each filter where it answers with more than ReLU's 0: there two powers of two are to fit."""
        a = reference.sums(step, self.values[step.x.name]).double()
        v = (a * filters.scale + filters.shift) / unit
        if step.shortcut is not None:
            v += self.values[step.shortcut.name]
        most = torch.inf if step.most is None else step.most
        active = (v > 0) & (v < most) if step.relu else torch.ones_like(v, dtype=torch.bool)
        count = active.sum((0, 1, 2))
        mean = (a * active).sum((0, 1, 2)) / count.clamp_min(1)
        return torch.where(count > 0, mean, a.mean((0, 1, 2)))

    def _wide_unit(self, layer: Layer, is_logits: bool, ranges: int) -> float | None:
        if is_logits:
            self.logit_step = max(layer.y.high, -layer.y.low, 1e-12) / LOGITS
            return self.logit_step
        if layer.y.name not in self.units and (ranges > 1 or self._pooled_wide(layer.y)):
            self.units[layer.y.name] = max(layer.y.high, -layer.y.low, 1e-12) / INT16
        if not ranges and layer.y.name not in self.units:
            raise NoIntegerForm(f"what {layer.name} computes is not read by anything that has an integer form")
        return self.units.get(layer.y.name)

    def _pooled_wide(self, value: Value) -> bool:
        pools = [r for r in self.readers.get(value.name, []) if isinstance(r.module, POOLS)]
        return value.name in self.units and any(not isinstance(r.module, nn.MaxPool2d) for r in pools)

    def _rescale(self, value: Value, covered: Range) -> Rescale:
        scale = self.units[value.name] / covered.step
        return fixed_point.rescale(scale, covered.zero_point, covered.top, 2**15, self.multiplier_free)

    def _later_ranges(self, layer: Layer) -> list[tuple[Range, Placed]]:
        found = []
        for number, covered in enumerate(self._needed(layer.y)):
            if number:
                placed = self._placed(layer.y, "uint8", number)
                self.narrow[layer.y.name, covered] = placed
                found.append((covered, placed))
        return found


def _covering(value: Value) -> Range:
    return Range.covering(value.low, max(value.high, value.low + 1e-12), 8)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]
