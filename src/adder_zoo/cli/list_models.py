"""``adder-zoo list``: the zoo's networks, or what an organisation has on the Hub."""

from __future__ import annotations

from typing import Any

import click
import timm

from .. import hub
from ..counts import known_counts
from ..hub.download import ORGANISATION
from ..hub.index import index
from ..paths import WEIGHTS
from ..report import table
from ._common import Failure, hub_repository, json_option, write_json
from ._hub import failures
from ._results import results


@click.command(
    "list",
    epilog="""
    \b
    Examples:
      adder-zoo list                      all networks of the zoo
      adder-zoo list 'adder_resnet*'      those whose name fits
      adder-zoo list --pretrained --json  those with weights, for programs
      adder-zoo list --hub ORG            those that an organisation has on the Hugging Face Hub
      adder-zoo list --hub ORG --card     the same as Markdown, for the organisation's page
    """,
)
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="Only networks whose weights can be loaded.")
@click.option("--hub", "author", metavar="ORG", help="Networks of an organisation or user on the Hugging Face Hub.")
@click.option("--card", "as_card", is_flag=True, help="With --hub: Markdown, as on the organisation's page.")
@json_option
def list_models(pattern: str, pretrained: bool, author: str | None, as_card: bool, as_json: bool) -> None:
    """Lists the networks of the zoo, with what they cost for one image.

    PATTERN is a shell pattern. The prefix that all names share may be left out. Multiplications and additions are those
    of all layers but normalisation.
    """
    if author is not None:
        if pattern != "*" or pretrained:
            raise click.UsageError("--hub lists all networks of ORG; it takes no pattern and no --pretrained")
        show_hub(author, as_json, as_card)
        return
    if as_card:
        raise click.UsageError("--card goes with --hub ORG")
    pattern = pattern if pattern.startswith(("adder_", "*")) else f"adder_{pattern}"
    names = timm.list_models(pattern, include_tags=True)
    on_hub = of_organisation(names)
    names = [
        n
        for n in names
        if n.startswith("adder_") and (not pretrained or timm.models.is_model_pretrained(n) or n in on_hub)
    ]
    if not names:
        raise Failure(f"no network of the zoo fits {pattern!r}" + (" and has weights" if pretrained else ""))
    rows = [describe(name) for name in names]
    for row in rows:
        row["weights"] = row["weights"] or on_hub.get(row["model"])
    if as_json:
        write_json(rows)
        return
    columns = ("model", "image", "classes", "parameters", "multiplications", "additions", "accuracy", "weights")
    click.echo(
        table(
            columns,
            [
                (
                    row["model"],
                    "x".join(map(str, row["input_size"])),
                    row["num_classes"],
                    millions(row["parameters"]),
                    millions(row["multiplications"]),
                    millions(row["additions"]),
                    f"{row['accuracy']:.2f} % {row['dataset']}" if row["accuracy"] is not None else "-",
                    row["weights"] or "-",
                )
                for row in rows
            ],
            right=(2, 3, 4, 5),
        )
    )


def describe(name: str) -> dict[str, Any]:
    """A line of ``adder-zoo list``: name, parameters, operations for one image, accuracy and where the weights are."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    record = results(name) or {}
    return {
        "model": name,
        "input_size": list(cfg.input_size),
        "num_classes": cfg.num_classes,
        **known_counts(name),
        "accuracy": record.get("test_accuracy"),
        "dataset": record.get("dataset"),
        "weights": "package" if str(cfg.file or "").startswith(str(WEIGHTS)) else cfg.hf_hub_id or cfg.url,
    }


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def of_organisation(names: list[str]) -> dict[str, str]:
    """The zoo's networks among ``names`` that the organisation of ADDER_ZOO_HUB_ORG has, with their repositories.

    None where no organisation is set; with a warning, where the Hub does not tell.
    """
    repositories = {repo_id: name for name in names if (repo_id := hub_repository(name))}
    if not repositories:
        return {}
    owner = next(iter(repositories)).partition("/")[0]
    try:
        published = hub.repositories_of(owner)
    except hub.HubError as error:
        click.echo(f"warning: {ORGANISATION} is set, but not known is what it has: {error}", err=True)
        return {}
    return {repositories[repo_id]: repo_id for repo_id in published if repo_id in repositories}


def show_hub(author: str, as_json: bool, as_card: bool) -> None:
    """``adder-zoo list --hub``: the networks of an organisation as a table, as JSON or as its page."""
    with failures():
        rows = hub.models_of(author)
    if as_card:
        click.echo(index(author, rows), nl=False)
        return
    if as_json:
        write_json(rows)
        return
    if not rows:
        raise Failure(f"{author} has no adder networks on the Hub that you may see; private ones need `hf auth login`")
    columns = ("model", "trained on", "accuracy", "CNN twin", "parameters", "multiplications", "additions")
    click.echo(
        table(
            columns,
            [
                (
                    row["model"] + (" (private)" if row["private"] else ""),
                    row["dataset"] or "-",
                    *(f"{row[key]:.2f} %" if row[key] is not None else "-" for key in ("accuracy", "twin_accuracy")),
                    *(f"{row[key] / 1e6:,.2f} M" for key in ("parameters", "multiplications", "additions")),
                )
                for row in rows
            ],
            right=(2, 3, 4, 5, 6),
        )
    )
