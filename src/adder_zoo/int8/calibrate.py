"""Which range of values the bytes of each layer cover: chosen by what the layer's own output loses.

Two passes over the calibration images through the fused float network. The first draws a sample of each layer's input
and makes a few candidates of it, from the whole range to one that cuts off the largest thousandth. The second computes
each layer with each candidate beside the float sums, fits a slope and an offset for every filter, and keeps the
candidate that leaves the smallest error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..fuse import FusedAdder2d, FusedAdderLinear
from .layers import QuantizedAdder2d, Range, clipped_line, float_sums, quantized_layer

# Shares of a layer's inputs that a candidate covers. With few bits a finer step is worth more than the largest values.
SHARES = (1.0, 0.9999, 0.9997, 0.999, 0.997, 0.99)
SHARES_OF_FEW_BITS = (*SHARES, 0.97, 0.95, 0.9, 0.85)
FEW_BITS = 3
ENOUGH_PIXELS = 1000  # to fit a line for each filter
SAMPLE = 1 << 16  # values that each layer keeps of each batch


class CalibrationError(ValueError):
    """The calibration images do not say what range a layer has."""


@dataclass
class _Sums:
    """Sums over pixels for each filter, from which a line y ≈ slope·levels + offset is fitted by least squares."""

    count: int = 0
    moments: Tensor | None = None  # [5, K]: Σy, Σq, Σyy, Σqq, Σyq

    def add(self, y: Tensor, q: Tensor) -> None:
        y, q = (t.transpose(0, 1).flatten(1).double() for t in (y, q))
        moments = torch.stack([y.sum(1), q.sum(1), (y * y).sum(1), (q * q).sum(1), (y * q).sum(1)])
        self.count += y.shape[1]
        self.moments = moments if self.moments is None else self.moments + moments

    def line(self) -> tuple[Tensor, Tensor, Tensor]:
        """slope, offset and the mean squared error that the line leaves, each [K]."""
        assert self.moments is not None
        y, q, yy, qq, yq = self.moments / self.count
        variance, covariance = (qq - q * q).clamp_min(0), yq - y * q
        slope = torch.where(variance > 0, covariance / variance.clamp_min(1e-30), torch.zeros_like(variance))
        return slope, y - slope * q, ((yy - y * y) - slope * covariance).clamp_min(0)


@dataclass
class LayerCalibration:
    """What is known of one layer: the sample of its input, the candidates, and in the end the choice."""

    sample: list[Tensor] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    trials: list[QuantizedAdder2d] = field(default_factory=list)
    sums: list[_Sums] = field(default_factory=list)

    def choose(self, layer: FusedAdder2d) -> QuantizedAdder2d:
        """The layer in the range with the smallest error of what batch norm makes of the sums."""
        lines = [sums.line() for sums in self.sums]
        errors = [float((layer.scale.double() ** 2 * error).sum()) for _, _, error in lines]
        best = min(range(len(errors)), key=errors.__getitem__)
        chosen = self.trials[best]
        # A line through few pixels follows their noise; what clipping took is known without them.
        fitted = self.sums[best].count >= ENOUGH_PIXELS
        chosen.set_line(layer, *(lines[best][:2] if fitted else clipped_line(layer, chosen.input_range)))
        return chosen


def calibrate(
    model: nn.Module, layers: dict[str, FusedAdder2d], batches: Sequence[Tensor], bits: int
) -> dict[str, LayerCalibration]:
    """Runs ``batches`` through the fused ``model`` twice; ``layers`` are those to quantise, by name.

    Returns:
        What is known of each layer that the images reach.

    Raises:
        CalibrationError: the network refuses the images; or a layer's input is not finite or constant: names the layer.
    """
    found = {name: LayerCalibration() for name in layers}
    _run(model, layers, batches, lambda name, x: _look(name, layers[name], found[name], x))
    found = {name: calibration for name, calibration in found.items() if calibration.sample}
    reached = {name: layers[name] for name in found}
    for name, calibration in found.items():
        candidates = _candidates(name, calibration, bits)
        calibration.trials = [quantized_layer(layers[name], candidate) for candidate in candidates]
        calibration.sums = [_Sums() for _ in candidates]
    _run(model, reached, batches, lambda name, x: _compare(found[name], layers[name], x))
    return found


def _run(model: nn.Module, layers: dict[str, FusedAdder2d], batches: Sequence[Tensor], see) -> None:
    def hook(name):
        return lambda module, args: see(name, args[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for images in batches:
                _call(model, images)
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, images: Tensor) -> None:
    try:
        model(images)
    except (CalibrationError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        cfg: Any = getattr(model, "pretrained_cfg", None) or {}
        size = f", {list(cfg['input_size'])} for this network" if cfg.get("input_size") else ""
        raise CalibrationError(
            f"the network does not take calibration images of {list(images.shape)}: {error}\nGive images as it takes "
            f"them: [N, C, H, W]{size}, prepared as for validation (timm.data.create_transform)"
        ) from error


def _look(name: str, layer: FusedAdder2d, calibration: LayerCalibration, x: Tensor) -> None:
    if isinstance(layer, FusedAdderLinear) and layer.normed and x.dim() != 2:
        raise CalibrationError(
            f"{name} is given {list(x.shape)}: with batch norm behind it a fully connected layer in bytes takes [N, C]"
        )
    if not x.numel():
        return
    x = x.detach().float()
    low, high = (float(v) for v in torch.aminmax(x))
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        raise CalibrationError(f"the input of {name} has values that are not finite; is the network sound?")
    calibration.low, calibration.high = min(calibration.low, low), max(calibration.high, high)
    flat = x.flatten()
    calibration.sample.append(flat[:: max(1, flat.numel() // SAMPLE)].clone())


def _candidates(name: str, calibration: LayerCalibration, bits: int) -> list[Range]:
    sample = torch.cat(calibration.sample).sort().values
    if calibration.high - calibration.low <= 0:
        raise CalibrationError(
            f"the input of {name} is 0 for every calibration image, so it has no range. Where the images differ, "
            "the network is dead there: a ReLU passes nothing on. Random weights do that behind batch norm that never "
            "saw data: train the network, or re-estimate batch norm (adder_zoo.reestimated_batch_norm) before this"
        )
    if float(sample[0]) == float(sample[-1]):
        raise CalibrationError(
            f"the input of {name} is the constant {float(sample[0]):.4g}; give images that differ from each other, "
            "and a network that tells them apart"
        )
    ranges = []
    for share in SHARES_OF_FEW_BITS if bits <= FEW_BITS else SHARES:
        # Each end covers its share of the values on its side of 0.
        high = calibration.high if share == 1 else _quantile(sample[sample > 0], share)
        low = calibration.low if share == 1 else -_quantile((-sample[sample < 0]).flip(0), share)
        if high > low:
            ranges.append(Range.covering(low, high, bits))
    return list(dict.fromkeys(ranges))


def _quantile(ascending: Tensor, share: float) -> float:
    if not len(ascending):
        return 0.0
    return float(ascending[min(len(ascending) - 1, int(share * len(ascending)))])


def _compare(calibration: LayerCalibration, layer: FusedAdder2d, x: Tensor) -> None:
    y = float_sums(layer, x)
    for trial, sums in zip(calibration.trials, calibration.sums, strict=True):
        sums.add(y, trial.sums(x))
