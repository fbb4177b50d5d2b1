"""``adder-zoo import``, ``convert`` and ``export``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click
import timm
import torch

from .. import checkpoints
from ..hub.records import WEIGHTS_FILE
from ..hub.save import save_pretrained
from ..layers import AdderLayer
from ..report import report
from ._common import Failure, ModelName, config_of, create, has_weights, json_option, similarity_option, write_json

output_option = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write.", metavar="PATH"
)


@click.command(
    "import",
    epilog="""
    \b
    Examples:
      adder-zoo import ResNet20-AdderNet.pth --model adder_resnet20 -o resnet20
      adder-zoo validate resnet20 --dataset cifar10 --data-dir data
    """,
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", required=True, type=ModelName(), help="The network that the checkpoint is of.")
@output_option
@similarity_option
@click.option("--force", is_flag=True, help="Replace weights that are in the folder.")
@json_option
def import_file(
    file: Path, model: str, output: Path, similarity: str | None, force: bool, as_json: bool
) -> None:
    """Makes a folder that timm loads of a checkpoint of others: the authors' .pth and its many copies.

    The file is read without running code in it. Prefixes of wrappers, the authors' names and half precision are
    understood; classes and input channels are read from the shapes.
    """
    try:
        network = checkpoints.import_checkpoint(file, model, output, similarity or "adder", force)
    except checkpoints.CheckpointError as error:
        raise Failure(str(error)) from error
    cfg = config_of(network)
    record = {
        "folder": str(output),
        "model": cfg["architecture"],
        "num_classes": network.num_classes,
        "in_chans": getattr(network, "in_chans", cfg["input_size"][0]),
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    if as_json:
        write_json(record)
    else:
        click.echo(
            f"{output}: {record['model']}, {record['parameters']:,} parameters, {record['num_classes']} classes, "
            f"{record['in_chans']} channel(s)\nLoad it: timm.create_model('local-dir:{output}', pretrained=True)"
        )


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
@click.option("--keep-weights", is_flag=True, help="Start adder filters from the convolutions' instead of anew.")
@click.option("--random-weights", is_flag=True, help="Do not load the convolutional network's weights.")
@click.option("--force", is_flag=True, help="Replace weights that are in the folder.")
@json_option
def convert(
    model: str, output: Path, keep_weights: bool, random_weights: bool, force: bool, as_json: bool
) -> None:
    """Makes an untrained adder network of a convolutional one of timm, as a folder to train from.

    MODEL is one whose adder form the zoo knows (adder-zoo list): timm has to build it again. What stays a convolution,
    batch norm and the classifier keep their weights. For any other network use adder_zoo.convert_to_adder in Python.
    """
    if (output / WEIGHTS_FILE).exists() and not force:
        raise Failure(f"{output} holds weights; give another folder, or --force to replace them")
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
    network = create(name, num_classes=source.num_classes, in_chans=getattr(source, "in_chans", None))
    state = source.state_dict()
    adders = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, AdderLayer)}
    if not keep_weights:
        state |= {key: value for key, value in network.state_dict().items() if key in adders}
    network.load_state_dict(state)
    save_pretrained(network, output)
    if as_json:
        write_json({"folder": str(output), "model": name, "adder_layers": len(adders)})
    else:
        click.echo(
            f"{output}: {name}, {len(adders)} adder layers, not trained\n"
            f"Load it: timm.create_model('local-dir:{output}', pretrained=True)"
        )


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo export adder_lenet5_bn.mnist -o lenet5.pt2
      python -c "import torch, adder_zoo; print(torch.export.load('lenet5.pt2').module()(torch.zeros(3, 1, 32, 32)))"
    """
)
@click.argument("model", type=ModelName())
@output_option
@click.option("--fixed-batch", type=click.IntRange(min=1), metavar="N", help="Take batches of N only, not any.")
@click.option("--random-weights", is_flag=True, help="Export a network that has no weights.")
@json_option
def export(model: str, output: Path, fixed_batch: int | None, random_weights: bool, as_json: bool) -> None:
    """Writes a network as a program of torch.export (.pt2), reloads it and compares its answers.

    The program calls the operators of this package: import adder_zoo before torch.export.load.
    """
    if output.suffix != ".pt2":
        raise click.UsageError(f"the file must end in .pt2, as torch.export wants it, not {output.name!r}")
    if not has_weights(model) and not random_weights:
        raise Failure(f"{model} has no weights; name a folder with some, or give --random-weights")
    network = create(model, pretrained=not random_weights)
    size = report(network).input_size
    x = torch.randn(fixed_batch or 2, *size)
    shapes: Any = None if fixed_batch else ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings(), torch.no_grad():  # a program for inference: no graph of gradients in its trace
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (x,), dynamic_shapes=shapes)
        part = output.with_name(f"{output.stem}.part.pt2")
        output.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, part)
        again = torch.export.load(part).module()
    tried = [x] if fixed_batch else [x, torch.randn(5, *size)]
    with torch.no_grad():
        difference = max((again(t) - network(t)).abs().max().item() for t in tried)
        scale = max(network(t).abs().max().item() for t in tried)
    # The program runs the same operators; only what torch decomposed, batch norm, may round otherwise.
    if not difference <= 1e-4 * scale:
        part.unlink()
        raise Failure(f"the exported program answers otherwise than {model}: logits differ by {difference}")
    part.replace(output)
    if as_json:
        write_json({"file": str(output), "input_size": list(size), "bytes": output.stat().st_size,
                    "largest_difference": difference})  # fmt: skip
    else:
        batch = f"batches of {fixed_batch}" if fixed_batch else "batches of any size"
        images = " x ".join(map(str, size))
        click.echo(f"{output}: {batch}, images {images}; reloaded, logits differ by {difference:.2g}")
