"""The name that timm builds a network again by: what a saved network says of itself in ``config.json``.

``model.pretrained_cfg["architecture"]`` is that name, and timm's own ``save_for_hf`` and ``push_to_hf_hub`` write it as
it is. So a network whose layers were exchanged gets the name under which the registry has these layers, or one that
timm refuses to build: the filters of an adder layer fit a convolution, which would answer with nonsense.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import timm
import torch
from timm.layers import DropBlock2d, DropPath
from torch import nn

from .layers import AdderLayer

# These end a name that no registry has.
CONVERTED = " converted by adder_zoo"
FUSED = " fused by adder_zoo"

# What of a layer, besides its tensors, decides its answer; gradient rules and who computes do not.
RANGE = "input_range"  # of a layer that was fine-tuned for few bits, which loads into one that was not
OPTIONS = ("stride", "padding", "dilation", "groups", "padding_mode", "p", "eps", "geometry", "same", "relu")
IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath, DropBlock2d)  # in evaluation
SOURCE = ("url", "file", "hf_hub_id", "hf_hub_filename", "state_dict", "source", "tag")

_building: ContextVar[bool] = ContextVar("_building", default=False)


def rename_converted(model: nn.Module, convolutions: str = "") -> None:
    """Gives every network of timm in ``model``, whose layers were exchanged, the name that leads back to it.

    That is "adder_<name>" where timm's registry has it and builds it with the same layers, maybe with some left as
    convolutions (``convolutions`` says how, if that is known); else one that timm refuses. Where the weights once came
    from is forgotten with it.
    """
    if _building.get():  # a registered model that converts itself: its name is the one that is tried
        return
    for part in list(model.modules()):
        name = architecture(part)
        if name is None:
            continue
        base = name.removesuffix(CONVERTED)
        ours = base if base.startswith("adder_") else f"adder_{base}"
        again = _found_again(part, ours, convolutions) if timm.is_model(ours) else None
        if again is None:
            _set_architecture(part, base + CONVERTED)
            continue
        _set_architecture(part, ours)
        if hasattr(again, "similarity"):
            part.similarity = again.similarity
            recorded: dict[str, Any] = vars(part).get("_model_args", {})  # how timm built it, by its own record
            built: dict[str, Any] = vars(again).get("_model_args", {})
            kept = {key: value for key, value in recorded.items() if key != "convolutions"}
            vars(part)["_model_args"] = {
                **kept,
                **{key: built[key] for key in ("similarity", "convolutions") if key in built},
            }


def _found_again(part: nn.Module, name: str, convolutions: str) -> nn.Module | None:
    """What timm builds as ``name`` with the layers of ``part``, as far as arguments of the zoo's networks allow it."""
    tried: list[dict[str, Any]] = [{"convolutions": convolutions}] if convolutions else []
    for changes in (*tried, {"convolutions": None}, {"convolutions": ""}):
        again = build_again(part, name, **changes)
        if again is not None and not differences(part, again):
            return again
    if again is None:  # a network that leaves no choice
        return None
    here = dict(part.named_modules())
    stay = [
        layer
        for layer, module in again.named_modules()
        if isinstance(module, AdderLayer) and isinstance(here.get(layer), nn.Conv2d)
    ]
    again = build_again(part, name, convolutions=",".join(stay))
    return again if again is not None and not differences(part, again) else None


def rename_fused(model: nn.Module) -> None:
    """Gives every network of timm in ``model`` a name that timm refuses: batch norm is folded into its layers."""
    for part in model.modules():
        name = architecture(part)
        if name is not None and not name.endswith(FUSED):
            _set_architecture(part, name + FUSED)


def architecture(model: nn.Module) -> str | None:
    """The name that timm builds ``model`` again by; None for a network that timm did not build."""
    cfg = vars(model).get("pretrained_cfg")
    name = cfg.get("architecture") if isinstance(cfg, dict) else None
    return name if isinstance(name, str) else None


def _set_architecture(model: nn.Module, name: str) -> None:
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in SOURCE}  # type: ignore[operator, union-attr]
    model.pretrained_cfg = {**cfg, "architecture": name}  # type: ignore[assignment]
    model.default_cfg = model.pretrained_cfg  # timm's older name for it


def named_as(network: nn.Module, model: nn.Module, tag: str | None) -> None:
    """Gives ``network``, which was made of ``model``, the name that ``model`` is built again by, with ``tag``."""
    name = architecture(model)
    if name is None:  # timm cannot build it again by any name
        return
    _set_architecture(network, name.removesuffix(FUSED))
    cfg: Any = network.pretrained_cfg
    cfg["tag"] = tag


