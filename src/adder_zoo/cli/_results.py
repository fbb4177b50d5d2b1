"""What was measured of a network, where that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import timm

from ..paths import WEIGHTS
from ..results import ResultsError, read_results


def results(name: str, similarity: str = "adder") -> dict[str, Any] | None:
    """What was measured of a network whose weights are in the package or in a folder; None where nothing was.

    Results that are not of the weights beside them, or of a network of another similarity, are not shown; the first are
    told on standard error.
    """
    try:
        record = read_results(folder_of(name))
    except ResultsError as error:
        click.echo(f"note: {error}", err=True)
        return None
    return record if record is None or record.get("similarity", "adder") == similarity else None


def folder_of(name: str) -> Path:
    """Where the files of a network would lie on this machine: its folder, or one in the package."""
    if name.startswith("local-dir:"):
        return Path(name.partition(":")[2])
    arch = name.partition(".")[0]
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(arch) else None
    return WEIGHTS / (f"{arch}.{cfg.tag}" if cfg and cfg.tag else name)
