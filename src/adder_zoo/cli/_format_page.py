"""``adder-zoo export --format page``: a static page that runs the network in a browser."""

from __future__ import annotations

from pathlib import Path

import click

from ..labels import LabelError
from ._common import Failure
from ._formats import Format, Job, Written
from ._integers import data_dir, integers_of, multiplier_free

add = click.Option(["--add"], is_flag=True, help="Put the network beside those of the page that is at PATH.")


def write(job: Job, data_dir: Path | None, multiplier_free: bool, add: bool) -> Written:
    """Turns the network into integers and WebAssembly, and writes or extends the page."""
    from ..page import folder, wasm
    from ..page.describe import NoPage, describe

    try:
        wasm.check_compiler()
        if add:
            folder.networks_of(job.output)  # before the work begins
        integers, images = integers_of(job.network, job, data_dir, multiplier_free)
        described = describe(_title(job.model), job.network, integers, images)
        size = folder.add_to_page(job.output, described) if add else folder.write_page(job.output, [described])
    except (NoPage, LabelError, wasm.WasmError, ValueError) as error:
        raise Failure(f"{job.model}: {error}") from error
    names = [network["name"] for network in folder.networks_of(job.output)]
    text = (
        f"{job.output / folder.PAGE}: {size:,} bytes with {' and '.join(names)}. Open it in a browser, or "
        f"`adder-zoo push {job.output} --space ORG/NAME`."
    )
    return Written(text, {"bytes": size, "networks": names})


def _title(model: str) -> str:
    """A network's name, or its folder's."""
    return Path(model.partition(":")[2] or model).name


FORMAT = Format("page", "", (data_dir, multiplier_free, add), write)
