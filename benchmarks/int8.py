"""How fast int8 adder layers are on this CPU, beside float32 and int8 convolutions of the same shape.

    python benchmarks/int8.py --threads 1 [--isa avx2] [--only TEXT ...] [--repeats 15] [--json FILE]
    python benchmarks/int8.py --table FILE ...       # the rows of the table in docs/results.md
    python benchmarks/int8.py --layers FILE ...      # the layers' table in docs/design/cpu-kernels.md
    python benchmarks/int8.py --list                 # the names that --only looks in

Layers, each from bytes to bytes, with a scale and a shift behind the sum, and in turns within one process:

    conv        torch's float32 convolution (oneDNN), without anything behind it
    conv int8   ``torch.ops.quantized.conv2d`` with each of torch's engines, and ONNX Runtime's QLinearConv (a tenth of
                a chain of ten): the fastest of them counts
    adder       the float32 adder layer
    adder int8  ``adder_zoo::adder2d_int8_fused``; its filters are packed at each call, the others' were packed before

Networks: ResNet-20 (batch 1 and 128) and a converted ResNet-50 at 224 x 224 (batch 1 and 8) through
``adder_zoo.quantize``, beside their convolutional twins: in float32 with batch norm folded, and in int8 by ONNX Runtime
(``quantize_static``, QDQ) and by torchao (PT2E, compiled by Inductor). ``threads``: what a second core gains.

The figures are ratios of medians: 2.0 means that the int8 adder layer takes half the other's time. With one thread the
process's CPU time counts, see ``cpu.py``. ``--json`` adds to what the file holds of this processor, so that a run may
come in pieces. ``--isa avx2`` holds both sides to it but for fbgemm (inside of torch's engines fbgemm and x86) and ONNX
Runtime, which know no such switch: they do not count then, and their ratios stand apart. A rival that cannot run is
named with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _int8_rivals as rivals
import timm
import torch
import torch.nn.functional as F
from _measured import measured
from cpu import interleaved, keep_freed_memory, processor
from torch.fx.experimental.optimization import fuse as fold_batch_norm

import adder_zoo
from adder_zoo import adder2d

# images, C, H = W, K, kernel, stride, groups
LAYERS = [
    # ResNet-20
    (128, 16, 32, 16, 3, 1, 1),
    (128, 16, 32, 32, 3, 2, 1),
    (128, 32, 16, 32, 3, 1, 1),
    (128, 64, 8, 64, 3, 1, 1),
    # ResNet-18 and 50
    (8, 64, 56, 64, 3, 1, 1),
    (8, 128, 28, 128, 3, 1, 1),
    (8, 256, 14, 256, 3, 1, 1),
    (8, 512, 7, 512, 3, 1, 1),
    (8, 64, 56, 128, 3, 2, 1),
    (8, 64, 56, 256, 1, 1, 1),
    (8, 256, 56, 64, 1, 1, 1),
    (8, 256, 14, 1024, 1, 1, 1),
    (8, 1024, 14, 256, 1, 1, 1),
    (8, 2048, 7, 512, 1, 1, 1),
    # MobileNetV2
    (8, 24, 56, 144, 1, 1, 1),
    (8, 144, 56, 24, 1, 1, 1),
    (8, 96, 14, 576, 1, 1, 1),
    (8, 960, 7, 160, 1, 1, 1),
    (8, 144, 56, 144, 3, 1, 144),
    (8, 144, 56, 144, 3, 2, 144),
    (8, 576, 14, 576, 3, 1, 576),
]
NETWORKS = [
    ("adder_resnet20", 1, (3, 32, 32)),
    ("adder_resnet20", 128, (3, 32, 32)),
    ("adder_resnet50", 1, (3, 224, 224)),
    ("adder_resnet50", 8, (3, 224, 224)),
]
CHANNELS_LAST = torch.channels_last
NOT_HELD = ("fbgemm", "x86", "onnxruntime")  # by --isa


def layer_name(N: int, C: int, H: int, K: int, R: int, stride: int, groups: int) -> str:
    return f"{R}x{R} {C}->{K} @{H}{', stride 2' * (stride == 2)}{', depthwise' * (groups > 1)}, batch {N}"


def tried(what: str, make: Callable[[], Callable[[], Any]], into: dict[str, Any], left_out: dict[str, str]) -> None:
    """Adds a candidate, or why there is none; it is called once, for some fail then."""
    try:
        call = make()
        call()
        into[what] = call
    except Exception as error:  # whatever a rival raises
        left_out[what] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        print(f"  {what} is left out: {left_out[what]}", flush=True)


@torch.no_grad()
def layer(shape: tuple[int, ...], repeats: int, threads: int) -> dict[str, Any]:
    """Median seconds of each candidate, and which are left out."""
    N, C, H, K, R, stride, groups = shape
    padding = R // 2
    x = torch.randn(N, C, H, H).relu_().contiguous(memory_format=CHANNELS_LAST)
    weight = torch.randn(K, C // groups, R, R).contiguous(memory_format=CHANNELS_LAST)
    levels, filters = ((t * 60).clamp(0, 255).to(torch.uint8) for t in (x, weight))
    levels, filters = (t.contiguous(memory_format=CHANNELS_LAST) for t in (levels, filters))
    scale, shift = torch.full((K,), 1e-3), torch.ones(K)
    geometry = [stride] * 2, [padding] * 4, [1, 1], groups
    fused = torch.ops.adder_zoo.adder2d_int8_fused

    candidates: dict[str, Any] = {
        "adder int8": lambda: fused(
            levels, filters, 0, scale, shift, None, True, False, 50.0, 0, 255, True, *geometry, "cpu"
        ),
        "conv": lambda: F.conv2d(x, weight, None, stride, padding, 1, groups),
        "adder": lambda: adder2d(x, weight, None, stride, padding, 1, groups),
    }
    left_out: dict[str, str] = {}
    for engine in ("fbgemm", "onednn", "x86"):
        if engine in torch.backends.quantized.supported_engines:
            make = partial(rivals.engine, engine, x, weight, stride, padding, groups)
            tried(f"conv int8 ({engine})", make, candidates, left_out)
    chained = "conv int8 (onnxruntime)"
    if stride == 1:
        tried(chained, lambda: rivals.qlinearconv(x, weight, padding, groups, threads), candidates, left_out)
    times = interleaved(candidates, repeats)
    if chained in times:
        times[chained] /= rivals.CHAIN
    return {"seconds": times, "left out": left_out}


def ratios(times: dict[str, float], isa: str | None) -> dict[str, float]:
    """How many times as fast as each other candidate the adder is; "conv int8": as the fastest that counts."""
    own = times["adder int8"]
    found = {f"over {name}": round(seconds / own, 3) for name, seconds in times.items() if name != "adder int8"}
    counting = {
        name: seconds
        for name, seconds in times.items()
        if name.startswith("conv int8") and not (isa and any(f"({rival}" in name for rival in NOT_HELD))
    }
    return {**found, "over conv int8": round(min(counting.values()) / own, 3)} if counting else found


@torch.no_grad()
def models(name: str, image: tuple[int, ...]) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """The network in int8 and fused in float32, its convolutional twin with batch norm folded, and calibration images.

    Batch norm knows what the network itself makes of those images, as a trained one's does.
    """
    torch.manual_seed(0)
    model = timm.create_model(name)
    twin = timm.create_model(name, similarity="conv") if name == "adder_resnet20" else timm.create_model(name[6:])
    calibration = torch.randn(16, *image)
    with adder_zoo.reestimated_batch_norm(model, [calibration]):
        model = model.eval()
        small, fused = adder_zoo.quantize(model, calibration), adder_zoo.fuse(model)
    with adder_zoo.reestimated_batch_norm(twin, [calibration]):
        twin = fold_batch_norm(twin.eval())
    return small, fused, twin.to(memory_format=CHANNELS_LAST), calibration


@torch.no_grad()
def network(name: str, batch: int, image: tuple[int, ...], repeats: int, threads: int) -> dict[str, Any]:
    """Median seconds of the int8 network, the fused float one, and the convolutional twins."""
    small, fused, twin, calibration = models(name, image)
    images = torch.randn(batch, *image).contiguous(memory_format=CHANNELS_LAST)
    candidates: dict[str, Any] = {
        "adder int8": lambda: small(images),
        "conv": lambda: twin(images),
        "adder": lambda: fused(images),
    }
    left_out: dict[str, str] = {}
    for what, make in (
        ("conv int8 (onnxruntime)", lambda: rivals.onnxruntime_twin(twin, images, calibration, threads)),
        ("conv int8 (torchao, Inductor)", lambda: rivals.inductor_twin(twin, images, calibration)),
    ):
        tried(what, make, candidates, left_out)
    return {"seconds": interleaved(candidates, repeats), "left out": left_out}


@torch.no_grad()
def second_core(name: str, batch: int, image: tuple[int, ...], repeats: int, threads: int) -> dict[str, float]:
    """How many times as fast `threads` threads are as one, by the clock on the wall, in turns of five calls.

    A turn begins with threads that have just been woken up or made, which is no part of the question.
    """
    small, fused, twin, _ = models(name, image)
    images = torch.randn(batch, *image).contiguous(memory_format=CHANNELS_LAST)
    gains = {}
    for what, net in (("adder int8", small), ("conv", twin), ("adder", fused)):

        def on(count: int, net: torch.nn.Module = net) -> None:
            torch.set_num_threads(count)
            for _ in range(5):
                net(images)

        torch.set_num_threads(threads)  # `interleaved` takes the clock on the wall then
        times = interleaved({str(count): lambda count=count: on(count) for count in (1, threads)}, repeats)
        gains[what] = round(times["1"] / times[str(threads)], 3)
    return gains


def hold_to_avx2() -> None:
    from torch._inductor import config

    from adder_zoo.ops import cpu
    from adder_zoo.ops.int8.cpu import int8_library

    cpu.library().use("avx2")
    own = int8_library()
    own.use(next(isa for isa in own.isas if isa.startswith("avx2")))
    config.cpp.simdlen = 256


def table_row(record: dict[str, Any]) -> str:
    """A row of the table in docs/results.md; an empty cell is not measured."""
    layers, networks = record["layers"], record["networks"]

    def cell(entries: list[dict[str, Any]], key: str = "over conv") -> str:
        values = sorted(entry[key] for entry in entries if key in entry)
        return "" if not values else " to ".join(f"{v:.1f}" for v in dict.fromkeys((values[0], values[-1])))

    def like(*parts: str) -> list[dict[str, Any]]:
        return [v for k, v in layers.items() if all(part in k for part in parts) and "depthwise" not in k]

    many = [v for k, v in layers.items() if k.startswith("3x3") and int(k.split()[1].split("->")[0]) >= 64
            and "depthwise" not in k]  # fmt: skip
    cells = [
        cell(like("3x3 16->16")), cell(like("3x3 32->32")), cell(many), cell(like("1x1")), cell(many, "over conv int8"),
        *(
            cell([networks[name]] if name in networks else [], key)
            for key in ("over conv", "over conv int8")
            for name in ("adder_resnet20, batch 128", "adder_resnet50, batch 1", "adder_resnet50, batch 8")
        ),
    ]  # fmt: skip
    isa = "held to AVX2" if record["isa"] == "avx2" else "everything on"
    threads = "one thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return f"| {record['processor']}, {isa}, {threads} | " + " | ".join(cells) + " |"


def layers_table(records: list[dict[str, Any]]) -> list[str]:
    """Thousand millions of taps a second of each layer: float32 convolution, int8 convolution, int8 adder."""
    kinds = ("conv", "conv int8", "adder int8")
    heads = [f"{kind}, {'AVX2' if record['isa'] == 'avx2' else 'all'}" for record in records for kind in kinds]
    rows = [f"| layer | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for shape in LAYERS:
        N, C, H, K, R, stride, groups = shape
        taps = N * (H // stride) ** 2 * K * (C // groups) * R * R
        cells = []
        for record in records:
            found = record["layers"][layer_name(*shape)]
            own = taps / found["seconds"]["adder int8"] / 1e9
            cells += [f"{own / found[f'over {kind}']:.0f}" for kind in kinds[:2]] + [f"{own:.0f}"]
        rows.append(f"| {layer_name(*shape)} | {' | '.join(cells)} |")
    return rows


def record_for(path: Path | None, threads: int, isa: str | None) -> dict[str, Any]:
    """What the file holds of this processor and these settings, or an empty record."""
    where = {"torch": torch.__version__, "processor": processor(), "threads": threads, "isa": isa or "the CPU's best"}
    if path is not None and path.exists():
        found = json.loads(path.read_text())
        if all(found.get(key) == value for key, value in where.items()):
            return {**found, **measured()}
    return {**measured(), **where, "layers": {}, "networks": {}, "second core": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each candidate (default: %(default)s)")
    parser.add_argument("--isa", choices=("avx2",), help="hold both sides to it (default: the CPU's best)")
    parser.add_argument("--only", nargs="+", default=[""], help="what has one of these texts in its name")
    parser.add_argument("--json", type=Path, help="write the figures there, beside those that it has")
    parser.add_argument("--table", type=Path, nargs="+", help="print the rows of such files, and measure nothing")
    parser.add_argument("--layers", type=Path, nargs="+", help="print the layers of such files, and measure nothing")
    parser.add_argument("--list", action="store_true", help="print all names, and measure nothing")
    args = parser.parse_args()
    jobs = {f"layer {layer_name(*shape)}": shape for shape in LAYERS}
    jobs |= {f"network {name}, batch {batch}": (name, batch, image) for name, batch, image in NETWORKS}
    jobs |= {f"threads {name}, batch {batch}": (name, batch, image) for name, batch, image in NETWORKS if batch > 1}
    if args.layers:
        print("\n".join(layers_table([json.loads(path.read_text()) for path in args.layers])))
        return
    if args.list or args.table:
        rows = [table_row(json.loads(path.read_text())) for path in args.table or ()]
        print("\n".join(rows or jobs))
        return
    keep_freed_memory()
    if args.isa:  # before the first convolution; 1x1 convolutions of channels_last images are MKL's
        os.environ["ONEDNN_MAX_CPU_ISA"], os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2", "AVX2"
        hold_to_avx2()
    torch.set_num_threads(args.threads)
    record = record_for(args.json, args.threads, args.isa)
    for job, what in jobs.items():
        kind, name = job.split(" ", 1)
        if not any(text in job for text in args.only) or (kind == "threads" and args.threads == 1):
            continue
        if kind == "threads":
            record.setdefault("second core", {})[name] = figures = second_core(*what, args.repeats, args.threads)
        else:
            found = (layer(what, args.repeats, args.threads) if kind == "layer"
                     else network(*what, args.repeats, args.threads))  # fmt: skip
            figures = ratios(found["seconds"], args.isa)
            record[f"{kind}s"][name] = {**figures, **found}
        print(f"{job:48}", "  ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
        if args.json:
            args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
