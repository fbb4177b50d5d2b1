"""``adder-zoo push``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import hub
from ..hub import kernel_project
from ..hub.cards import headline
from ..hub.index import index_of_shipped
from ..hub.records import shipped
from ..report import table
from ._common import json_option, write_json
from ._hub import failures

COLLECTION = "collection"  # instead of a branch


@click.command(
    epilog="""
    \b
    Examples:
      hf auth login                                        once: a token with write permission
      adder-zoo push runs/resnet20 my-org/adder_resnet20.cifar10
      adder-zoo push runs/resnet20 my-org/adder_resnet20.cifar10 --dry-run
      adder-zoo push runs/resnet20 their-org/adder_resnet20.cifar10 --create-pr
      adder-zoo push --all my-org                          everything that the package ships, and the kernels
      adder-zoo push page --space my-org/adder-networks    a page of `adder-zoo export --format page`, as a static Space
      adder-zoo push runs/old my-org/old --new-version my-org/new

    \b
    The token comes from `hf auth login` or the environment variable HF_TOKEN.
    Status: 0 if it is on the Hub, 1 if it is not, 2 for a wrong command line.
    """,
)
@click.argument("run_dir", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo", required=False, metavar="[ORG/NAME]")
@click.option(
    "--all",
    "organisation",
    metavar="ORG",
    help="Publish all shipped checkpoints, a collection of them, the kernels, an index.",
)
@click.option("--space", metavar="ORG/NAME", help="Publish the page in RUN_DIR as a static Space.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; made if it is missing.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of pushing.")
@click.option("--base-model", metavar="ORG/NAME", help="The network that this one was made of; else from the results.")
@click.option("--new-version", metavar="ORG/NAME", help="A network that takes over from this one.")
@click.option("--commit-message", metavar="TEXT", help="First line of the commit.")
@click.option("--dry-run", is_flag=True, help="Show what would go up, and the card; calls nobody.")
@json_option
def push(
    run_dir: Path | None,
    repo: str | None,
    organisation: str | None,
    space: str | None,
    private: bool,
    revision: str | None,
    create_pr: bool,
    base_model: str | None,
    new_version: str | None,
    commit_message: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Puts the finished run in RUN_DIR on the Hugging Face Hub as ORG/NAME, in one commit.

    Weights, configuration, results, settings, log and plots go up, with a card that is rendered from the results and a
    notebook that runs its code. A card that is there already keeps what people wrote in it. The same push again changes
    nothing.

    With --space, RUN_DIR is the folder of a page, which goes up as a static Space.
    """
    options: dict[str, Any] = {
        "private": private or None,
        "revision": revision,
        "create_pr": create_pr,
        "commit_message": commit_message,
        "dry_run": dry_run,
    }
    if (base_model or new_version) and (organisation is not None or space is not None):
        raise click.UsageError("--base-model and --new-version are for a single run")
    if organisation is not None:
        if run_dir is not None or space is not None:
            raise click.UsageError("--all takes the organisation and nothing else: adder-zoo push --all ORG")
        if revision:
            raise click.UsageError("--all pushes to main; --revision is for a single run")
        with failures():
            pushed = _push_all(organisation, options, quiet=as_json)
        if as_json:
            write_json([_record(done, branch) for done, branch in pushed])
        return
    if space is not None:
        if run_dir is None or repo is not None:
            raise click.UsageError("--space goes with the page's folder alone: adder-zoo push FOLDER --space ORG/NAME")
        with failures():
            done = hub.push_space(run_dir, space, **options)
    else:
        if run_dir is None or repo is None:
            raise click.UsageError(
                "give a run's folder and ORG/NAME, --all ORG, or a page's folder and --space ORG/NAME"
            )
        with failures():
            done = hub.push_to_hub(run_dir, repo, base_model=base_model, new_version=new_version, **options)
    if as_json:
        write_json(_record(done, revision))
        return
    _say(done)
    if dry_run:
        click.echo(f"\n{done.card}")


def _push_all(organisation: str, options: dict[str, Any], quiet: bool) -> list[tuple[hub.Push, str | None]]:
    """What was pushed, and to which branch; each is reported as soon as it is done, unless ``quiet``."""
    options = {k: v for k, v in options.items() if k != "revision"}
    project = kernel_project.source()  # first of all: outside of a checkout the cards would have no twins to tell of
    pushed: list[tuple[hub.Push, str | None]] = []

    def note(done: hub.Push, branch: str | None = None) -> None:
        pushed.append((done, branch))
        if not quiet:
            _say(done, branch)

    notes = {}
    for name, folder, results, twin in shipped():
        note(hub.push_to_hub(folder, f"{organisation}/{name}", twin=twin, **options))
        notes[name] = headline(folder, results).partition(": ")[2]
    if not options["create_pr"]:
        private = bool(options["private"])
        note(hub.collect(organisation, notes, private=private, dry_run=options["dry_run"]), COLLECTION)
    _push_kernels(project, organisation, options, note)
    with tempfile.TemporaryDirectory() as scratch:
        page = index_of_shipped(organisation)
        message = options["commit_message"] or "Update the table of models"
        space = {**options, "commit_message": message}
        note(hub.push_folder(scratch, f"{organisation}/README", repo_type="space", readme=page, **space))
    return pushed


def _push_kernels(project: Path, organisation: str, options: dict[str, Any], note: Callable[..., None]) -> None:
    """What users load to the branch of its version, which ``get_kernel(..., version=N)`` reads; the sources to main."""
    about = kernel_project.describe(project)
    with tempfile.TemporaryDirectory() as scratch:
        built = kernel_project.build(Path(scratch) / "kernel", organisation)
        kernel = {**options, "repo_type": "kernel", "commit_message": options["commit_message"] or "Update the kernels"}
        repo_id, branch = f"{organisation}/{about['name']}", f"v{about['version']}"
        folders = ("build", "benchmarks", "tests", "torch-ext")
        note(hub.push_folder(built, repo_id, revision=branch, replaces=folders[:2], **kernel), branch)
        note(hub.push_folder(kernel_project.sources(organisation), repo_id, replaces=folders, **kernel), "main")


def _record(done: hub.Push, branch: str | None) -> dict[str, Any]:
    return {
        "repo_id": done.repo_id,
        "branch": branch or "main",
        "pushed": bool(done.changed),
        "dry_run": done.changed is None,
        "url": done.url,
        "files": done.files,
        "card": done.card,
    }


def _say(done: hub.Push, branch: str | None = None) -> None:
    where = f"{done.repo_id} ({branch})" if branch else done.repo_id
    if done.changed is None and branch == COLLECTION:
        click.echo(f"{where}: would hold {len(done.files)} networks")
    elif done.changed is None:
        click.echo(f"{where}: would push")
        rows = [(name, f"{size:,}") for name, size in sorted(done.files.items())]
        click.echo(table(("file", "bytes"), rows, right=(1,)))
    elif done.changed:
        click.echo(f"{where}: pushed, {done.url}")
    else:
        click.echo(f"{where}: up to date")
