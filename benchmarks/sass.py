"""What the Triton kernels become: the machine code of their hot loops, without a GPU.

    python benchmarks/sass.py [--arch sm_90 ...] [--only forward ...] [--json FILE] [--out DIR]

Compiles every kernel that a training step of ResNet-18 or ResNet-50 launches, in the configurations that the launchers
choose, with the compilers and disassemblers inside of the triton package. A kernel's hot loop is the one without a loop
in it that has most arithmetic. Of it are printed

    instructions  all that a thread issues in a turn
    share         of them that are the sum's own arithmetic: FADD, FFMA, HADD2, ... (on AMD v_add_f32, v_pk_add_f32)
    slots         instructions for each tap, one |x - w| or dy·HT(w - x) of one output: 2 is the limit of fp32, 1 of
                  fp16 and of packed fp32 (sm_100)
    registers     for each thread, and how many blocks of the kernel's size then fit on a multiprocessor
    spills        loads and stores of spilled registers in the loop, and in the whole kernel; the latter are mostly in
                  the matrix product that anchors the layout and is never executed
    shared        bytes of shared memory

It takes the Triton that is installed, or whose folder is first in PYTHONPATH, and records which. With
TRITON_DEFAULT_FP_FUSION=0 Triton contracts no product and sum unless asked to, as Triton 3.10 does.

``--out`` writes ``<kernel>.<configuration>.<arch>.cubin`` (or .hsaco).
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from layers import NETWORKS, Layer
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adder_zoo.ops.triton import kernels

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
REGISTERS = 65536  # of a multiprocessor
# Arithmetic by its name without suffixes.
MATH = {
    *("FADD", "FFMA", "FMUL", "FMNMX", "FADD2", "FFMA2", "HADD2", "HFMA2", "HMNMX2"),
    *(f"v_{name}_f32" for name in ("add", "sub", "subrev", "fma", "fmac", "mul", "max", "min", "med3")),
    *(f"v_{name}_f16" for name in ("add", "sub", "subrev", "max")),
    *(f"v_pk_{name}_{type}" for name in ("add", "sub", "fma", "mul", "max") for type in ("f32", "f16")),
}
POWER = 1.5  # stands for every p between 1 and 2
SPILLS = ("LDL", "STL", "scratch_load", "scratch_store")


@dataclass
class Count:
    """Of one kernel on one target; what the module's docstring says."""

    kernel: str
    configuration: str
    arch: str
    taps: float  # of a thread in a turn of the loop
    instructions: int
    math: int
    share: float
    slots: float
    registers: int
    threads: int
    blocks: int | None
    spills_in_loop: int
    spills: int
    shared: int
    mix: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.kernel}.{self.configuration}"


def launches(
    hip: bool = False, networks=tuple(NETWORKS), batch: int = 32, dtypes=None, formats=None, p: float = 1.0
) -> Iterator:
    """(direction, layer, launch) for each launch of a training step, on "meta" tensors."""
    formats = formats or (torch.contiguous_format, torch.channels_last)
    for network in networks:
        for layer in NETWORKS[network]():
            for memory_format in formats:
                for dtype in dtypes or (torch.float32, torch.float16, torch.bfloat16):
                    for direction, launch in plans(layer, batch, dtype, memory_format, hip, p):
                        yield direction if p == 1 else f"power-{direction}", layer, launch


def plans(layer: Layer, batch: int, dtype, memory_format, hip: bool = False, p: float = 1.0) -> Iterator:
    """(direction, launch) of one layer: forward, dx and, for p = 1, what looks through dw, otherwise dw itself."""
    names = ("forward", "grad_input", "grad_weight")
    forward, grad_input, grad_weight = (sys.modules[f"{kernels().__name__}.{name}"] for name in names)
    x_shape, w_shape = (batch, layer.C, layer.H, layer.H), (layer.K, layer.C, layer.R, layer.R)
    half = dtype == torch.float16 and p == 1
    last = torch.channels_last if dtype.itemsize < 4 else memory_format  # as the launcher has it
    x = torch.empty(x_shape, dtype=dtype, device="meta", memory_format=last)
    weight = torch.empty(w_shape, dtype=dtype, device="meta")
    g = forward.Geometry.of(x, weight, (layer.stride,) * 2, (layer.padding,) * 4, (1, 1), 1)
    y = torch.empty((g.N, g.K, g.P, g.Q), device="meta", memory_format=memory_format)
    kind = forward.variant(x, half, g.C, hip, p)
    yield "forward", forward.plan(x, forward.packed(weight, g, kind, half), y, g, None, hip, p)
    w, raw = grad_input.packed(weight, g, grad_input.variant(y, g.K, hip, p), p == 1), weight.float()
    total, dx = torch.empty(g.N, g.G, g.P, g.Q, device="meta"), torch.empty_like(x)
    yield "dx", grad_input.plan(y, x, w, dx, raw, total, w, g, "saturated", hip, p)
    yield "dw", grad_weight.plan(y, x, weight, torch.empty(w_shape, device="meta"), g, "full", p == 1, 1, hip, p)


def describe(direction: str, launch) -> tuple[str, str]:
    """Name of the kernel, and of its configuration."""
    c, dtype = launch.constants, str(launch.arguments["x_ptr"].dtype).removeprefix("torch.")
    if direction.endswith("dw"):
        return direction, f"{c['BLOCK_M']}x{c['BLOCK_K']}x{c['BLOCK_C']}-{dtype}"
    layout = "channels_last" if c["LAST"] else "nchw"
    return direction, f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['COLUMNS']}-{layout}-{dtype}"


