"""How long a call to the Hub may go unanswered: huggingface_hub waits for ever in some of them, for minutes in others.

Its HTTP client is one for the whole process, so nothing is set there. A call runs in a thread of its own, and is given
up when nothing was heard of it for too long.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.utils import tqdm

from .errors import HubError

PATIENCE = 40.0  # seconds
SLOWEST = 100_000  # bytes a second, which an upload may be expected to make

T = TypeVar("T")


class Pulse:
    """The last sign of life of a call."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        self.last = time.monotonic()


def within_patience(call: Callable[[Pulse], T], what: str, upload: int = 0) -> T:
    """``call(pulse)``, given up after PATIENCE seconds without ``pulse.beat()``.

    Args:
        call: Runs in a thread; what it raises is raised here. If it is given up it may still end by itself later.
        what: Named in the message.
        upload: Bytes that it sends, which allow it more time.

    Raises:
        HubError: it was given up.
    """
    pulse, done = Pulse(), threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()
    patience = PATIENCE + upload / SLOWEST

    def run() -> None:
        try:
            results.append(context.run(call, pulse))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    # A daemon: a call that never ends does not keep the program from ending.
    threading.Thread(target=run, name="adder_zoo.hub", daemon=True).start()
    while not done.wait(min(0.5, patience)):
        if time.monotonic() - pulse.last > patience:
            raise HubError(
                f"{what}: {constants.ENDPOINT} does not answer, or asks to wait for longer (its rate limit): nothing "
                f"was heard for {patience:.0f} s. Check the network and try again later."
            )
    if errors:
        raise errors.pop()
    return results.pop()


def progress_bar(pulse: Pulse) -> type[Any]:
    """A class of progress bars for huggingface_hub that beat ``pulse`` with every piece that arrives."""

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            pulse.beat()
            return super().update(n)

    return Bar
