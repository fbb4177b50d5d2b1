"""What the commands share: finding a network by what a user types, and output for people and for programs."""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import timm
import torch
from click.shell_completion import CompletionItem
from torch import nn
from torchvision import transforms

from ..hub.download import download, organisation_repository

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
similarity_option = click.option(
    "--similarity",
    type=click.Choice(["adder", "conv", "xnor"]),
    help="What compares a patch with a filter, for a network of the zoo: conv and xnor are its twins.",
)


class Failure(click.ClickException):
    """Ends a command with a message on standard error and status 1."""


class ModelName(click.ParamType):
    """A model of the zoo or of timm, a folder with config.json and weights, or hf-hub:ORG/NAME."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ":" in value:
            return value
        if value.endswith("."):
            self.fail(f"there is no model {value!r}: a tag must follow the dot", param)
        if (Path(value) / "config.json").is_file():
            return f"local-dir:{value}"
        if Path(value).is_dir():
            self.fail(f"the folder {value} holds no config.json; `adder-zoo import` makes one from a checkpoint", param)
        if not timm.is_model(value):
            known = dict.fromkeys([*timm.list_models("adder_*"), *timm.list_models()])
            near = difflib.get_close_matches(value.partition(".")[0], known, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else "`adder-zoo list` shows the zoo's."
            self.fail(f"there is no model {value!r}. {hint}", param)
        arch, _, tag = value.partition(".")
        tags = [name.partition(".")[2] for name in timm.list_models(f"{arch}.*", include_tags=True)] if tag else []
        if tag and tag not in tags:
            self.fail(f"{arch} has no tag {tag!r}, only {', '.join(t for t in tags if t) or 'none'}", param)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = timm.list_models("adder_*", include_tags=True) if incomplete else timm.list_models("adder_*")
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ZooModel(ModelName):
    """The name of a network of the zoo, maybe with a tag."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ":" in value or Path(value).is_dir():
            self.fail(f"{value!r} is not the name of a network; `adder-zoo list` shows the zoo's", param)
        value = super().convert(value, param, ctx)
        arch = value.partition(".")[0]
        if not arch.startswith("adder_"):
            twin = f"adder_{arch}"
            hint = (
                f"Give {twin}; with --similarity conv that is {arch} itself."
                if timm.is_model(twin)
                else "`adder-zoo list` shows those that are."
            )
            self.fail(f"{arch} is not a network of the zoo. {hint}", param)
        return value


def create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` in evaluation mode, whose errors become messages."""
    source, _, model_id = name.partition(":")
    try:
        if source in ("hf-hub", "hf_hub"):  # timm would fetch it too, but tries for minutes, and holds no checksum
            repo_id, _, revision = model_id.partition("@")
            download(repo_id, "config.json", revision or None, cache_dir=kwargs.get("cache_dir"))
        given = {key: value for key, value in kwargs.items() if value is not None}
        network = timm.create_model(name, pretrained=pretrained, **given).eval()
    except (ValueError, RuntimeError, TypeError, OSError, AssertionError) as error:
        raise Failure(f"{name} cannot be built: {error}") from error
    except (KeyError, AttributeError, IndexError) as error:
        if ":" not in name:
            raise
        raise Failure(f"{name} cannot be built, since its config.json is damaged ({error!r})") from error
    wrong = _wrong_in(config_of(network)) if ":" in name else []
    if wrong:
        raise Failure(f"{name} cannot be used: pretrained_cfg in its config.json has no valid {', '.join(wrong)}")
    return network


def _wrong_in(cfg: Mapping[str, Any]) -> list[str]:
    """What of a configuration from a file nothing can be done with."""

    def numbers(value: Any, lengths: tuple[int, ...]) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) in lengths
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
        )

    size = cfg.get("input_size")
    if not numbers(size, (3,)) or min(size) < 1:  # type: ignore[arg-type, type-var]
        return ["input_size"]
    wrong = [key for key in ("mean", "std") if not numbers(cfg.get(key), (1, size[0]))]  # type: ignore[index]
    wrong += ["std"] if "std" not in wrong and min(cfg["std"]) <= 0 else []
    crop = [cfg.get("crop_pct") or 1]
    wrong += ["crop_pct"] if not numbers(crop, (1,)) or crop[0] <= 0 else []
    kinds = [mode.value for mode in transforms.InterpolationMode] + ["random"]
    wrong += ["interpolation"] if cfg.get("interpolation", "bicubic") not in kinds else []
    for key in ("label_names", "label_descriptions", "notes"):
        wrong += [key] if not isinstance(cfg.get(key) or (), (list, tuple, dict, str)) else []
    return wrong


def on_device(network: nn.Module, device: str) -> nn.Module:
    """The network on a device, in the memory format that is fast there; an unknown or missing device is a message."""
    try:
        if torch.device(device).type == "meta":
            raise Failure("--device meta holds no numbers, so nothing can be computed there")
        return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise Failure(f"--device {device}: {str(error).splitlines()[0]}") from error


def config_of(model: nn.Module) -> dict[str, Any]:
    """timm's configuration of a network that it built."""
    return model.pretrained_cfg  # type: ignore[return-value]


def has_weights(name: str) -> bool:
    """Whether ``name`` comes with weights: bundled ones, or from a folder or a Hub repository.

    Where the environment variable ADDER_ZOO_HUB_ORG is set, every network of the zoo may have some there.
    """
    return ":" in name or timm.models.is_model_pretrained(name) or hub_repository(name) is not None


def hub_repository(name: str) -> str | None:
    """Where the organisation of ADDER_ZOO_HUB_ORG has the weights of a network of the zoo that comes without."""
    if ":" in name or not name.startswith("adder_") or timm.models.is_model_pretrained(name):
        return None
    cfg = timm.get_pretrained_cfg(name)
    arch = name.partition(".")[0]
    return organisation_repository(f"{arch}.{cfg.tag}" if cfg and cfg.tag else arch)


def significant(value: float, digits: int = 4) -> float:
    """``value`` to ``digits`` significant digits, which keeps a small rate or ratio from becoming 0."""
    return float(f"{value:.{digits}g}")


def write_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
