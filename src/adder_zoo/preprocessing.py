"""What a checkpoint does not hold: how images were prepared in its training, and what its classes are called.

Shapes prove neither. Somebody states them (a data set, or values one by one), or they are assumed: then the network's
configuration says so, and everything that runs it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm

from .datasets.profiles import NAMES, Profile, profile
from .labels import ASSUMED, LabelError, assumption, check_names

__all__ = ["KEYS", "Stated", "StatementError", "assumption", "described", "in_words", "named"]

# What of timm's configuration of a network prepares its images.
KEYS = ("input_size", "test_input_size", "min_input_size", "interpolation", "crop_pct", "test_crop_pct", "crop_mode",
        "mean", "std")  # fmt: skip


class StatementError(ValueError):
    """What was stated of a network does not fit it. The message says what to do."""


@dataclass(frozen=True)
class Stated:
    """What is known of a checkpoint besides its tensors; None where it is not.

    Attributes:
        dataset: One of ``datasets.profiles.NAMES``, for its mean, standard deviation and classes.
        mean, std: For each channel, or one value for all, on the scale from 0 to 1.
        input_size: [C, H, W] of the images.
        labels: The name of each class, in order.
    """

    dataset: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: tuple[int, int, int] | None = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and self.dataset not in NAMES:
            raise StatementError(f"dataset must be one of {', '.join(NAMES)}, got {self.dataset!r}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise StatementError(f"std must be positive, got {_numbers(self.std)}")

    def __bool__(self) -> bool:
        return self != Stated()


def named(model: str, classes: int | None, channels: int | None, stated: Stated) -> tuple[str, bool]:
    """The name in timm's registry, with its tag, whose configuration is to be begun with, and whether it is certain.

    A tag in ``model`` is a statement, and so is a data set that the network has a tag for. Otherwise it is the first
    tag's, or the first with as many classes and channels, which proves nothing.
    """
    arch, _, tag = model.partition(".")
    if tag:
        return model, True
    if stated.dataset is not None:
        tagged = f"{arch}.{profile(stated.dataset).tag}"
        return (tagged, True) if tagged in timm.list_models(f"{arch}.*", include_tags=True) else (arch, False)
    default = timm.get_pretrained_cfg(arch)
    tags = [f"{arch}.{default.tag}"] if default is not None and default.tag else []
    for name in [*tags, *timm.list_models(f"{arch}.*", include_tags=True)]:
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.num_classes == classes and cfg.input_size[0] == channels:
            return name, False
    return arch, False


def described(
    cfg: Mapping[str, Any], classes: int, channels: int, stated: Stated, certain: bool
) -> tuple[dict[str, Any], list[str]]:
    """timm's configuration of a network whose checkpoint was trained as ``stated``.

    Args:
        cfg: The configuration to begin with.
        classes, channels: Of the network.
        stated: See ``Stated``.
        certain: Whether ``cfg`` describes the checkpoint's own training (a tag was named), not just the network.

    Returns:
        What takes the place of entries of ``cfg``, and which of "input_size", "mean" and "std" are assumed.

    Raises:
        StatementError: what is stated contradicts the network.
    """
    new: dict[str, Any] = {}
    known = profile(stated.dataset) if stated.dataset else None
    assumed = [] if certain else ["input_size", "mean", "std"]
    size = tuple(cfg["input_size"])
    if known is not None:
        if len(known.classes) != classes:
            raise StatementError(
                f"{known.title} has {len(known.classes)} classes, and the network {classes}. If only its images were "
                "prepared alike, give --mean, --std and --input-size instead of --dataset."
            )
        new |= known.resizing
        if not certain or stated.dataset != "imagenet":  # a network's own form of ImageNet's may be another
            new |= _normalisation(known, channels, stated)
        assumed = [] if certain or cfg.get("fixed_input_size") else ["input_size"]
    if stated.input_size is not None:
        size = tuple(stated.input_size)
        if size[0] != channels:
            raise StatementError(f"images of {size[0]} channel(s) were stated, and the network takes {channels}")
        if cfg.get("fixed_input_size") and size[1:] != tuple(cfg["input_size"][1:]):
            raise StatementError(f"the network takes {_size(cfg['input_size'])} pixels only, not {_size(size)}")
        new |= {"test_input_size": None, "min_input_size": None}
    new["input_size"] = (channels, *size[1:])
    for key in ("mean", "std"):
        value = getattr(stated, key)
        value = tuple(value) if value is not None else tuple(new.get(key) or cfg[key])
        if len(value) not in (1, channels):
            if getattr(stated, key) is not None:
                raise StatementError(f"{key} has {len(value)} values, and the network takes {channels} channel(s)")
            value = (sum(value) / len(value),)
        new[key] = value * channels if len(value) == 1 else value
    given = {key for key in ("input_size", "mean", "std") if getattr(stated, key) is not None}
    assumed = [key for key in assumed if key not in given]
    new |= _labels(cfg, classes, stated, known, certain)
    tag = known.tag if known and not certain else cfg.get("tag") if certain or _fits(cfg, classes, channels) else None
    notes = (ASSUMED + in_words({**cfg, **new}, assumed),) if assumed else None
    return {**new, "tag": tag, "notes": notes, "num_classes": classes}, assumed


def in_words(cfg: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Entries of a configuration for people: "images 3 x 32 x 32, mean 0.5, 0.5, 0.5"."""
    texts = {"input_size": f"images {' x '.join(map(str, cfg['input_size']))}"}
    texts |= {key: f"{key} {_numbers(cfg[key])}" for key in ("mean", "std")}
    return "; ".join(texts[key] for key in keys)


def _normalisation(known: Profile, channels: int, stated: Stated) -> dict[str, Any]:
    if len(known.mean) not in (1, channels) and (stated.mean is None or stated.std is None):
        raise StatementError(
            f"images of {known.title} have {len(known.mean)} channels, and the network takes {channels}: give --mean "
            "and --std as well"
        )
    return {"mean": known.mean, "std": known.std}


def _labels(
    cfg: Mapping[str, Any], classes: int, stated: Stated, known: Profile | None, certain: bool
) -> dict[str, Any]:
    """The names of the classes: as stated, the data set's, or a certain configuration's; else none."""
    if stated.labels is not None:
        try:
            check_names(stated.labels, "labels")
        except LabelError as error:
            raise StatementError(str(error)) from error
        if len(stated.labels) != classes:
            raise StatementError(f"{len(stated.labels)} labels were stated, and the network has {classes} classes")
        return {"label_names": tuple(stated.labels), "label_descriptions": None}
    if known is not None:
        return {"label_names": known.classes, "label_descriptions": known.descriptions or None}
    if certain and cfg.get("num_classes") == classes:
        return {key: cfg.get(key) for key in ("label_names", "label_descriptions")}
    return {"label_names": None, "label_descriptions": None}


def _fits(cfg: Mapping[str, Any], classes: int, channels: int) -> bool:
    return cfg.get("num_classes") == classes and cfg["input_size"][0] == channels


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size[-2:]))