def name_and_tag(model: nn.Module) -> tuple[str | None, str | None]:
    """The name of a network in timm's registry, with its tag where it has one; and the tag."""
    name, cfg = architecture(model), vars(model).get("pretrained_cfg")
    tag = cfg.get("tag") if name and isinstance(cfg, dict) else None
    return f"{name}.{tag}" if tag else name, tag


def creation_args(model: nn.Module) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` that ``model`` was built with, as far as it tells; they are JSON."""
    recorded = getattr(timm.models, "get_model_args", None)  # timm 1.0.31
    args: dict[str, Any] = recorded(model) if recorded else {}
    for key, value in (("num_classes", getattr(model, "num_classes", None)), ("in_chans", input_channels(model))):
        if isinstance(value, int):
            args.setdefault(key, value)
    similarity: Any = getattr(model, "similarity", None)
    if similarity is not None:
        args.setdefault("similarity", similarity)
    return args


def build_again(model: nn.Module, name: str, **changes: Any) -> nn.Module | None:
    """What timm builds as ``name`` with the arguments that ``model`` was built with, on "meta"; None if it cannot.

    ``changes`` are other arguments; None leaves one out.
    """
    args = {key: value for key, value in {**creation_args(model), **changes}.items() if value is not None}
    args.pop("similarity", None)
    with torch.device("meta"), _unnamed(), contextlib.suppress(Exception):  # whatever it is, timm does not build it
        return timm.create_model(name, **args)
    return None


@contextlib.contextmanager
def _unnamed() -> Iterator[None]:
    token = _building.set(True)
    try:
        yield
    finally:
        _building.reset(token)


def input_channels(model: nn.Module) -> int | None:
    """What ``in_chans`` a network of timm was built with, as far as it or its first convolution tells."""
    in_chans = getattr(model, "in_chans", None)
    if isinstance(in_chans, int):
        return in_chans
    cfg: Any = model.pretrained_cfg
    first = cfg.get("first_conv")
    try:
        layer = model.get_submodule(first if isinstance(first, str) else "")
    except AttributeError:
        return None
    in_chans = getattr(layer, "in_channels", None)
    return in_chans if isinstance(in_chans, int) else None


def differences(model: nn.Module, again: nn.Module) -> list[str]:
    """In what ``again`` would answer otherwise than ``model`` with the same weights: a line for each layer.

    Compared are the kinds and options of layers with filters, the shapes of all tensors that are saved, which
    parameters are one and the same, and the kinds and options of activations and poolings.
    """
    here, there = _layers(model), _layers(again)
    lines = []
    for name in dict.fromkeys([*here, *there]):
        one, other = here.get(name, {"": "missing"}), there.get(name, {"": "missing"})
        keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
        if keys:
            what = [" ".join(filter(None, (keys[0], layer.get(keys[0], "nothing")))) for layer in (one, other)]
            lines.append(f"{name or 'the network'}: {what[0]} here, {what[1]} there")
    for names in sorted(map(sorted, _ties(model) ^ _ties(again))):
        lines.append(f"{' and '.join(names)} are one parameter in only one of them")
    return lines


def _layers(model: nn.Module) -> dict[str, dict[str, str]]:
    """By the name of each layer: its kind under "", and its tensors and options by their names."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        tensors = {
            key: "x".join(map(str, tensor.shape))
            for key, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and key != RANGE and key not in module._non_persistent_buffers_set
        }
        filters = isinstance(module, (AdderLayer, nn.modules.conv._ConvNd, nn.Linear))
        if not tensors and not filters and not any(module.children()) and type(module) not in IDLE:
            # An activation or a pooling, of which repr tells the options, but for those that do not change the answer.
            found[name.replace("_orig_mod.", "")] = {"": repr(module).replace("inplace=True", "")}
        if tensors or filters:
            kind = type(module).__name__ if filters else "a layer"  # batch norm has many names for the same
            options = {key: str(getattr(module, key)) for key in OPTIONS if hasattr(module, key)}
            found[name.replace("_orig_mod.", "")] = {"": kind, **tensors, **options}
    return found


def _ties(model: nn.Module) -> set[frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name.replace("_orig_mod.", ""))
    return {frozenset(group) for group in names.values() if len(group) > 1}
