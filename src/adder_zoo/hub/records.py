"""The files of a finished run, and which runs belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..paths import WEIGHTS, checkout
from ..results import RESULTS_FILE, read_results

CARD_FILE = "README.md"
TWIN_FILE = "results-conv.json"  # results.json of the convolutional twin, which the card compares with
RUN_FILES = (RESULTS_FILE, TWIN_FILE, "args.yaml", "log.csv")


def trained_alike(results: Mapping[str, Any], twin: Mapping[str, Any]) -> bool:
    """Whether ``twin`` is of the convolutional twin, with the same data and settings.

    Which layers stay convolutions means nothing to a network in which all are.
    """

    def record(r: Mapping[str, Any]) -> Any:
        config = {key: value for key, value in r["config"].items() if key not in ("similarity", "convolutions")}
        data = ("dataset", "data", "train_images", "test_images")
        return [r.get(key) for key in ("model", *data, "epochs", "updates")], config

    return twin.get("similarity") == "conv" and record(results) == record(twin)


def training_of(results: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What is recorded of the training; for a network in bytes, of the training of the float network behind it."""
    if results is None or "quantized_from" not in results:
        return results
    return results["quantized_from"].get("results")


def find_twin(folder: Path, results: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What ``results.json`` of the convolutional twin holds: see ``twin`` of ``push_to_hub``."""
    results = training_of(results)
    if results is None or results.get("similarity") != "adder":
        return None
    name = str(results["model"])
    twins = [json.loads((folder / TWIN_FILE).read_text())] if (folder / TWIN_FILE).is_file() else []
    places = [folder.resolve().with_name(folder.resolve().name + "-conv")]
    root = checkout()
    if root is not None:
        places.append(root / "docs" / "results" / f"{name.removeprefix('adder_')}-conv")
    twins += [twin for twin in map(read_results, places) if twin is not None]
    return next((twin for twin in twins if trained_alike(results, twin)), None)


def shipped() -> list[tuple[str, Path, dict[str, Any], dict[str, Any] | None]]:
    """Every checkpoint in the package: its name, folder, results, and its twin's results (in a checkout)."""
    found = []
    for path in sorted(WEIGHTS.glob(f"*/{RESULTS_FILE}")):
        results = read_results(path.parent)
        assert results is not None
        found.append((path.parent.name, path.parent, results, find_twin(path.parent, results)))
    return found
