"""When a figure was measured, and of which version."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The commit of this checkout, with a "+" where the sources are not its; empty outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", ROOT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "recipes", "benchmarks/*.py")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def measured() -> dict[str, str]:
    return {"date": datetime.now(timezone.utc).date().isoformat(), "commit": commit()}
