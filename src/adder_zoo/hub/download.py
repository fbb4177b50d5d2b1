"""Fetching one file from the Hub, its checksum verified. The models load their weights by it; it knows no model."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from timm.models import _hub as timm_hub

from .._version import __version__
from .errors import HTTPError, HubError, advice
from .patience import patience

ORGANISATION = "ADDER_ZOO_HUB_ORG"  # names the organisation whose repositories have the weights of the zoo's models

def organisation() -> str | None:
    """The organisation that the environment variable ADDER_ZOO_HUB_ORG names, if it is set."""
    return os.environ.get(ORGANISATION, "").strip() or None


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
        cache_dir: In the place of the cache of huggingface_hub.
        token: Access token; by default that of the environment or of ``hf auth login``.
        repo_type: "model" by default.

    Returns:
        Where it lies in the cache.

    Raises:
        HubError: the file arrives damaged a second time, or the Hub does not answer.
        huggingface_hub's own errors, with what to do added: the repository, the revision or the file is missing, or
        needs a login; offline and not in the cache.
    """
    for _ in range(2):
        try:
            with patience():
                path = hf_hub_download(
                    repo_id,
                    filename,
                    revision=revision,
                    cache_dir=cache_dir,
                    token=token,
                    repo_type=repo_type,
                    library_name="adder_zoo",
                    library_version=__version__,
                )
        except HfHubHTTPError as error:
            error.append_to_message(f"\n{advice(error, repo_id)}")
            raise
        except LocalEntryNotFoundError as error:
            raise LocalEntryNotFoundError(f"{error} {advice(error, repo_id)}") from error
        except OfflineModeIsEnabled as error:
            raise OfflineModeIsEnabled(f"{error} {advice(error, repo_id)}") from error
        except HTTPError as error:
            raise HubError(f"{repo_id}: fetching {filename} failed ({error}). {advice(error, repo_id)}") from error
        except OSError as error:  # a download that ends early
            raise HubError(f"{repo_id}: fetching {filename} failed ({error}). {advice(error, repo_id)}") from error
        if _intact(Path(path)):
            return Path(path)
        _forget(Path(path))
    raise HubError(
        f"{repo_id}: {filename} was damaged on its way, twice: it does not have the checksum that the Hub names. It is "
        "not kept; try again, and on another network if it happens again."
    )


def download_if_there(repo_id: str, filename: str, revision: str | None, **options: Any) -> Path | None:
    try:
        return download(repo_id, filename, revision, **options)
    except LocalEntryNotFoundError:  # not to be had, which says nothing about whether it is there
        raise
    except EntryNotFoundError:
        return None


def _stored_as(path: Path) -> Path:
    """The content in huggingface_hub's cache that ``path`` is a link to; it is named by its checksum."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def _intact(path: Path) -> bool:
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


def _forget(path: Path) -> None:
    for stored in {Path(os.path.realpath(path)), _stored_as(path), path}:
        stored.unlink(missing_ok=True)


def _download_for_timm(model_id: str, filename: str, cache_dir: str | Path | None = None) -> str:
    repo_id, revision = timm_hub.hf_split(model_id)
    return str(download(repo_id, filename, revision, cache_dir=cache_dir))


# timm fetches config.json before it asks this package for anything, and checks no checksum: a damaged file would stay
# in the cache, and every later try would fail on it.
if hasattr(timm_hub, "download_from_hf"):
    timm_hub.download_from_hf = _download_for_timm
else:
    warnings.warn(f"timm {timm.__version__} fetches config.json otherwise: its checksum is not verified", stacklevel=2)
