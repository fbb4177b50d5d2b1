"""``adder-zoo export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..report import report
from . import _format_c, _format_onnx, _format_page, _format_pt2
from ._common import (
    Failure,
    ModelName,
    create,
    has_weights,
    json_option,
    write_json,
)
from ._formats import Format, Job
from ._output import output_option

FORMATS = {module.FORMAT.name: module.FORMAT for module in (_format_pt2, _format_onnx, _format_c, _format_page)}


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo export adder_lenet5_bn.mnist -o lenet5.pt2
      adder-zoo export adder_resnet20.cifar10 -o resnet20.onnx
      adder-zoo export adder_lenet5_bn.mnist -o lenet5 --format c --multiplier-free --data-dir data/mnist
      adder-zoo export adder_lenet5_bn.mnist -o page --format page --data-dir data/mnist
      python -c "import torch, adder_zoo; print(torch.export.load('lenet5.pt2').module()(torch.zeros(3, 1, 32, 32)))"
    """
)
@click.argument("model", type=ModelName())
@output_option
@click.option(
    "--format", "name", type=click.Choice(list(FORMATS)), help="What to write. Default: by the ending of PATH."
)
@click.option("--random-weights", is_flag=True, help="Export a network that has no weights.")
@click.option("--force", is_flag=True, help="Replace what is at PATH.")
@json_option
@click.pass_context
def export(
    context: click.Context,
    model: str,
    output: Path,
    name: str | None,
    random_weights: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Writes a network in a form that other programs run, and compares its answers with the network's.

    onnx runs in an unmodified ONNX Runtime, faster with our kernels (adder_zoo.onnx_session).

    pt2 is a program of torch.export. It calls the operators of this package: import adder_zoo before
    torch.export.load.

    c is a folder with an integer network as C99, without a library: give --data-dir. --multiplier-free leaves no
    multiplication in it.

    page is a folder with a static page that runs integer networks in a browser, without a server: give --data-dir. It
    needs clang and wasm-ld. --add puts one more network into it.
    """
    chosen = _chosen(name, output)
    taken = _own(context, chosen, options)
    _check_free(output, chosen, force or bool(taken.get("add")))
    if not has_weights(model) and not random_weights:
        raise Failure(f"{model} has no weights; name a folder with some, or give --random-weights")
    network = create(model, pretrained=not random_weights)
    size = tuple(report(network).input_size)
    written = chosen.write(Job(model, network, size, output), **taken)
    if as_json:
        kind = "file" if chosen.ending else "folder"
        write_json({kind: str(output), "format": chosen.name, "input_size": list(size), **written.facts})
    else:
        click.echo(written.text)


for _option in dict.fromkeys(option for form in FORMATS.values() for option in form.options):
    export.params.append(_option)


def _chosen(name: str | None, output: Path) -> Format:
    """The format that was named, or the one that the output's ending says."""
    by_ending = {form.ending: form for form in FORMATS.values() if form.ending}
    if name is None:
        if output.suffix not in by_ending:
            raise click.UsageError(
                f"{output.name!r} does not say which format to write: end it in {' or '.join(by_ending)}, or give "
                f"--format {'|'.join(FORMATS)}"
            )
        return by_ending[output.suffix]
    chosen = FORMATS[name]
    if chosen.ending and output.suffix != chosen.ending:
        raise click.UsageError(f"the file must end in {chosen.ending} with --format {name}, not be {output.name!r}")
    return chosen


def _own(context: click.Context, chosen: Format, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a format; options of other formats must not have been given."""
    own = {option.name for option in chosen.options}
    for key in options:
        if key not in own and context.get_parameter_source(key) is not ParameterSource.DEFAULT:
            others = [form.name for form in FORMATS.values() if key in {option.name for option in form.options}]
            flag = next(param.opts[0] for param in export.params if param.name == key)
            raise click.UsageError(f"{flag} goes with --format {' or '.join(others)}, not with {chosen.name}")
    return {key: value for key, value in options.items() if key in own}


def _check_free(output: Path, chosen: Format, force: bool) -> None:
    """Refuses to write over something, before the network is loaded."""
    if chosen.ending:
        if output.is_dir():
            raise Failure(f"{output} is a folder; --format {chosen.name} writes a file")
        if output.exists() and not force:
            raise Failure(f"{output} exists; give --force to replace it")
    elif output.is_file():
        raise Failure(f"{output} is a file; --format {chosen.name} writes a folder")
    elif output.is_dir() and any(output.iterdir()) and not force:
        raise Failure(f"the folder {output} is not empty; give --force to replace it")
