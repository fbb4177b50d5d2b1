"""The generated C of an integer network as WebAssembly."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from ..integer.c.folder import HEADERS
from ..integer.c.plan import plan
from ..integer.c.source import header, source
from ..integer.network import IntegerNetwork

PROGRAMS = {"clang": "clang", "wasm-ld": "lld"}  # and the Debian packages that have them
NAME = "network"
FLAGS = ("--target=wasm32", "-std=c99", "-O3", "-msimd128", "-ffreestanding", "-nostdlib", "-DNETWORK_TRACE",
         "-Wl,--no-entry", "-Wl,--strip-all")  # fmt: skip


class WasmError(RuntimeError):
    """A compiler is missing or failed; says what to do."""


def check_compiler() -> None:
    """Whether there is what ``compiled`` needs.

    Raises:
        WasmError: a program is missing; names it and the Debian package that has it.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(PROGRAMS[program] for program in missing)
        raise WasmError(
            f"WebAssembly is made by clang and wasm-ld, and this machine lacks {' and '.join(missing)}. On Debian and "
            f"Ubuntu: apt-get install {packages}"
        )


def compiled(network: IntegerNetwork) -> bytes:
    """A module that exports ``memory``, ``image()``, where the bytes of an image go, and ``run()``, where logits are.

    It imports ``page.trace(name, values, pixels, channels, bytes)``, which ``run`` calls with every tensor.

    Raises:
        WasmError: a program is missing, or the compiler failed.
    """
    check_compiler()
    planned = plan(network)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / f"{NAME}.h").write_text(header(NAME, network, planned))
        (folder / f"{NAME}.c").write_text(source(NAME, network, planned))
        for file in HEADERS:
            (folder / file).write_text((files("adder_zoo.integer.c") / "files" / file).read_text())
        (folder / "glue.c").write_text((files(__package__) / "files" / "glue.c").read_text())
        command = ["clang", *FLAGS, "-o", "network.wasm", "glue.c", f"{NAME}.c"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WasmError(
                "clang could not make WebAssembly; it must be version 13 or newer, with the target wasm32:\n"
                f"{done.stderr}"
            )
        return (folder / "network.wasm").read_bytes()
