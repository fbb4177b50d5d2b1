"""How fast ``adder_zoo.cdist`` is on this CPU beside ``torch.cdist(p=1)``, and how much memory its backward takes.

    python benchmarks/cdist.py [--threads 2] [--isa avx2] [--repeats 9] [--json FILE]

Both take turns within one process; a figure is a ratio of medians: 5.0 means that ours takes a fifth of the time. With
one thread the process's CPU time counts. Memory is what a process of its own gains at its peak by forward and backward
(on Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from _measured import measured
from cpu import interleaved, keep_freed_memory, processor

from adder_zoo import cdist
from adder_zoo.ops import cpu

# N, M, D
SIZES = [
    *((512, 512, D) for D in (64, 128, 256, 512, 1024)),
    (4096, 64, 64),
    (64, 4096, 256),
]
MEMORY_SIZE = (4096, 4096, 64)
CALLS = {"torch": lambda x, y: torch.cdist(x, y, p=1.0), "ours": cdist}


def points(N: int, M: int, D: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D, requires_grad=True), torch.randn(M, D, requires_grad=True)


def compare(N: int, M: int, D: int, repeats: int) -> dict[str, float]:
    x, y = points(N, M, D)
    dy = torch.randn(N, M)

    def backward(name: str) -> Any:
        d = CALLS[name](x, y)
        return lambda: torch.autograd.grad(d, (x, y), dy, retain_graph=True)

    with torch.no_grad():
        forward = interleaved({name: lambda call=call: call(x, y) for name, call in CALLS.items()}, repeats)
    back = interleaved({name: backward(name) for name in CALLS}, max(3, repeats // 3))
    return {"forward": round(forward["torch"] / forward["ours"], 2), "backward": round(back["torch"] / back["ours"], 2)}


def memory(name: str) -> None:
    """Prints the MiB that this process gains by one forward and backward."""
    x, y = points(*MEMORY_SIZE)
    torch.autograd.grad(CALLS[name](x[:8], y[:8]).sum(), (x, y))  # what is loaded at the first call
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again; a process inherits its parent's
    before = peak()
    torch.autograd.grad(CALLS[name](x, y).sum(), (x, y))
    print((peak() - before) / 1024)


def peak() -> int:
    """The most memory that this process had since its peak was reset, in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=9, help="calls of each (default: %(default)s)")
    parser.add_argument("--isa", choices=("avx2",), help="hold both to it (default: the CPU's best)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--memory-of", choices=list(CALLS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return memory(args.memory_of)
    if args.isa and os.environ.get("ATEN_CPU_CAPABILITY") != args.isa:  # torch reads it when it is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "ATEN_CPU_CAPABILITY": args.isa})
    keep_freed_memory()
    if args.isa:
        cpu.library().use(args.isa)
    record: dict[str, Any] = {
        **measured(), "torch": torch.__version__, "processor": processor(), "threads": args.threads,
        "isa": args.isa or "the CPU's best", "sizes": {},
    }  # fmt: skip
    for size in SIZES:
        name = "N {}, M {}, D {}".format(*size)
        record["sizes"][name] = compare(*size, args.repeats)
        print(f"{name:24}", record["sizes"][name], flush=True)
    command = [sys.executable, __file__, "--threads", str(args.threads), "--memory-of"]
    peaks = {name: float(subprocess.check_output([*command, name])) for name in CALLS}
    record["MiB of forward and backward, N {}, M {}, D {}".format(*MEMORY_SIZE)] = peaks
    print("MiB:", peaks)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
