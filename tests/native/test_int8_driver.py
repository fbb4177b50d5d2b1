"""The int8 kernels without Python, through a driver program: bit by bit what exact integers say, on every path."""

import functools
import json
import platform
import re
import subprocess
from pathlib import Path

import preloaded
import pytest
from native_build import BUILD, DRIVERS, FLAGS, KERNELS, ROOT, SUPPORT, run, tool

CASES = 472
DRIVER = DRIVERS / "int8_driver.cpp"


@functools.cache
def cases_in(folder: Path) -> Path:
    run(*preloaded.python(), SUPPORT / "int8_cases.py", folder / "int8_cases.bin")
    return folder / "int8_cases.bin"


@pytest.fixture
def cases(tmp_path_factory):
    return cases_in(tmp_path_factory.getbasetemp())


def check_output(done, isas):
    assert set(isas) == set(re.findall(rf"^(\w+): {CASES} cases$", done.stdout, re.M)), done.stdout
    assert re.search(r"^[1-9]\d+ checks, 0 failures$", done.stdout, re.M), done.stdout


@functools.cache
def built_in(folder: Path) -> Path:
    library = next((ROOT / "src/adder_zoo").glob("_native*.so"), None)
    if library is None:
        pytest.skip("needs the native library in the source tree (make install)")
    (folder / "libadder_int8.so").write_bytes(library.read_bytes())
    run(tool("g++", "c++"), *FLAGS, "-O1", DRIVER, f"-L{folder}", "-ladder_int8", f"-Wl,-rpath,{folder}",
        "-o", folder / "int8_driver")  # fmt: skip
    return folder / "int8_driver"


@pytest.fixture
def driver(tmp_path_factory):
    return built_in(tmp_path_factory.getbasetemp())


def instruction_sets() -> set[str]:
    """What the operating system says that this CPU has, of what the kernels are built for."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("needs x86-64 and Linux to know what the CPU has")
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    found = {"avx2": {"avx2"}, "avx512": {"avx512bw", "avx512vl"}}
    return {"generic"} | {isa for isa, needed in found.items() if needed <= flags}


def test_every_path_gives_the_same_bits(driver, cases):
    check_output(run(driver, "cases", cases), instruction_sets())


def test_the_driver_notices(driver, cases, tmp_path):
    data = bytearray(cases.read_bytes())
    data[20 * 8] ^= 0x40  # the first x
    (tmp_path / "off.bin").write_bytes(data)
    done = subprocess.run([driver, "cases", tmp_path / "off.bin"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "case 0, y: element" in done.stderr


@pytest.mark.slow
def test_under_sanitizers(tmp_path, cases):
    """No byte read or written that is not the caller's or the library's own."""
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64")
    sanitize = ["-g1", "-O1", "-DADDER_X86", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = []
    for name, isa in BUILD["x86_64"]["sources"].items():
        objects.append(tmp_path / f"{name}.o")
        run(tool("g++"), *FLAGS, *sanitize, *isa, "-c", KERNELS / name, "-o", objects[-1])
    run(tool("g++"), *FLAGS, *sanitize, DRIVER, *objects, "-o", tmp_path / "driver")
    check_output(run(tmp_path / "driver", "cases", cases), instruction_sets())


@pytest.mark.slow
def test_on_aarch64(tmp_path, cases):
    """Cross-compiled, under qemu: not the speed of such a CPU, but its instructions."""
    compiler, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64-static", "qemu-aarch64")
    objects = []
    for name, flags in BUILD["aarch64"]["sources"].items():
        objects.append(tmp_path / f"{name}.o")
        run(compiler, *FLAGS, *flags, "-O2", "-DADDER_ARM64", "-c", KERNELS / name, "-o", objects[-1])
    run(compiler, *FLAGS, "-O2", "-static", DRIVER, *objects, "-o", tmp_path / "driver")
    check_output(run(emulator, tmp_path / "driver", "cases", cases), {"neon", "generic"})


RECORDED = json.loads((DRIVERS / "instructions.json").read_text())


@pytest.mark.parametrize("layer", RECORDED["int8"])
def test_instructions(layer, driver, tmp_path):
    """As many as were recorded, which noise cannot touch. Far fewer: record them again, with count_instructions.py."""
    from count_instructions import compiler, instructions

    tool("valgrind")
    if compiler() != RECORDED["compiler"]:
        pytest.skip(f"was recorded with {RECORDED['compiler']}, this is {compiler()}")
    counted = instructions(driver, layer, tmp_path)
    if counted is None:
        pytest.skip("needs AVX2")
    assert 0.9 * RECORDED["int8"][layer] < counted < 1.03 * RECORDED["int8"][layer]
