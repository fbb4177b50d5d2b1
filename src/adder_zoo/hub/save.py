"""Saving a network in timm's form, so that timm builds it again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from ..layers import Adder2d, AdderLinear


def unwrap(model: nn.Module) -> nn.Module:
    """The network in what ``torch.compile``, Accelerate, DDP, DataParallel or an average of weights put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and list(model._modules) == ["module"]:
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def save_pretrained(model: nn.Module, directory: str | Path, model_args: dict[str, Any] | None = None) -> Path:
    """Writes ``model.safetensors`` and ``config.json`` in timm's form.

    ``timm.create_model(f"local-dir:{directory}", pretrained=True)`` loads them after ``import adder_zoo``. The keys are
    those of the bare network, its tensors contiguous, whatever is wrapped around it and whatever its memory format.

    Args:
        model: A network from ``timm.create_model``, maybe compiled or wrapped for distributed training.
        directory: Folder to write into; made if it is missing.
        model_args: Arguments of ``timm.create_model`` that the network needs to be built again, beyond its own record.

    Returns:
        The folder.

    Raises:
        ValueError: ``model`` bears no ``pretrained_cfg``, so timm did not build it.
    """
    model = unwrap(model)
    if getattr(model, "pretrained_cfg", None) is None:
        raise ValueError(f"save_pretrained: {type(model).__name__} was not built by timm.create_model, so there is no "
                         "configuration to save; use safetensors.torch.save_model")  # fmt: skip
    args = dict(model_args or {})
    similarity = getattr(model, "similarity", None)
    if similarity is not None:
        args.setdefault("similarity", similarity)
    in_chans = _input_channels(model)
    if in_chans is not None:  # older versions of timm keep no record of it
        args.setdefault("in_chans", in_chans)
    # safetensors takes contiguous tensors only, and networks that run on a CPU are often in channels_last.
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in plain.modules():  # parts may have been compiled by themselves
        for name, child in module.named_children():
            setattr(module, name, unwrap(child) if hasattr(child, "_orig_mod") else child)
    directory = Path(directory)
    save_for_hf(plain, str(directory), model_args=args, safe_serialization=True)
    return directory


def _input_channels(model: nn.Module) -> int | None:
    """What ``in_chans`` the network was built with, as far as it or its first convolution tells."""
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


def check_builds_again(model: nn.Module, folder: Path) -> None:
    """Refuses a network that ``config.json`` does not lead back to: timm would build another one for its weights."""

    def adders(network: nn.Module) -> list[str]:
        return [name for name, m in unwrap(network).named_modules() if isinstance(m, (Adder2d, AdderLinear))]

    with torch.device("meta"):
        again = timm.create_model(f"local-dir:{folder}")
    if adders(again) != [name.replace("_orig_mod.", "") for name in adders(model)]:
        architecture = json.loads((folder / "config.json").read_text())["architecture"]
        raise ValueError(
            f"push_to_hub: timm would build this network again as {architecture!r}, with other layers. Networks of the "
            f"zoo carry their layers in their name: build it as 'adder_{architecture.removeprefix('adder_')}', or "
            "register a model of your own with timm (see CONTRIBUTING.md)."
        )
