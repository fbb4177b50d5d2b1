"""The native library without Python: a driver program on cases from a file: sanitized, for aarch64, and counted."""

import functools
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import preloaded
import pytest
import torch
from native_build import BUILD, DRIVERS, FLAGS, KERNELS, ROOT, SUPPORT, run, tool

CASES = 161


@functools.cache
def cases_in(folder: Path) -> Path:
    run(*preloaded.python(), SUPPORT / "native_cases.py", folder / "cases.bin")
    return folder / "cases.bin"


@pytest.fixture
def cases(tmp_path_factory):
    return cases_in(tmp_path_factory.getbasetemp())


@functools.cache
def built_in(folder: Path) -> Path:
    """The driver beside the library that the package was built with."""
    library = next((ROOT / "src/adder_zoo").glob("_native*.so"), None)
    if library is None:
        pytest.skip("needs the native library in the source tree (make install)")
    shutil.copy(library, folder / "libadder.so")
    run(tool("g++", "c++"), *FLAGS, "-O1", DRIVERS / "driver.cpp", f"-L{folder}", "-ladder", f"-Wl,-rpath,{folder}",
        "-o", folder / "driver")  # fmt: skip
    return folder / "driver"


@pytest.fixture
def driver(tmp_path_factory):
    return built_in(tmp_path_factory.getbasetemp())


def check_output(done, isas):
    assert set(isas) <= set(re.findall(rf"^(\w+): {CASES} cases$", done.stdout, re.M)), done.stdout
    assert re.search(r"^[1-9]\d+ checks, 0 failures$", done.stdout, re.M), done.stdout


def test_driver(driver, cases):
    # What torch finds this CPU to have, the build must have as well.
    best = {"AVX2": ["avx2"], "AVX512": ["avx512", "avx2"]}.get(torch.backends.cpu.get_cpu_capability(), [])
    check_output(run(driver, "cases", cases), [*best, "generic"])


def test_driver_notices(driver, cases, tmp_path):
    """A result that is off, and a file that ends too early."""
    data = bytearray(cases.read_bytes())
    (tmp_path / "short.bin").write_bytes(data[: len(data) // 2])
    assert subprocess.run([driver, "cases", tmp_path / "short.bin"], capture_output=True).returncode == 2
    data[16 * 8 + 3] ^= 0x40  # the exponent of the first x
    (tmp_path / "off.bin").write_bytes(data)
    done = subprocess.run([driver, "cases", tmp_path / "off.bin"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "case 0, " in done.stderr


@pytest.mark.slow
def test_driver_under_sanitizers(tmp_path, cases):
    """No byte read or written that is not the caller's or the library's own."""
    compiler = tool("g++")
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64")
    sanitize = ["-g1", "-O1", "-DADDER_X86", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = []
    for name, isa in BUILD["x86_64"]["sources"].items():
        objects.append(tmp_path / f"{name}.o")
        run(compiler, *FLAGS, *sanitize, *isa, "-c", KERNELS / name, "-o", objects[-1])
    run(compiler, *FLAGS, *sanitize, DRIVERS / "driver.cpp", *objects, "-o", tmp_path / "driver")
    check_output(run(tmp_path / "driver", "cases", cases), ["generic"])


@pytest.mark.slow
def test_driver_on_aarch64(tmp_path, cases):
    """Cross-compiled, under qemu: not the speed of such a CPU, but its instructions."""
    compiler = tool("aarch64-linux-gnu-g++")
    emulator = tool("qemu-aarch64-static", "qemu-aarch64")
    sources = [KERNELS / name for name in BUILD["aarch64"]["sources"]]
    run(
        compiler, *FLAGS, "-O2", "-static", "-DADDER_ARM64", DRIVERS / "driver.cpp", *sources, "-o", tmp_path / "driver"
    )
    check_output(run(emulator, tmp_path / "driver", "cases", cases), ["neon", "generic"])


LAYERS = json.loads((DRIVERS / "instructions.json").read_text())


# valgrind takes a second for five million instructions
COUNTED = [pytest.param(k, marks=[pytest.mark.slow] * (n > 20_000_000)) for k, n in LAYERS["layers"].items()]


@pytest.mark.parametrize("layer", COUNTED)
def test_instructions(layer, driver, tmp_path):
    """As many as were recorded, which noise cannot touch. Far fewer: record them again, with count_instructions.py."""
    from count_instructions import compiler, instructions

    tool("valgrind")
    if compiler() != LAYERS["compiler"]:
        pytest.skip(f"was recorded with {LAYERS['compiler']}, this is {compiler()}")
    counted = instructions(driver, layer, tmp_path)
    if counted is None:
        pytest.skip("needs AVX2")
    assert 0.9 * LAYERS["layers"][layer] < counted < 1.03 * LAYERS["layers"][layer]
