"""The Hugging Face Hub: saving a network, pushing it, fetching it. Nothing else in the package talks to the Hub.

    push_to_hub   one commit with weights, config.json, card, results.json, settings, log and plots
    download      one file, its checksum verified; what the models load their weights by

Only safetensors go up and come down. No call waits longer than ``PATIENCE`` for an answer. No message holds a token.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from timm.models import _hub as timm_hub
from timm.models import save_for_hf
from torch import nn

from . import cards
from ._version import __version__
from .layers import Adder2d, AdderLinear

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
RESULTS_FILE = "results.json"
TWIN_FILE = "results-conv.json"  # results.json of the convolutional twin, which the card compares with
RUN_FILES = (RESULTS_FILE, TWIN_FILE, "args.yaml", "log.csv")
ORGANISATION = "ADDER_ZOO_HUB_ORG"  # names the organisation whose repositories have the weights of the zoo's models
PATIENCE = 40.0  # seconds that one call may take until it is answered, retries included

# httpx's in version 1 of huggingface_hub, httpx2's in version 2: connection errors and timeouts derive from it.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


class HubError(RuntimeError):
    """The Hub refused, failed or did not answer, or holds something unfit. The message says what to do."""


@dataclass(frozen=True)
class Push:
    """What ``push_to_hub`` did, or would do.

    Attributes:
        repo_id: "organisation/name".
        files: Size in bytes by path in the repository.
        card: The text of README.md.
        url: Of the commit or the pull request; None for a dry run.
        changed: Whether there is a new commit; False where the repository held all of it. None for a dry run.
    """

    repo_id: str
    files: dict[str, int]
    card: str
    url: str | None = None
    changed: bool | None = None


def organisation() -> str | None:
    """The organisation that the environment variable ADDER_ZOO_HUB_ORG names, if it is set."""
    return os.environ.get(ORGANISATION, "").strip() or None


# ---- saving


def unwrap(model: nn.Module) -> nn.Module:
    """The network in what ``torch.compile``, Accelerate, DDP, DataParallel or an average of weights put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and list(model._modules) == ["module"]:
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def save_pretrained(model: nn.Module, directory: str | Path, model_args: dict[str, Any] | None = None) -> Path:
    """Writes ``model.safetensors`` and ``config.json`` in timm's form.

    ``timm.create_model(f"local-dir:{directory}", pretrained=True)`` loads them after ``import adder_zoo``. The keys are
    those of the bare network, its tensors contiguous, whatever is wrapped around it and whatever its memory format.

    Args:
        model: A network from ``timm.create_model``, maybe compiled or wrapped for distributed training.
        directory: Folder to write into; made if it is missing.
        model_args: Arguments of ``timm.create_model`` that the network needs to be built again, beyond its own record.

    Returns:
        The folder.

    Raises:
        ValueError: ``model`` bears no ``pretrained_cfg``, so timm did not build it.
    """
    model = unwrap(model)
    if getattr(model, "pretrained_cfg", None) is None:
        raise ValueError(f"save_pretrained: {type(model).__name__} was not built by timm.create_model, so there is no "
                         "configuration to save; use safetensors.torch.save_model")  # fmt: skip
    args = dict(model_args or {})
    similarity = getattr(model, "similarity", None)
    if similarity is not None:
        args.setdefault("similarity", similarity)
    in_chans = _input_channels(model)
    if in_chans is not None:  # older versions of timm keep no record of it
        args.setdefault("in_chans", in_chans)
    # safetensors takes contiguous tensors only, and networks that run on a CPU are often in channels_last.
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in plain.modules():  # parts may have been compiled by themselves
        for name, child in module.named_children():
            setattr(module, name, unwrap(child) if hasattr(child, "_orig_mod") else child)
    directory = Path(directory)
    save_for_hf(plain, str(directory), model_args=args, safe_serialization=True)
    return directory


