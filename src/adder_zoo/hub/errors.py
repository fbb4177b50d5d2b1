"""What goes wrong with the Hub, as errors that say what to do and hold no token."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

# httpx's in version 1 of huggingface_hub, httpx2's in version 2: connection errors and timeouts derive from it.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


class HubError(RuntimeError):
    """The Hub refused, failed or did not answer, or holds something unfit. The message says what to do."""


@contextlib.contextmanager
def explained(repo_id: str, token: str | None, pushing: bool = True) -> Iterator[None]:
    """Turns what goes wrong with the Hub into a ``HubError`` that says what to do, without the token."""
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        hidden = _without_token(said, token)
        # The chained error would print what is hidden here.
        cause = error if hidden == said else None
        raise HubError(f"{repo_id}: {advice(error, repo_id, pushing)} (The error was: {hidden})") from cause


def _without_token(text: str, token: str | None) -> str:
    if token:
        text = text.replace(token, "<token>")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "<token>", text)


def advice(error: BaseException, repo_id: str, pushing: bool = False) -> str:
    """What a user can do about an error of huggingface_hub, by its HTTP status."""
    statuses, offline = [], False
    at: BaseException | None = error
    while at is not None:
        status = getattr(getattr(at, "response", None), "status_code", None)
        statuses += [status] if status else []
        offline = offline or isinstance(at, OfflineModeIsEnabled) or "offline" in str(at).lower()
        at = at.__cause__ or at.__context__
    if statuses:
        return _advice_on_status(statuses[-1], repo_id, pushing)
    if offline or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it, or fetch the files once while online."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full: make room, or set HF_HOME to a folder on another one."
    whole = "; a repository is never left half changed" if pushing else ""
    return (
        f"{constants.ENDPOINT} cannot be reached or broke off: check the network and HF_ENDPOINT, and try again{whole}."
    )


def _advice_on_status(status: int, repo_id: str, pushing: bool) -> str:
    login = "log in with `hf auth login`, or set HF_TOKEN to a valid token"
    if status == 401:
        return f"The Hub does not take this token for {repo_id}, or needs one: check the name, and {login}."
    if status == 403 and pushing:
        return (
            f"This token may not do that in {repo_id}: {login} that has write permission there, be let into the "
            "organisation by its owner, or open a pull request (create_pr=True, --create-pr)."
        )
    if status == 403:
        return f"This token may not read {repo_id}: accept its terms on its page if it has some, and {login}."
    if status == 404:
        return f"The Hub has no {repo_id}, or not that revision or file: check the name; if it is private, {login}."
    if status in (409, 412):
        return f"Somebody else changed {repo_id} in the meantime, and nothing was changed by this push: run it again."
    if status == 429:
        return f"The Hub's rate limit is reached: try again in some minutes, or {login}, which raises it."
    if status >= 500:
        return "The Hub has a problem of its own: try again in some minutes (https://status.huggingface.co)."
    return "The Hub refused."
