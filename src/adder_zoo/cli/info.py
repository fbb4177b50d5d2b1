"""``adder-zoo info``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import timm
import torch

from ..labels import assumption, labels_of
from ..preprocessing import in_words
from ..report import report
from ._common import Failure, ModelName, config_of, create, hub_repository, json_option, similarity_option, write_json
from ._results import results

SHOWN = 10  # classes in a line


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
