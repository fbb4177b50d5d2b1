"""``adder-zoo import``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click
from torch import nn

from .. import checkpoints
from ..labels import assumption, labels_of
from ..preprocessing import in_words
from ._common import (
    Failure,
    ZooModel,
    config_of,
    json_option,
    similarity_option,
    write_json,
)
from ._output import force_option, output_option
from ._stated import stated_options


@click.command(
    "import",
    epilog="""
    \b
    Examples:
      adder-zoo import ResNet20-AdderNet.pth --model adder_resnet20 --dataset cifar10 -o resnet20
      adder-zoo validate resnet20 --dataset cifar10 --data-dir data
      adder-zoo import pets.pth --model adder_resnet20 --mean 0.5 --std 0.25 --labels cat,dog -o pets
    """,
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", required=True, type=ZooModel(), help="The network that the checkpoint is of.")
@output_option
@similarity_option
@click.option(
    "--convolutions",
    metavar="PATTERNS",
    help='Layers that stayed convolutions in the training, by their names: "blocks.1.*,conv_head". "" means none but '
    "the usual ones; default: those that the network leaves by itself.",
)
@stated_options
@force_option
@json_option
def import_file(
    file: Path,
    model: str,
    output: Path,
    similarity: str | None,
    convolutions: str | None,
    force: bool,
    as_json: bool,
    **stated: Any,
) -> None:
    """Makes a folder that timm loads from somebody else's checkpoint: the authors' .pth and its many copies.

    The file is read without running code in it. Prefixes of wrappers, the authors' names and half precision are
    understood; classes and input channels are read from the shapes. A file does not tell how images are to be prepared
    and what its classes are called: --dataset does, or a tag of the model (adder_resnet20.cifar10), or --mean, --std,
    --input-size and --labels. What is not stated is assumed, and the command says so.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", checkpoints.AssumptionWarning)
        try:
            network = checkpoints.import_checkpoint(
                file, model, output, similarity or "adder", force, convolutions=convolutions, **stated
            )
        except checkpoints.CheckpointError as error:
            raise Failure(str(error)) from error
    for warning in caught:
        if issubclass(warning.category, checkpoints.AssumptionWarning):
            click.echo(f"note: {warning.message}", err=True)
    cfg = config_of(network)
    assumed = assumption(cfg)
    record = {
        "folder": str(output),
        "model": cfg["architecture"],
        "num_classes": network.num_classes,
        "in_chans": getattr(network, "in_chans", cfg["input_size"][0]),
        "parameters": sum(p.numel() for p in network.parameters()),
        **{key: list(cfg[key]) for key in ("input_size", "mean", "std")},
        "label_names": list(cfg.get("label_names") or ()) or None,
        "assumed": assumed,
    }
    if as_json:
        write_json(record)
    else:
        click.echo(
            f"{output}: {record['model']}, {record['parameters']:,} parameters, {record['num_classes']} classes, "
            f"{record['in_chans']} channel(s)\n"
            f"Images: {in_words(cfg, ('input_size', 'mean', 'std'))}\n"
            f"Classes: {', '.join(_classes(network)) if cfg.get('label_names') else 'not named (see --labels)'}\n"
            f"Load it: timm.create_model('local-dir:{output}', pretrained=True)"
        )


def _classes(network: nn.Module, most: int = 10) -> list[str]:
    names = labels_of(config_of(network), network.num_classes).shown()  # type: ignore[arg-type]
    return names if len(names) <= most else [*names[:most], "..."]
