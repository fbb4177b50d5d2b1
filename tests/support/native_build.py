"""Compiles programs against the native library, as its own build does, and runs them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = ROOT / "tests/native"
SUPPORT = ROOT / "tests/support"
KERNELS = ROOT / "kernels/cpu"
BUILD = json.loads((KERNELS / "sources.json").read_text())
FLAGS = ["-std=c++17", "-fno-trapping-math", "-fno-math-errno", f"-I{KERNELS}"]


def tool(*names):
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"needs {names[0]}")


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return done
