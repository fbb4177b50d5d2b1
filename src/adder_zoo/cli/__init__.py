"""``adder-zoo``, the zoo from the command line; ``adder-zoo --help`` lists the commands, each has examples."""

from __future__ import annotations

import errno
from typing import Any

import click
from safetensors import SafetensorError

from .. import __version__
from . import bench, convert, export, import_network, info, list_models, predict, push, quantize, validate
from ._common import Failure


class Commands(click.Group):
    """Ends with a line, and not with a traceback, where the machine is at fault: a full disk, a file without rights."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has gone, `| head` say: click ends quietly
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}") from error
        except SafetensorError as error:
            raise Failure(f"weights cannot be read or written: {error}") from error
        except MemoryError as error:
            raise Failure("there is not enough memory") from error


@click.group(
    cls=Commands,
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
    list_models.list_models,
    info.info,
    predict.predict,
    validate.validate,
    import_network.import_file,
    convert.convert,
    quantize.quantize,
    export.export,
    bench.bench,
    push.push,
):
    main.add_command(command)
