"""A network in bytes as it is saved: what ``config.json`` says of it, and how it is built again from that.

``describe`` writes the entry ``int8`` of ``model_args``, and ``rebuild`` makes the same network from it, without
calibration images: the float network is built by its architecture, fused, its layers are quantised with the ranges that
are written down, and connected as ``quantize`` connects them. Filters, scales, shifts and ranges then come from
``model.safetensors``, by a strict ``load_state_dict``. No code is stored, and none is run.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..architecture import creation_args, input_channels, named_as
from ..fuse import FusedAdder2d, fuse, fused_layer, is_adder, is_changed
from ..inference import for_inference
from ..layers import AdderLayer
from .connect import connect
from .layers import BITS, QuantizedAdder2d, Range, quantized_layer
from .network import InBytes, QuantizedNetwork, refuse_pixels

TAG = re.compile(r"(?:^|_)int([2-8])$")  # ends the tag of a network in bytes: "cifar10_int8"


def tagged(tag: str | None, bits: int) -> str:
    """The tag of what becomes of a network with ``tag`` in bytes."""
    return f"{tag}_int{bits}" if tag else f"int{bits}"


def check_tag(tag: str | None, bits: int | list[int]) -> None:
    """Raises ValueError if a network with ``tag`` cannot have ``bits`` bits (what ``describe`` says of them)."""
    said = TAG.search(tag or "")
    most = bits if isinstance(bits, int) else max(bits)
    if said is not None and int(said[1]) != most:
        raise ValueError(f"the tag {tag!r} says {said[1]} bits, and the network has {most}")


def is_quantised(model: nn.Module) -> bool:
    return any(isinstance(module, QuantizedAdder2d) for module in model.modules())


def quantisable(fused: nn.Module) -> tuple[dict[str, FusedAdder2d], dict[str, str]]:
    """The layers of a fused network that can be quantised, and why the other adder layers cannot, by name."""
    layers, left = {}, {}
    for name, module in fused.named_modules():
        if isinstance(module, FusedAdder2d):
            if module.padding_mode != "zeros":
                left[name] = f"padding_mode {module.padding_mode!r}: only padding with zeros has an integer form"
            elif module.scale.dtype == torch.float64:
                left[name] = "it computes in float64"
            else:
                layers[name] = module
        elif isinstance(module, AdderLayer):
            left[name] = "its exponent p is not 1" if module.p != 1 else f"it is a {type(module).__name__}, or hooked"
    return layers, left


def fused_for_bytes(model: nn.Module) -> nn.Module:
    """``fuse``, and each layer that no batch norm follows (where torch.fx can see it) fused with nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fuse: nothing was fused")
        fused = fuse(model)
    if isinstance(fused, AdderLayer) and is_adder(fused):
        return fused_layer(fused)
    bare: dict[nn.Module, FusedAdder2d] = {}  # a layer that stands in two places stays one
    for name, module in list(fused.named_modules(remove_duplicate=False)):
        if name and is_adder(module) and not is_changed(module):
            assert isinstance(module, AdderLayer)
            parent, _, child = name.rpartition(".")
            setattr(fused.get_submodule(parent), child, bare.setdefault(module, fused_layer(module)))
    return fused


def replace_layers(fused: nn.Module, layers: Mapping[str, QuantizedAdder2d]) -> nn.Module:
    """``fused`` with ``layers`` put in under their names, and bytes going from one to the next."""
    if "" in layers:
        return layers[""]
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(fused.get_submodule(parent), child, layer)
    return connect(fused)


def finish(network: nn.Module, model: nn.Module, quantized_from: str | None, tag: str | None) -> nn.Module:
    """Writes into ``network`` how it is built again, where timm built ``model``, the float network."""
    network.requires_grad_(False)
    if not isinstance(network, (QuantizedNetwork, QuantizedAdder2d)):
        for_inference(network, InBytes).register_forward_pre_hook(refuse_pixels)
    network.quantized_from = quantized_from  # type: ignore[assignment]
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        named_as(network, model, tag)
        args = creation_args(model)
        network.in_chans = input_channels(model)  # type: ignore[assignment]  # its first layer may be in bytes
        network._model_args = {**args, "int8": describe(network)}  # type: ignore[assignment]
    return network


