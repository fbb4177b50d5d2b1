"""Compiles an exported network for a small processor, runs it in qemu, and counts its instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# gcc may otherwise make a call of memcpy out of a loop, which a processor without a library has none of.
FLAGS = ["-std=gnu99", "-O2", "-ffreestanding", "-fno-tree-loop-distribute-patterns", "-nostdlib"]
PACKAGES = {
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf",
    "qemu-system-riscv32": "qemu-system-misc",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
}
MULTIPLICATIONS = re.compile(r"\s(?:[su]?m?(?:mul|mla|mls|ml)|[su]?div|rem)\w*\s|__\w*(?:mul|div|mod)")


class Missing(RuntimeError):
    """Tools that are not installed; names Debian's packages."""


@dataclass(frozen=True)
class Processor:
    """A processor: its name, prefix of tools, flags of its compiler, and how qemu is called."""

    name: str
    prefix: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...]


def _riscv(name: str, abi: str) -> Processor:
    emulator = ("qemu-system-riscv32", "-M", "virt", "-bios", "none")
    return Processor(name, "riscv64-unknown-elf-", (f"-march={name}", f"-mabi={abi}"), emulator)


def _arm(name: str, board: str) -> Processor:
    return Processor(
        name, "arm-none-eabi-", (f"-mcpu={name}", "-mthumb"), ("qemu-system-arm", "-M", board, "-semihosting")
    )


PROCESSORS = {
    processor.name: processor
    for processor in (
        _riscv("rv32i", "ilp32"),
        _riscv("rv32e", "ilp32e"),
        _riscv("rv32im", "ilp32"),
        _arm("cortex-m0", "mps2-an385"),  # the board has a Cortex-M3, which runs the same instructions
        _arm("cortex-m4", "mps2-an386"),
    )
}


@dataclass(frozen=True)
class Measured:
    """What a run printed for each image, the instructions of each, and sizes in bytes."""

    answers: list[str]
    instructions: list[int]
    code: int
    constants: int
    memory: int
    multiplies: bool  # whether the network's code has a multiplication or division, or calls one


def check_tools(processors: list[str]) -> None:
    """Raises Missing if a tool for one of ``processors`` is not installed."""
    needed = {t for name in processors for t in (PROCESSORS[name].prefix + "gcc", PROCESSORS[name].emulator[0])}
    packages = sorted(PACKAGES[tool] for tool in needed if shutil.which(tool) is None)
    if packages:
        raise Missing(f"needs Debian's packages {' '.join(packages)}: apt-get install {' '.join(packages)}")


def measure(
    processor: Processor,
    folder: Path,
    name: str,
    images: bytes,
    count: int,
    defines=(),
    timeout=900,
    extra=(),
    libraries=(),
) -> Measured:
    """Runs the network in ``folder``, as ``export_c`` wrote it, on ``count`` images.

    ``extra`` are flags of its compilation, and ``libraries`` what it is linked with.
    """
    values = ",".join(map(str, images))
    (folder / "images.h").write_text(
        f"#include <stdint.h>\n#define IMAGES {count}\n#define IMAGE_BYTES {len(images) // count}\n"
        f"static const uint8_t images[] = {{{values}}};\n"
    )
    (folder / "exported.h").write_text(
        f'#include "{name}.h"\n#define CLASSES {name.upper()}_CLASSES\n#define RUN {name}_run\n'
    )
    gcc = processor.prefix + "gcc"
    part, program = folder / f"{processor.name}.o", folder / f"{processor.name}.elf"
    flags = [*FLAGS, *processor.flags, *(f"-D{define}" for define in defines)]
    _run([gcc, *flags, *extra, "-c", str(folder / f"{name}.c"), "-o", str(part)])
    family = "riscv" if processor.prefix.startswith("riscv") else "arm"
    start = [str(HERE / "riscv.S")] if family == "riscv" else []
    _run(
        [gcc, *flags, f"-I{folder}", "-T", str(HERE / f"{family}.ld"), *start, str(HERE / "program.c"), str(part),
         *libraries, "-lgcc", "-Wl,--no-warn-rwx-segments", "-o", str(program)]
    )  # fmt: skip
    printed = _run(
        [*processor.emulator, "-icount", "shift=0", "-nographic", "-monitor", "none", "-kernel", str(program)], timeout
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assembly = _run([processor.prefix + "objdump", "-dr", str(part)])
    code, constants, memory = _sizes(processor, part)
    return Measured(
        [line[0] for line in lines], [int(line[1]) for line in lines], code, constants, memory,
        MULTIPLICATIONS.search(assembly) is not None,
    )  # fmt: skip


def _sizes(processor: Processor, part: Path) -> tuple[int, int, int]:
    code = constants = memory = 0
    for line in _run([processor.prefix + "size", "-A", str(part)]).splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdecimal():
            section, size = words[0], int(words[1])
            code += size if section.startswith(".text") else 0
            constants += size if section.startswith((".rodata", ".srodata", ".data", ".sdata")) else 0
            memory += size if section.startswith((".bss", ".sbss")) else 0
    return code, constants, memory


def _run(command: list[str], timeout: int = 300) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ...: {result.stderr[-2000:]}")
    return result.stdout
