"""``notebook.ipynb`` of a network: the code of its card, to be run from top to bottom; the Hub opens it in Colab."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .evaluation import HUB
from .snippets import Snippet

FILE = "notebook.ipynb"
MARK = "adder_zoo"  # the key in a notebook's metadata that tells ours from one that people wrote

INSTALL = """\
import importlib.util, subprocess, sys
if importlib.util.find_spec("adder_zoo") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "adder_zoo"], check=True)
"""
IMAGE = """\
import pathlib, PIL.Image
if not pathlib.Path("image.png").exists():  # put an image of yours here: this one is no more than a grey disc
    PIL.Image.radial_gradient("L").save("image.png")
"""
COSTS = """\
network = timm.create_model("hf-hub:{repo_id}")
print(adder_zoo.report(network))
"""


def render(repo_id: str, code: Sequence[Snippet], in_bytes: bool) -> bytes:
    """The notebook of the network at ``repo_id``, in version 4 of the format.

    Args:
        repo_id: Where it is on the Hub.
        code: Its snippets.
        in_bytes: Whether it is a network in bytes, whose operations are counted by its float network.
    """
    cells = [_text(f"# {repo_id.rpartition('/')[2]}\n\n[The card]({HUB}/{repo_id}) says what it is.")]
    cells += [_code(INSTALL), _code(IMAGE)]
    for snippet in code:
        cells += [_text(f"## {snippet.title}"), _code(snippet.code)]
    if not in_bytes:
        cells += [
            _text("## What it costs\n\nOperations and energy for one image."),
            _code(COSTS.format(repo_id=repo_id)),
        ]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, MARK: {"written_by": "adder-zoo push"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(source)}


def _code(source: str) -> dict[str, Any]:
    code: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {**code, "source": _lines(source.rstrip("\n"))}


def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


def is_ours(data: bytes) -> bool:
    """Whether a push wrote this notebook; people's own are left alone."""
    try:
        return MARK in json.loads(data).get("metadata", {})
    except (ValueError, AttributeError, TypeError):
        return False
