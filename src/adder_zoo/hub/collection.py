"""A collection on the Hub: all networks of an organisation on one page, each with a line about it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, get_token

from .._version import __version__
from .errors import HubError, explained
from .patience import within_patience
from .push import Push

TITLE = "Networks without multiplications"
ABOUT = (
    "Image classifiers whose layers answer with -Σ|x - w| (AdderNet), in float32 and in bytes, for adder_zoo and timm."
)

GENERATED = re.compile(r"\d+\.\d\d % on |$")  # how a note begins that was not written by hand


def collect(
    organisation: str,
    notes: Mapping[str, str],
    *,
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Makes the collection, or adds to it what is missing; what people put there or wrote there stays.

    Args:
        organisation: Whose collection it is, and of whom the networks are.
        notes: A line about each network, by the name of its repository without the organisation.
        private: Visibility of a new collection.
        token: As in ``push_to_hub``.
        dry_run: Calls nobody.

    Returns:
        A ``Push``, with the collection's slug as its ``repo_id``; a dry run has its title there.

    Raises:
        HubError: the Hub refused or failed; the message says what to do.
    """
    wanted = {f"{organisation}/{name}": note for name, note in notes.items()}
    if dry_run:
        return Push(f"{organisation}: {TITLE}", dict.fromkeys(wanted, 0), "")
    token = token or get_token()
    if not token:
        raise HubError(f"a collection of {organisation} needs a token: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token, library_name="adder_zoo", library_version=__version__)
    what = f"the collection of {organisation}"
    changed = False
    call: functools.partial[Any]
    with explained(what, token):
        collection = within_patience(
            lambda pulse: api.create_collection(
                TITLE, namespace=organisation, description=ABOUT, private=private, exists_ok=True
            ),
            what,
        )
        there = {item.item_id: item for item in collection.items if item.item_type == "model"}
        for repo_id, note in wanted.items():
            known = there.get(repo_id)
            if known is None:
                call = functools.partial(
                    api.add_collection_item, item_id=repo_id, item_type="model", note=note, exists_ok=True
                )
            elif known.note != note and GENERATED.match(known.note or ""):
                call = functools.partial(api.update_collection_item, item_object_id=known.item_object_id, note=note)
            else:
                continue
            within_patience(lambda pulse, call=call: call(collection.slug), what)  # type: ignore[misc]
            changed = True
    return Push(collection.slug, dict.fromkeys(wanted, 0), "", collection.url, changed)
