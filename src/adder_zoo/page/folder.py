"""The folder of the page: ``index.html``, which holds everything, and ``README.md``, the card of a static Space."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from .. import __version__, atomic
from ..hub.merge import merge

PAGE = "index.html"
CARD = "README.md"
SCRIPTS = ("engine.js", "pixels.js", "pad.js", "tiles.js", "page.js")
NETWORK = re.compile(r'<script type="application/json" class="network">(.*?)</script>', re.S)
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect width='32' height='32' "
    "rx='8' fill='%230b7a5e'/%3E%3Cpath d='M8 16h16' stroke='white' stroke-width='4' stroke-linecap='round'/%3E"
    "%3C/svg%3E"
)


def write_page(folder: str | Path, networks: Sequence[dict[str, Any]]) -> int:
    """Writes the page in place of what is in ``folder``; returns the size of ``index.html`` in bytes.

    Args:
        folder: Made if it is missing. What is in it is replaced as a whole.
        networks: What ``describe`` gave, in the order in which the page offers them.
    """
    with atomic.replace_folder(folder) as part:
        (part / PAGE).write_text(_page(networks), encoding="utf-8")
        (part / CARD).write_text(_card(networks), encoding="utf-8")
        return (part / PAGE).stat().st_size


def add_to_page(folder: str | Path, network: dict[str, Any]) -> int:
    """Puts a network beside those of the page in ``folder``, or in place of the one of its name.

    The card keeps what people wrote around its generated part, and other files stay.

    Raises:
        ValueError: there is no page in the folder, or its card was damaged.
    """
    folder = Path(folder)
    networks = networks_of(folder)
    names = [each["name"] for each in networks]
    if network["name"] in names:
        networks[names.index(network["name"])] = network
    else:
        networks.append(network)
    old = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
    card = merge(old, _card(networks))
    with atomic.replace_files(folder) as part:
        (part / PAGE).write_text(_page(networks), encoding="utf-8")
        (part / CARD).write_text(card, encoding="utf-8")
        return (part / PAGE).stat().st_size


def networks_of(folder: str | Path) -> list[dict[str, Any]]:
    """The networks of the page in ``folder``, as ``describe`` gave them.

    Raises:
        ValueError: there is no page of this package.
    """
    page = Path(folder) / PAGE
    found = NETWORK.findall(page.read_text(encoding="utf-8")) if page.is_file() else []
    if not found:
        raise ValueError(f"{folder} holds no page of `adder-zoo export --format page`")
    return [json.loads(text) for text in found]


def _page(networks: Sequence[dict[str, Any]]) -> str:
    style = _own("page.css")
    script = '(() => {\n"use strict";\n' + "\n".join(_own(name) for name in SCRIPTS) + "})();\n"
    policy = (
        f"default-src 'none'; script-src '{_checksum(script)}' 'wasm-unsafe-eval'; style-src '{_checksum(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _rendered(
        "index.html", policy=policy, icon=ICON, style=style, script=script, version=__version__,
        networks="\n".join(_block(network) for network in networks),
    )  # fmt: skip


def _block(network: dict[str, Any]) -> str:
    """A network as a block of data, which browsers do not run."""
    text = json.dumps(network, ensure_ascii=True).replace("<", "\\u003c")
    return f'<script type="application/json" class="network">{text}</script>'


def _card(networks: Sequence[dict[str, Any]]) -> str:
    licences = {network["license"] for network in networks}
    return _rendered("card.md", networks=networks, licence=licences.pop() if len(licences) == 1 else None)


def _rendered(name: str, **values: Any) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_own(name)).render(values)


def _own(name: str) -> str:
    return (files(__package__) / "files" / name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    """What a policy names an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
