"""Saving a network in timm's form, so that timm builds it again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from .. import atomic
from ..architecture import CONVERTED, architecture, build_again, differences, input_channels, rename_converted
from ..fuse import FusedAdder2d
from ..int8.network import QuantizedNetwork
from ..int8.saved import check_tag, describe, is_quantised
from ..layers import AdderLayer
from ..precision import ADVICE, half_statistics
from ..results import CONFIG_FILE, WEIGHTS_FILE

SHOWN = 3  # differences in a message


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
    """Writes ``model.safetensors`` and ``config.json`` in timm's form, both or, if something fails, neither.

    ``timm.create_model(f"local-dir:{directory}", pretrained=True)`` loads them after ``import adder_zoo``, and answers
    as ``model`` does. The keys are those of the bare network, its tensors contiguous, whatever is wrapped around it and
    whatever its memory format.

    Args:
        model: A network from ``timm.create_model``, maybe converted by ``convert_to_adder``, compiled or wrapped for
            distributed training; or what ``quantize`` made of one, which comes back in bytes, bit by bit the same.
        directory: Folder to write into; made if it is missing.
        model_args: Arguments of ``timm.create_model`` that the network needs to be built again, beyond its own record.

    Returns:
        The folder.

    Raises:
        ValueError: timm did not build ``model``, or would build another network again: layers were exchanged,
            parameters are shared, or it was fused; or running statistics are in half precision. Nothing is
            written then.
        OSError: it cannot be written.
    """
    model = unwrap(model)
    if getattr(model, "pretrained_cfg", None) is None:
        raise ValueError(f"save_pretrained: {type(model).__name__} was not built by timm.create_model, so there is no "
                         "configuration to save; use safetensors.torch.save_model")  # fmt: skip
    in_bytes = is_quantised(model)
    if not in_bytes:
        _refuse_fused(model)
    if (architecture(model) or "").endswith(CONVERTED) and not in_bytes:
        rename_converted(model)  # the exponent may have come down to 1 since
    args = dict(model_args or {})
    similarity = getattr(model, "similarity", None)
    if similarity is not None:
        args.setdefault("similarity", similarity)
    in_chans = input_channels(model)
    if in_chans is not None:  # older versions of timm keep no record of it
        args.setdefault("in_chans", in_chans)
    lost = half_statistics(model.state_dict())
    if in_bytes:
        args["int8"] = describe(model)
        check_tag(model.pretrained_cfg.get("tag"), args["int8"]["bits"])  # type: ignore[operator, union-attr]
    if lost and (in_bytes or any(isinstance(module, AdderLayer) for module in model.modules())):
        raise ValueError(f"save_pretrained: {lost[0]} and maybe others are in half precision. {ADVICE}")
    directory = Path(directory)
    with tempfile.TemporaryDirectory() as scratch:
        save_config_for_hf(model, Path(scratch) / CONFIG_FILE, model_args=args)  # type: ignore[arg-type]
        _check_builds_again(model, Path(scratch))
        config = (Path(scratch) / CONFIG_FILE).read_bytes()
    # safetensors takes contiguous tensors that share no memory; networks that run on a CPU are often in channels_last.
    tensors = {
        key.replace("_orig_mod.", ""): tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.state_dict().items()
    }
    with atomic.replace_files(directory) as part:
        save_file(tensors, part / WEIGHTS_FILE)
        (part / CONFIG_FILE).write_bytes(config)
    return directory


def _refuse_fused(model: nn.Module) -> None:
    """Raises ValueError for a network of ``fuse``."""
    if any(isinstance(module, FusedAdder2d) for module in model.modules()):
        raise ValueError(
            "save_pretrained: this network was fused for inference: batch norm is folded into its layers, and timm "
            "cannot build it again. Save the network that was given to adder_zoo.fuse(), and fuse it after loading."
        )


def _check_builds_again(model: nn.Module, folder: Path) -> None:
    """Refuses a network that ``config.json`` does not lead back to: timm would build another one for its weights."""
    name = architecture(model)
    assert name is not None
    ours = f"adder_{name.removesuffix(CONVERTED).removeprefix('adder_')}"
    known = timm.is_model(ours)
    by_name = f"build it as {ours!r}, " if known and name != ours else ""
    advice = (
        f"Networks of the zoo carry their layers in their name: {by_name}register a model of your own with timm (see "
        "CONTRIBUTING.md), or write its state_dict() with safetensors.torch.save_file."
    )
    if name.endswith(CONVERTED):
        again = build_again(model, ours) if known else None
        other = f"{ours!r} has other layers{_told(differences(model, again))}" if again is not None else ""
        raise ValueError(
            "save_pretrained: timm cannot build this network again: it is a converted "
            f"{name.removesuffix(CONVERTED)!r}, and {other or f'timm has no {ours!r}'}. {advice}"
        )
    try:
        with torch.device("meta"):
            again = timm.create_model(f"local-dir:{folder}")
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"save_pretrained: timm cannot build {name!r} again: {error}. {advice}") from error
    found = differences(model, again)
    if isinstance(model, QuantizedNetwork) and not (
        isinstance(again, QuantizedNetwork) and model.calls() == again.calls()
    ):
        found.append("its layers are called in another order")
    if found:
        raise ValueError(
            f"save_pretrained: timm would build this network again as {name!r}, with other layers{_told(found)}. "
            f"{advice}"
        )


def _told(found: list[str]) -> str:
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f" ({'; '.join(found[:SHOWN])}{more})"
