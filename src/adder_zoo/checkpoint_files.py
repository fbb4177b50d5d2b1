"""Files of other people's checkpoints, read without running code in them: whatever holds tensors by name.

Readable are safetensors and torch files of tensors, numbers, texts and containers, with the options (an
``argparse.Namespace``) and numpy's scalars that timm's trainer saves beside them. The weights may lie in a dictionary
(``state_dict``, ``model``, ...), and their keys may begin with the names of wrappers (``module.``, ``_orig_mod.``).
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import shlex
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where trainers put the weights in a checkpoint, those that are to be used first: averaged ones.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model", "net", "weights")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
SHOWN = 8  # keys in a message
REASON = 200  # characters of torch's in one


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit. The message names the file and says what to do."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, on the CPU, free of wrappers; no code in the file is run.

    Raises:
        CheckpointError: the file is missing or damaged, is a pickle of more than tensors, or holds no state dict.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file: name the checkpoint inside it")
    if not path.exists():
        raise CheckpointError(f"{path} is not a file")
    _check_kind(path)
    content = _read(path)
    state = _tensors(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, Mapping) else ""
        found = type(content).__name__ + (f" with {keys}" if keys else "")
        raise CheckpointError(f"{path} holds no state dict, but a {found}")
    return _unwrapped(state)


def _check_kind(path: Path) -> None:
    """Refuses a file that is not a checkpoint, by its first bytes: a web page, a pointer of Git LFS, an image."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file itself: fetch it by `git lfs pull`")
    # torch writes zip files, and before 1.6 pickles, which begin with their version.
    if path.suffix != ".safetensors" and not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint: torch.save did not write it"
            f"{' but a web page' if head.lstrip().startswith(b'<') else ''}; fetch it again"
        )


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; fetch it again") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors: reading it would run code that came with it. {_advice(path)}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:REASON] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint: {reason}; fetch it again") from error


def _harmless() -> list[Any]:
    """What timm's trainer saves beside tensors; none of these does anything when it is made from a file."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    # numpy 2 has its inner modules under another name than the versions that wrote most files.
    names = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    return [argparse.Namespace, np.dtype, *dtypes, *names]


def _tensors(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for name in NESTED:
        if isinstance(content.get(name), Mapping):
            return _tensors(content[name])
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return tensors or None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {key: value for key, value in state.items() if key != "n_averaged"}  # of torch's AveragedModel
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            return _unwrapped({key[len(prefix) :]: value for key, value in state.items()})
    return state


# ---- what to do about a file that is not read


def _advice(path: Path) -> str:
    """How to save the tensors of a file alone, for somebody who trusts it; the command fits what is in the file."""
    found = f'torch.load({json.dumps(str(path), ensure_ascii=False)}, map_location="cpu", weights_only=False)'
    content = _outline(path)
    while (key := next((name for name in NESTED if _is_dictionary(content) and name in content), None)) is not None:
        content = content[key]
        found += f'["{key}"]'
    state = f"{{k: v for k, v in {found}.items() if torch.is_tensor(v)}}"
    if not _is_dictionary(content):  # a whole module
        state = f"{found}.state_dict()"
    command = f'import torch; torch.save({state}, "tensors.pth")'
    return (
        "If you trust where it is from, save its tensors alone, where the code that it needs is at hand, and import "
        f"that file: python -c {shlex.quote(command)}"
    )


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, dict) and not isinstance(value, _Lifeless)


def _outline(path: Path) -> Any:
    """What a torch file holds, with a lifeless stand-in for every object that is none of Python's own; else None."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return _Outline(io.BytesIO(archive.read(name))).load()
    except Exception:  # whatever a damaged pickle raises: it is only asked for a better message
        return None


class _Lifeless(dict):
    """Takes the place of any object, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _Outline(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else type(name, (_Lifeless,), {})

    def persistent_load(self, pid: Any) -> Any:
        return None
