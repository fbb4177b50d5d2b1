"""What a user states of a network that its file does not say: options that ``import`` and ``convert`` share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ..datasets.profiles import NAMES
from ..labels import LabelError, check_names, read_names


class Numbers(click.ParamType):
    """Numbers between commas, spaces or x: "0.49,0.48,0.45", "3x32x32"."""

    name = "numbers"

    def __init__(self, kind: type, counts: tuple[int, ...]) -> None:
        self.kind = kind
        self.counts = counts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in re.split(r"[\s,x×]+", value.strip()))
        except ValueError:
            numbers = ()
        bounded = all(0 < n < 1e6 if self.kind is int else -1e6 < n < 1e6 for n in numbers)
        if not numbers or not bounded or (self.counts and len(numbers) not in self.counts):
            example = "32, 32x32 or 3x32x32" if self.kind is int else "0.5, or one for each channel: 0.49,0.48,0.45"
            self.fail(f"{value!r} is not understood; write it like {example}", param, ctx)
        return numbers


class Names(click.ParamType):
    """The names of classes: a text file with one in a line, or the names themselves between commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            if "," in value and not Path(value).exists():
                names = [name.strip() for name in value.split(",")]
                check_names(names, "the list")
            else:
                names = read_names(value)
        except LabelError as error:
            self.fail(str(error), param, ctx)
        return tuple(names)


def stated_options(command: Any) -> Any:
    for option in (
        click.option(
            "--labels", type=Names(), metavar="FILE|A,B,...",
            help="The classes' names in order: a text file, one in a line, or a list with commas.",
        ),
        click.option("--input-size", type=Numbers(int, (1, 2, 3)), metavar="CxHxW", help="Of the training's images."),
        click.option("--std", type=Numbers(float, ()), metavar="V[,V,V]", help="Standard deviation, likewise."),
        click.option(
            "--mean", type=Numbers(float, ()), metavar="V[,V,V]",
            help="Mean that the training subtracted, for each channel, from pixels between 0 and 1.",
        ),
        click.option(
            "--dataset", type=click.Choice(NAMES),
            help="What the network was trained on: how images are prepared, and the classes' names.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command
