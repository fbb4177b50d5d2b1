"""The Triton kernels in the form that Hugging Face's ``kernels`` loads from the Hub, built from ``kernels/adder2d``.

    build/torch-cuda/, build/torch-rocm/    the sources, _ops.py and metadata.json, for each backend
    benchmarks/                             what ``kernels benchmark`` runs
    README.md                               the card

The sources are Triton and Python, so that there is nothing to compile and all backends get the same files. This is what
``kernel-builder`` makes of the same project; https://huggingface.co/docs/kernels/kernel-requirements says what a build
has to hold.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2

from .. import atomic
from .._version import __version__
from ..paths import checkout, commit

_OPS = '''\
"""Written by the build: the namespace for operators that this version of the kernels registers."""

import torch

ops = getattr(torch.ops, "{id}")


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
'''

# Older versions of the client look for the kernels in a folder of their name.
_OLDER_CLIENTS = '''\
"""Written by the build, for older versions of the library ``kernels``: the same names as the folder above exports."""

import importlib.util
import sys
from pathlib import Path

if "{id}" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("{id}", Path(__file__).parents[1] / "__init__.py")
    sys.modules["{id}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["{id}"])

globals().update({{name: getattr(sys.modules["{id}"], name) for name in (*sys.modules["{id}"].__all__, "__all__")}})
'''

# What of the project goes up as its source: everything that is needed to build and test it again.
SOURCES = ("CARD.md", "build.toml", "flake.nix", "benchmarks/*.py", "tests/*.py", "torch-ext/**/*.py")


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
    """``name``, ``version``, ``license``, ``source`` and ``repo-id`` of ``build.toml``."""
    text = (project / "build.toml").read_text()
    # Python 3.10 has no tomllib, and five plain values need none.
    keys = ("name", "version", "license", "source", "repo-id")
    found = dict(re.findall(rf'^({"|".join(keys)}) *= *"?([^"\n]+)"?$', text, re.M))
    missing = set(keys) - set(found)
    if missing:
        raise ValueError(f"{project / 'build.toml'} names no {', '.join(sorted(missing))}")
    return found


def backends(project: Path) -> list[str]:
    listed = re.search(r"^backends *= *\[([^\]]*)\]", (project / "build.toml").read_text(), re.M)
    return re.findall(r'"(\w+)"', listed[1]) if listed else []


def build(target: str | Path, organisation: str | None = None) -> Path:
    """Writes what users load into ``target``, instead of an earlier build.

    Args:
        target: Folder to write: a new or an empty one, or one that this function made.
        organisation: Under which it goes up; by default the one in ``build.toml``. The card names it.

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
        ours = part in (("README.md",), ("build",), ("benchmarks",)) or (
            len(part) > 1 and part[1].startswith({"build": "torch-", "benchmarks": "benchmark"}.get(part[0], "\0"))
        )
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


def sources(organisation: str | None = None) -> dict[str, bytes]:
    """The project by path, as it goes up to the branch ``main`` of the kernels' repository, with the card."""
    project = source()
    about = describe(project)
    paths = sorted({path for pattern in SOURCES for path in project.glob(pattern)})
    files = {path.relative_to(project).as_posix(): path.read_bytes() for path in paths}
    for name in ("build.toml", "tests/test_adder2d.py"):
        files[name] = _of(organisation, about, files[name].decode()).encode()
    return {**files, "README.md": card(project, organisation).encode()}


def card(project: Path, organisation: str | None = None) -> str:
    """``CARD.md``, filled in as kernel-builder does."""
    about = describe(project)
    package = project / "torch-ext" / about["name"]
    exported = _exported(package / "__init__.py")
    classes = [node.name for node in _parsed(package / "layers.py").body if isinstance(node, ast.ClassDef)]
    template = jinja2.Environment(trim_blocks=True).from_string((project / "CARD.md").read_text())
    text = template.render(
        repo_id=about["repo-id"],
        version=about["version"],
        license=about["license"].lower(),
        source=about["source"],
        functions=[name for name in exported if name != "layers"],
        layers=classes,
        has_benchmark=(project / "benchmarks" / "benchmark.py").is_file(),
    )
    return _of(organisation, about, text) + "\n"


def _of(organisation: str | None, about: dict[str, str], text: str) -> str:
    """``text`` with the repository of an organisation where it names that of ``build.toml``."""
    return text.replace(about["repo-id"], f"{organisation}/{about['name']}") if organisation else text


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def _exported(file: Path) -> list[str]:
    """``__all__`` of a module, without importing it."""
    for node in _parsed(file).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{file} has no __all__, which is what versions of the kernels promise")


def _write(target: Path, project: Path, about: dict[str, str], organisation: str | None) -> None:
    package = project / "torch-ext" / about["name"]
    files = {path.relative_to(package).as_posix(): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    contents = hashlib.sha1(b"".join(name.encode() + data for name, data in files.items())).hexdigest()[:8]
    for backend in backends(project):
        # One process may hold several versions, and several backends: the name keeps them apart.
        identifier = f"_{about['name']}_{backend}_{contents}"
        written = {
            "_ops.py": _OPS.format(id=identifier).encode(),
            f"{about['name']}/__init__.py": _OLDER_CLIENTS.format(id=identifier).encode(),
        }
        folder = target / "build" / f"torch-{backend}"
        for name, data in {**files, **written}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        metadata = _metadata(about, identifier, backend, {**files, **written}, organisation)
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    (target / "benchmarks").mkdir()
    for script in sorted((project / "benchmarks").glob("benchmark*.py")):
        shutil.copyfile(script, target / "benchmarks" / script.name)
    (target / "README.md").write_text(card(project, organisation))


def _metadata(
    about: dict[str, str], identifier: str, backend: str, files: dict[str, bytes], organisation: str | None
) -> dict[str, Any]:
    """``metadata.json`` of a variant that holds ``files``; its own checksum is not in it."""
    digest = {name: base64.b64encode(hashlib.sha256(data).digest()).decode() for name, data in sorted(files.items())}
    # The client wants to know of a kernel-builder; the version says that it was none.
    provenance: dict[str, Any] = {"kernel-builder": {"version": f"none: built by adder_zoo {__version__}"}}
    built_from = commit()
    if built_from is not None:
        provenance["kernel"] = {"commit": built_from[0], "dirty": built_from[1]}
    return {
        "name": about["name"],
        "id": identifier,
        "version": int(about["version"]),
        "license": about["license"],
        "source": _of(organisation, about, about["source"]),
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digest},
        "provenance": provenance,
    }
