"""How far an epoch is: a bar on a terminal, elsewhere (a log file) a line every so often."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY = 30  # seconds


def epoch_display(title: str, total: int, done: int, shown: bool) -> Any:
    """Shows progress over ``total`` images, with ``done`` so far: call ``update``, ``set_postfix`` and ``close``."""
    if sys.stderr.isatty() or not shown:
        return tqdm(total=total, initial=done, unit="img", desc=title, disable=not shown)
    return Lines(title, total, done)


class Lines:
    """What a bar of tqdm shows, as lines on stderr: every 30 seconds, and one at the end."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title = title
        self.total = total
        self.done = self.done_before = done
        self.began = self.printed = time.monotonic()
        self.figures: dict[str, str] = {}

    def update(self, count: int) -> None:
        self.done += count
        if self.done < self.total and time.monotonic() - self.printed >= LINE_EVERY:
            self._print()

    def set_postfix(self, **figures: str) -> None:
        self.figures = figures

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        rate = (self.done - self.done_before) / max(self.printed - self.began, 1e-9)
        figures = "".join(f", {name}={value}" for name, value in self.figures.items())
        print(f"{self.title}: {self.done}/{self.total} img, {rate:.0f} img/s{figures}", file=sys.stderr, flush=True)
