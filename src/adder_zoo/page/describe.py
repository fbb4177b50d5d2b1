"""What the page is told of a network: its classes, its costs, its first layers, and how images are prepared."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision import transforms

from ..datasets.profiles import DIGITS
from ..int8.layers import QuantizedAdder2d
from ..integer.network import IntegerNetwork
from ..integer.steps import Placed, Weighted
from ..labels import labels_of
from ..report import Count, Layer, report
from .wasm import compiled

EXAMPLES = 10
FILTERS_OF = 2  # layers whose filters are shown
MAPS_OF = 3  # layers whose answers are shown
INTERPOLATIONS = ("bilinear", "bicubic")


class NoPage(ValueError):
    """A network that the page cannot show; says why."""


def describe(name: str, network: nn.Module, integers: IntegerNetwork, images: Tensor) -> dict[str, Any]:
    """All that the page needs of a network, for JSON.

    Args:
        name: What it is called on the page.
        network: The network that ``integers`` was made of, with timm's configuration.
        integers: What ``to_integers`` returned.
        images: uint8 [N, H, W, C]; a few of them, of different classes by the network's answer, become examples.

    Raises:
        NoPage: images are prepared in a way that the page does not know.
        WasmError: there is no compiler for WebAssembly, or it failed.
        LabelError: the names of its classes cannot be read.
    """
    config: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    classes = labels_of(config, integers.logits.elements).shown()
    return {
        "name": name,
        "draws": tuple(classes) == DIGITS and integers.image[2] == 1,
        "classes": classes,
        "license": config.get("license"),
        "image": list(integers.image),
        **_preparation(network, integers.image),
        "logit_step": integers.logit_step,
        "multiplier_free": integers.multiplier_free,
        "costs": costs(network),
        **_inside(integers),
        "examples": _text(_examples(integers, images).numpy().tobytes()),
        "wasm": _text(compiled(integers)),
    }


def costs(network: nn.Module) -> dict[str, dict[str, float]]:
    """Operations and energy in µJ for one image, of a network and of its convolutional twin: all layers but batch norm.

    Those of a network in bytes are the float network's: what it does to a layer's sums stands for batch norm.
    """
    if any(isinstance(module, QuantizedAdder2d) for module in network.modules()):
        config: Any = network.pretrained_cfg
        size = config["input_size"]
        with torch.device("meta"):
            network = timm.create_model(config["architecture"], num_classes=network.num_classes, in_chans=size[0])
        counted = report(network, size)
    else:
        counted = report(network)
    layers = [layer for layer in counted.layers if layer.kind != "norm"]
    return {"ours": _cost(layers), "twin": _cost([_with_products(layer) for layer in layers])}


def _with_products(layer: Layer) -> Layer:
    if layer.kind != "adder":
        return layer
    return dataclasses.replace(layer, multiplications=layer.taps, additions=layer.additions - layer.taps)


def _cost(layers: list[Layer]) -> dict[str, float]:
    count = Count.of(layers)
    return {
        "multiplications": count.multiplications,
        "additions": count.additions,
        "fp32": count.energy("fp32"),
        "int8": count.energy("int8", "int32"),
    }


def _preparation(network: nn.Module, image: tuple[int, int, int]) -> dict[str, Any]:
    """How a picture becomes an image: the size of its shorter side, and the interpolation."""
    transform: Any = create_transform(**resolve_data_config(model=network), is_training=False)
    resize, crop, *_ = transform.transforms
    known = isinstance(resize, transforms.Resize) and isinstance(crop, transforms.CenterCrop)
    if not known or not isinstance(resize.size, int) or resize.interpolation.value not in INTERPOLATIONS:
        raise NoPage(
            f"images are prepared by {resize} and {crop}; the page resizes the shorter side "
            f"({' or '.join(INTERPOLATIONS)}) and cuts out the middle"
        )
    if resize.size < max(image[:2]):
        raise NoPage(f"images of {image[0]} x {image[1]} are cut out of ones whose shorter side is {resize.size}")
    return {"resize": resize.size, "interpolation": resize.interpolation.value}


def _inside(integers: IntegerNetwork) -> dict[str, Any]:
    """Filters and answers of the first layers that answer with more than one pixel."""
    layers: list[dict[str, Any]] = []
    tensors: list[dict[str, Any]] = []
    for step in integers.steps:
        placed = step.narrow or step.wide if isinstance(step, Weighted) else None
        if placed is None or placed.elements == placed.shape[2] or len(tensors) == MAPS_OF:
            continue
        assert isinstance(step, Weighted)
        tensors.append({"name": placed.name, "title": step.name, "shape": list(placed.shape)})
        if len(layers) < FILTERS_OF:
            layers.append(_filters(step, placed))
    return {"layers": layers, "tensors": tensors}


def _filters(step: Weighted, placed: Placed) -> dict[str, Any]:
    return {
        "name": step.name,
        "tensor": placed.name,
        "kind": step.kind,
        "shape": list(step.weight.shape),
        "weights": _text(step.weight.to(torch.int16).contiguous().numpy().astype("<i2").tobytes()),
    }


def _examples(integers: IntegerNetwork, images: Tensor) -> Tensor:
    """The first image of each class that the network finds among ``images``, at most ten, in the order of classes."""
    first: dict[int, int] = {}
    for i, answer in enumerate(integers(images).argmax(1).tolist()):
        first.setdefault(answer, i)
    return images[[first[k] for k in sorted(first)][:EXAMPLES]].contiguous()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
