"""What every family shares about weights: where the package keeps its own, and errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, register_notrace_module
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from ..convert import patterns
from ..datasets.profiles import profile
from ..hub.download import ORGANISATION, download, forget, intact, organisation_repository
from ..hub.errors import HubError
from ..int8.saved import TAG, holds_bytes, rebuild
from ..layers import Adder2d, AdderLinear
from ..misfits import misfits
from ..paths import WEIGHTS
from ..precision import ADVICE
from ..results import CONFIG_FILE, WEIGHTS_FILE
from ._similarity import SIMILARITIES

# What every default_cfg of the paper's networks says. None names a licence: that is one of weights, not of a network.
PAPER: dict[str, Any] = {
    "paper_ids": "arXiv:1912.13200",
    "paper_name": "AdderNet: Do We Really Need Multiplications in Deep Learning?",
}


LICENSE_OF_SHIPPED = "apache-2.0"  # of the weights in the package


def trained_on(dataset: str) -> dict[str, Any]:
    """What a default_cfg says of the data set that the network is made for: preprocessing and classes.

    A hundred names are left out: they would fill every config.json and card.
    """
    known = profile(dataset)
    names = {"label_names": known.classes} if len(known.classes) < 100 else {}
    return {**known.resizing, "mean": known.mean, "std": known.std, "num_classes": len(known.classes), **names}


ModelT = TypeVar("ModelT", bound=nn.Module)

for layer in (Adder2d, AdderLinear):  # timm's fx feature extraction takes them whole
    register_notrace_module(layer)


def bundled(name: str) -> str:
    """Where the weights of ``name`` (architecture.tag) lie in the package; they may be missing from a source tree."""
    return str(WEIGHTS / name / "model.safetensors")


def build_model(
    model_cls: Callable[..., ModelT],
    variant: str,
    pretrained: bool,
    similarity: str = "adder",
    int8: Mapping[str, Any] | None = None,
    left: str | None = None,
    **kwargs: Any,
) -> Any:
    """timm's ``build_model_with_cfg`` for a model with a ``similarity``, with clearer errors where weights do not load.

    ``int8`` is what a saved network in bytes says of itself (``int8/saved.py``); with it, or for the tag of one, the
    network is built in bytes. ``left`` are the layers that stay convolutions, of a network that leaves a choice.

    Raises:
        ValueError: an unknown similarity; weights of one similarity asked for in a model of the other, or with other
            layers left as convolutions, which would load, since the shapes agree, and compute nonsense; or weights that
            are not safetensors.
        FileNotFoundError, RuntimeError: the weights are missing, damaged or of another model. Weights on the Hub raise
            what ``download`` does.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"{variant}: similarity must be one of {SIMILARITIES}, got {similarity!r}")
    model_cls = recorded(model_cls, {"similarity": similarity})
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    name = f"{variant}.{cfg.tag}" if cfg.tag else variant
    if int8 is not None or TAG.search(cfg.tag or ""):
        return _build_in_bytes(model_cls, variant, pretrained, similarity, int8, name, cfg, left, kwargs)
    if not pretrained:
        return build_model_with_cfg(model_cls, variant, False, similarity=similarity, **kwargs)
    if cfg.state_dict and cfg.source not in ("hf-hub", "local-dir"):
        return build_model_with_cfg(model_cls, variant, True, similarity=similarity, **kwargs)
    source, file, saved = _weights(variant, name, cfg, kwargs)
    ours = file.is_relative_to(WEIGHTS)
    weights_are = "adder" if ours else similarity if saved is None else saved.get("similarity", "adder")
    if weights_are != similarity:
        raise ValueError(
            f"{name}: the weights belong to similarity={weights_are!r} and mean nothing to similarity="
            f"{similarity!r}. Use pretrained=False, or load a checkpoint that was trained with it."
        )
    if left is not None and saved is not None and similarity != "conv":
        _require_layers(name, saved.get("convolutions", ""), left)
    _check_file(name, source, file)
    if _readable(file) and holds_bytes(file):
        raise RuntimeError(
            f"{name}: {source} holds a network in bytes, and {variant} was asked for in float32. Load its folder as a "
            "whole, timm.create_model('local-dir:FOLDER', pretrained=True), or by its own tag."
        )
    # timm loads the one file that was looked at, whatever else lies beside it, and the model tells where it is from.
    overlay = {**(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    overlay |= {"source": "", "file": str(file), "state_dict": None, "custom_load": False}
    overlay |= {"license": LICENSE_OF_SHIPPED} if ours else {}
    with _clear_errors(name, f"the weights in {source}", "install adder_zoo again" if ours else "fetch it again"):
        model = build_model_with_cfg(
            model_cls, variant, True, similarity=similarity, pretrained_cfg_overlay=overlay, **kwargs
        )
    told = misfits(model) if similarity != "xnor" else None
    if told:
        raise ValueError(
            f"{name}: the weights in {source} were trained with other layers: {told}. Say with which, by similarity= "
            "and convolutions= of timm.create_model, or load the folder in which they were saved."
        )
    model.pretrained_cfg.update(source=cfg.source, file=cfg.file)  # type: ignore[operator, union-attr]
    return model


def recorded(make: Callable[..., ModelT], record: Mapping[str, Any]) -> Callable[..., ModelT]:
    """``make``, whose networks know how they were built, also where timm's ``create_model`` did not write it down."""

    def made(**kwargs: Any) -> ModelT:
        model = make(**kwargs)
        known: Any = getattr(model, "_model_args", {})  # timm's own place for it
        model._model_args = {**known, **record}  # type: ignore[assignment]
        return model

    return made


def _require_layers(name: str, trained: str, asked: str) -> None:
    """Refuses weights that were trained with other layers left as convolutions than are ``asked`` for."""
    if patterns(trained) != patterns(asked):
        raise ValueError(
            f"{name}: the weights were trained with convolutions={trained!r} and mean nothing with {asked!r}. Give "
            f"convolutions={trained!r}, or use pretrained=False."
        )


@contextmanager
def _clear_errors(name: str, weights: str, repair: str) -> Iterator[None]:
    """Says which weights did not load, and what to do, where timm and safetensors would name a key or an offset."""
    try:
        yield
    except SafetensorError as error:
        raise RuntimeError(f"{name}: {weights} are damaged ({error}); {repair}") from error
    except (RuntimeError, KeyError) as error:  # older timm looks up the first layer by its key before it compares keys
        if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
            raise
        if ADVICE in str(error):
            raise RuntimeError(f"{name}: {weights} cannot be used. {error}") from error
        raise RuntimeError(f"{name}: {weights} belong to another model. {error}") from error


def _check_file(name: str, source: str, file: Path) -> None:
    """Refuses a file of weights that is missing or that could run code."""
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{name}: {source} is not a safetensors file. A pickle can run code when it is read, so none is loaded: "
            "`adder-zoo import` makes a safetensors file of a checkpoint that you trust."
        )
    if not file.is_file():
        ours = file.is_relative_to(WEIGHTS)
        advice = "install adder_zoo again (pip install --force-reinstall adder_zoo)" if ours else "check the path"
        raise FileNotFoundError(
            f"{name}: there are no weights at {source}; {advice}, or use pretrained=False. (Only safetensors are "
            "loaded; `adder-zoo import` makes them of a checkpoint.)"
        )


def _build_in_bytes(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    similarity: str,
    int8: Mapping[str, Any] | None,
    name: str,
    cfg: Any,
    left: str | None,
    kwargs: dict[str, Any],
) -> nn.Module:
    """A network in bytes, as ``adder_zoo.save_pretrained`` wrote it; in eval mode.

    Raises:
        ValueError: another similarity, other classes or channels, or features are asked for; config.json is damaged.
        RuntimeError, FileNotFoundError: the weights are missing, damaged, of another network or in float32.
    """
    if kwargs.get("features_only"):
        raise ValueError(f"{name}: a network in bytes goes from images to logits, whole; features_only needs the float "
                         "network")  # fmt: skip
    if similarity != "adder":
        raise ValueError(f"{name}: only adder layers are in bytes here, not those of similarity={similarity!r}")
    given = cfg.state_dict if cfg.source not in ("hf-hub", "local-dir") else None
    source, file, saved = "", None, None
    if pretrained and not given:
        source, file, saved = _weights(variant, name, cfg, kwargs)
        if left is not None and saved is not None:
            _require_layers(name, saved.get("convolutions", ""), left)
    if int8 is None:
        int8 = (saved or _saved_beside(name, file or Path(cfg.file or "")))["int8"]
    placed = {key: kwargs.pop(key) for key in ("device", "dtype") if key in kwargs}
    model = build_model_with_cfg(model_cls, variant, False, similarity=similarity, **kwargs)
    try:
        network = rebuild(model, int8)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if file is not None:
        _check_file(name, source, file)
        _load_bytes(network, name, source, file)
    elif pretrained:
        network.load_state_dict(given)  # type: ignore[arg-type]
    licensed = {"license": LICENSE_OF_SHIPPED} if file is not None and file.is_relative_to(WEIGHTS) else {}
    network.pretrained_cfg.update(source=cfg.source, file=cfg.file, hf_hub_id=cfg.hf_hub_id, **licensed)  # type: ignore[operator, union-attr]
    return network.to(**placed) if placed else network


def _readable(file: Path) -> bool:
    """Whether the head of a safetensors file is sound; timm says what is wrong with one that is not."""
    try:
        holds_bytes(file)
    except SafetensorError:
        return False
    return True


def _saved_beside(name: str, file: Path) -> dict[str, Any]:
    """``model_args`` in the config.json beside a file of weights."""
    try:
        args = json.loads((file.parent / CONFIG_FILE).read_text(encoding="utf-8"))["model_args"]
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{name}: how a network in bytes is built stands in the {CONFIG_FILE} beside {file}, and that cannot be "
            f"read ({error!r}). Give the folder that adder_zoo.save_pretrained wrote, or install adder_zoo again."
        ) from error
    if "int8" not in args:
        raise ValueError(f"{name}: {file.parent / CONFIG_FILE} is that of a network in float32, not of one in bytes")
    return args


