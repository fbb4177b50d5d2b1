"""Collections, as the stand-in for the Hub keeps them: in memory, by slug."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from hub_repository import Answer


class Collections:
    """All collections of a stand-in; each method is a call of the Hub's API."""

    def __init__(self) -> None:
        self.by_slug: dict[str, dict[str, Any]] = {}

    def create(self, wish: dict[str, Any]) -> Answer:
        name = re.sub(r"[^a-z0-9]+", "-", wish["title"].lower()).strip("-")
        slug = f"{wish['namespace']}/{name}-{hashlib.sha1(wish['title'].encode()).hexdigest()[:24]}"
        if slug in self.by_slug:
            return Answer(409, {"error": "you have this collection already", "slug": slug})
        if len(wish["title"]) >= 60 or len(wish.get("description", "")) > 150:
            return Answer(400, {"error": "too long"})
        self.by_slug[slug] = {
            "slug": slug, "title": wish["title"], "owner": {"name": wish["namespace"]}, "items": [], "position": 0,
            "lastUpdated": "2026-01-01T00:00:00.000Z", "private": bool(wish.get("private")), "theme": "green",
            "upvotes": 0, "description": wish.get("description"),
        }  # fmt: skip
        return Answer(200, self.by_slug[slug])

    def get(self, slug: str) -> Answer:
        return Answer(200, self._known(slug))

    def add(self, slug: str, wish: dict[str, Any], exists: bool) -> Answer:
        collection, item = self._known(slug), wish["item"]
        if any(known["id"] == item["id"] for known in collection["items"]):
            return Answer(409, {"error": "it is in the collection"})
        if not exists:
            return Answer(404, {"error": f"{item['id']} does not exist"})
        position = len(collection["items"])
        note = {"text": wish["note"], "html": wish["note"]} if wish.get("note") else None
        collection["items"].append({"_id": f"{position:024x}", "position": position, "note": note, **item})
        return Answer(200, collection)

    def change(self, slug: str, identifier: str, wish: dict[str, Any]) -> Answer:
        for item in self._known(slug)["items"]:
            if item["_id"] == identifier:
                item["note"] = {"text": wish["note"], "html": wish["note"]}
                return Answer(200)
        raise Answer(404, {"error": "no such item"})

    def _known(self, slug: str) -> dict[str, Any]:
        if slug not in self.by_slug:
            raise Answer(404, {"error": "no such collection"})
        return self.by_slug[slug]
