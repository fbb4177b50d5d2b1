"""Where things lie: the one place that tells an installed package from a checkout of the project."""

from __future__ import annotations

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
WEIGHTS = PACKAGE / "weights"  # a folder for each checkpoint in the package, called as timm calls the network


def checkout() -> Path | None:
    """The root of the checkout that the package lies in; None for an installed package."""
    root = PACKAGE.parents[1]
    return root if PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file() else None


def commit() -> tuple[str, bool] | None:
    """The commit of this checkout, and whether tracked files differ from it; None without git.

    None for an installed package too: ``site-packages`` may lie inside somebody else's repository.
    """
    root = checkout()
    if root is None:
        return None
    git = ("git", "-C", str(root))
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head, bool(changed)
