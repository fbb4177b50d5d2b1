"""Pushing to the Hub: one commit with weights, config.json, card, notebook, results, settings, log and plots."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    RepoCard,
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from .._version import __version__
from ..results import CONFIG_FILE, RESULTS_FILE, WEIGHTS_FILE, ResultsError, check, read_results, write_results
from . import cards, notebook
from .download import download_if_there
from .errors import HubError, explained
from .evaluation import eval_results
from .merge import merge
from .patience import Pulse, within_patience
from .records import CARD_FILE, RUN_FILES, TWIN_FILE, find_twin
from .save import save_pretrained
from .snippets import snippets


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


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    results: Mapping[str, Any] | None = None,
    twin: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    new_version: str | None = None,
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
    ``notebook.ipynb`` runs the card's code; one that people put there is left alone. ``.eval_results/`` has the
    accuracy where it is of a whole test set that the Hub knows.

    Args:
        model: A network of the zoo, or the folder of a finished run of a recipe: ``model.safetensors`` and
            ``config.json``, with ``results.json``, ``args.yaml``, ``log.csv`` and plots (``*.png``) where they are.
        repo_id: "organisation/name".
        results: What ``results.json`` holds, for a network; a folder has its own.
        twin: ``results.json`` of the convolutional twin. By default that of the folder beside the run that is called
            ``<run>-conv``, or of this checkout's ``docs/results`` for a network of the zoo, where there is one.
        base_model: The repository of the network that this one was made of. By default it is read from the results:
            what was quantised, or what the training began with.
        new_version: A repository that takes over from this one: the Hub shows a link to it.
        private: Visibility of a new repository; None leaves it to the organisation.
        revision: Branch to push to, made if it is missing; or that a pull request is based on.
        create_pr: Opens a pull request instead of pushing.
        token: Access token; by default the one of ``hf auth login`` or of the environment variable HF_TOKEN.
        commit_message: First line of the commit.
        dry_run: Touches nothing and calls nobody: the answer tells what would go up.

    Returns:
        A ``Push``.

    Raises:
        ValueError: the name is none, the folder holds no finished run, the weights do not load, the network cannot be
            built again by timm, the results are not of these weights, or the twin is another network's.
        HubError: the Hub refused or failed; the message says what to do.
    """
    for name in (repo_id, base_model, new_version):
        if name is not None:
            _check_repo_id(name)
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(model, nn.Module):
            folder = save_pretrained(model, scratch)
            if results is not None:
                results = write_results(folder, results)
        else:
            folder = Path(model)
            if results is not None:
                raise ValueError(f"push_to_hub: {folder} has a results.json of its own; leave results out")
            results = _check_run(folder)
        twin = twin if twin is not None else find_twin(folder, results)
        stated = {"base_model": base_model, "new_version": new_version}
        stated = {key: value for key, value in stated.items() if value is not None}
        files, card = _contents(folder, repo_id, results, twin, stated)
        return _push(
            files,
            repo_id,
            lambda old: merge(old, card, stated),
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message or cards.headline(folder, results),
            dry_run=dry_run,
        )


