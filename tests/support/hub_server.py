"""A small stand-in for the Hugging Face Hub on loopback, and the faults that it makes on purpose.

It speaks what ``huggingface_hub``, ``timm`` and ``kernels`` call, stores repositories on disk with their history, and
knows tokens, private repositories, branches and pull requests. Files named ``*.safetensors`` go through LFS, or all
through the commit itself with ``upload_mode="regular"``.

    with HubServer(folder) as hub:
        ... HF_ENDPOINT=hub.url ...
        hub.fault("GET .*/resolve/.*model.safetensors", "cut")
        hub.calls  # ["POST /api/repos/create", ...]

A client in another process sets faults with ``POST /_faults`` and reads the calls with ``GET /_calls``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_collections import Collections
from hub_repository import Answer, Repository

# Who a token is, and whether it may write.
TOKENS = {"hf_writerTokenOfTheTests": ("writer", True), "hf_readerTokenOfTheTests": ("reader", False)}
WRITE_TOKEN, READ_TOKEN = TOKENS
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/", "kernels": "kernels/"}
KINDS = r"(models|datasets|spaces|kernels)"


@dataclass
class Fault:
    """What goes wrong with the next ``times`` calls whose "METHOD /path" ``pattern`` finds.

    ``kind``: "401", "403", "404", "429" or "500" answer so ("429" with Retry-After: ``seconds``); "cut" ends the
    connection in the middle of the answer; "lost" does what was asked and then ends it without an answer; "checksum"
    changes one byte of the answer; "slow" waits ``seconds`` first; "stall" never answers.
    """

    pattern: str
    kind: str
    times: int = 1
    seconds: float = 1.0


class HubServer:
    """The server, with its repositories in ``folder``; a context manager."""

    def __init__(self, folder: Path, upload_mode: str = "lfs") -> None:
        self.folder = Path(folder)
        self.upload_mode = upload_mode
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.collections = Collections()
        self.trusted: list[str] = []  # organisations whose kernels need no trust_remote_code
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.http.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def fault(self, pattern: str, kind: str, times: int = 1, seconds: float = 1.0) -> None:
        with self.lock:
            self.faults.append(Fault(pattern, kind, times, seconds))

    def repository(self, repo_id: str, kind: str = "models") -> Repository:
        return Repository(self.folder / kind / repo_id)

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "models", private: bool = False) -> Repository:
        """A repository with one commit, made without a client."""
        repository = self.repository(repo_id, kind)
        if not repository.folder.exists():
            repository.create(private=private)
        tree = {path: repository.add(data, path.endswith((".safetensors", ".bin"))) for path, data in files.items()}
        commit = {"parent": repository.refs["main"], "summary": "added", "tree": tree}
        repository.point("main", repository.store(commit))
        return repository

    def next_fault(self, call: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, call):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits until the client has acknowledged the headers: 40 ms a call
    hub: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do(self) -> None:
        url = urlsplit(self.path)
        self.route = unquote(url.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.read_body()
        call = f"{self.command} {self.route}"
        if self.route == "/_faults":
            self.hub.faults = [Fault(**fault) for fault in json.loads(body)]
            return self.send(Answer(200))
        if self.route == "/_upload_mode":
            self.hub.upload_mode = json.loads(body)
            return self.send(Answer(200))
        if self.route == "/_trusted":
            self.hub.trusted = json.loads(body)
            return self.send(Answer(200))
        if self.route == "/_calls":
            calls, self.hub.calls = self.hub.calls, []
            return self.send(Answer(200, calls))
        with self.hub.lock:
            self.hub.calls.append(call)
        fault = self.hub.next_fault(call)
        kind = fault.kind if fault else ""
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if kind == "stall":
            self.hub.closing.wait(300)
            return self.hang_up()
        if kind in ("cut", "lost") and self.command != "GET":
            if kind == "lost":
                self.answer(body)
            return self.hang_up()
        if kind.isdigit():
            codes = {"401": "RepoNotFound", "404": "RepoNotFound"}
            headers = {"X_Error_Code": codes[kind]} if kind in codes else {}
            if fault and kind == "429":
                headers["Retry_After"] = f"{fault.seconds:.0f}"
            return self.send(Answer(int(kind), {"error": f"fault {kind}"}, **headers))
        answer = self.answer(body)
        if kind == "checksum" and answer.body:
            middle = len(answer.body) // 2
            answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
        self.send(answer, cut=kind in ("cut", "lost"))

    do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = do

    def answer(self, body: bytes) -> Answer:
        try:
            with self.hub.lock:
                for pattern, handle in _ROUTES:
                    match = re.fullmatch(pattern, f"{self.command} {self.route}")
                    if match:
                        return handle(self, body, *match.groups()) or Answer(200)
            return Answer(404, {"error": f"no such route: {self.command} {self.route}"})
        except Answer as answer:
            return answer

    def send(self, answer: Answer, cut: bool = False) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def user(self, write: bool = False) -> str | None:
        """Who calls; 401 or 403 where that is not enough."""
        header = self.headers.get("Authorization")
        known = TOKENS.get(header.removeprefix("Bearer ")) if header else None
        if header and known is None:
            message = "Invalid credentials in Authorization header"
            raise Answer(401, {"error": message}, X_Error_Message=message)
        if write and known is None:
            raise Answer(401, {"error": "Invalid username or password."})
        if write and known and not known[1]:
            raise Answer(403, {"error": "forbidden"}, X_Error_Message="this token may only read")
        return known[0] if known else None

    def repository(self, kind: str, repo_id: str, write: bool = False) -> Repository:
        user = self.user(write)
        repository = self.hub.repository(repo_id, kind)
        if not repository.folder.exists() or (repository.meta.get("private") and user is None):
            raise Answer(404 if user else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repository

    # ---- calls

    def whoami(self, body: bytes) -> Answer:
        user = self.user()
        if user is None:
            raise Answer(401, {"error": "Invalid username or password."})
        return Answer(200, {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> Answer:
        user = self.user(write=True)
        wish = json.loads(body)
        kind = wish.get("type", "model") + "s"
        repo_id = f"{wish.get('organization') or user}/{wish['name']}"
        repository = self.hub.repository(repo_id, kind)
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo_id}"
        if repository.folder.exists():
            return Answer(409, {"error": "You already created this repo", "url": url})
        repository.create(private=wish.get("visibility") == "private" or bool(wish.get("private")))
        return Answer(200, {"url": url, "name": repo_id, "id": repo_id})

    def describe(self, kind: str, repo_id: str, repository: Repository, revision: str = "main") -> dict[str, Any]:
        sha = repository.resolve(revision)
        tree = repository.commit(sha)["tree"]
        card: dict[str, Any] = {}
        if "README.md" in tree:
            readme = repository.content(tree["README.md"]["sha256"]).decode()
            front = re.match(r"---\n(.*?)\n---", readme, re.S)
            card = yaml.safe_load(front.group(1)) if front else {}
        return {
            "id": repo_id, "modelId": repo_id, "sha": sha, "private": bool(repository.meta.get("private")),
            "tags": card.get("tags") or [], "siblings": [{"rfilename": path} for path in tree], "cardData": card,
            "lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0,
        }  # fmt: skip

    def info(self, body: bytes, kind: str, repo_id: str, revision: str | None) -> Answer:
        return Answer(200, self.describe(kind, repo_id, self.repository(kind, repo_id), revision or "main"))

    def list(self, body: bytes, kind: str) -> Answer:
        user, found = self.user(), []
        for meta in sorted((self.hub.folder / kind).glob("*/*/meta.json")):
            repo_id = f"{meta.parents[1].name}/{meta.parent.name}"
            repository = self.hub.repository(repo_id, kind)
            if repository.meta.get("private") and user is None:
                continue
            row = self.describe(kind, repo_id, repository)
            if self.query.get("author") in (None, meta.parents[1].name):
                wanted = self.query.get("filter")
                if wanted is None or wanted in row["tags"]:
                    found.append(row)
        return Answer(200, found)

    def organization(self, body: bytes, name: str) -> Answer:
        trusted = name in self.hub.trusted
        return Answer(200, {"name": name, "fullname": name, "avatarUrl": "", "trustedKernelPublisher": trusted})

    def make_collection(self, body: bytes) -> Answer:
        self.user(write=True)
        return self.hub.collections.create(json.loads(body))

    def collection(self, body: bytes, slug: str) -> Answer:
        return self.hub.collections.get(slug)

    def add_to_collection(self, body: bytes, slug: str) -> Answer:
        self.user(write=True)
        wish = json.loads(body)
        exists = self.hub.repository(wish["item"]["id"], f"{wish['item']['type']}s").folder.exists()
        return self.hub.collections.add(slug, wish, exists)

    def change_in_collection(self, body: bytes, slug: str, identifier: str) -> Answer:
        self.user(write=True)
        return self.hub.collections.change(slug, identifier, json.loads(body))

    def list_refs(self, body: bytes, kind: str, repo_id: str) -> Answer:
        refs = self.repository(kind, repo_id).refs
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in refs.items()
            if not name.startswith("refs/")
        ]
        return Answer(200, {"branches": branches, "converts": [], "tags": []})

    def branch(self, body: bytes, kind: str, repo_id: str, name: str) -> Answer:
        repository = self.repository(kind, repo_id, write=True)
        if name in repository.refs:
            return Answer(409, {"error": "Reference already exists"})
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repository.point(name, repository.resolve(start))
        return Answer(200)

    def tree(self, body: bytes, kind: str, repo_id: str, revision: str, folder: str | None) -> Answer:
        repository = self.repository(kind, repo_id)
        entries, folders = [], set()
        prefix = f"{folder}/" if folder else ""
        for path, entry in repository.commit(repository.resolve(revision))["tree"].items():
            if not path.startswith(prefix):
                continue
            name, deeper, _ = path[len(prefix) :].partition("/")
            if deeper and self.query.get("recursive", "false").lower() not in ("1", "true"):
                folders.add(prefix + name)
                continue
            row = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
            if entry["lfs"]:
                row["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}
            entries.append(row)
        if folder and not entries and not folders:
            raise Answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        folders_first = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        return Answer(200, folders_first + entries)

    def validate_yaml(self, body: bytes) -> Answer:
        content = json.loads(body)["content"]
        front = re.match(r"---\n(.*?)\n---(\n|$)", content, re.S)
        if not front:
            return Answer(200, {"warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        errors = card_errors(yaml.safe_load(front.group(1)))
        return Answer(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []})

    def preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> Answer:
        repository = self.repository(kind, repo_id, write=True)
        tree = repository.commit(repository.resolve(revision))["tree"]
        files = []
        for file in json.loads(body)["files"]:
            lfs = self.hub.upload_mode == "lfs" and file["path"].endswith((".safetensors", ".png"))
            row = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if file["path"] in tree:
                row["oid"] = tree[file["path"]]["oid"]
            files.append(row)
        return Answer(200, {"files": files})

    def lfs_batch(self, body: bytes, prefix: str | None, repo_id: str) -> Answer:
        kind = (prefix or "models/").rstrip("/")
        repository = self.repository(kind, repo_id, write=True)
        objects = []
        for wish in json.loads(body)["objects"]:
            row = {"oid": wish["oid"], "size": wish["size"]}
            if not (repository.folder / "contents" / wish["oid"]).is_file():
                row["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{kind}/{repo_id}/{wish['oid']}"}}
            objects.append(row)
        return Answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, kind: str, repo_id: str, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return Answer(400, {"error": "the content does not have the checksum that was announced"})
        self.hub.repository(repo_id, kind).add(body, lfs=True)
        return Answer(200)

    def commit(self, body: bytes, kind: str, repo_id: str, revision: str) -> Answer:
        repository = self.repository(kind, repo_id, write=True)
        parent = repository.resolve(revision)
        tree = dict(repository.commit(parent)["tree"])
        summary = ""
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value["summary"]
                expected = value.get("parentCommit")
                if expected and expected != parent:
                    return Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            elif item["key"] == "file":
                tree[value["path"]] = repository.add(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                if not (repository.folder / "contents" / value["oid"]).is_file():
                    return Answer(400, {"error": f"no content was uploaded for {value['path']}"})
                entry = {"sha256": value["oid"], "oid": value["oid"], "size": value["size"], "lfs": True}
                tree[value["path"]] = entry
            elif item["key"] == "deletedFile":
                tree.pop(value["path"], None)
        name = repository.store({"parent": parent, "summary": summary, "tree": tree})
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo_id}"
        answer = {"success": True, "commitOid": name, "commitUrl": f"{url}/commit/{name}", "hookOutput": ""}
        if self.query.get("create_pr"):
            repository.point(f"refs/pr/{number}", name)
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        else:
            repository.point(revision, name)
        return Answer(200, answer)

    def file(self, body: bytes, prefix: str | None, repo_id: str, revision: str, path: str) -> Answer:
        repository = self.repository((prefix or "models/").rstrip("/"), repo_id)
        commit = repository.resolve(revision)
        entry = repository.commit(commit)["tree"].get(path)
        if entry is None:
            raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{entry["oid"]}"', "Content_Type": "application/octet-stream"}
        if entry["lfs"]:
            headers |= {"X_Linked_Etag": f'"{entry["sha256"]}"', "X_Linked_Size": str(entry["size"])}
        data, status = repository.content(entry["sha256"]), 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked:
            start, status = int(asked[1]), 206
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        return Answer(status, data, **headers)


_ID = r"([\w.-]+/[\w.-]+)"
_REVISION = r"((?:refs/(?:heads|pr)/)?[^/]+)"
_ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET /api/{KINDS}", _Handler.list),
    (r"POST /api/collections", _Handler.make_collection),
    (rf"GET /api/collections/{_ID}", _Handler.collection),
    (rf"POST /api/collections/{_ID}/items", _Handler.add_to_collection),
    (rf"PATCH /api/collections/{_ID}/items/(\w+)", _Handler.change_in_collection),
    (r"GET /api/organizations/([\w.-]+)/overview", _Handler.organization),
    (rf"GET /api/{KINDS}/{_ID}(?:/revision/(.+))?", _Handler.info),
    (rf"GET /api/{KINDS}/{_ID}/refs", _Handler.list_refs),
    (rf"POST /api/{KINDS}/{_ID}/branch/(.+)", _Handler.branch),
    (rf"GET /api/{KINDS}/{_ID}/tree/{_REVISION}(?:/(.+))?", _Handler.tree),
    (rf"POST /api/{KINDS}/{_ID}/preupload/(.+)", _Handler.preupload),
    (rf"POST /api/{KINDS}/{_ID}/commit/(.+)", _Handler.commit),
    (rf"POST /(datasets/|spaces/|kernels/)?{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (rf"PUT /_lfs/{KINDS}/{_ID}/([0-9a-f]+)", _Handler.lfs_put),
    (rf"(?:GET|HEAD) /(datasets/|spaces/|kernels/)?{_ID}/resolve/{_REVISION}/(.+)", _Handler.file),
]


def card_errors(data: Any) -> list[str]:
    """What is wrong with a model card's metadata, by the fields that the Hub documents.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    errors = []
    for key in ("library_name", "pipeline_tag", "model_name"):
        if not isinstance(data.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "metrics", "license", "language", "base_model"):
        value = data.get(key, "")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) for v in values):
            errors.append(f'"{key}" must be a string or a list of strings')
    index = data.get("model-index", [])
    if not isinstance(index, list):
        return [*errors, '"model-index" must be a list']
    for i, model in enumerate(index):
        at = f'"model-index[{i}]'
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append(f'{at}" needs a name and results')
            continue
        for j, result in enumerate(model["results"]):
            here = f"{at}.results[{j}]"
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append(f'{here}.task.type" is required')
            for key in ("type", "name"):
                if not isinstance(result.get("dataset", {}).get(key), str):
                    errors.append(f'{here}.dataset.{key}" is required')
            if not result.get("metrics"):
                errors.append(f'{here}.metrics" is required')
            for metric in result.get("metrics", []):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    errors.append(f'{here}.metrics" need a type and a value')
            source = result.get("source")
            if source is not None and not re.match(r"https?://", str(source.get("url"))):
                errors.append(f'{here}.source.url" must be a URL')
    return errors
