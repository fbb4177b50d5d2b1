"""The table over all networks of an organisation, and the cards of every checkpoint in the package.

`make cards` renders these into ``hub_cards/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import yaml_dump

from .cards import render, row
from .evaluation import HUB
from .records import shipped

# The organisation that the cards in hub_cards/ name; a push puts its own there.
ORGANISATION = "adder-zoo"


def index(organisation: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """The page of an organisation: one table over all of its models, named as their repositories are."""
    lines = [
        "| model | trained on | top-1 | its CNN twin | parameters | multiplications | additions | energy, fp32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        name = r["model"].rpartition("/")[2]
        accuracies = (f"{r[key]:.2f} %" if r[key] is not None else "" for key in ("accuracy", "twin_accuracy"))
        numbers = (f"{r[key]:,}" for key in ("parameters", "multiplications", "additions"))
        cells = (f"[{name}]({HUB}/{organisation}/{name})", r["dataset"] or "", *accuracies, *numbers)
        lines.append(f"| {' | '.join(cells)} | {r['energy_fp32_uj']:,.2f} µJ |")
    space = {"emoji": "➕", "colorFrom": "green", "colorTo": "gray", "sdk": "static", "pinned": False}
    front = yaml_dump({"title": organisation, **space}, sort_keys=False).strip()
    table = "\n".join(lines)
    return f"""---
{front}
---

<!-- adder_zoo:begin. Written by `adder-zoo push --all`; what stands outside of the two comments stays. -->
Image classifiers whose layers answer with `-Σ|x - w|` instead of `Σ x·w` ([AdderNet](https://arxiv.org/abs/1912.13200)).
After `import adder_zoo`, `timm.create_model("hf-hub:{organisation}/NAME", pretrained=True)` loads one.

{table}

Operations are those of all layers but normalisation, for one image; energy is that of the arithmetic alone, in 45 nm.
On a GPU an adder network gains nothing.
<!-- adder_zoo:end -->
"""


def render_shipped(organisation: str = ORGANISATION) -> dict[str, str]:
    """The cards of every checkpoint in the package and the index, README.md, by file name."""
    cards = {
        f"{name}.md": render(folder, f"{organisation}/{name}", results, twin)
        for name, folder, results, twin in shipped()
    }
    return {**cards, "README.md": index_of_shipped(organisation)}


def index_of_shipped(organisation: str) -> str:
    """The page of an organisation that has every checkpoint in the package, and nothing else."""
    return index(organisation, ({**row(folder, *rest), "model": name} for name, folder, *rest in shipped()))


def write_shipped(folder: str | Path) -> None:
    """What ``make cards`` does."""
    for name, text in render_shipped().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
