"""``adder-zoo export``."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import click
import torch

from .. import atomic
from ..report import report
from ._common import (
    Failure,
    ModelName,
    create,
    has_weights,
    json_option,
    write_json,
)
from ._output import output_option


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
