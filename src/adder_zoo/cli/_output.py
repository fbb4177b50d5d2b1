"""Where a command writes a network to."""

from __future__ import annotations

from pathlib import Path

import click

output_option = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write.", metavar="PATH"
)

force_option = click.option(
    "--force", is_flag=True, help="Replace the network that is in the folder, and what was recorded of it."
)
