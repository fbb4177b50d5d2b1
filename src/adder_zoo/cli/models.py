"""``adder-zoo list`` and ``adder-zoo info``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import timm
import torch

from ..counts import known_counts
from ..labels import assumption, labels_of
from ..paths import WEIGHTS
from ..preprocessing import in_words
from ..report import report, table
from ..results import ResultsError, read_results
from ._common import Failure, ModelName, config_of, create, hub_repository, json_option, similarity_option, write_json
from .hub import of_organisation, show_hub

SHOWN = 10  # classes in a line


def results(name: str, similarity: str = "adder") -> dict[str, Any] | None:
    """What was measured of a network whose weights are in the package or in a folder; None where nothing was.

    Results that are not of the weights beside them, or of a network of another similarity, are not shown; the first are
    told on standard error.
    """
    if name.startswith("local-dir:"):
        folder = Path(name.partition(":")[2])
    else:
        arch = name.partition(".")[0]
        cfg = timm.get_pretrained_cfg(name) if timm.is_model(arch) else None
        folder = WEIGHTS / (f"{arch}.{cfg.tag}" if cfg and cfg.tag else name)
    try:
        record = read_results(folder)
    except ResultsError as error:
        click.echo(f"note: {error}", err=True)
        return None
    return record if record is None or record.get("similarity", "adder") == similarity else None


def describe(name: str) -> dict[str, Any]:
    """A line of ``adder-zoo list``: name, parameters, operations for one image, accuracy and where the weights are."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    record = results(name) or {}
    return {
        "model": name,
        "input_size": list(cfg.input_size),
        "num_classes": cfg.num_classes,
        **known_counts(name),
        "accuracy": record.get("test_accuracy"),
        "dataset": record.get("dataset"),
        "weights": "package" if str(cfg.file or "").startswith(str(WEIGHTS)) else cfg.hf_hub_id or cfg.url,
    }


@click.command(
    "list",
    epilog="""
    \b
    Examples:
      adder-zoo list                      all networks of the zoo
      adder-zoo list 'adder_resnet*'      those whose name fits
      adder-zoo list --pretrained --json  those with weights, for programs
      adder-zoo list --hub ORG            those that an organisation has on the Hugging Face Hub
      adder-zoo list --hub ORG --card     the same as Markdown, for the organisation's page
    """,
)
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="Only networks whose weights can be loaded.")
@click.option("--hub", "author", metavar="ORG", help="Those of an organisation or user on the Hugging Face Hub.")
@click.option("--card", "as_card", is_flag=True, help="With --hub: Markdown, as on the organisation's page.")
@json_option
def list_models(pattern: str, pretrained: bool, author: str | None, as_card: bool, as_json: bool) -> None:
    """Lists the networks of the zoo, with what they cost for one image.

    PATTERN is a shell pattern. The prefix that all names share may be left out. Multiplications and additions are those
    of all layers but normalisation.
    """
    if author is not None:
        if pattern != "*" or pretrained:
            raise click.UsageError("--hub lists all networks of ORG; it takes no pattern and no --pretrained")
        show_hub(author, as_json, as_card)
        return
    if as_card:
        raise click.UsageError("--card goes with --hub ORG")
    pattern = pattern if pattern.startswith(("adder_", "*")) else f"adder_{pattern}"
    names = timm.list_models(pattern, include_tags=True)
    on_hub = of_organisation(names)
    names = [
        n
        for n in names
        if n.startswith("adder_") and (not pretrained or timm.models.is_model_pretrained(n) or n in on_hub)
    ]
    if not names:
        raise Failure(f"no network of the zoo fits {pattern!r}" + (" and has weights" if pretrained else ""))
    rows = [describe(name) for name in names]
    for row in rows:
        row["weights"] = row["weights"] or on_hub.get(row["model"])
    if as_json:
        write_json(rows)
        return
    columns = ("model", "image", "classes", "parameters", "multiplications", "additions", "accuracy", "weights")
    click.echo(
        table(
            columns,
            [
                (
                    row["model"],
                    "x".join(map(str, row["input_size"])),
                    row["num_classes"],
                    millions(row["parameters"]),
                    millions(row["multiplications"]),
                    millions(row["additions"]),
                    f"{row['accuracy']:.2f} % {row['dataset']}" if row["accuracy"] is not None else "-",
                    row["weights"] or "-",
                )
                for row in rows
            ],
            right=(2, 3, 4, 5),
        )
    )


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo info adder_resnet20
      adder-zoo info adder_resnet20 --similarity conv   its convolutional twin
      adder-zoo info runs/resnet20                      a network that a recipe trained
      adder-zoo info resnet50 --json                    any network of timm
    """
)
@click.argument("model", type=ModelName())
@click.option("--image-size", type=click.IntRange(min=1), metavar="N", help="Count for N x N pixels.")
@similarity_option
@json_option
def info(model: str, image_size: int | None, similarity: str | None, as_json: bool) -> None:
    """Shows a network: its layers, the operations of each for one image, and where its weights come from."""
    with torch.device("meta"):
        network = create(model, similarity=similarity)
        own = getattr(create(model), "similarity", None) if similarity else similarity
    other = own != similarity  # a twin, for which the weights mean nothing
    cfg = config_of(network)
    size = (cfg["input_size"][0], image_size, image_size) if image_size else None
    try:
        count = report(network, size)
    except (RuntimeError, ValueError) as error:
        raise Failure(f"{model} cannot be counted for these images: {str(error).splitlines()[0]}") from error
    record = results(model, getattr(network, "similarity", "conv"))
    if as_json:
        config = {k: v for k, v in dataclasses.asdict(_cfg(cfg)).items() if v not in (None, "", ())}
        write_json({"model": model, "config": config, "results": record, "counts": count.to_dict()})
        return
    click.echo(f"{model}\n")
    click.echo(count)
    click.echo(
        "\nEnergy of the arithmetic without normalisation, 45 nm: "
        f"{count.without_norm.energy('fp32'):,.1f} uJ in fp32, "
        f"{count.without_norm.energy('int8', 'int32'):,.1f} uJ in int8 with int32 sums.\n"
        "Memory traffic is left out; a GPU gains nothing, it multiplies as fast as it adds."
    )
    if record and isinstance(record.get("test_accuracy"), (int, float)):
        click.echo(f"\nTrained on {record.get('dataset')}: {record['test_accuracy']:.2f} % of the test images.")
    click.echo(f"\n{_about(network)}")
    weights = None if other else cfg.get("file") or cfg.get("hf_hub_id") or cfg.get("url") or hub_repository(model)
    click.echo(f"\nWeights: {weights or 'none; train them with a recipe, or `adder-zoo import` a checkpoint'}")


def _about(network: torch.nn.Module) -> str:
    """How images are prepared for a network, and what its classes are called."""
    cfg = config_of(network)
    known = labels_of(cfg, network.num_classes)  # type: ignore[arg-type]
    classes = "not named" if known.names is None else ", ".join(known.shown()[:SHOWN]) + ", ..." * (known.count > SHOWN)
    assumed = assumption(cfg)
    return (
        f"Preprocessing: {in_words(cfg, ('input_size', 'mean', 'std'))}\n"
        + (f"Assumed when it was imported, and never stated: {assumed}\n" if assumed else "")
        + f"Classes: {known.count}, {classes}"
    )


def _cfg(cfg: dict[str, Any]) -> Any:
    return timm.models.PretrainedCfg(**cfg)


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
