"""What the experiments share: runs of the recipes, one after the other, and the report that is made of them."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adder_zoo.training import parse_settings

RECIPES = Path(__file__).resolve().parents[1]
DOCS = RECIPES.parent / "docs" / "paper"
sys.path.insert(0, str(RECIPES))


def arguments(description: str, runs: str | None = None, epochs: int | None = None) -> argparse.ArgumentParser:
    """The flags of all experiments. What else is given goes to the recipe as it is (``--threads 1``, for example)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-dir", help="folder of the data sets; default: the one that ADDER_ZOO_DATA names")
    parser.add_argument("--report-dir", default=str(DOCS), help="where the table and the picture go")
    if runs:
        parser.add_argument("--output-dir", default=f"runs/paper/{runs}", help="folder of the runs; taken up again")
        parser.add_argument("--epochs", type=int, default=epochs)
    return parser


def run(recipe: str, folder: Path, flags: Sequence[str]) -> dict[str, Any]:
    """The results of a recipe with these flags in ``folder``: a finished run is read, a stopped one goes on.

    A finished run with other settings ends the experiment: its report would say what it is not.
    """
    results = folder / "results.json"
    if results.exists():
        module = importlib.import_module(recipe.removesuffix(".py"))
        config = parse_settings(module.Config, "", [*flags, "--output-dir", str(folder)])
        found = {**module.Config().record(), **json.loads(results.read_text())["config"]}
        differ = [
            f"{name} {found.get(name)!r} and not {want!r}"
            for name, want in config.record().items()
            if found.get(name) != want
        ]
        if differ:
            sys.exit(
                f"{folder} holds a finished run with other settings: {', '.join(differ)}. Give another --output-dir."
            )
    else:
        command = [sys.executable, str(RECIPES / recipe), *flags, "--output-dir", str(folder)]
        print("$", " ".join(command), flush=True)
        code = subprocess.run(command).returncode
        if code:
            sys.exit(code)
    return json.loads(results.read_text())


def screen(
    name: str,
    description: str,
    epochs: int,
    variants: Mapping[str, Sequence[str]],
    report: Callable[[str, dict[str, Any]], None],
) -> None:
    """Short runs of ``cifar.py``, judged on training images that are held out, and a report that grows.

    Args:
        name: Of the experiment; its report's JSON holds the results by the names of the variants.
        description: For ``--help``.
        epochs: Of each run, where ``--epochs`` says nothing.
        variants: The flags of each run. One that the report has already, with as many epochs, is not done again.
        report: Called with the report's folder and all results, after each new one.
    """
    parser = arguments(description, name, epochs)
    parser.add_argument("--held-out", type=int, default=5000, help="training images to judge by")
    parser.add_argument("--only", nargs="+", choices=list(variants), help="do these runs and no others")
    args, flags = parser.parse_known_args()
    flags += ["--epochs", str(args.epochs), "--eval-every", str(args.epochs), "--held-out", str(args.held_out)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    found = Path(args.report_dir) / f"{name}.json"
    for variant in args.only or variants:
        record = json.loads(found.read_text()) if found.exists() else {}
        if variant not in record or record[variant]["epochs"] != args.epochs:
            folder = Path(args.output_dir) / variant.replace(" ", "_")
            results = run("cifar.py", folder, [*variants[variant], *flags])
            hours = sum(row["seconds"] for row in rows(folder)) / 3600
            record = json.loads(found.read_text()) if found.exists() else {}  # another call may have added to it
            record[variant] = {**results, "hours": round(hours, 2)}
            report(args.report_dir, record)


def flags_of(recipe: str, results: dict[str, Any], *known: str) -> str:
    """The flags that make a run's settings of the recipe's defaults, but for those that are ``known`` by name."""
    defaults = importlib.import_module(recipe.removesuffix(".py")).Config().record()
    words = []
    for name, value in results["config"].items():
        if name in defaults and value != defaults[name] and name not in known:
            flag = name.replace("_", "-")
            words.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}")
    return "".join(f" {word}" for word in words)


def rows(folder: Path) -> list[dict[str, float]]:
    """The log of a run."""
    import csv

    with (folder / "log.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def write(folder: str, name: str, record: Any, lines: Iterable[str], figure: Any = None) -> None:
    """Writes ``name``.json, .md and .png."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    text = "\n".join(lines)
    if figure is not None:
        figure.savefig(place / f"{name}.png", dpi=100)
        text += f"\n\n![{name}]({name}.png)"
    (place / f"{name}.md").write_text(text + "\n")
    print(f"\n{text}\n\n{place / name}.md")


def mean_and_deviation(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f} (one seed)"
    return (
        f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} seeds, best {max(values):.2f})"
    )
