"""Every Python example in README, documentation and docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import io
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from hub_server import WRITE_TOKEN, HubServer
from pages import PAGES, ROOT, SITE, has_python, name, run

import adder_zoo

# These talk to the Hub, so they run in a process whose environment names a stand-in. The second pulls what the first
# pushed.
ON_THE_HUB = [SITE / "tutorials/share.md", SITE / "hub.md"]


# These train or export networks, for half a minute each.
LONG = [SITE / "deploy.md", SITE / "tutorials/convert.md", SITE / "tutorials/similarity.md"]


def pages_with_python():
    for page in PAGES:
        if has_python(page) and page not in ON_THE_HUB:
            yield pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (page in LONG))


@pytest.mark.parametrize("page", list(pages_with_python()))
def test_examples_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    # A recipe takes a thread for each core it may run on; the other tests have them.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    run(page)


def test_examples_that_need_the_hub_run(tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")},
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITE_TOKEN,
            "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p and "site-packages" not in p),
        }  # fmt: skip
        command = [*preloaded.python(), "tests/support/pages.py", *map(str, ON_THE_HUB)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def modules() -> list[str]:
    found = ["adder_zoo", *(m.name for m in pkgutil.walk_packages(adder_zoo.__path__, "adder_zoo."))]
    return [m for m in found if not m.startswith("adder_zoo.kernels") and not m.endswith(("__main__", "_native"))]


def test_examples_in_docstrings_run():
    attempted = failed = 0
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    out = io.StringIO()
    for module in map(importlib.import_module, modules()):
        for example in finder.find(module, module.__name__):
            result = runner.run(example, out=out.write)
            attempted, failed = attempted + result.attempted, failed + result.failed
    assert attempted >= 10
    assert not failed, out.getvalue()
