"""What every family shares about weights: where the package keeps its own, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from timm.models import build_model_with_cfg, register_notrace_module
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from ..layers import Adder2d, AdderLinear
from ._similarity import SIMILARITIES

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

# What every default_cfg of the paper's networks says.
PAPER: dict[str, Any] = {
    "license": "apache-2.0",
    "paper_ids": "arXiv:1912.13200",
    "paper_name": "AdderNet: Do We Really Need Multiplications in Deep Learning?",
}
CIFAR_PREPROCESSING: dict[str, Any] = {  # mean and standard deviation are those of the authors' code
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
}
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

ModelT = TypeVar("ModelT", bound=nn.Module)

for layer in (Adder2d, AdderLinear):  # timm's fx feature extraction takes them whole
    register_notrace_module(layer)


def bundled(name: str) -> str:
    """Where the weights of ``name`` (architecture.tag) lie in the package; they may be missing from a source tree."""
    return str(WEIGHTS / name / "model.safetensors")


def build_model(
    model_cls: Callable[..., ModelT], variant: str, pretrained: bool, similarity: str = "adder", **kwargs: Any
) -> ModelT:
    """timm's ``build_model_with_cfg`` for a model with a ``similarity``, with clearer errors where weights do not load.

    Raises:
        ValueError: an unknown similarity; or weights of one similarity asked for in a model of the other, which would
            load, since the shapes agree, and compute nonsense.
        FileNotFoundError, RuntimeError: the weights are missing, damaged or of another model.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"{variant}: similarity must be one of {SIMILARITIES}, got {similarity!r}")
    if not pretrained:
        return build_model_with_cfg(model_cls, variant, False, similarity=similarity, **kwargs)

    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    name = f"{variant}.{cfg.tag}" if cfg.tag else variant
    source = str(cfg.file or cfg.hf_hub_id or cfg.url or "")
    ours = bool(cfg.file) and Path(str(cfg.file)).is_relative_to(WEIGHTS)
    saved = kwargs.get("pretrained_model_args")  # timm hands them over for a folder or a Hub repository
    weights_are = "adder" if ours else (saved or {}).get("similarity", "adder") if saved is not None else similarity
    if weights_are != similarity:
        raise ValueError(
            f"{name}: the weights are those of similarity={weights_are!r} and mean nothing to similarity="
            f"{similarity!r}. Use pretrained=False, or load a checkpoint that was trained with it."
        )
    if cfg.file and not os.path.exists(cfg.file):
        advice = "install adder_zoo again (pip install --force-reinstall adder_zoo)" if ours else "check the path"
        raise FileNotFoundError(f"{name}: there are no weights at {cfg.file}; {advice}, or use pretrained=False")
    try:
        return build_model_with_cfg(model_cls, variant, True, similarity=similarity, **kwargs)
    except SafetensorError as error:
        advice = "install adder_zoo again" if ours else "fetch it again"
        raise RuntimeError(f"{name}: the weights in {source} are damaged ({error}); {advice}") from error
    except (RuntimeError, KeyError) as error:  # older timm looks up the first layer by its key before it compares keys
        if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
            raise
        raise RuntimeError(f"{name}: the weights in {source} are those of another model. {error}") from error


def check_input_channels(state_dict: dict[str, Tensor], first: str, in_chans: int) -> None:
    """Refuses weights for another number of input channels; call it from a family's checkpoint filter.

    timm adapts a convolution by repeating or summing its filters over channels, which scales its output. A distance
    does not scale like that, and batch norm's statistics would not fit, so there is nothing sensible to do.
    """
    weight = state_dict.get(first)
    if weight is not None and weight.shape[1] != in_chans:
        raise ValueError(
            f"the pretrained filters take {weight.shape[1]} input channel(s) and the model in_chans={in_chans}. "
            "Distances cannot be adapted to other channels as convolutions can: give the model images with "
            f"{weight.shape[1]} channel(s), or use pretrained=False."
        )


def without(state_dict: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """``state_dict`` less the keys that start with one of ``prefixes``."""
    return {key: value for key, value in state_dict.items() if not key.startswith(prefixes)}
