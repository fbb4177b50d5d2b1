"""Checkpoints as safetensors and JSON: to read one never runs code, whoever wrote the file.

A state is what ``state_dict`` gives: dictionaries and lists of tensors, numbers and strings. Its tensors go into
``<name>.safetensors``, everything else into ``<name>.json``, where a tensor is named by its place in the state.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .settings import RecipeError


@contextlib.contextmanager
def reported_write(what: str) -> Iterator[None]:
    """Turns the errors of a full disk and its like into a message.

    Raises:
        RecipeError: the block could not write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"{what} could not be written: {error}. What was there before is whole, and the same command goes on from "
            "the last checkpoint."
        ) from error


def write_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Writes a state into two files. Of a tensor in parts (FSDP) it writes this process's part.

    Raises:
        TypeError: it holds something else than dictionaries, lists, tuples, tensors, numbers, strings and None.
    """
    tensors: dict[str, Tensor] = {}
    layout = _layout(state, "", tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(layout), encoding="utf-8")


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """What ``write_state`` wrote, on the CPU.

    Raises:
        RecipeError: a file is missing, damaged or something else.
    """
    try:
        layout = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return _restored(layout, load_file(folder / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RecipeError(
            f"the checkpoint {folder} cannot be read ({type(error).__name__}: {error}). Remove it to go on from the "
            "one before it, or begin again in another --output-dir."
        ) from error


def _layout(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON can hold it; its tensors are added to ``tensors``."""
    if isinstance(value, Tensor):
        local = (value.to_local() if isinstance(value, DTensor) else value).detach()
        tensors[place] = local.cpu().contiguous().clone()
        return {"tensor": place, "stride": local.stride()}
    if isinstance(value, dict):
        return {"dict": [[key, _layout(v, f"{place}/{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_layout(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint cannot hold {place.lstrip('/')}, a {type(value).__name__}")


def _restored(layout: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(layout, list):
        return [_restored(item, tensors) for item in layout]
    if not isinstance(layout, dict):
        return layout
    if "tensor" in layout:
        # In the memory format that it had: another one may sum in another order.
        values = tensors[layout["tensor"]]
        return torch.empty_strided(values.shape, layout["stride"], dtype=values.dtype).copy_(values)
    if "tuple" in layout:
        return tuple(_restored(item, tensors) for item in layout["tuple"])
    return {key: _restored(item, tensors) for key, item in layout["dict"]}


def load_network(network: nn.Module, state: dict[str, Any]) -> None:
    """``network.load_state_dict``, also where its weights lie in parts and ``state`` has this process's."""
    own = network.state_dict()
    network.load_state_dict({name: _in_parts(value, own.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict``, also where its parameters lie in parts and ``state`` has this process's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values = {
        i: {name: _in_parts(value, parameters[i]) for name, value in of_parameter.items()}
        for i, of_parameter in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": values})


def _in_parts(value: Any, like: Any) -> Any:
    """This process's part of a tensor as a DTensor, where ``like`` is one whose part has the same shape."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.to_local().shape:
        return value
    return DTensor.from_local(
        value.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
