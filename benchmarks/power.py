"""How much longer an adder layer takes with 1 < p < 2 than with p = 1 on this CPU: forward, and a step of all three.

    python benchmarks/power.py [--threads 2] [--isa avx2] [--repeats 9] [--json FILE]

Both take turns within one process; a figure is a ratio of medians: 8.0 means eight times as long. x is as behind a
ReLU, half of it zeros, but for "forward of signed x". "backward" is both gradients, which such p computes in one pass
and p = 1 in two. "dx" and "dw" are one of them alone. "eager" is the forward in plain PyTorch, which computes such p
where there is no native library.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measured import measured
from cpu import interleaved, keep_freed_memory, operands, processor

from adder_zoo.ops import cpu, power, reference
from adder_zoo.ops.geometry import Geometry

P = 1.5  # the time does not depend on it
# N, C, H = W, K, kernel
SIZES = [(128, 16, 32, 16, 3), (128, 32, 16, 32, 3), (128, 64, 8, 64, 3), (8, 64, 56, 64, 3), (8, 256, 14, 1024, 1)]
EAGER_IMAGES = 2


@torch.no_grad()
def compare(N: int, C: int, H: int, K: int, R: int, repeats: int) -> dict[str, float]:
    geometry = Geometry.of((1, 1), (R // 2,) * 4, (1, 1), 1)
    x, weight = operands(N, C, H, K, R)
    signed = torch.randn_like(x)
    dy = torch.randn(N, K, H, H).contiguous(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: cpu.forward(x, weight, geometry),
        "dx": lambda: cpu.grad_input(dy, x, weight, geometry, "clipped"),
        "dw": lambda: cpu.grad_weight(dy, x, weight, geometry, "full"),
        "forward of signed x": lambda: cpu.forward(signed, weight, geometry),
        "forward of signed x, p": lambda: power.forward(signed, weight, geometry, p=P),
        "forward, p": lambda: power.forward(x, weight, geometry, p=P),
        "dx, p": lambda: power.grad_input(dy, x, weight, geometry, "full", p=P),
        "dw, p": lambda: power.grad_weight(dy, x, weight, geometry, "full", p=P),
        "backward, p": lambda: power.gradients(dy, x, weight, geometry, p=P),
        "eager, p": lambda: reference.forward(x[:EAGER_IMAGES], weight, geometry, P),
    }
    times = interleaved(calls, repeats)
    ratios = {
        name: round(times[f"{name}, p"] / times[name], 1) for name in ("forward", "forward of signed x", "dx", "dw")
    }
    backward = times["dx"] + times["dw"]
    step = (times["forward, p"] + times["backward, p"]) / (times["forward"] + backward)
    eager = times["eager, p"] * N / EAGER_IMAGES / times["forward"]
    return ratios | {
        "backward": round(times["backward, p"] / backward, 1), "step": round(step, 1), "eager forward": round(eager)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=9, help="calls of each (default: %(default)s)")
    parser.add_argument("--isa", choices=("avx512", "avx2"), help="default: the CPU's best")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if args.isa:
        cpu.library().use(args.isa)
    record: dict[str, Any] = {
        **measured(), "torch": torch.__version__, "processor": processor(), "threads": args.threads,
        "isa": cpu.library().isa, "sizes": {},
    }  # fmt: skip
    for size in SIZES:
        name = "batch {}, {} x {} x {} to {}, {}x{}".format(*size[:3], size[2], *size[3:], size[4])
        record["sizes"][name] = compare(*size, args.repeats)
        print(f"{name:38}", record["sizes"][name], flush=True)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
