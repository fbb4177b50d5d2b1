"""Where things lie: the one place that tells an installed package from a checkout of the project."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
WEIGHTS = PACKAGE / "weights"  # a folder for each checkpoint in the package, called as timm calls the network


def checkout() -> Path | None:
    """The root of the checkout that the package lies in; None for an installed package."""
    root = PACKAGE.parents[1]
    return root if PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file() else None
