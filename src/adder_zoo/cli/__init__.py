"""``adder-zoo``, the zoo from the command line; ``adder-zoo --help`` lists the commands, each has examples."""

from __future__ import annotations

import click

from .. import __version__
from . import bench, checkpoints, hub, models, predict


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""
    \b
    Examples:
      adder-zoo list
      adder-zoo info adder_resnet20
      adder-zoo predict adder_lenet5_bn.mnist digits/
      adder-zoo push runs/resnet20 my-org/adder_resnet20.cifar10

    \b
    Completion of commands and options, for bash (or zsh, fish):
      eval "$(_ADDER_ZOO_COMPLETE=bash_source adder-zoo)"
    """,
)
@click.version_option(__version__, prog_name="adder-zoo")
def main() -> None:
    """Neural networks without multiplications."""


for command in (
    models.list_models,
    models.info,
    predict.predict,
    predict.validate,
    checkpoints.import_file,
    checkpoints.convert,
    checkpoints.export,
    bench.bench,
    hub.push,
):
    main.add_command(command)
