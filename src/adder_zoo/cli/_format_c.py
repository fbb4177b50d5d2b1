"""``adder-zoo export --format c``: an integer network as C99, with a program and test vectors."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ._common import Failure, create
from ._formats import Format, Job, Written
from ._integers import data_dir, integers_of, multiplier_free

c_name = click.Option(["--name", "identifier"], metavar="NAME", help="Of the C functions. Default: the network's name.")
similarity = click.Option(
    ["--similarity"], type=click.Choice(["conv"]), help="The convolutional twin, with random weights, to count with."
)


def write(
    job: Job, data_dir: Path | None, multiplier_free: bool, identifier: str | None, similarity: str | None
) -> Written:
    """Quantises the network if it is not, turns it into integers, and writes the folder."""
    from ..integer.c.folder import export_c

    network = job.network
    if similarity is not None:
        if ":" in job.model:
            raise Failure("--similarity is for networks of the zoo by their name; a folder holds a network of one kind")
        network = create(job.model.partition(".")[0], similarity=similarity)
        click.echo("note: the twin has random weights; to export a trained one, name its folder", err=True)
    integers, images = integers_of(network, job, data_dir, multiplier_free)
    try:
        facts = export_c(integers, job.output, identifier or _identifier(job.model), images, replace=True)
    except ValueError as error:
        raise Failure(f"{job.model}: {error}") from error
    text = (
        f"{job.output}: C99 with test vectors of {facts['vectors']} images. {facts['constant_bytes']:,} bytes of "
        f"constants, a buffer of {facts['buffer_bytes']:,} bytes"
        + ("; no multiplication" if multiplier_free else "")
        + ". `make test` there holds it against the vectors."
    )
    return Written(text, facts)


def _identifier(model: str) -> str:
    """A C identifier of the network's name, or of its folder's."""
    found = re.sub(r"\W+", "_", Path(model.partition(":")[2] or model).name, flags=re.ASCII)
    return found if found[:1].isalpha() else f"network_{found}"


FORMAT = Format("c", "", (data_dir, multiplier_free, c_name, similarity), write)