def _contents(
    folder: Path,
    repo_id: str,
    results: Mapping[str, Any] | None,
    twin: Mapping[str, Any] | None,
    stated: dict[str, Any],
) -> tuple[dict[str, Path | bytes], str]:
    """What goes up for the network in ``folder``, by path, and its card; ``stated`` gets what follows from it."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    saved = cards.in_bytes(config) is not None
    if "base_model" in stated:
        stated["base_model_relation"] = "quantized" if saved else "finetune"
    code = snippets(folder, repo_id, config)
    card = cards.render(folder, repo_id, results, twin, stated, code)
    names = [CONFIG_FILE, WEIGHTS_FILE, *(name for name in RUN_FILES if (folder / name).is_file())]
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    files |= {path.name: path for path in sorted(folder.glob("*.png"))}
    if twin is not None:
        files[TWIN_FILE] = (json.dumps(twin, indent=2) + "\n").encode()
    return {**files, **eval_results(repo_id, results), notebook.FILE: notebook.render(repo_id, code, saved)}, card


def push_folder(
    folder: str | Path | Mapping[str, Path | bytes],
    repo_id: str,
    *,
    repo_type: str,
    readme: str | None = None,
    replaces: Sequence[str] = (),
    **options: Any,
) -> Push:
    """Puts a folder that is not a network on the Hub: the kernels, or the page of an organisation (a Space).

    Args:
        folder: Everything in it goes up. Or files by their path.
        repo_type: "kernel" or "space".
        readme: Text of README.md; in a Space its generated part replaces the one that is there.
        replaces: Folders of the repository that hold nothing else afterwards: what is not in ``folder`` is deleted.
        options: ``private``, ``revision``, ``create_pr``, ``token``, ``commit_message`` and ``dry_run`` of
            ``push_to_hub``.
    """
    _check_repo_id(repo_id)
    if repo_type not in getattr(constants, "REPO_TYPES_WITH_KERNEL", constants.REPO_TYPES):
        raise HubError(f"this huggingface_hub knows no repositories of type {repo_type!r}: upgrade huggingface_hub")
    files = dict(folder) if isinstance(folder, Mapping) else _files_in(Path(folder))
    if readme is None:
        given = files[CARD_FILE]
        readme = (given if isinstance(given, bytes) else given.read_bytes()).decode()
    text = readme
    card = (lambda old: _card_of_space(repo_id, old, text)) if repo_type == "space" else (lambda old: text)
    return _push(files, repo_id, card, repo_type=repo_type, replaces=replaces, **options)


def _files_in(folder: Path) -> dict[str, Path | bytes]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def push_space(folder: str | Path, repo_id: str, **options: Any) -> Push:
    """Puts a page of ``adder-zoo export --format page`` on the Hub as a static Space, in one commit.

    Args:
        folder: Holds ``index.html`` and ``README.md``, whose metadata say ``sdk: static``. Everything in it goes up.
            What people wrote in the Space's own README.md around the generated part stays.
        repo_id: "organisation/name".
        options: As in ``push_folder``.

    Raises:
        ValueError: the name is none, the folder is not a static page with its card, or the Space is not static.
        HubError: the Hub refused or failed; the message says what to do.
    """
    folder = Path(folder)
    missing = [name for name in ("index.html", CARD_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no page: {' and '.join(missing)} missing. `adder-zoo export --format page` writes one"
        )
    if _sdk((folder / CARD_FILE).read_text(encoding="utf-8")) != "static":
        raise ValueError(f"{folder / CARD_FILE} does not say `sdk: static`, so the Hub would not show the page")
    options["commit_message"] = options.get("commit_message") or "Update the page"
    return push_folder(folder, repo_id, repo_type="space", **options)


def _card_of_space(repo_id: str, old: str | None, new: str) -> str:
    merged = merge(old, new)
    if _sdk(merged) != "static":
        raise ValueError(
            f"{repo_id} is a Space with `sdk: {_sdk(merged)}`, and a page needs `static`: take another name"
        )
    return merged


def _sdk(card: str) -> Any:
    return RepoCard(card, ignore_metadata_errors=True).data.to_dict().get("sdk")


def _push(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    card: Callable[[str | None], str],
    *,
    repo_type: str = "model",
    replaces: Sequence[str] = (),
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
    branch = revision if revision and revision != "main" and not create_pr else None
    with explained(repo_id, token):
        base = _prepare(api, repo_id, branch, revision, private, repo_type)
        with tempfile.TemporaryDirectory() as cache:
            there = {
                name: download_if_there(repo_id, name, base, cache_dir=cache, token=token, repo_type=repo_type)
                for name in (CARD_FILE, *({notebook.FILE} & files.keys()))
            }
            read = {name: path.read_bytes() for name, path in there.items() if path is not None}
        text = card(read[CARD_FILE].decode() if CARD_FILE in read else None)
        if notebook.FILE in read and not notebook.is_ours(read[notebook.FILE]):
            files = {name: f for name, f in files.items() if name != notebook.FILE}  # people's own stays
            del sizes[notebook.FILE]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationAdd(CARD_FILE, text.encode())]
        operations += [CommitOperationAdd(name, f) for name, f in files.items() if name != CARD_FILE]
        operations += _deletions(api, repo_id, base, repo_type, replaces, files)
        # With its parent named, a commit is refused if somebody else changed the card since it was read.
        commit = within_patience(
            lambda pulse: api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or "Update",
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
                parent_commit=base,
            ),
            f"pushing to {repo_id}",
            upload=sum(sizes.values()),
        )
    url = commit.pr_url or commit.commit_url
    return Push(repo_id, {CARD_FILE: len(text.encode()), **sizes}, text, url, commit.oid != base)


def _deletions(
    api: HfApi, repo_id: str, base: str | None, repo_type: str, folders: Sequence[str], files: Mapping[str, Any]
) -> list[CommitOperationDelete]:
    """What the repository has in ``folders`` beside ``files``."""
    if not folders:
        return []
    there = within_patience(
        lambda pulse: api.list_repo_files(repo_id, revision=base, repo_type=repo_type), f"pushing to {repo_id}"
    )
    inside = tuple(f"{name}/" for name in folders)
    return [CommitOperationDelete(name) for name in there if name.startswith(inside) and name not in files]


def _prepare(
    api: HfApi, repo_id: str, branch: str | None, revision: str | None, private: bool | None, repo_type: str
) -> str | None:
    """Makes the repository and the branch where they are missing; returns the commit that a push is based on."""
    sdk: dict[str, Any] = {"space_sdk": "static"} if repo_type == "space" else {}
    what = f"pushing to {repo_id}"
    within_patience(
        lambda pulse: api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True, **sdk), what
    )
    if branch:
        within_patience(
            lambda pulse: api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True), what
        )
    return within_patience(lambda pulse: api.repo_info(repo_id, revision=revision, repo_type=repo_type), what).sha


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not the name of a repository: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} is not the name of a repository: give organisation/name or user/name")


def _check_run(folder: Path) -> dict[str, Any]:
    """The results of the finished run in ``folder``, whose weights load."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE, RESULTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no finished run: {', '.join(missing)} missing. A recipe writes them when it ends; the "
            "same command goes on with a run that was stopped."
        )
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is not pushed, since its network does not load: {error}") from error
    results = read_results(folder)
    assert results is not None
    return results