def _input_channels(model: nn.Module) -> int | None:
    """What ``in_chans`` the network was built with, as far as it or its first convolution tells."""
    in_chans = getattr(model, "in_chans", None)
    if isinstance(in_chans, int):
        return in_chans
    cfg: Any = model.pretrained_cfg
    first = cfg.get("first_conv")
    try:
        layer = model.get_submodule(first if isinstance(first, str) else "")
    except AttributeError:
        return None
    in_chans = getattr(layer, "in_channels", None)
    return in_chans if isinstance(in_chans, int) else None


def _check_builds_again(model: nn.Module, folder: Path) -> None:
    """Refuses a network that ``config.json`` does not lead back to: timm would build another one for its weights."""

    def adders(network: nn.Module) -> list[str]:
        return [name for name, m in unwrap(network).named_modules() if isinstance(m, (Adder2d, AdderLinear))]

    with torch.device("meta"):
        again = timm.create_model(f"local-dir:{folder}")
    if adders(again) != [name.replace("_orig_mod.", "") for name in adders(model)]:
        architecture = json.loads((folder / "config.json").read_text())["architecture"]
        raise ValueError(
            f"push_to_hub: timm would build this network again as {architecture!r}, with other layers. Networks of the "
            f"zoo carry their layers in their name: build it as 'adder_{architecture.removeprefix('adder_')}', or "
            "register a model of your own with timm (see CONTRIBUTING.md)."
        )