def distinct(hip: bool = False, **options) -> dict[tuple[str, str], object]:
    """One launch for each compilation, by kernel and configuration."""
    found: dict[tuple, tuple] = {}
    for direction, _, launch in launches(hip, **options):
        found.setdefault(launch.compilation, (describe(direction, launch), launch))
    named: dict[tuple[str, str], object] = {}
    for (kernel, configuration), launch in found.values():
        twin = sum(k == kernel and c.startswith(configuration) for k, c in named)
        named[kernel, configuration + (f"-{twin + 1}" if twin else "")] = launch
    return named


def everything(hip: bool = False) -> dict[tuple[str, str], object]:
    """``distinct`` for p = 1 and, by the names of power-..., for 1 < p < 2."""
    return distinct(hip) | distinct(hip, p=POWER)


def compile_for(launch, arch: str):
    """The compiled kernel, as ``triton.compile`` returns it."""
    kernel, signature, constants, attributes = launch.source(arch.startswith("gfx"))
    options = launch.options
    if arch.startswith("gfx"):
        options.pop("maxnreg", None)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=TARGETS[arch], options=options)


def count(names: tuple[str, str], launch, arch: str, out: Path | None = None) -> Count:
    """Compiles and counts."""
    binary = compile_for(launch, arch)
    hip = arch.startswith("gfx")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(out or folder, f"{names[0]}.{names[1]}.{arch}.{'hsaco' if hip else 'cubin'}")
        file.write_bytes(binary.asm["hsaco" if hip else "cubin"])
        operations, loops, registers = _read_amd(binary.asm["amdgcn"]) if hip else _read_nvidia(file)
    c, threads = launch.constants, launch.num_warps * TARGETS[arch].warp_size
    size = c["BLOCK_M"] * (c["BLOCK_K"] * c["BLOCK_C"] if names[0].endswith("dw") else c["BLOCK_N"] * c["COLUMNS"])
    first, last = _hot(operations, loops)
    body = operations[first : last + 1]
    mix = collections.Counter(body)
    math = sum(n for name, n in mix.items() if name in MATH)
    taps = size / threads
    spills = [sum(name.startswith(SPILLS) for name in part) for part in (body, operations)]
    return Count(
        *names, arch, taps, len(body), math, math / len(body), len(body) / taps, registers, threads,
        None if hip else REGISTERS // (threads * (registers + 7 & ~7)), *spills, binary.metadata.shared,
        dict(mix.most_common()),
    )  # fmt: skip


def _hot(operations: list[str], loops: list[tuple[int, int]]) -> tuple[int, int]:
    def arithmetic(loop):
        return sum(name in MATH for name in operations[loop[0] : loop[1] + 1])

    innermost = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return max(innermost, key=arithmetic)


def _read_nvidia(cubin: Path) -> tuple[list[str], list[tuple[int, int]], int]:
    """Operations without suffixes, loops as (first, last), registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def dump(what):
        return subprocess.run([tool, what, cubin], capture_output=True, text=True, check=True).stdout

    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", dump("-sass"), re.M)
    code = [(int(address, 16), re.sub(r"^@!?U?P\w+\s+", "", text)) for address, text in code]
    place = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (address, text) in enumerate(code):
        target = re.match(r"BRA\S*\s.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append((place[int(target[1], 16)], i))
    registers = re.search(r"REG:(\d+)", dump("-res-usage"))
    return [text.split()[0].split(".")[0] for _, text in code], loops, int(registers[1])


def _read_amd(assembly: str) -> tuple[list[str], list[tuple[int, int]], int]:
    operations, labels, branches = [], {}, []
    for line in assembly.splitlines():
        line = line.split(";")[0].strip()
        label = re.match(r"(\.?\w+):$", line)
        if label:
            labels[label[1]] = len(operations)
        elif line and not line.startswith("."):
            branch = re.match(r"s_c?branch\S*\s+(\S+)", line)
            if branch:
                branches.append((branch[1], len(operations)))
            operations.append(re.sub(r"_(e\d+|dpp|sdwa)$", "", line.split()[0]))
    loops = [(labels[name], i) for name, i in branches if labels.get(name, i + 1) <= i]
    return operations, loops, int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1])


def table(counts: list[Count]) -> str:
    lines = [
        f"{'kernel':44} {'arch':7} {'instr':>6} {'share':>6} {'slots':>6} {'regs':>5} {'blocks':>6} {'spills':>9} "
        f"{'shared':>7}"
    ]
    for c in counts:
        lines.append(
            f"{c.name:44} {c.arch:7} {c.instructions:6} {c.share:6.1%} {c.slots:6.3f} {c.registers:5} "
            f"{c.blocks or '':>6} {f'{c.spills_in_loop}/{c.spills}':>9} {c.shared:7}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", nargs="+", help="beginnings of <kernel>.<configuration>, as the table prints them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET has the kernels interpreted; unset it")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    counts = []
    for arch in options.arch:
        for names, launch in everything(arch.startswith("gfx")).items():
            if not options.only or ".".join(names).startswith(tuple(options.only)):
                counts.append(count(names, launch, arch, options.out))
    print(table(counts))
    step = {
        str(f).removeprefix("torch."): len(distinct(networks=("resnet50",), dtypes=[torch.float32], formats=[f]))
        for f in (torch.contiguous_format, torch.channels_last)
    }
    print(f"\ncompilations for a training step of ResNet-50 in float32: {step}")
    if options.json:
        options.json.write_text(record(counts, step))


def record(counts: list[Count], compilations: dict[str, int]) -> str:
    """JSON of a run, a line for each kernel."""
    about = {
        "triton": triton.__version__,
        "fp_fusion_by_default": triton.knobs.language.default_fp_fusion,
        "compilations": compilations,
    }
    lines = ",\n".join(f" {json.dumps(asdict(c))}" for c in counts)
    return f'{json.dumps(about)[:-1]}, "kernels": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