# ---- config.json ----


def describe(network: nn.Module) -> dict[str, Any]:
    """What ``model_args["int8"]`` of config.json says of a quantised network.

    bits: of its bytes (a list where layers differ); quantized_from: the float network; num_classes, in_chans: what
    cannot be changed; layers: for each the range of its input, ``value = step·(level - zero_point)``, and whether it
    reads and writes bytes, float32 or both.
    """
    layers: dict[str, Any] = {}
    for name, module in network.named_modules():
        if isinstance(module, QuantizedAdder2d):
            covered = module.input_range
            layers[name] = {
                "step": covered.step,
                "zero_point": covered.zero_point,
                "bits": covered.bits,
                "reads": "uint8" if module.takes_bytes else "float32",
                "writes": "float32" if module.next_range is None else "both" if module.wide else "uint8",
            }
    bits = sorted({layer["bits"] for layer in layers.values()})
    return {
        "bits": bits[0] if len(bits) == 1 else bits,
        "quantized_from": getattr(network, "quantized_from", None),
        "num_classes": getattr(network, "num_classes", None),
        "in_chans": getattr(network, "in_chans", None),
        "layers": layers,
    }


def rebuild(model: nn.Module, description: Any) -> nn.Module:
    """The network in bytes that ``description`` (see ``describe``) is of, but for its tensors' values.

    Args:
        model: The float network, as the same arguments build it; its weights do not matter.

    Raises:
        ValueError: the description is damaged, or of another network.
    """
    said = _checked(description)
    for key, what in (("num_classes", getattr(model, "num_classes", None)), ("in_chans", input_channels(model))):
        if description.get(key) != what:
            origin = description.get("quantized_from") or "the float network"
            raise ValueError(
                f"{key} of a network in bytes stays what it is, {description.get(key)}, and cannot be {what}: its "
                f"ranges fit the images and classes it was calibrated for. Change {origin}, and quantise that."
            )
    fused = fused_for_bytes(model.eval())
    layers, _ = quantisable(fused)
    unknown = sorted(said.keys() - layers.keys())
    if unknown:
        raise ValueError(f"config.json has {unknown[0]} in bytes, and this network has no such adder layer")
    network = replace_layers(fused, {name: quantized_layer(layers[name], covered) for name, covered in said.items()})
    found = describe(network)["layers"]
    other = [name for name in found if found[name] != description["layers"][name]]
    if other:
        raise ValueError(
            f"bytes go another way in {other[0]} than config.json says: it was written by another version of "
            "adder_zoo, or changed by hand. Quantise the float network again."
        )
    bits = describe(network)["bits"]
    if description.get("bits") != bits:
        raise ValueError(f"config.json says {description.get('bits')} bits, and its layers have {bits}: it is damaged")
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    check_tag(cfg.get("tag"), bits)
    return finish(network, model, description.get("quantized_from"), cfg.get("tag"))


def _checked(description: Any) -> dict[str, Range]:
    """The ranges that a description names, by layer."""
    advice = "config.json is damaged (int8 in its model_args): write it again by adder_zoo.save_pretrained"
    if not isinstance(description, Mapping) or not isinstance(description.get("layers"), Mapping):
        raise ValueError(
            f"int8={description!r} does not describe a network in bytes. To make one, call adder_zoo.quantize(model, "
            "images); a saved one has its description in config.json."
        )
    ranges = {}
    for name, layer in description["layers"].items():
        try:
            step, zero_point, bits = float(layer["step"]), layer["zero_point"], layer["bits"]
            sound = math.isfinite(step) and step > 0 and bits in BITS and 0 <= zero_point <= 2**bits - 1
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: {advice}") from error
        if not sound or type(zero_point) is not int:
            raise ValueError(f"{name}: {advice}")
        ranges[name] = Range(step, zero_point, 2**bits - 1)
    if not ranges:
        raise ValueError(advice)
    return ranges


def holds_bytes(file: str | Path) -> bool:
    """Whether a safetensors file is of a network in bytes."""
    with safe_open(file, "pt") as opened:
        return any(key.endswith(".ranges") or key == "ranges" for key in opened.keys())  # noqa: SIM118, not a dictionary
