"""The Triton kernels in the form that Hugging Face's ``kernels`` loads from the Hub, built from ``kernels/adder2d``.

    build/torch-cpu/, build/torch-cuda/    the sources, _ops.py and metadata.json, for each backend
    README.md                              the card

The sources are Triton and Python, so that there is nothing to compile and both backends get the same files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from .. import atomic
from ..paths import checkout

_OPS = '''\
"""Written by the build: the namespace for operators that this version of the kernels registers."""

import torch

ops = getattr(torch.ops, "{id}")


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
'''


def source() -> Path:
    """``kernels/adder2d`` of this checkout.

    Raises:
        FileNotFoundError: this is an installed package, which has the kernels but not their project.
    """
    root = checkout()
    if root is None:
        raise FileNotFoundError("the zoo is published from a checkout of adder_zoo; this is an installed package")
    return root / "kernels" / "adder2d"


def describe(project: Path) -> dict[str, str]:
    """``name``, ``version``, ``license`` and ``repo-id`` of ``build.toml``."""
    text = (project / "build.toml").read_text()
    # Python 3.10 has no tomllib, and four plain values need none.
    found = dict(re.findall(r'^(name|version|license|repo-id) *= *"?([^"\n]+)"?$', text, re.M))
    missing = {"name", "version", "license", "repo-id"} - set(found)
    if missing:
        raise ValueError(f"{project / 'build.toml'} names no {', '.join(sorted(missing))}")
    return found


def backends(project: Path) -> list[str]:
    listed = re.search(r"^backends *= *\[([^\]]*)\]", (project / "build.toml").read_text(), re.M)
    return re.findall(r'"(\w+)"', listed[1]) if listed else []


def build(target: str | Path, organisation: str | None = None) -> Path:
    """Writes what is uploaded into ``target``, instead of an earlier build.

    Args:
        target: Folder to write: a new or an empty one, or one that this function made.
        organisation: Under which it goes up; by default that of ``build.toml``. The card names it.

    Returns:
        ``target``; ``kernels.get_local_kernel`` takes it.

    Raises:
        ValueError: ``target`` holds something else. It is left as it is.
        OSError: it cannot be written; what was there before is there still.
    """
    project, target = source(), Path(target)
    about = describe(project)
    _check_ours(target, about["name"])
    with atomic.replace_folder(target) as part:
        _write(part, project, about, organisation)
    return target


def _check_ours(target: Path, name: str) -> None:
    """Refuses to delete what is not an earlier build."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    others = ["it is a file"] if not target.is_dir() else []
    for path in target.rglob("*") if target.is_dir() else ():
        part = path.relative_to(target).parts
        ours = part in (("README.md",), ("build",)) or (part[0] == "build" and part[1].startswith("torch-"))
        others += [] if ours else [path.relative_to(target).as_posix()]
    found = list(target.glob("build/torch-*/metadata.json"))
    if others or not found or any(_name_of(path) != name for path in found):
        what = ", ".join(others[:3]) or f"no build of {name}"
        raise ValueError(f"{target} is not an earlier build of the kernels ({what}): name a new or an empty folder")


def _name_of(metadata: Path) -> str | None:
    try:
        return json.loads(metadata.read_text()).get("name")
    except (ValueError, AttributeError):
        return None


def _write(target: Path, project: Path, about: dict[str, str], organisation: str | None) -> None:
    files = sorted((project / "torch-ext" / about["name"]).glob("*.py"))
    digest = hashlib.sha1(b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()[:8]
    for backend in backends(project):
        folder = target / "build" / f"torch-{backend}"
        folder.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
        # One process may hold several versions, and both backends: the name keeps them apart.
        identifier = f"_{about['name']}_{backend}_{digest}"
        (folder / "_ops.py").write_text(_OPS.format(id=identifier))
        metadata = {
            "name": about["name"],
            "id": identifier,
            "version": int(about["version"]),
            "license": about["license"],
            "python-depends": [],
            "backend": {"type": backend},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    card = (project / "CARD.md").read_text()
    if organisation:
        card = card.replace(about["repo-id"], f"{organisation}/{about['name']}")
    (target / "README.md").write_text(card)
