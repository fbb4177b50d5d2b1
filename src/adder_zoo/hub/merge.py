"""A card that a repository has already: what people wrote around the generated part stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

# Between these two, a push writes; the rest of a card is its owner's.
BEGIN = re.compile(r"<!-- adder_zoo:begin\b.*?-->", re.S)
END = re.compile(r"<!-- adder_zoo:end\b.*?-->", re.S)
FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.S)


def merge(old: str | None, new: str, stated: Mapping[str, Any] | None = None) -> str:
    """The card ``new`` where the repository has the card ``old``: what people wrote in that stays.

    The generated part takes the place of the one between the two comments, or goes to the end where there is none. Keys
    of the metadata that are there stay as they are, lists are united, and of ``model-index`` the results on the same
    data set by the same metric are replaced. What of the metadata is ``stated`` is said for this push alone: it is set,
    whatever was there.

    Raises:
        ValueError: the old card cannot be read or its comments are damaged; it has to be mended by hand.
    """
    if not old or not old.strip():
        return new
    front, data, body = _split(old)
    _, new_data, new_body = _split(new)
    generated = new_body[_only(BEGIN, new_body).start() : _only(END, new_body).end()]
    begins, ends = list(BEGIN.finditer(body)), list(END.finditer(body))
    if not begins and not ends:
        body = f"{body.rstrip()}\n\n{generated}\n" if body.strip() else f"\n{generated}\n"
    elif len(begins) == len(ends) == 1 and begins[0].end() <= ends[0].start():
        body = body[: begins[0].start()] + generated + body[ends[0].end() :]
    else:
        raise ValueError(
            "README.md of the repository has not one pair of the comments <!-- adder_zoo:begin --> and <!-- "
            "adder_zoo:end -->: mend it by hand, since it does not show which lines are yours"
        )
    merged = {**merge_metadata(data, new_data), **(stated or {})}
    if merged != data:
        front = f"---\n{yaml_dump(merged, sort_keys=False).strip()}\n---\n"
    return front + body


def _only(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    (match,) = pattern.finditer(text)
    return match


def _split(card: str) -> tuple[str, dict[str, Any], str]:
    """Metadata as text and as data, and the rest."""
    match = FRONT.match(card)
    if match is None:
        return "", {}, card
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        message = f"the metadata of the repository's README.md is not YAML: mend it by hand ({error})"
        raise ValueError(message) from error
    if not isinstance(data, dict):
        raise ValueError("the metadata of the repository's README.md is not a mapping: mend it by hand")
    return match[0], data, card[match.end() :]


def merge_metadata(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with what ``new`` adds; see ``merge``."""
    merged = dict(old)
    for key, value in new.items():
        there = merged.get(key)
        if key == "model-index":
            merged[key] = _merge_index(there or [], value)
        elif there is None:
            merged[key] = value
        elif isinstance(value, list):
            there = there if isinstance(there, list) else [there]
            merged[key] = [*there, *(v for v in value if v not in there)]
    return merged


def _merge_index(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def identity(result: Mapping[str, Any]) -> Any:
        dataset = result.get("dataset", {})
        return result.get("task", {}).get("type"), *(dataset.get(k) for k in ("type", "config", "split", "revision"))

    if not isinstance(old, list) or not all(isinstance(m, dict) and isinstance(m.get("results"), list) for m in old):
        raise ValueError("model-index in the metadata of the repository's README.md is damaged: mend it by hand")
    merged = [{**model, "results": list(model["results"])} for model in old]
    for model in new:
        known = next((m for m in merged if m.get("name") == model["name"]), None)
        if known is None:
            merged.append(model)
            continue
        for result in model["results"]:
            types = {metric["type"] for metric in result["metrics"]}
            entries: list[dict[str, Any]] = []
            at: int | None = None
            for other in known["results"]:
                if identity(other) == identity(result):
                    metrics = [m for m in other.get("metrics", []) if m.get("type") not in types]
                    at = len(entries) if at is None else at
                    if not metrics:
                        continue
                    other = {**other, "metrics": metrics}
                entries.append(other)
            entries.insert(len(entries) if at is None else at, result)
            known["results"] = entries
    return merged
