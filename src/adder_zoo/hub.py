"""Saving a network so that timm, here or from the Hugging Face Hub, builds it again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn


def save_pretrained(model: nn.Module, directory: str | Path, model_args: dict[str, Any] | None = None) -> Path:
    """Writes ``model.safetensors`` and ``config.json`` in timm's form.

    ``timm.create_model(f"local-dir:{directory}", pretrained=True)`` loads them after ``import adder_zoo``.

    Args:
        model: A network from ``timm.create_model``; not a distributed or compiled wrapper.
        directory: Folder to write into; made if it is missing.
        model_args: Arguments of ``timm.create_model`` that the network needs to be built again, beyond its own record.

    Returns:
        The folder.

    Raises:
        ValueError: ``model`` bears no ``pretrained_cfg``, so timm did not build it.
    """
    if getattr(model, "pretrained_cfg", None) is None:
        raise ValueError(f"save_pretrained: {type(model).__name__} was not built by timm.create_model, so there is no "
                         "configuration to save; use safetensors.torch.save_model")  # fmt: skip
    args = dict(model_args or {})
    similarity = getattr(model, "similarity", None)
    if similarity is not None:
        args.setdefault("similarity", similarity)
    # safetensors takes contiguous tensors only, and networks that run on a CPU are often in channels_last.
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    directory = Path(directory)
    save_for_hf(plain, str(directory), model_args=args, safe_serialization=True)
    return directory