def repositories_of(author: str, token: str | None = None) -> list[str]:
    """The names of the model repositories that an organisation or a user has on the Hub.

    Raises:
        HubError: the Hub refused or failed.
    """
    return [info.id for info in _found(author, token, None)]


def _found(author: str, token: str | None, tag: str | None) -> list[Any]:
    api = HfApi(token=token, library_name="adder_zoo", library_version=__version__)

    def ask(pulse: Pulse) -> list[Any]:
        # Raises at once where nobody answers; to list models, huggingface_hub tries for half a minute.
        one: dict[str, str] = {"author": author, "limit": "1"}
        get_session().get(f"{constants.ENDPOINT}/api/models", params=one, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        pulse.beat()
        return list(api.list_models(author=author, filter=tag))

    with explained(author, token, pushing=False):
        found = within_patience(ask, author)
    return sorted(found, key=lambda info: info.id)


def models_of(author: str, token: str | None = None) -> list[dict[str, Any]]:
    """The adder networks that an organisation or a user has on the Hub.

    Returns:
        For each, what ``cards.row`` tells, with ``model`` its repository's name and ``private``. Results that are not
        of the weights in the repository are left out.

    Raises:
        HubError: the Hub refused or failed.
    """
    rows = []
    with explained(author, token, pushing=False):
        for info in _found(author, token, cards.TAG):
            config, *records = (
                download_if_there(info.id, name, info.sha, token=token)
                for name in (CONFIG_FILE, RESULTS_FILE, TWIN_FILE)
            )
            if config is None:
                raise HubError(f"{info.id} has no config.json, so timm cannot build it; push it again")
            results, twin = (json.loads(path.read_text()) if path else None for path in records)
            if results is not None and not _of_its_weights(results, info, token):
                results = twin = None
            row = cards.row(config.parent, results, twin)
            rows.append({**row, "model": info.id, "private": bool(info.private)})
    return rows


def _of_its_weights(results: Mapping[str, Any], info: ModelInfo, token: str | None) -> bool:
    """Whether results in a repository were measured of the weights in it, by the checksum that the Hub names."""
    url = hf_hub_url(info.id, WEIGHTS_FILE, revision=info.sha)
    about = within_patience(lambda pulse: get_hf_file_metadata(url, token=token), f"{info.id}: {WEIGHTS_FILE}")
    found = about.etag or ""
    try:
        if re.fullmatch(r"[0-9a-f]{64}", found):  # a mirror may have tags of its own, and nothing to hold against
            check(results, found)
    except ResultsError:
        return False
    return True
