"""Parameters and operations of every network of the zoo, counted once: ``adder-zoo list`` would take minutes otherwise.

python -m adder_zoo.counts        counts all of them again and writes counts.json
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import timm
import torch
from tqdm import tqdm

from .report import report

FILE = Path(__file__).with_name("counts.json")


def known_counts(name: str) -> dict[str, int]:
    """Parameters, multiplications and additions (all layers but normalisation) of ``name``, "architecture.tag"."""
    return _stored().get(name) or count_model(name)


def count_model(name: str) -> dict[str, int]:
    """The same, counted now."""
    with torch.device("meta"):
        result = report(timm.create_model(name))
    return {
        "parameters": result.parameters,
        "multiplications": result.without_norm.multiplications,
        "additions": result.without_norm.additions,
    }


@functools.cache
def _stored() -> dict[str, dict[str, int]]:
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def main() -> None:
    names = timm.list_models("adder_*", include_tags=True)
    lines = [f"{json.dumps(name)}: {json.dumps(count_model(name))}" for name in tqdm(names, unit="model", disable=None)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
