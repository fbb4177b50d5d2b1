"""What the formats of ``adder-zoo export`` have in common: each is a module ``_format_NAME.py`` with a ``FORMAT``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import nn


@dataclass(frozen=True)
class Job:
    """What is to be written where.

    Attributes:
        model: The network's name, as the user gave it.
        network: The network, in evaluation mode; of integers if ``model`` was quantised.
        input_size: Of an image, (C, H, W).
        output: The file or folder. Nothing is there yet, unless the user gave --force.
    """

    model: str
    network: nn.Module
    input_size: tuple[int, ...]
    output: Path


@dataclass(frozen=True)
class Written:
    """What a format tells of its work.

    Attributes:
        text: For people, one or more lines.
        facts: For --json, beside the file, the format and the input's size.
    """

    text: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A format of ``adder-zoo export``.

    Attributes:
        name: As --format takes it.
        ending: Of its files; "" where it is a folder.
        options: Options of the command that this format takes. Two formats may share one: it is the same object then.
        write: Writes a network; called with the job, and with each of the options as a keyword argument. What a user
            can mend it raises as ``Failure``.
    """

    name: str
    ending: str
    options: tuple[click.Option, ...]
    write: Callable[..., Written]


fixed_batch = click.Option(
    ["--fixed-batch"], type=click.IntRange(min=1), metavar="N", help="Take batches of N only, not any."
)
