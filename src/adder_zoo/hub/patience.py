"""How long a call may take."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants, get_session

from .errors import HubError

PATIENCE = 40.0  # seconds that one call may take until it is answered, retries included


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Bounds how long a call may go unanswered; huggingface_hub's own client waits for ever in some of them.

    The clock of a call starts with its first try. Each try gets what is left as its timeout, and none starts when
    nothing is left, or when the Hub says that the next one has to wait for longer.
    """
    client = get_session()
    started: dict[Any, float] = {}
    lock = threading.Lock()

    def key(request: Any) -> Any:
        return request.method, str(request.url), request.headers.get("Range")

    def left(request: Any) -> float:
        with lock:
            return PATIENCE - (time.monotonic() - started.setdefault(key(request), time.monotonic()))

    def before(request: Any) -> None:
        rest = left(request)
        if rest <= 0:
            raise HubError(f"{request.url.host} does not answer; check the network and {constants.ENDPOINT}, try later")
        timeout = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            what: min(timeout.get(what) or rest, rest) for what in ("connect", "read", "write", "pool")
        }

    def after(response: Any) -> None:
        if response.status_code == 429:
            reset = re.search(r"\bt=(\d+)", response.headers.get("ratelimit", ""))
            said = response.headers.get("Retry-After", reset[1] if reset else "")
            if said.isdigit() and int(said) > left(response.request):
                raise HubError(f"the Hub's rate limit is reached: try again in {said} s. A login raises it.")
        elif response.request.method == "PUT" or (response.is_success and response.request.method != "GET"):
            with lock:  # answered: the same call again has its own time; a GET's content is still to come
                started.pop(key(response.request), None)

    client.event_hooks["request"].append(before)
    client.event_hooks["response"].append(after)
    try:
        yield
    finally:
        client.event_hooks["request"].remove(before)
        client.event_hooks["response"].remove(after)
