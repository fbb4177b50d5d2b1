"""``results.json``: what was measured of a network, bound to the weights that it was measured of by their checksum.

Whoever shows a result reads it by ``read_results``, which refuses one that is not of the weights beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import atomic

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
CHECKSUM = "weights_sha256"  # the key in results.json: SHA-256 of model.safetensors, in hexadecimal


class ResultsError(ValueError):
    """Results that cannot be read, or are not of the weights beside them. The message says what to do."""


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_results(folder: str | Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``results.json`` of the weights in ``folder``, which must be there already; returns what it holds.

    Args:
        folder: Holds ``model.safetensors``, that ``results`` were measured of.
        results: What was measured; the checksum of the weights is added as ``weights_sha256``.

    Raises:
        OSError: there are no weights, or the file cannot be written.
    """
    folder = Path(folder)
    record = {**results, CHECKSUM: checksum(folder / WEIGHTS_FILE)}
    atomic.write_text(folder / RESULTS_FILE, json.dumps(record, indent=2) + "\n")
    return record


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """What ``results.json`` in ``folder`` holds, of the weights beside it; None where there is no such file.

    A folder without weights (a record that is kept alone) has nothing to hold the results against.

    Raises:
        ResultsError: the file cannot be read, does not say which weights it is of, or is of other weights.
    """
    folder = Path(folder)
    path = folder / RESULTS_FILE
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    if not isinstance(results, dict):
        raise ResultsError(f"{path} does not hold results, but a {type(results).__name__}")
    weights = folder / WEIGHTS_FILE
    if weights.exists():
        check(results, checksum(weights), str(path))
    return results


def check(results: Mapping[str, Any], found: str, name: str = RESULTS_FILE) -> None:
    """Refuses ``results`` that are not of the weights whose SHA-256 is ``found``; ``name`` is for the message.

    Raises:
        ResultsError: see above.
    """
    said = results.get(CHECKSUM)
    if said is None:
        raise ResultsError(
            f"{name} does not say which weights it was measured of, so it may be of other weights. If you know that it "
            f'is of those beside it, add "{CHECKSUM}": "{found}" to it; else remove it.'
        )
    if said != found:
        raise ResultsError(
            f"{name} is not of the weights beside it: it was measured of a model.safetensors with SHA-256 {said}, "
            f"and this one has {found}. Remove it, or put the weights back that it is of."
        )
