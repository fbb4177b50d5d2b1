"""A network as a program of ``torch.export``, in a file of its own (.pt2)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import atomic

NEEDS = "this program calls operators of the package adder_zoo: pip install adder_zoo, and import it before loading"
NEEDS_FILE = "needs.txt"  # in the archive, beside the program


class ProgramError(RuntimeError):
    """The program does not answer as the network does."""


def export_program(
    network: nn.Module, path: str | Path, input_size: Sequence[int], *, fixed_batch: int | None = None
) -> float:
    """Writes a network for inference as a program of ``torch.export``, reads it again and compares its answers.

    The program calls the operators of this package: ``import adder_zoo`` before ``torch.export.load``. Without that
    torch says it cannot resolve the operator, and shows ``NEEDS``, which also lies in the archive.

    Args:
        network: In evaluation mode, on a CPU, float32.
        path: The file, which must end in .pt2. It is the old one or the new one, never half of it.
        input_size: Of an image, (C, H, W).
        fixed_batch: The only size of a batch that the program takes; None for any.

    Returns:
        The largest difference between its logits and the network's.

    Raises:
        ProgramError: the program answers otherwise. Nothing is written then.
        OSError: the file cannot be written.
    """
    tried = [torch.randn(fixed_batch or 2, *input_size), *([] if fixed_batch else [torch.randn(5, *input_size)])]
    shapes: Any = None if fixed_batch else ({0: torch.export.Dim("batch", min=1)},)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic.replace_file(path) as part:
        # A program for inference: no graph of gradients in its trace.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            content = io.BytesIO()  # torch's own writer ends the process where the disk is full
            program = torch.export.export(network, (tried[0],), dynamic_shapes=shapes)
            _mark(program)
            torch.export.save(program, content, extra_files={NEEDS_FILE: NEEDS})
            part.write_bytes(content.getbuffer())
            again = torch.export.load(part).module()
        with torch.no_grad():
            difference = max((again(x) - network(x)).abs().max().item() for x in tried)
            scale = max(network(x).abs().max().item() for x in tried)
        # The program runs the same operators; only what torch decomposed, batch norm, may round otherwise.
        if not difference <= 1e-4 * scale:
            raise ProgramError(
                f"the exported program answers otherwise than the network: logits differ by {difference}"
            )
    return difference


def _mark(program: torch.export.ExportedProgram) -> None:
    """Notes on each of our operators what it needs, where torch's error shows it: as the lines that called it."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
        if getattr(node.target, "namespace", None) == "adder_zoo":
            node.meta["stack_trace"] = NEEDS
