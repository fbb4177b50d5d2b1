"""``adder-zoo import``, ``convert`` and ``export``."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import click
import timm
import torch
from torch import nn

from .. import atomic, checkpoints
from ..labels import assumption, labels_of
from ..layers import AdderLayer
from ..preprocessing import in_words
from ..report import report
from ._common import (
    Failure,
    ModelName,
    ZooModel,
    config_of,
    create,
    has_weights,
    json_option,
    similarity_option,
    write_json,
)
from ._stated import stated_options

output_option = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write.", metavar="PATH"
)


force_option = click.option(
    "--force", is_flag=True, help="Replace the network that is in the folder, and what was recorded of it."
)


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
@stated_options
@force_option
@json_option
def import_file(
    file: Path, model: str, output: Path, similarity: str | None, force: bool, as_json: bool, **stated: Any
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
            network = checkpoints.import_checkpoint(file, model, output, similarity or "adder", force, **stated)
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
    tried = [torch.randn(fixed_batch or 2, *size), *([] if fixed_batch else [torch.randn(5, *size)])]
    shapes: Any = None if fixed_batch else ({0: torch.export.Dim("batch", min=1)},)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replace_file(output) as part:
        # A program for inference: no graph of gradients in its trace.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            content = io.BytesIO()  # torch's own writer ends the process where the disk is full
            torch.export.save(torch.export.export(network, (tried[0],), dynamic_shapes=shapes), content)
            part.write_bytes(content.getbuffer())
            again = torch.export.load(part).module()
        with torch.no_grad():
            difference = max((again(x) - network(x)).abs().max().item() for x in tried)
            scale = max(network(x).abs().max().item() for x in tried)
        # The program runs the same operators; only what torch decomposed, batch norm, may round otherwise.
        if not difference <= 1e-4 * scale:
            raise Failure(f"the exported program answers otherwise than {model}: logits differ by {difference}")
    if as_json:
        write_json({"file": str(output), "input_size": list(size), "bytes": output.stat().st_size,
                    "largest_difference": difference})  # fmt: skip
    else:
        batch = f"batches of {fixed_batch}" if fixed_batch else "batches of any size"
        images = " x ".join(map(str, size))
        click.echo(f"{output}: {batch}, images {images}; reloaded, logits differ by {difference:.2g}")