# ---- pushing


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    results: Mapping[str, Any] | None = None,
    twin: Mapping[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Puts a network on the Hugging Face Hub in one commit; makes the repository if there is none.

    ``timm.create_model(f"hf-hub:{repo_id}", pretrained=True)`` loads it after ``import adder_zoo``. The card is
    rendered from the results; where the repository has one, its generated part is replaced and what people wrote is
    kept. The same push again makes no new commit. A push that is interrupted leaves the repository as it was.

    Args:
        model: A network of the zoo, or the folder of a finished run of a recipe: ``model.safetensors`` and
            ``config.json``, with ``results.json``, ``args.yaml``, ``log.csv`` and plots (``*.png``) where they are.
        repo_id: "organisation/name".
        results: What ``results.json`` holds, for a network; a folder has its own.
        twin: ``results.json`` of the convolutional twin. By default that of the folder beside the run that is called
            ``<run>-conv``, or of this checkout's ``docs/results`` for a network of the zoo, where there is one.
        private: Visibility of a new repository; None leaves it to the organisation.
        revision: Branch to push to, made if it is missing; or that a pull request is based on.
        create_pr: Opens a pull request in the place of pushing.
        token: Access token; by default the one of ``hf auth login`` or of the environment variable HF_TOKEN.
        commit_message: First line of the commit.
        dry_run: Touches nothing and calls nobody: the answer tells what would go up.

    Returns:
        A ``Push``.

    Raises:
        ValueError: the name is none, the folder holds no finished run, the weights do not load, the network cannot be
            built again by timm, or the twin is another network's.
        HubError: the Hub refused or failed; the message says what to do.
    """
    _check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(model, nn.Module):
            folder = save_pretrained(model, scratch)
            _check_builds_again(model, folder)
            if results is not None:
                (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
        else:
            folder = Path(model)
            if results is not None:
                raise ValueError(f"push_to_hub: {folder} has a results.json of its own; leave results out")
            results = _check_run(folder)
        twin = twin if twin is not None else find_twin(folder, results)
        card = cards.render(folder, repo_id, results, twin)
        names = ["config.json", WEIGHTS_FILE, *(name for name in RUN_FILES if (folder / name).is_file())]
        files: dict[str, Path | bytes] = {name: folder / name for name in names}
        files |= {path.name: path for path in sorted(folder.glob("*.png"))}
        if twin is not None:
            files[TWIN_FILE] = (json.dumps(twin, indent=2) + "\n").encode()
        return _push(
            files,
            repo_id,
            lambda old: cards.merge(old, card),
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message or cards.headline(folder, results),
            dry_run=dry_run,
        )


def push_folder(
    folder: str | Path, repo_id: str, *, repo_type: str, readme: str | None = None, **options: Any
) -> Push:
    """Puts a folder that is no network on the Hub: the built kernels, or the page of an organisation (a Space).

    Args:
        folder: Everything in it goes up.
        repo_type: "kernel" or "space".
        readme: Text of README.md; in a Space its generated part replaces the one that is there.
        options: ``private``, ``revision``, ``create_pr``, ``token``, ``commit_message`` and ``dry_run`` of
            ``push_to_hub``.
    """
    _check_repo_id(repo_id)
    if repo_type not in getattr(constants, "REPO_TYPES_WITH_KERNEL", constants.REPO_TYPES):
        raise HubError(f"this huggingface_hub knows no repositories of type {repo_type!r}: upgrade huggingface_hub")
    folder = Path(folder)
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    text = readme if readme is not None else (folder / CARD_FILE).read_text()
    merge = (lambda old: cards.merge(old, text)) if repo_type == "space" else (lambda old: text)
    return _push(files, repo_id, merge, repo_type=repo_type, **options)


def _push(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    card: Callable[[str | None], str],
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    dry_run: bool = False,
) -> Push:
    sizes = {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in files.items()}
    if dry_run:
        text = card(None)
        return Push(repo_id, {CARD_FILE: len(text.encode()), **sizes}, text)
    token = (token or get_token() or "").strip()
    if not token:
        raise HubError(
            f"pushing to {repo_id} needs a token, and there is none: run `hf auth login`, or set HF_TOKEN to a token "
            f"with write permission ({constants.ENDPOINT}/settings/tokens)"
        )
    if not re.fullmatch(r"[!-~]+", token):  # a client would print it in its own error
        raise HubError("the token has a space, a line break or a foreign character in it: copy it again, whole")
    api = HfApi(token=token, library_name="adder_zoo", library_version=__version__)
    with _explained(repo_id, token):
        with _patience():
            sdk = {"space_sdk": "static"} if repo_type == "space" else {}
            api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **sdk)  # type: ignore[arg-type]
            if revision and revision != "main" and not create_pr:
                api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
            base = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
        with tempfile.TemporaryDirectory() as cache:
            path = _download_if_there(repo_id, CARD_FILE, base, cache_dir=cache, token=token, repo_type=repo_type)
            old = path.read_bytes().decode() if path else None
        text = card(old)
        operations = [CommitOperationAdd(CARD_FILE, text.encode())]
        operations += [CommitOperationAdd(name, f) for name, f in files.items() if name != CARD_FILE]
        with _patience():
            # With its parent named, a commit is refused if somebody else changed the card since it was read.
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or "Update",
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
                parent_commit=base,
            )
    url = commit.pr_url or commit.commit_url
    return Push(repo_id, {CARD_FILE: len(text.encode()), **sizes}, text, url, commit.oid != base)


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} is no name of a repository: give organisation/name or user/name")


def _check_run(folder: Path) -> dict[str, Any]:
    """The results of the finished run in ``folder``, whose weights load."""
    missing = [name for name in ("config.json", WEIGHTS_FILE, RESULTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no finished run: {', '.join(missing)} missing. A recipe writes them when it ends; the "
            "same command goes on with a run that was stopped."
        )
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is not pushed, since its network does not load: {error}") from error
    return json.loads((folder / RESULTS_FILE).read_text())


def find_twin(folder: Path, results: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What ``results.json`` of the convolutional twin holds: see ``twin`` of ``push_to_hub``."""
    if results is None or results.get("similarity") != "adder":
        return None
    name = str(results["model"])
    checkout = Path(__file__).resolve().parents[2] / "docs" / "results"
    for path in (
        folder / TWIN_FILE,
        folder.resolve().with_name(folder.resolve().name + "-conv") / RESULTS_FILE,
        checkout / f"{name.removeprefix('adder_')}-conv" / RESULTS_FILE,
    ):
        if path.is_file():
            twin = json.loads(path.read_text())
            if cards.trained_alike(results, twin):
                return twin
    return None


# ---- fetching


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
            with _patience():
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
            error.append_to_message(f"\n{_advice(error, repo_id)}")
            raise
        except LocalEntryNotFoundError as error:
            raise LocalEntryNotFoundError(f"{error} {_advice(error, repo_id)}") from error
        except OfflineModeIsEnabled as error:
            raise OfflineModeIsEnabled(f"{error} {_advice(error, repo_id)}") from error
        except HTTPError as error:
            raise HubError(f"{repo_id}: fetching {filename} failed ({error}). {_advice(error, repo_id)}") from error
        except OSError as error:  # a download that ends early
            raise HubError(f"{repo_id}: fetching {filename} failed ({error}). {_advice(error, repo_id)}") from error
        if _intact(Path(path)):
            return Path(path)
        _forget(Path(path))
    raise HubError(
        f"{repo_id}: {filename} was damaged on its way, twice: it does not have the checksum that the Hub names. It is "
        "not kept; try again, and on another network if it happens again."
    )


def _download_if_there(repo_id: str, filename: str, revision: str | None, **options: Any) -> Path | None:
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


def models_of(author: str, token: str | None = None) -> list[dict[str, Any]]:
    """The adder networks that an organisation or a user has on the Hub.

    Returns:
        For each, what ``cards.row`` tells, with ``model`` its repository's name and ``private``.

    Raises:
        HubError: the Hub refused or failed.
    """
    api = HfApi(token=token, library_name="adder_zoo", library_version=__version__)
    rows = []
    with _explained(author, token):
        with _patience():
            found = sorted(api.list_models(author=author, filter=cards.TAG), key=lambda info: info.id)
        for info in found:
            config, *records = (
                _download_if_there(info.id, name, info.sha, token=token)
                for name in ("config.json", RESULTS_FILE, TWIN_FILE)
            )
            if config is None:
                raise HubError(f"{info.id} has no config.json, so timm cannot build it; push it again")
            row = cards.row(config.parent, *(json.loads(path.read_text()) if path else None for path in records))
            rows.append({**row, "model": info.id, "private": bool(info.private)})
    return rows


# ---- errors


@contextlib.contextmanager
def _patience() -> Iterator[None]:
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


@contextlib.contextmanager
def _explained(repo_id: str, token: str | None) -> Iterator[None]:
    """Turns what goes wrong in a push into a ``HubError`` that says what to do, without the token."""
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        hidden = _without_token(said, token)
        # The chained error would print what is hidden here.
        cause = error if hidden == said else None
        raise HubError(f"{repo_id}: {_advice(error, repo_id)} (The error was: {hidden})") from cause


def _without_token(text: str, token: str | None) -> str:
    if token:
        text = text.replace(token, "<token>")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "<token>", text)


