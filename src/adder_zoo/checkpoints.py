"""Other people's checkpoints: brought into the zoo's names, checked, described, and written as safetensors.

The keys may be named as in the authors' code: ``.adder`` and ``.b`` for the filters and the bias of an adder layer,
``fc`` and ``bn2`` for the classifier of their ResNets and its batch norm. Where that batch norm follows a classifier
that has none in the zoo (their ResNet-50 for ImageNet), it becomes part of the classifier's weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from . import atomic, preprocessing
from .checkpoint_files import SHOWN, CheckpointError, read_state_dict
from .hub.save import save_pretrained
from .layers import AdderLayer
from .misfits import misfits
from .precision import ADVICE, half_statistics, rounded_statistics
from .preprocessing import Stated, StatementError
from .results import RESULTS_FILE, WEIGHTS_FILE

__all__ = [
    "AssumptionWarning", "CheckpointError", "converted", "import_checkpoint", "load_checkpoint", "read_state_dict",
    "write_network",
]  # fmt: skip

# Endings of keys in the authors' code and its copies, and the zoo's.
RENAMED = ((".adder", ".weight"), (".b", ".bias"))
RENAMED_HEADS = (("fc.", "head.fc."), ("bn2.", "head.bn."), ("linear.", "head.fc."), ("classifier.", "head.fc."))
BATCH_NORM = "bn2."  # of the authors' classifier
BATCH_NORM_EPS = 1e-5  # torch's, which they left
# What a folder of a network may hold besides: the record of its training, which ends with its weights.
RECORD = (RESULTS_FILE, "results-conv.json", "args.yaml", "log.csv", "curves.png")


class AssumptionWarning(UserWarning):
    """How images are to be prepared for an imported network was not stated, and is assumed."""


def load_checkpoint(
    path: str | Path,
    model: str,
    similarity: str = "adder",
    *,
    convolutions: str | None = None,
    dataset: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_size: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> nn.Module:
    """The zoo's network ``model`` with the weights of a checkpoint; its shapes tell classes and input channels.

    How images were prepared, and what the classes are called, a checkpoint does not tell: state it, by a data set, by
    the tag of ``model`` or by values, which have precedence. What is not stated is assumed to be as in the network's
    configuration; ``pretrained_cfg["notes"]`` of the network says so, and no class has a name.

    Args:
        path: A safetensors or torch file; half-precision weights become float32, but running statistics are refused.
        model: A name in timm's registry, such as "adder_resnet20", maybe with a tag.
        similarity: That which the checkpoint was trained with.
        convolutions: Which layers stayed convolutions in that training, of a network that leaves a choice: patterns of
            names, see ``adder_zoo.convert_to_adder``; None: those that the network leaves by itself.
        dataset: "mnist", "fashion_mnist", "cifar10", "cifar100" or "imagenet".
        mean, std: Of the training's normalisation, on the scale from 0 to 1: one value, or one for each channel.
        input_size: Of the images: [C, H, W], [H, W] or [size].
        labels: The name of each class, in order.

    Raises:
        CheckpointError: it cannot be read, or is one of another network; names the keys that differ. Or its layers are
            not adder layers, as the means behind them tell; or what was stated does not fit it.

    Warns:
        AssumptionWarning: how images are to be prepared was not stated.
    """
    state = read_state_dict(path)
    _check_numbers(path, state)
    lost = half_statistics(state) + rounded_statistics(state)
    options: dict[str, Any] = {"similarity": similarity}
    if convolutions is not None:
        options["convolutions"] = convolutions
    template = _template(model.partition(".")[0], options)
    cfg: dict[str, Any] = template.pretrained_cfg  # type: ignore[assignment]
    state = folded(renamed(state, set(template.state_dict())), template)
    channels, classes = _channels_and_classes(path, state, cfg)
    try:
        stated = _stated(channels, dataset, mean, std, input_size, labels)
        network, assumed = _described(model, cfg, options, classes, channels, stated)
    except StatementError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit {model}: {error}") from error
    _check_fits(path, model, state, network)
    if lost and similarity != "conv":
        raise CheckpointError(f"{path}: {lost[0]} and maybe others are rounded to half precision. {ADVICE}")
    wanted = network.state_dict()
    state = {**wanted, **state}  # num_batches_tracked is missing in files from before torch 0.4.1
    network.load_state_dict({key: value.to(wanted[key].dtype) for key, value in state.items()})
    if similarity != "xnor":
        _check_sums(path, network)
    if assumed:
        warnings.warn(assumption_text(network), AssumptionWarning, stacklevel=2)
    return network.eval()


def _channels_and_classes(path: str | Path, state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> tuple[int, int]:
    """From the first and the last layer's weights, or from the network's configuration where those are missing."""
    first, classifier = (state.get(f"{_first(cfg[layer])}.weight") for layer in ("first_conv", "classifier"))
    channels = first.shape[1] if first is not None and first.dim() == 4 else cfg["input_size"][0]
    classes = classifier.shape[0] if classifier is not None and classifier.dim() else cfg["num_classes"]
    if not channels or not classes:
        raise CheckpointError(f"{path} has weights for {channels} input channel(s) and {classes} classes")
    return channels, classes


def _described(
    model: str, cfg: Mapping[str, Any], options: Mapping[str, Any], classes: int, channels: int, stated: Stated
) -> tuple[nn.Module, list[str]]:
    """The network, untrained, with a configuration that says what is stated; and what of it is assumed."""
    name, certain = preprocessing.named(model, classes, channels, stated)
    known = timm.get_pretrained_cfg(name)
    new, assumed = preprocessing.described(known.to_dict() if known else cfg, classes, channels, stated, certain)
    # The weights are from the file, and not from where the tag's weights are, nor under their licence.
    overlay = {**new, "file": None, "url": None, "hf_hub_id": None, "license": None}
    options = {**options, "num_classes": classes, "in_chans": channels}
    return timm.create_model(name, **options, pretrained_cfg_overlay=overlay), assumed


def import_checkpoint(
    path: str | Path, model: str, directory: str | Path, similarity: str = "adder", force: bool = False, **stated: Any
) -> nn.Module:
    """Writes other people's checkpoint as ``model.safetensors`` and ``config.json``, and returns the network.

    ``timm.create_model(f"local-dir:{directory}", pretrained=True)`` loads them. Arguments and errors are as in
    ``load_checkpoint`` and ``write_network``.
    """
    check_folder(directory, force)
    network = load_checkpoint(path, model, similarity, **stated)
    write_network(network, directory, force)
    return network


def converted(source: nn.Module, name: str, keep_weights: bool = False, **stated: Any) -> nn.Module:
    """The zoo's untrained network ``name`` with what the convolutional network ``source`` has besides its filters.

    What stays a convolution, batch norm and the classifier keep their weights; the preparation of images and the names
    of the classes are taken from ``source``, as far as nothing else is stated.

    Args:
        source: From ``timm.create_model``, such as a "resnet18".
        name: Of the same network in the zoo, "adder_resnet18".
        keep_weights: Adder filters begin as the convolutions' do, and not at random.
        stated: ``dataset``, ``mean``, ``std``, ``input_size`` and ``labels`` of ``load_checkpoint``.

    Raises:
        CheckpointError: ``source`` has other layers than the zoo's network, or what is stated does not fit it.
    """
    cfg: dict[str, Any] = source.pretrained_cfg  # type: ignore[assignment]
    channels, classes = _channels(source), int(source.num_classes)  # type: ignore[arg-type]
    recorded = getattr(source, "_model_args", {})  # what timm built it with
    try:
        said = _stated(channels, **{**dict.fromkeys(("dataset", "mean", "std", "input_size", "labels")), **stated})
        new, _ = preprocessing.described(cfg, classes, channels, said, certain=True)
    except StatementError as error:
        raise CheckpointError(str(error)) from error
    stays = {key: cfg[key] for key in preprocessing.KEYS if cfg.get(key) is not None}
    notes = None if said.mean or said.dataset else cfg.get("notes")
    license = cfg.get("license")  # of the weights that stay
    overlay = {**stays, **new, "notes": notes, "file": None, "url": None, "hf_hub_id": None, "license": license}
    options = {**recorded, "num_classes": classes, "in_chans": channels}
    network = timm.create_model(name, **options, pretrained_cfg_overlay=overlay).eval()
    state = source.state_dict()
    if not keep_weights:
        adders = {f"{key}.weight" for key, module in network.named_modules() if isinstance(module, AdderLayer)}
        state |= {key: value for key, value in network.state_dict().items() if key in adders}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"the network has other layers than the zoo's {name}, so timm could not build it again from a folder: use "
            f"adder_zoo.convert_to_adder in Python. ({' '.join(str(error).split())})"
        ) from error
    return network


def assumption_text(network: nn.Module) -> str:
    """What was assumed of an imported network, and how to state it; for people."""
    cfg: Any = network.pretrained_cfg
    return (
        f"assumed, since a checkpoint does not say it: {preprocessing.assumption(cfg)}. If it was trained on images "
        "that were prepared otherwise, its answers are wrong: import it again with --dataset, or with --mean, --std "
        "and --input-size (in Python dataset=, mean=, std=, input_size=)."
    )


# ---- folders


def check_folder(directory: str | Path, force: bool = False) -> None:
    """Refuses to replace a folder that holds weights, unless ``force`` is given, or anything but a network.

    Raises:
        CheckpointError: see above, or ``directory`` is a file.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{directory} is a file; give a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in names if name not in (WEIGHTS_FILE, "config.json", *RECORD)]
    if others:
        raise CheckpointError(
            f"{directory} holds other things than a network ({', '.join(others[:SHOWN])}"
            f"{', ...' if len(others) > SHOWN else ''}), which are not touched; give a new folder"
        )
    if names and not force:
        raise CheckpointError(
            f"{directory} holds {'weights' if WEIGHTS_FILE in names else ', '.join(names)}; give another folder, or "
            "--force to replace them with all that was recorded of them"
        )


