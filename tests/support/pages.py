"""Runs the Python examples of a Markdown page from top to bottom, as a reader would type them.

Used as a program it does so in a process with an environment of its own: ``pages.py docs/tutorials/share.md ...``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(p for p in SITE.rglob("*.md") if "_build" not in p.parts)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


_python = Sybil(parsers=[PythonCodeBlockParser()])


def run(page: Path) -> dict[str, Any]:
    """The names that the examples of ``page`` leave behind; raises what they raise, with the page and the line."""
    document = _python.parse(page)
    for example in document.examples():
        example.evaluate()
    return document.namespace


def has_python(page: Path) -> bool:
    return next(iter(_python.parse(page).examples()), None) is not None


def shell_lines(page: Path) -> list[str]:
    """The commands in the shell examples of ``page``, continued lines joined."""
    document = Sybil(parsers=[CodeBlockParser(language="bash", evaluator=lambda example: None)]).parse(page)
    joined = "\n".join(example.parsed.replace("\\\n", " ") for example in document.examples())
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # a recipe takes a thread for each core it may run on; other tests have them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    for argument in sys.argv[1:]:
        run(Path(argument))
