"""``adder-zoo convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import timm
import torch

from .. import checkpoints
from ..layers import AdderLayer
from ._common import (
    Failure,
    ModelName,
    config_of,
    create,
    has_weights,
    json_option,
    write_json,
)
from ._output import force_option, output_option
from ._stated import stated_options


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo convert resnet50 -o resnet50-adder
      adder-zoo convert hf-hub:timm/resnet18.a1_in1k --keep-weights -o resnet18-adder
    """
)
@click.argument("model", type=ModelName())
@output_option
@click.option(
    "--keep-weights", is_flag=True, help="Start adder filters from the convolutions' and not from random ones."
)
@click.option("--random-weights", is_flag=True, help="Do not load the convolutional network's weights.")
@stated_options
@force_option
@json_option
def convert(
    model: str, output: Path, keep_weights: bool, random_weights: bool, force: bool, as_json: bool, **stated: Any
) -> None:
    """Makes an untrained adder network of a convolutional one of timm, as a folder to train from.

    MODEL is one whose adder form the zoo knows (adder-zoo list): timm has to build it again. What stays a convolution,
    batch norm and the classifier keep their weights; how images are prepared and what the classes are called is as in
    MODEL, where no option says otherwise. For any other network use adder_zoo.convert_to_adder in Python.
    """
    try:
        checkpoints.check_folder(output, force)
        with torch.device("meta"):
            architecture = config_of(create(model))["architecture"]
        name = f"adder_{architecture}"
        if architecture.startswith("adder_"):
            raise Failure(f"{model} is a network of the zoo already")
        if not timm.is_model(name):
            raise Failure(
                f"the zoo has no {name}, so timm could not build it again from a folder. In Python: "
                f"adder_zoo.convert_to_adder(timm.create_model({architecture!r}))"
            )
        source = create(model, pretrained=has_weights(model) and not random_weights)
        network = checkpoints.converted(source, name, keep_weights, **stated)
        checkpoints.write_network(network, output, force)
    except checkpoints.CheckpointError as error:
        raise Failure(str(error)) from error
    count = sum(isinstance(module, AdderLayer) for module in network.modules())
    if as_json:
        write_json({"folder": str(output), "model": name, "adder_layers": count})
    else:
        click.echo(
            f"{output}: {name}, {count} adder layers, not trained\n"
            f"Load it: timm.create_model('local-dir:{output}', pretrained=True)"
        )