def write_network(network: nn.Module, directory: str | Path, force: bool = False) -> None:
    """Writes a network as a folder, whole or not at all; what was recorded of weights that were there goes with them.

    Args:
        network: From ``timm.create_model``.
        directory: Made if it is missing.
        force: Replaces the network in the folder.

    Raises:
        CheckpointError: the folder holds weights and ``force`` is not given, or other things than a network.
        OSError: the folder cannot be written, or the disk is full; it is as it was.
    """
    check_folder(directory, force)
    with atomic.replace_folder(directory) as part:
        save_pretrained(network, part)


# ---- keys


def renamed(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """``state`` with the authors' names brought into the zoo's, as far as that leads to keys that are ``wanted``."""
    result = {}
    for key, value in state.items():
        new = key
        for old, ours in RENAMED:
            if new not in wanted and new.endswith(old):
                new = new.removesuffix(old) + ours
        if new not in wanted:
            for old, ours in RENAMED_HEADS:
                if new.startswith(old) and ours + new[len(old) :] in wanted:
                    new = ours + new[len(old) :]
        result[new] = value
    return result


def folded(state: dict[str, Tensor], template: nn.Module) -> dict[str, Tensor]:
    """``state`` with a classifier of the authors' ImageNet networks, a 1x1 convolution and batch norm, as one layer.

    They compute the same in evaluation: W x becomes (W g/σ) x + (b - μ g/σ), with σ = sqrt(variance + 1e-5).
    """
    cfg: Any = template.pretrained_cfg
    names = (cfg["classifier"],) if isinstance(cfg["classifier"], str) else tuple(cfg["classifier"])
    wanted = template.state_dict()
    weight, bias = (state.get(f"{names[0]}.{what}") for what in ("weight", "bias"))
    if len(names) > 1 or weight is None or weight.shape[2:] != (1, 1) or wanted[f"{names[0]}.weight"].dim() != 2:
        return state
    weight = weight.flatten(1).double()
    shift = bias.double() if bias is not None else torch.zeros(len(weight), dtype=torch.float64)
    statistics = [state.get(BATCH_NORM + what) for what in ("weight", "bias", "running_mean", "running_var")]
    if f"{BATCH_NORM}weight" not in wanted and all(s is not None and s.shape == shift.shape for s in statistics):
        g, b, mean, variance = (s.double() for s in statistics if s is not None)
        scale = g / (variance + BATCH_NORM_EPS).sqrt()
        weight, shift = weight * scale[:, None], (shift - mean) * scale + b
        state = {key: value for key, value in state.items() if not key.startswith(BATCH_NORM)}
    return {**state, f"{names[0]}.weight": weight.float(), f"{names[0]}.bias": shift.float()}


def _template(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """The network on no device, for its keys and its configuration.

    Raises:
        CheckpointError: it is not one of the zoo, or has no such options.
    """
    if not timm.is_model(arch) or not arch.startswith("adder_"):
        twin = f"adder_{arch}"
        hint = (
            f"; the zoo's is {twin}, whose similarity 'conv' (--similarity conv) is {arch} itself"
            if timm.is_model(twin)
            else "; `adder-zoo list` shows its networks"
        )
        raise CheckpointError(f"{arch} is not a network of the zoo{hint}")
    try:
        with torch.device("meta"):
            return timm.create_model(arch, **options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{arch}: {error}") from error


def _stated(
    channels: int,
    dataset: str | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    input_size: Sequence[int] | None,
    labels: Sequence[str] | None,
) -> Stated:
    mean, std = ((v,) if isinstance(v, (int, float)) else None if v is None else tuple(v) for v in (mean, std))
    size = None
    if input_size is not None:
        if not 1 <= len(input_size) <= 3 or not all(n > 0 for n in input_size):
            raise StatementError(f"input_size must be [C, H, W], [H, W] or [size], got {input_size}")
        height, width = (*input_size, *input_size)[:2] if len(input_size) < 3 else input_size[1:]
        size = (input_size[0] if len(input_size) == 3 else channels, height, width)
    return Stated(dataset, mean, std, size, labels)


def _channels(network: nn.Module) -> int:
    """The input channels of a network that timm built."""
    cfg: Any = network.pretrained_cfg
    known = getattr(network, "in_chans", None)
    if not isinstance(known, int) and cfg.get("first_conv"):
        known = getattr(network.get_submodule(_first(cfg["first_conv"])), "in_channels", None)
    return known if isinstance(known, int) else int(cfg["input_size"][0])


def _check_numbers(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are not plain numbers: weights in 8 bits without their scales, sparse or complex ones."""
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
    odd = [
        f"{key} ({str(value.dtype).removeprefix('torch.')}{', sparse' if value.layout != torch.strided else ''})"
        for key, value in state.items()
        if value.dtype not in plain or value.layout != torch.strided or value.is_meta
    ]
    if odd:
        raise CheckpointError(
            f"{path} holds tensors that are not plain numbers: {', '.join(odd[:SHOWN])}{', ...' * (len(odd) > SHOWN)}. "
            "Save it dense, in float32."
        )


def _check_sums(path: str | Path, network: nn.Module) -> None:
    """Refuses weights that were trained in layers of another kind."""
    told = misfits(network)
    if told:
        raise CheckpointError(
            f"{path} is not of adder layers in the places of this network: {told}. Convolutional networks are imported "
            "with --similarity conv, binary ones with --similarity xnor; name layers that stayed convolutions by "
            "--convolutions (in Python similarity=, convolutions=)."
        )


def _first(names: str | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else names[0]


def _check_fits(path: str | Path, model: str, state: Mapping[str, Tensor], network: nn.Module) -> None:
    wanted = network.state_dict()
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in optional]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {tuple(value.shape)}, not {tuple(wanted[key].shape)}"
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    whole = [
        key
        for key, value in state.items()
        if key in wanted and wanted[key].is_floating_point() and not value.is_floating_point()
    ]
    infinite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    lines = [
        f"\n  {what} ({len(keys)}): {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for what, keys in (
            ("missing", missing), ("not in the model", unexpected), ("of another shape", shapes),
            ("not finite", infinite), ("whole numbers", whole),
        )
        if keys
    ]  # fmt: skip
    if lines:
        raise CheckpointError(f"{path} is not a checkpoint of {model}:" + "".join(lines))
