"""Runs a test file again under Triton's interpreter.

Triton decides when it is first imported whether it interprets, so tests of the kernels on a CPU need a process of their
own: such a file holds tests of both kinds, and without TRITON_INTERPRET=1 one that runs the file again with it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
UNCHECKED = "ADDER_ZOO_NO_OVERFLOW_CHECKS"  # "1": without the check below
REHEARSING = INTERPRETING and os.environ.get("ADDER_ZOO_REHEARSE_GPU") == "1"  # the GPU's tests, on a CPU

if INTERPRETING and os.environ.get(UNCHECKED) == "1":
    from triton.runtime import interpreter

    # It computes each 32-bit integer again in 64 bits, to see whether it overflows: 40 % of all the time. QUICK_AND_ALL
    # keeps that check where all tests run.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


QUICK_AND_ALL = pytest.mark.parametrize(
    "quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["quick", "all"]
)


def run_again(file: Path, quick: bool) -> None:
    """The tests of ``file``: the quick ones, or all, and then with the interpreter's check for overflow."""
    without = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # its report alone takes a second
    command = [sys.executable, "-m", "pytest", "-q", "-x", *without, "-m", "not slow" if quick else "", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", UNCHECKED: str(int(quick))}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=2400, cwd=file.parents[2]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
