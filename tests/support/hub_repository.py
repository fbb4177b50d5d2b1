"""A repository as the stand-in for the Hub keeps it on disk, with its history."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

EMPTY_COMMIT = {"parent": None, "summary": "initial commit", "tree": {}}


class Answer(Exception):
    """Ends the handling of a call with this answer."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.headers = {key.replace("_", "-"): value for key, value in headers.items()}


class Repository:
    """A repository on disk: contents by SHA-256, commits by id, branches in ``refs.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())

    @property
    def refs(self) -> dict[str, str]:
        return json.loads((self.folder / "refs.json").read_text())

    def create(self, **meta: Any) -> None:
        for part in ("contents", "commits"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "meta.json").write_text(json.dumps(meta))
        self.point("main", self.store(EMPTY_COMMIT))

    def store(self, commit: dict[str, Any]) -> str:
        text = json.dumps(commit, sort_keys=True)
        name = hashlib.sha1(text.encode()).hexdigest()
        (self.folder / "commits" / name).write_text(text)
        return name

    def point(self, ref: str, commit: str) -> None:
        refs = self.refs if (self.folder / "refs.json").exists() else {}
        part = self.folder / "refs.json.part"
        part.write_text(json.dumps({**refs, ref: commit}))
        part.replace(self.folder / "refs.json")

    def resolve(self, revision: str) -> str:
        revision = revision.removeprefix("refs/heads/")
        commit = self.refs.get(revision, revision)
        if not (self.folder / "commits" / commit).is_file():
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return commit

    def commit(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / name).read_text())

    def history(self, ref: str = "main") -> list[dict[str, Any]]:
        """The commits of ``ref``, newest first, without the empty one that made the repository."""
        commits, name = [], self.refs[ref]
        while name:
            commits.append(self.commit(name))
            name = commits[-1]["parent"]
        return commits[:-1]

    def files(self, ref: str = "main") -> dict[str, bytes]:
        tree = self.commit(self.resolve(ref))["tree"]
        return {path: self.content(entry["sha256"]) for path, entry in tree.items()}

    def content(self, sha256: str) -> bytes:
        return (self.folder / "contents" / sha256).read_bytes()

    def add(self, data: bytes, lfs: bool) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        (self.folder / "contents" / sha256).write_bytes(data)
        oid = sha256 if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"sha256": sha256, "oid": oid, "size": len(data), "lfs": lfs}
