"""Draws what_it_is.svg, the picture of the README: one patch and one filter, compared in two ways.

    python docs/figures/what_it_is.py

The colours follow the reader's light or dark mode, and the picture brings its own background, so that it reads well on
any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PATCH = (1, 3, 2, 0, 2, 1, 2, 1, 0)
FILTER = (1, 2, 2, 1, 2, 0, 2, 0, 1)
CELL = 30
STYLE = """
    .card { fill: #ffffff; stroke: #d0d7de } .cell { fill: #f6f8fa; stroke: #8c959f }
    .warm { fill: #ffe7d1; stroke: #bc4c00 } .cool { fill: #ddf4ff; stroke: #0969da }
    .line { stroke: #57606a; fill: none } .head { fill: #57606a }
    text { fill: #1f2328; font-family: "DejaVu Sans", Helvetica, Arial, sans-serif }
    .quiet { fill: #57606a }
    @media (prefers-color-scheme: dark) {
      .card { fill: #161b22; stroke: #30363d } .cell { fill: #21262d; stroke: #6e7681 }
      .warm { fill: #4a2a10; stroke: #f0883e } .cool { fill: #0c2d4d; stroke: #58a6ff }
      .line { stroke: #8b949e } .head { fill: #8b949e } text { fill: #e6edf3 } .quiet { fill: #8b949e }
    }
"""


def text(
    x: float, y: float, content: str, size: int = 15, anchor: str = "middle", kind: str = "", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{name}{weight}>{content}</text>'


def grid(x: float, y: float, values: Sequence[int], kind: str) -> list[str]:
    """Nine numbers in a square whose upper left corner is (x, y)."""
    parts = []
    for i, value in enumerate(values):
        left, top = x + CELL * (i % 3), y + CELL * (i // 3)
        parts.append(f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{CELL}" height="{CELL}"/>')
        parts.append(text(left + CELL / 2, top + CELL / 2 + 5, str(value)))
    return parts


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (x1 + x2) / 2
    curve = f"M{x1:g} {y1:g} C{middle:g} {y1:g} {middle:g} {y2:g} {x2 - 8:g} {y2:g}"
    path = f'<path class="line" stroke-width="1.6" d="{curve}"/>'
    head = f'<path class="head" d="M{x2:g} {y2:g} l-9 -4.5 l0 9 z"/>'
    return path + head


def picture() -> str:
    products = [x * w for x, w in zip(PATCH, FILTER, strict=True)]
    differences = [abs(x - w) for x, w in zip(PATCH, FILTER, strict=True)]
    width, height = 760, 300
    rows = (
        (22, "Convolution", "multiply", products, "warm", sum(products), "9 multiplications, 9 additions"),
        (162, "Adder layer", "subtract", differences, "cool", -sum(differences), "no multiplications, 18 additions"),
    )
    parts = [
        f'<rect class="card" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"/>',
        text(85, 36, "patch of the image, x", 13, kind="quiet"),
        *grid(40, 46, PATCH, "cell"),
        text(85, 172, "filter, w", 13, kind="quiet"),
        *grid(40, 182, FILTER, "cell"),
    ]
    for top, name, how, values, kind, answer, cost in rows:
        centre = top + 71
        parts += [arrow(142, 150, 222, centre), *grid(230, top + 26, values, kind)]
        parts += [text(275, top + 16, "x · w" if kind == "warm" else "|x − w|", 13, kind="quiet")]
        parts += [arrow(332, centre, 392, centre)]
        parts += [text(430, centre + 10, f"{answer}".replace("-", "−"), 30, bold=True)]
        parts += [text(490, top + 56, name, 19, "start", bold=True)]
        parts += [text(490, top + 80, f"{how}, then add", 14, "start")]
        parts += [text(490, top + 102, cost, 14, "start", "quiet")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">\n'
        f"  <title>A convolution multiplies a patch with a filter; an adder layer subtracts them</title>\n"
        f"  <style>{STYLE}  </style>\n  " + "\n  ".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture())