def _load_bytes(network: nn.Module, name: str, source: str, file: Path) -> None:
    try:
        if not holds_bytes(file):
            raise RuntimeError(
                f"{name}: {source} holds a network in float32, and one in bytes was asked for. Load it by its own tag, "
                "and call adder_zoo.quantize(model, images)."
            )
        state = load_file(file)
    except SafetensorError as error:
        raise RuntimeError(f"{name}: the weights in {source} are damaged ({error}); fetch them again") from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise RuntimeError(f"{name}: the weights in {source} are those of another model. {error}") from error


def _weights(variant: str, name: str, cfg: Any, kwargs: dict[str, Any]) -> tuple[str, Path, dict[str, Any] | None]:
    """Where the weights of a model are: for a message, as a file, and what their config.json says of the model.

    Raises:
        FileNotFoundError: nothing says where weights are, and no organisation is set to look in.
        HubError, and huggingface_hub's own: the repository has no safetensors, or cannot be read.
    """
    saved = kwargs.get("pretrained_model_args")  # timm hands them over for a folder or a Hub repository
    if cfg.source == "local-dir":
        return f"{cfg.file}/{WEIGHTS_FILE}", Path(cfg.file) / WEIGHTS_FILE, saved
    if cfg.file and cfg.source != "hf-hub":
        return str(cfg.file), Path(cfg.file), saved
    if cfg.hf_hub_id:
        repo_id, _, revision = cfg.hf_hub_id.partition("@")
    elif cfg.url:
        raise ValueError(f"{name}: no weights are loaded from {cfg.url}; give a file, a folder or a Hub repository")
    else:
        repository = organisation_repository(name)
        if repository is None:
            raise FileNotFoundError(
                f"{name} has no weights in the package. Train it with a recipe (recipes/), make a folder of a "
                "checkpoint with `adder-zoo import`, name a folder ('local-dir:FOLDER') or a repository "
                f"('hf-hub:ORG/NAME') instead of {variant!r}, or set {ORGANISATION} to the Hub organisation "
                f"that has {name}."
            )
        repo_id, revision = repository, ""
    cache_dir = kwargs.get("cache_dir")
    filename = cfg.hf_hub_filename or WEIGHTS_FILE
    if not filename.endswith(".safetensors"):
        return f"{repo_id}/{filename}", Path(filename), saved
    # config.json and weights come from the same commit, even if somebody pushes in between.
    if cfg.source == "hf-hub":
        known = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision or None)
        config = Path(known) if isinstance(known, str) else None
        if config and not intact(config):  # timm itself holds no checksum against what it fetches
            forget(config)
            raise HubError(
                f"{repo_id}: config.json was damaged on its way or in the cache. It is not kept: run the same again."
            )
    else:
        config = download(repo_id, "config.json", revision or None, cache_dir=cache_dir)
        saved_config = json.loads(config.read_text())
        saved = saved_config.get("model_args", {})
        if saved_config.get("architecture") != variant:
            raise ValueError(f"{repo_id} has weights of {saved_config.get('architecture')!r}, not of {variant!r}")
    try:
        commit = config.parent.name if config else revision or None
        return repo_id, download(repo_id, filename, commit, cache_dir=cache_dir), saved
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError as error:
        raise HubError(
            f"{name}: the repository {repo_id} has no {filename}, and nothing else is loaded: a pickle can run code "
            "when it is read. Ask its owner for safetensors (huggingface.co/spaces/safetensors/convert)."
        ) from error


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


def drop_keys(state_dict: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """``state_dict`` less the keys that start with one of ``prefixes``."""
    return {key: value for key, value in state_dict.items() if not key.startswith(prefixes)}
