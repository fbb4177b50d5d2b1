"""How fast adder layers are on this GPU, beside what a user would run instead.

    python benchmarks/gpu.py [--parts layers steps ...] [--network resnet50] [--batch 64] [--layers 6] [--minutes 8]
                             [--json FILE]
    python benchmarks/gpu.py --table FILE         # the tables of such a file, as Markdown
    TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse      # all of it on tiny shapes, without a GPU

Its parts, the most telling first:

    layers    layers of ResNet-18 and ResNet-50 with most taps, forward, dx and dw: adder layers in float32 (NCHW and
              channels_last), float16, bfloat16 and in bytes, and for p = 1.5; cuDNN's convolutions in float32, TF32 and
              bfloat16
    steps     forward, backward and update of the whole network, adder and convolution: time and memory
    cdist     ``adder_zoo.cdist`` beside ``torch.cdist(p=1)``, forward, and forward with backward: time and memory
    rivals    other ways to write the layer, forward: unfold and ``torch.cdist``, as the authors do, where it fits into
              memory; for two layers torch.compile of the broadcasting form, and p = 1.5 in plain PyTorch

Everything that is compared takes turns; a figure is the median of the turns, after a first call. "FADD" is the share of
the peak of fp32 additions, 2 for each tap, at the multiprocessors' clock as nvidia-smi reads it after the run. The file
is written after each layer, network or size. What fails is named in it, and what was left when --minutes were over.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _gpu_candidates as candidates
import _gpu_tables as tables
import torch
import triton
from _gpu_machine import Gpu, Machine, Rehearsal, interleaved
from _measured import measured
from layers import NETWORKS, Layer

from adder_zoo.atomic import write_text

PARTS = ("layers", "steps", "cdist", "rivals")
COMPILED = 2  # layers for which torch.compile is tried
TINY = [Layer(8, 6, 20, 3, 1, count=2), Layer(8, 6, 8, 1, 2)]  # of a rehearsal
SIZES = [(4096, 4096, 64), (4096, 4096, 512), (65536, 256, 128), (512, 512, 1024)]  # N, M, D of cdist
TINY_SIZES = [(5, 6, 3)]


def layer_rows(machine: Machine, network: str, layer: Layer, batch: int, repeats: int, calls) -> list[dict[str, Any]]:
    """A row for each candidate."""
    times = interleaved(machine, calls, repeats)
    clock, additions = machine.clock(), machine.additions()
    peak = additions * clock * 1e6 if additions and clock else None
    taps = layer.taps * batch
    print(f"\n{network}: {layer.count} x {layer.name}, {taps / 1e9:.1f} G taps, {clock} MHz", flush=True)
    rows = []
    for name, ms in sorted(times.items()):
        rate = 1e3 * taps / ms
        fp32 = "adder float32" in name and not name.startswith("dw")
        share = 2 * rate / peak if peak and fp32 else None
        print(f"  {name:34} {ms:9.3f} ms {rate / 1e12:8.2f} T taps/s" + (f" {share:6.1%} of FADD" if share else ""))
        rows.append(
            {"network": network, "layer": layer.name, "count": layer.count, "what": name, "ms": ms,
             "taps_per_s": rate, "clock_MHz": clock, "share_of_fadd": share}
        )  # fmt: skip
    machine.forget()
    return rows


def step_rows(machine: Machine, network: str, batch: int, repeats: int, rehearse: bool) -> dict[str, dict[str, float]]:
    """Milliseconds and MiB of a training step, by who."""
    answer = {}
    for who, step in candidates.steps(machine.device, network, batch, rehearse):
        step()
        machine.begin_memory()
        milliseconds = interleaved(machine, {who: step}, repeats)[who]
        answer[who] = {"ms": milliseconds, "MiB": machine.peak_memory()}
        print(f"{network}, a step, {who:16} {milliseconds:9.1f} ms {answer[who]['MiB']:9.0f} MiB", flush=True)
        del step
        machine.forget()
    return answer


def cdist_rows(machine: Machine, size: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Milliseconds of forward, and of forward with backward; MiB of the latter."""
    calls = candidates.distances(machine.device, *size)
    times = interleaved(machine, calls, repeats)
    memory = {}
    for name in (name for name in times if name.startswith("both")):
        machine.begin_memory()
        calls[name]()
        memory[name.removeprefix("both / ")] = machine.peak_memory()
    row = {"N": size[0], "M": size[1], "D": size[2], "ms": times, "MiB": memory}
    print("cdist", row, flush=True)
    return row


def jobs(machine: Machine, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(part, name, what measures it), in their order."""
    repeats, batch = (1, 2) if options.rehearse else (options.repeats, options.batch)

    def largest(network: str) -> list[Layer]:
        return sorted(NETWORKS[network](), key=lambda layer: -layer.taps * layer.count)[: options.layers]

    chosen = [
        (n, i, layer) for n in options.network for i, layer in enumerate(TINY if options.rehearse else largest(n))
    ]
    for part in (part for part in PARTS if part in options.parts):
        if part in ("layers", "rivals"):
            for network, i, layer in chosen:

                def run(network=network, layer=layer, part=part, compiled=i < COMPILED):
                    if part == "layers":
                        calls = candidates.layer(machine.device, layer, batch)
                    else:
                        calls = candidates.rivals(machine, layer, batch, compiled)
                    return layer_rows(machine, network, layer, batch, repeats, calls)

                yield part, f"{network} {layer.name}", run
        elif part == "steps":
            for network in options.network:
                yield part, network, lambda n=network: {n: step_rows(machine, n, batch, repeats, options.rehearse)}
        else:
            for size in TINY_SIZES if options.rehearse else SIZES:
                yield part, "N {}, M {}, D {}".format(*size), lambda size=size: [cdist_rows(machine, size, repeats)]


def measure(machine: Machine, options: argparse.Namespace, now: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Everything, in order, written to ``options.json`` as it comes."""
    end = now() + 60 * options.minutes
    answer: dict[str, Any] = {
        **machine.about(), "torch": torch.__version__, "triton": triton.__version__, **measured(),
        "batch": options.batch, "layers": [], "steps": {}, "cdist": [], "rivals": [], "left_out": [], "failed": {},
    }  # fmt: skip
    for part, name, run in jobs(machine, options):
        if now() >= end:
            answer["left_out"].append(f"{part}: {name}")
        else:
            try:
                found = run()
            except Exception as error:  # whatever it is, the card's time goes to what is left
                traceback.print_exc()
                answer["failed"][f"{part}: {name}"] = f"{type(error).__name__}: {error}"
            else:
                answer[part] = {**answer[part], **found} if part == "steps" else answer[part] + found
        if options.json:
            write_text(options.json, json.dumps(answer, indent=1) + "\n")
    for what, names in (("the time was over for", answer["left_out"]), ("failed", answer["failed"])):
        if names:
            print(f"\n{what}: {'; '.join(names)}")
    return answer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6, help="of each network, those with most taps first")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing after them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes under Triton's interpreter")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of FILE and measure nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(tables.all_of(json.loads(options.table.read_text())))
        return
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no GPU (--rehearse runs everything on tiny shapes without one)")
    answer = measure(Rehearsal() if options.rehearse else Gpu(), options)
    sys.exit(1 if answer["failed"] else 0)


if __name__ == "__main__":
    main()
