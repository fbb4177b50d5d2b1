"""The site builds without a warning, opens without a network, and its links and files exist."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import warnings

import pytest
from pages import PAGES, ROOT, SITE, name

import adder_zoo


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning, a broken link or an unknown reference ends the build."""
    from sphinx.cmd.build import main as build

    folder = tmp_path_factory.mktemp("site")
    out = io.StringIO()
    with contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Sphinx to its own extensions
        status = build(
            ["-W", "-n", "--keep-going", "-q", "-d", str(folder / "doctrees"), str(SITE), str(folder / "html")]
        )
    assert status == 0, out.getvalue()
    return folder / "html"


def test_site_builds(site):
    assert (site / "index.html").is_file()
    api = (site / "api.html").read_text()
    for public in adder_zoo.__all__:
        if public not in ("__version__", "models"):
            assert f'id="adder_zoo.{public}"' in api, f"{public} is missing in the API reference"


def test_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"


def test_files_that_pages_name_exist():
    for page in PAGES:
        if page.name == "changelog.md":
            continue
        for named in re.findall(
            r"`((?:src|tests|recipes|kernels|benchmarks|docs|hub_cards)/[\w./-]*)`", page.read_text()
        ):
            built = named.startswith("docs/_build/")  # by `make docs`
            assert built or (ROOT / named).exists(), f"{name(page)}: {named}"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_outside_of_the_site(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        assert (page.parent / path).exists(), target
        if anchor:
            assert anchor in [slug(h) for h in re.findall(r"^#+ (.*)$", (page.parent / path).read_text(), re.M)], target


def test_picture_is_what_its_script_draws():
    drawn = runpy.run_path(str(SITE / "figures/what_it_is.py"))["picture"]()
    assert (SITE / "figures/what_it_is.svg").read_text() == drawn