def _advice(error: BaseException, repo_id: str) -> str:
    """What a user can do about an error of huggingface_hub, told by the status that is behind it."""
    statuses, offline = [], False
    at: BaseException | None = error
    while at is not None:
        status = getattr(getattr(at, "response", None), "status_code", None)
        statuses += [status] if status else []
        offline = offline or isinstance(at, OfflineModeIsEnabled) or "offline" in str(at).lower()
        at = at.__cause__ or at.__context__
    status = statuses[-1] if statuses else None
    login = "log in with `hf auth login`, or set HF_TOKEN to a valid token"
    if status == 401:
        return f"The Hub does not take this token for {repo_id}, or needs one: check the name, and {login}."
    if status == 403:
        return (
            f"This token may not do that in {repo_id}: {login} that has write permission there, be let into the "
            "organisation by its owner, or open a pull request (create_pr=True, --create-pr)."
        )
    if status == 404:
        return f"The Hub has no {repo_id}, or not that revision or file: check the name; if it is private, {login}."
    if status in (409, 412):
        return f"Somebody else changed {repo_id} in the meantime, and nothing was changed by this push: run it again."
    if status == 429:
        return f"The Hub's rate limit is reached: try again in some minutes, or {login}, which raises it."
    if status is not None and status >= 500:
        return "The Hub has a problem of its own: try again in some minutes (https://status.huggingface.co)."
    if status is not None:
        return "The Hub refused."
    if offline or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it, or fetch the files once while online."
    return (
        f"{constants.ENDPOINT} cannot be reached or broke off: check the network and HF_ENDPOINT, and try again; "
        "a repository is never left half changed."
    )
