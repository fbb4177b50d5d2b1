"""The two driver programs in tests/native, which run the native library without Python on cases from a file."""

import functools
import json
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import preloaded
import pytest
from native_build import BUILD, DRIVERS, FLAGS, KERNELS, ROOT, SUPPORT, run, tool

RECORDED = json.loads((DRIVERS / "instructions.json").read_text())
SANITIZED = ["-g1", "-O1", "-DADDER_X86", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@functools.cache
def cases_from(script: str, folder: Path) -> Path:
    """What tests/support/``script``.py writes, once in a session."""
    file = folder / f"{script}.bin"
    run(*preloaded.python(), SUPPORT / f"{script}.py", file)
    return file


@functools.cache
def built(name: str, folder: Path) -> Path:
    """The driver beside the library that the package was built with, once in a session."""
    library = next((ROOT / "src/adder_zoo").glob("_native*.so"), None)
    if library is None:
        pytest.skip("needs the native library in the source tree (make install)")
    shutil.copy(library, folder / f"lib{name}.so")
    linked = f"-L{folder}", f"-l{name}", f"-Wl,-rpath,{folder}"
    run(tool("g++", "c++"), *FLAGS, "-O1", DRIVERS / f"{name}.cpp", *linked, "-o", folder / name)
    return folder / name


@dataclass(frozen=True)
class Driver:
    """One of the programs: tests/native/``name``.cpp, which goes through ``cases`` cases on each instruction set."""

    name: str
    cases: int

    def sanitized(self, folder: Path) -> Path:
        """Built with the kernels for x86-64, so that a byte read or written outside of a tensor stops it."""
        if platform.machine() != "x86_64":
            pytest.skip("needs x86-64")
        return self._with_kernels(folder, tool("g++"), "x86_64", SANITIZED)

    def for_aarch64(self, folder: Path) -> tuple[str, Path]:
        """An emulator, and the program cross-compiled for it: not the speed of such a CPU, but its instructions."""
        compiler, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64-static", "qemu-aarch64")
        return emulator, self._with_kernels(folder, compiler, "aarch64", ["-O2", "-DADDER_ARM64", "-static"])

    def _with_kernels(self, folder: Path, compiler: str, machine: str, options: list[str]) -> Path:
        objects = []
        for source, isa in BUILD[machine]["sources"].items():
            objects.append(folder / f"{source}.o")
            run(compiler, *FLAGS, *isa, *options, "-c", KERNELS / source, "-o", objects[-1])
        run(compiler, *FLAGS, *options, DRIVERS / f"{self.name}.cpp", *objects, "-o", folder / self.name)
        return folder / self.name

    def passed(self, done, isas: set[str]) -> None:
        """That these instruction sets and no other went through every case without a failure."""
        assert set(re.findall(rf"^([\w-]+): {self.cases} cases$", done.stdout, re.M)) == isas, done.stdout
        assert re.search(r"^[1-9]\d+ checks, 0 failures$", done.stdout, re.M), done.stdout


def instruction_sets() -> set[str]:
    """What the operating system says that this CPU has, of what the kernels are built for."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("needs x86-64 and Linux to know what the CPU has")
    flags = set(_cpu("flags").split())
    found = {"avx2": {"avx2"}, "avx512": {"avx512bw", "avx512vl"}}
    return {"generic"} | {isa for isa, needed in found.items() if needed <= flags}


def int8_instruction_sets() -> set[str]:
    """The same for the int8 kernels, which add up in two ways on AMD's Zen 3 and later."""
    isas = instruction_sets()
    adds_denormals = _cpu("vendor_id") == "AuthenticAMD" and int(_cpu("cpu family")) >= 0x19
    return isas | ({f"{isa}-denormal" for isa in isas - {"generic"}} if adds_denormals else set())


def _cpu(field: str) -> str:
    return re.search(rf"^{field}\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].strip()


def check_instructions(kind: str, layer: str, driver: Path, folder: Path) -> None:
    """As many as were recorded, which noise cannot touch. Far fewer: record them again, with count_instructions.py."""
    from count_instructions import compiler, instructions

    tool("valgrind")
    if compiler() != RECORDED["compiler"]:
        pytest.skip(f"was recorded with {RECORDED['compiler']}, this is {compiler()}")
    counted = instructions(driver, layer, folder)
    if counted is None:
        pytest.skip("needs AVX2")
    recorded = RECORDED[kind][layer]
    assert 0.9 * recorded < counted < 1.03 * recorded
