"""Checkpoints of others: read without running code, brought into the zoo's names, checked, and written as safetensors.

Readable are safetensors and torch files that hold tensors only. The keys may bear the prefixes of wrappers
(``module.``, ``_orig_mod.``), lie in a dictionary (``state_dict``, ``model``, ...), and be named as in the authors'
code: ``.adder`` for the filters of an adder layer, ``fc`` and ``bn2`` for the classifier of their ResNets and its batch
norm.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .hub.records import WEIGHTS_FILE
from .hub.save import save_pretrained

# Where trainers put the weights in a checkpoint, those that are to be used first: averaged ones.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model", "net", "weights")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
# Parts of keys in the authors' code and its copies, and the zoo's.
RENAMED = ((".adder", ".weight"),)
RENAMED_HEADS = (("fc.", "head.fc."), ("bn2.", "head.bn."), ("linear.", "head.fc."), ("classifier.", "head.fc."))
SHOWN = 8  # keys in a message


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit. The message names the file and says what to do."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, on the CPU, free of wrappers; no code in the file is run.

    Raises:
        CheckpointError: the file is missing or damaged, is a pickle of more than tensors, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; fetch it again") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors (a whole module, perhaps): reading it would run code that came with it. "
            "If you trust where it is from, save its tensors alone: "
            "torch.save(torch.load(file, weights_only=False).state_dict(), new_file)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}; fetch it again") from error
    state = _tensors(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, Mapping) else ""
        found = type(content).__name__ + (f" with {keys}" if keys else "")
        raise CheckpointError(f"{path} holds no state dict, but a {found}")
    return _unwrapped(state)


def _tensors(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for name in NESTED:
        if isinstance(content.get(name), Mapping):
            return _tensors(content[name])
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return tensors or None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            return _unwrapped({key[len(prefix) :]: value for key, value in state.items()})
    return state


def renamed(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """``state`` with the authors' names brought into the zoo's, as far as that leads to keys that are ``wanted``."""
    result = {}
    for key, value in state.items():
        new = key
        for old, ours in RENAMED:
            new = new.replace(old, ours) if new.endswith(old) else new
        if new not in wanted:
            for old, ours in RENAMED_HEADS:
                if new.startswith(old) and ours + new[len(old) :] in wanted:
                    new = ours + new[len(old) :]
        result[new] = value
    return result


def load_checkpoint(path: str | Path, model: str, similarity: str = "adder") -> nn.Module:
    """The zoo's network ``model`` with the weights of a checkpoint; its shapes tell classes and input channels.

    Args:
        path: A safetensors or torch file; half-precision weights become float32.
        model: A name in timm's registry, such as "adder_resnet20"; without a tag the one that fits the classes is used.
        similarity: That which the checkpoint was trained with.

    Raises:
        CheckpointError: it cannot be read, or is one of another network; names the keys that differ.
    """
    state = read_state_dict(path)
    arch = model.partition(".")[0]
    with torch.device("meta"):
        template = timm.create_model(model, similarity=similarity)
    cfg: dict[str, Any] = template.pretrained_cfg  # type: ignore[assignment]
    state = renamed(state, set(template.state_dict()))
    options: dict[str, Any] = {"similarity": similarity}
    first = state.get(f"{_first(cfg['first_conv'])}.weight")
    classifier = state.get(f"{_first(cfg['classifier'])}.weight")
    if first is not None and first.dim() == 4:
        options["in_chans"] = first.shape[1]
    if classifier is not None:
        options["num_classes"] = classifier.shape[0]
    name = model
    if "." not in model and "num_classes" in options:
        for tagged in timm.list_models(f"{arch}.*", include_tags=True):
            known = timm.get_pretrained_cfg(tagged)
            if known is not None and known.num_classes == options["num_classes"]:
                name = tagged
                break
    try:
        network = timm.create_model(name, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} does not fit {model}: {error}") from error
    _check_fits(path, model, state, network)
    for key, value in network.state_dict().items():
        state.setdefault(key, value)  # num_batches_tracked, which files from before torch 0.4.1 lack
    network.load_state_dict({key: value.to(network.state_dict()[key].dtype) for key, value in state.items()})
    return network.eval()


def import_checkpoint(
    path: str | Path, model: str, directory: str | Path, similarity: str = "adder", force: bool = False
) -> nn.Module:
    """Writes a checkpoint of others as ``model.safetensors`` and ``config.json``, and returns the network.

    ``timm.create_model(f"local-dir:{directory}", pretrained=True)`` loads them. Arguments and errors are those of
    ``load_checkpoint``; a folder that holds weights is left alone, with a CheckpointError, unless ``force`` is given.
    """
    if (Path(directory) / WEIGHTS_FILE).exists() and not force:
        raise CheckpointError(f"{directory} holds weights; give another folder, or --force to replace them")
    network = load_checkpoint(path, model, similarity)
    save_pretrained(network, directory)
    return network


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
    infinite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    lines = [
        f"\n  {what} ({len(keys)}): {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for what, keys in (
            ("missing", missing), ("not in the model", unexpected), ("of another shape", shapes),
            ("not finite", infinite),
        )
        if keys
    ]  # fmt: skip
    if lines:
        raise CheckpointError(f"{path} is no checkpoint of {model}:" + "".join(lines))
