"""Errors of the Hub as a line on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .. import hub
from ._common import Failure


@contextlib.contextmanager
def failures() -> Iterator[None]:
    try:
        yield
    except (hub.HubError, ValueError, OSError) as error:
        raise Failure(str(error)) from None
