"""Fetching one file from the Hub, its checksum verified. The models load their weights by it; it knows no model."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from .._version import __version__
from . import patience
from .errors import HTTPError, HubError, advice

ORGANISATION = "ADDER_ZOO_HUB_ORG"  # names the organisation whose repositories have the weights of the zoo's models


def organisation() -> str | None:
    """The organisation that the environment variable ADDER_ZOO_HUB_ORG names, if it is set."""
    return os.environ.get(ORGANISATION, "").strip() or None


def organisation_repository(name: str) -> str | None:
    """The repository that has the weights of ``name``, "architecture.tag", if an organisation is set."""
    owner = organisation()
    return owner and f"{owner}/{name}"


def download(
    repo_id: str,
    filename: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    repo_type: str | None = None,
) -> Path:
    """One file of a repository, from the cache where it is there, its checksum verified.

    Args:
        repo_id: "organisation/name".
        filename: Path in the repository.
        revision: Branch, tag or commit; "main" by default.
        cache_dir: A folder instead of huggingface_hub's cache.
        token: Access token; by default from the environment or from ``hf auth login``.
        repo_type: "model" by default.

    Returns:
        Where it lies in the cache.

    Raises:
        HubError: the file arrives damaged a second time, or the Hub does not answer.
        huggingface_hub's own errors, with repository, file and what to do added: one of these is missing, or needs a
        login; offline and not in the cache.
    """

    def fetch(pulse: patience.Pulse) -> str:
        return _fetch(pulse, repo_id, filename, revision, cache_dir, token, repo_type)

    for _ in range(2):
        with _explained(repo_id, filename):
            path = Path(patience.within_patience(fetch, f"{repo_id}: fetching {filename} failed"))
        if intact(path):
            return path
        forget(path)
    raise HubError(
        f"{repo_id}: {filename} was damaged on its way, twice: it does not have the checksum that the Hub names. It is "
        "not kept; try again, and on another network if it happens again."
    )


def download_if_there(repo_id: str, filename: str, revision: str | None, **options: Any) -> Path | None:
    """The same; None where the repository has no such file."""
    try:
        return download(repo_id, filename, revision, **options)
    except LocalEntryNotFoundError:  # not to be had, which says nothing about whether it is there
        raise
    except EntryNotFoundError:
        return None


def _fetch(
    pulse: patience.Pulse,
    repo_id: str,
    filename: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | None,
    repo_type: str | None,
) -> str:
    """``hf_hub_download``, but an error that the first answer tells comes at once, and not after many tries."""
    fetch = functools.partial(
        hf_hub_download, repo_id, filename, revision=revision, cache_dir=cache_dir, token=token, repo_type=repo_type,
        library_name="adder_zoo", library_version=__version__, tqdm_class=patience.progress_bar(pulse),
    )  # fmt: skip
    known = try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir, revision=revision, repo_type=repo_type)
    cached = isinstance(known, str)
    if cached and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return fetch(local_files_only=True)
    try:
        get_hf_file_metadata(
            hf_hub_url(repo_id, filename, revision=revision, repo_type=repo_type),
            token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT, library_name="adder_zoo", library_version=__version__,
        )  # fmt: skip
    except (EntryNotFoundError, RevisionNotFoundError):
        raise
    except (HTTPError, OfflineModeIsEnabled) as error:
        if cached:
            return fetch(local_files_only=True)
        if not _may_pass(error):
            raise
    pulse.beat()
    return fetch()


def _may_pass(error: BaseException) -> bool:
    """Whether the Hub may answer soon: it is busy, and does not ask to wait for longer than we do."""
    response = getattr(error, "response", None)
    if response is None:
        return False
    said = re.search(r"\bt=(\d+)", response.headers.get("ratelimit", ""))
    wait = response.headers.get("Retry-After", said[1] if said else "0")
    busy = response.status_code in (408, 429) or response.status_code >= 500
    return busy and (not wait.isdigit() or int(wait) < patience.PATIENCE)


@contextlib.contextmanager
def _explained(repo_id: str, filename: str) -> Iterator[None]:
    """Adds to errors of huggingface_hub which file of which repository it was, and what to do."""
    what = f"{repo_id}: fetching {filename} failed"
    try:
        yield
    except HfHubHTTPError as error:
        error.append_to_message(f"\n{what}. {advice(error, repo_id)}")
        raise
    except LocalEntryNotFoundError as error:
        raise LocalEntryNotFoundError(f"{what}. {advice(error, repo_id)} (The error was: {error})") from error
    except OfflineModeIsEnabled as error:
        raise OfflineModeIsEnabled(f"{what}. {advice(error, repo_id)} (The error was: {error})") from error
    except (HTTPError, OSError) as error:  # OSError: a download that ends early, a full disk
        raise HubError(f"{what}. {advice(error, repo_id)} (The error was: {error})") from error


def _stored_as(path: Path) -> Path:
    """The content in huggingface_hub's cache that ``path`` is a link to; it is named by its checksum."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def intact(path: Path) -> bool:
    """Whether a file in the cache has the checksum that it is named by: SHA-256 for LFS, else git's of a blob."""
    name = _stored_as(path).name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", name):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    else:  # a cache without links, or a mirror with tags of its own: there is nothing to hold it against
        return True
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == name


def forget(path: Path) -> None:
    for stored in {Path(os.path.realpath(path)), _stored_as(path), path}:
        stored.unlink(missing_ok=True)
