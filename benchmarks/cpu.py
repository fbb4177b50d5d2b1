"""How fast adder layers are on this CPU, against what a user would run instead.

    python benchmarks/cpu.py [--threads 2] [--isa avx2] [--repeats 15] [--parts ...] [--json FILE]
    python benchmarks/cpu.py --summary FILE ...      # the rows of README's table; --ranges: those of docs/results.md

Layers: from ResNet-20 on CIFAR-10 (batch 128) and from ResNet-50 on ImageNet (batch 8), and some with groups (batch
8), each direction beside what follows; x is behind a ReLU, and for dx also normalised with both signs:

    conv       torch's convolution (oneDNN) of the same shape, which the adder layer is to be as fast as
    cdist      the formulation of the authors' code: unfold, then torch.cdist(p=1); forward only, without groups
    broadcast  the same by broadcasting, and that under torch.compile; forward of ResNet-20's layers, on 2 images

Steps: forward, backward and update of LeNet-5-BN (batch 256), ResNet-20 (batch 128) and MobileNetV2 (batch 8), beside
the convolutional twin; of the first also eager torch (``impl="reference"``). Inference: ResNet-20 (batch 128), a
converted ResNet-50 and MobileNetV2 (batch 8) through ``adder_zoo.fuse``, beside the twin with batch norm folded by
torch. Threads: all of them against one, where --threads is more than that. Memory: what a training step of ResNet-20
adds to the process, at its highest.

Everything that is compared runs in one process and takes turns, so that what else the machine does meets all alike;
the figures are ratios of medians: 2.0 means that the adder layer takes half the other's time. With one thread it is the
process's CPU time that counts, which neighbours on the machine do not add to.

A setting makes glibc keep memory that is freed. Without it, chance decides whether glibc gives the end of the heap back
to the system. If it does, the next allocation pays for new pages: up to a third of a layer's time, in either network.
For peaks of memory, each block is mapped by itself, so the peak is what is in use, and not how the heap is scattered.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from _measured import measured
from torch.fx.experimental.optimization import fuse as fold_batch_norm

import adder_zoo
from adder_zoo import AdderSGD, adder2d
from adder_zoo.ops import cpu
from adder_zoo.ops.geometry import Geometry

# name, how many of them, C, H = W, K, kernel, stride: the adder layers of ResNet-20.
RESNET20 = [
    ("16x32x32, 3x3", 6, 16, 32, 16, 3, 1),
    ("16x32x32, 3x3, stride 2", 1, 16, 32, 32, 3, 2),
    ("16x32x32, 1x1, stride 2", 1, 16, 32, 32, 1, 2),
    ("32x16x16, 3x3", 5, 32, 16, 32, 3, 1),
    ("32x16x16, 3x3, stride 2", 1, 32, 16, 64, 3, 2),
    ("32x16x16, 1x1, stride 2", 1, 32, 16, 64, 1, 2),
    ("64x8x8, 3x3", 5, 64, 8, 64, 3, 1),
]
# The same of ResNet-50.
RESNET50 = [
    ("64x56x56, 1x1 to 64", 1, 64, 56, 64, 1, 1),
    ("64x56x56, 3x3", 3, 64, 56, 64, 3, 1),
    ("64x56x56, 1x1 to 256", 4, 64, 56, 256, 1, 1),
    ("256x56x56, 1x1 to 64", 2, 256, 56, 64, 1, 1),
    ("256x56x56, 1x1 to 128", 1, 256, 56, 128, 1, 1),
    ("256x56x56, 1x1 to 512, stride 2", 1, 256, 56, 512, 1, 2),
    ("128x56x56, 3x3, stride 2", 1, 128, 56, 128, 3, 2),
    ("128x28x28, 3x3", 3, 128, 28, 128, 3, 1),
    ("128x28x28, 1x1 to 512", 4, 128, 28, 512, 1, 1),
    ("512x28x28, 1x1 to 128", 3, 512, 28, 128, 1, 1),
    ("512x28x28, 1x1 to 256", 1, 512, 28, 256, 1, 1),
    ("512x28x28, 1x1 to 1024, stride 2", 1, 512, 28, 1024, 1, 2),
    ("256x28x28, 3x3, stride 2", 1, 256, 28, 256, 3, 2),
    ("256x14x14, 3x3", 5, 256, 14, 256, 3, 1),
    ("256x14x14, 1x1 to 1024", 6, 256, 14, 1024, 1, 1),
    ("1024x14x14, 1x1 to 256", 5, 1024, 14, 256, 1, 1),
    ("1024x14x14, 1x1 to 512", 1, 1024, 14, 512, 1, 1),
    ("1024x14x14, 1x1 to 2048, stride 2", 1, 1024, 14, 2048, 1, 2),
    ("512x14x14, 3x3, stride 2", 1, 512, 14, 512, 3, 2),
    ("512x7x7, 3x3", 2, 512, 7, 512, 3, 1),
    ("512x7x7, 1x1 to 2048", 3, 512, 7, 2048, 1, 1),
    ("2048x7x7, 1x1 to 512", 2, 2048, 7, 512, 1, 1),
]
# Name, C, H = W, K, kernel, stride, groups: of ResNeXt-50, RegNetY-600MF, MobileNetV2, EfficientNet-B0 and ConvNeXt-T.
GROUPED = [
    ("128x56x56, 3x3, 32 groups", 128, 56, 128, 3, 1, 32),
    ("512x14x14, 3x3, 32 groups", 512, 14, 512, 3, 1, 32),
    ("112x28x28, 3x3, 7 groups", 112, 28, 112, 3, 1, 7),
    ("144x56x56, 3x3, depthwise", 144, 56, 144, 3, 1, 144),
    ("144x56x56, 3x3, depthwise, stride 2", 144, 56, 144, 3, 2, 144),
    ("480x14x14, 5x5, depthwise", 480, 14, 480, 5, 1, 480),
    ("960x7x7, 3x3, depthwise", 960, 7, 960, 3, 1, 960),
    ("96x56x56, 7x7, depthwise", 96, 56, 96, 7, 1, 96),
]
NETWORKS = {"resnet20": (RESNET20, 128), "resnet50": (RESNET50, 8)}
PARTS = (
    *("resnet20_layers", "resnet50_layers", "grouped_layers", "broadcast", "steps", "inference", "threads", "memory"),
)
CHANNELS_LAST = torch.channels_last


def interleaved(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate. They take turns; a call that is not timed goes before each that is.

    Without it a candidate would pay for what the one before it left: caches, and memory given back to the system.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            call()
            began = clock()
            call()
            times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def cdist(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """y by unfold and torch.cdist(p=1)."""
    N, _, H, W = x.shape
    K, _, R, S = weight.shape
    P, Q = (H + 2 * padding - R) // stride + 1, (W + 2 * padding - S) // stride + 1
    patches = F.unfold(x, (R, S), padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)
    return -torch.cdist(patches, weight.flatten(1), p=1).view(N, P, Q, K).permute(0, 3, 1, 2)


def broadcast(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """y, [N, K, P·Q], by unfold and broadcasting."""
    patches = F.unfold(x, weight.shape[2:], padding=padding, stride=stride)  # [N, C·R·S, P·Q]
    return -(patches.unsqueeze(1) - weight.flatten(1)[None, :, :, None]).abs().sum(2)


def operands(N: int, C: int, H: int, K: int, R: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(N, C, H, H).relu_().contiguous(memory_format=CHANNELS_LAST)
    return x, torch.randn(K, C // groups, R, R).contiguous(memory_format=CHANNELS_LAST)


@torch.no_grad()
def layer(N: int, C: int, H: int, K: int, R: int, stride: int, repeats: int, groups: int = 1) -> dict[str, Any]:
    """Median seconds of each candidate, by direction, and the kernels that were taken."""
    padding = R // 2
    x, weight = operands(N, C, H, K, R, groups)
    signed = torch.randn_like(x)
    geometry = ((stride,) * 2, (padding,) * 4, (1, 1), groups)
    dy = torch.randn_like(F.conv2d(x, weight, None, stride, padding, 1, groups))

    def conv_backward(*mask: bool) -> Any:
        conv = (None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(dy, x, weight, *conv, list(mask))

    ops = torch.ops.adder_zoo
    directions: dict[str, dict[str, Callable[[], Any]]] = {
        "forward": {
            "adder": lambda: ops.adder2d(x, weight, *geometry, "full", "clipped", 1.0, "cpu"),  # as in training
            "conv": lambda: F.conv2d(x, weight, None, stride, padding, 1, groups),
            **({"cdist": lambda: cdist(x, weight, stride, padding)} if groups == 1 else {}),
        },
        "dx": {
            "adder": lambda: ops.adder2d_grad_input(dy, x, weight, *geometry, "clipped", 1.0, "cpu"),
            "signed": lambda: ops.adder2d_grad_input(dy, signed, weight, *geometry, "clipped", 1.0, "cpu"),
            "conv": lambda: conv_backward(True, False, False),
        },
        "dw": {
            "adder": lambda: ops.adder2d_grad_weight(dy, x, weight, *geometry, "full", 1.0, "cpu"),
            "conv": lambda: conv_backward(False, True, False),
        },
    }
    times: dict[str, Any] = {name: interleaved(candidates, repeats) for name, candidates in directions.items()}
    return times | {"kernels": cpu.kernels(x, weight, Geometry.of(*geometry))}


def ratios(times: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast the adder layer is."""
    forward = times["forward"]
    return {
        "forward_vs_conv": round(forward["conv"] / forward["adder"], 3),
        **({"forward_vs_cdist": round(forward["cdist"] / forward["adder"], 2)} if "cdist" in forward else {}),
        "dx_vs_conv": round(times["dx"]["conv"] / times["dx"]["adder"], 3),
        "dx_signed_vs_conv": round(times["dx"]["conv"] / times["dx"]["signed"], 3),
        "dw_vs_conv": round(times["dw"]["conv"] / times["dw"]["adder"], 3),
    }


def layers(name: str, batch: int | None, repeats: int) -> dict[str, dict[str, Any]]:
    """Ratios and kernels by layer, and over all adder layers together."""
    table, N = NETWORKS[name]
    N = batch or N
    rows: dict[str, dict[str, Any]] = {}
    whole: dict[str, dict[str, float]] = {}
    for title, count, C, H, K, R, stride in table:
        times = layer(N, C, H, K, R, stride, repeats)
        rows[title] = ratios(times) | {"kernels": times.pop("kernels")}
        for direction, seconds in times.items():
            sums = whole.setdefault(direction, {})
            for candidate, value in seconds.items():
                sums[candidate] = sums.get(candidate, 0) + count * value
    rows["all of the network"] = ratios(whole)
    print_rows(f"{name}, batch {N}", rows)
    return rows


def grouped_layers(batch: int | None, repeats: int) -> dict[str, dict[str, Any]]:
    """Ratios and kernels of layers with groups."""
    rows = {}
    for title, C, H, K, R, stride, groups in GROUPED:
        times = layer(batch or 8, C, H, K, R, stride, repeats, groups)
        rows[title] = ratios(times) | {"kernels": times["kernels"]}
    print_rows(f"with groups, batch {batch or 8}", rows)
    return rows


def print_rows(title: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n")
    print("| layer | forward, conv | unfold + cdist | dx, conv | dx, signed x | dw, conv | kernels: forward, dx, dw |")
    print("|---|---|---|---|---|---|---|")
    for name, r in rows.items():
        beside = f"{r['forward_vs_cdist']:.1f}" if "forward_vs_cdist" in r else ""
        print(
            f"| {name} | {r['forward_vs_conv']:.2f} | {beside} | {r['dx_vs_conv']:.2f} "
            f"| {r['dx_signed_vs_conv']:.2f} | {r['dw_vs_conv']:.2f} | {'; '.join(r.get('kernels', {}).values())} |"
        )


@torch.no_grad()
def broadcasting(repeats: int) -> dict[str, dict[str, float]]:
    """Forward against broadcasting, eager and compiled."""
    rows = {}
    compiled = torch.compile(broadcast, dynamic=False)
    for title, _, C, H, K, R, stride in RESNET20:
        x, weight = operands(2, C, H, K, R)
        where = (stride, R // 2)
        times = interleaved(
            {
                "adder": lambda x=x, w=weight, where=where: adder2d(x, w, None, *where, impl="cpu"),  # type: ignore[misc]
                "broadcast": lambda x=x, w=weight, where=where: broadcast(x, w, *where),  # type: ignore[misc]
                "compiled": lambda x=x, w=weight, where=where: compiled(x, w, *where),  # type: ignore[misc]
            },
            repeats,
        )
        rows[title] = {f"forward_vs_{k}": round(times[k] / times["adder"], 1) for k in ("broadcast", "compiled")}
    print("\nforward against broadcasting, 2 images:", rows)
    return rows


def step(name: str, similarity: str, impl: str | None, batch: int, image: tuple[int, int, int]) -> Callable[[], None]:
    model = timm.create_model(name, similarity=similarity).to(memory_format=CHANNELS_LAST)
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = impl  # type: ignore[assignment]
    optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, labels = torch.randn(batch, *image).contiguous(memory_format=CHANNELS_LAST), torch.randint(10, (batch,))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return run


def steps(repeats: int) -> dict[str, dict[str, float]]:
    image = (1, 32, 32)
    lenet = {"adder": ("adder", "cpu"), "conv": ("conv", None), "eager": ("adder", "reference")}
    times = interleaved({k: step("adder_lenet5_bn", *v, 256, image) for k, v in lenet.items()}, repeats)
    first = {f"vs_{k}": round(times[k] / times["adder"], 3) for k in ("conv", "eager")}
    rows = {"lenet5_bn_step": first}
    for name, batch, size in (("resnet20", 128, 32), ("mobilenetv2_100", 8, 224)):
        impls = {"adder": "cpu", "conv": None}
        calls = {k: step(f"adder_{name}", k, impl, batch, (3, size, size)) for k, impl in impls.items()}
        times = interleaved(calls, repeats if name == "resnet20" else max(3, repeats // 3))
        vs_conv = times["conv"] / times["adder"]
        rows[f"{name}_step"] = {"vs_conv": round(vs_conv, 3), "time": round(1 / vs_conv, 3)}
    print(f"\ntraining step: {rows}")
    return rows


@torch.no_grad()
def inference(repeats: int) -> dict[str, dict[str, float]]:
    """Whole networks in eval mode: fused, as it is, and the twin with batch norm folded into its filters."""
    rows = {}
    for name, batch, size in (("resnet20", 128, 32), ("resnet50", 8, 224), ("mobilenet_v2", 8, 224)):
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=CHANNELS_LAST)
        if name == "resnet20":
            model, twin = (timm.create_model("adder_resnet20", similarity=s) for s in ("adder", "conv"))
        else:
            # torchvision's MobileNetV2: torch's folding does not know timm's batch norm with activation.
            make = torchvision.models.mobilenet_v2 if name == "mobilenet_v2" else partial(timm.create_model, name)
            model, twin = adder_zoo.convert_to_adder(make()), make()
        for network in (model, twin):
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None  # statistics of what it sees, or ReLUs would leave nothing but zeros
            network.to(memory_format=CHANNELS_LAST).train()(x)
            network.eval()
        fused, folded = adder_zoo.fuse(model), fold_batch_norm(twin)
        calls = {"fused": lambda m=fused, x=x: m(x), "adder": lambda m=model, x=x: m(x)}  # type: ignore[misc]
        calls["conv"] = lambda m=folded, x=x: m(x)  # type: ignore[misc]
        times = interleaved(calls, repeats if name == "resnet20" else max(3, repeats // 3))
        rows[name] = {
            "vs_conv": round(times["conv"] / times["fused"], 3),
            "vs_unfused": round(times["adder"] / times["fused"], 3),
        }
    print(f"\ninference, fused: {rows}")
    return rows


def threads(count: int, repeats: int) -> dict[str, float]:
    """How many times as fast `count` threads are as one, by the clock on the wall: a layer, whole networks."""
    N, C, H = 128, 32, 16
    x, weight = operands(N, C, H, C, 3)
    dy = torch.randn_like(x)
    geometry = ((1, 1), (1,) * 4, (1, 1), 1)
    model = timm.create_model("adder_resnet20").eval().to(memory_format=CHANNELS_LAST)
    images = torch.randn(N, 3, 32, 32).contiguous(memory_format=CHANNELS_LAST)
    fused = adder_zoo.fuse(model)
    ops = torch.ops.adder_zoo
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: adder2d(x, weight, padding=1, impl="cpu"),
        "dx": lambda: ops.adder2d_grad_input(dy, x, weight, *geometry, "clipped", 1.0, "cpu"),
        "dw": lambda: ops.adder2d_grad_weight(dy, x, weight, *geometry, "full", 1.0, "cpu"),
        "convolution": lambda: F.conv2d(x, weight, None, 1, 1),
        "ResNet-20, fused inference": lambda: fused(images),
        "ResNet-20, training step": step("adder_resnet20", "adder", "cpu", N, (3, 32, 32)),
        "its twin's training step": step("adder_resnet20", "conv", None, N, (3, 32, 32)),
    }
    rows = {}
    for name, call in calls.items():
        times: dict[int, list[float]] = {1: [], count: []}
        for _ in range(repeats):
            for n in times:
                torch.set_num_threads(n)
                with torch.set_grad_enabled("step" in name):
                    call()
                    began = time.perf_counter()
                    call()
                    times[n].append(time.perf_counter() - began)
        rows[name] = round(statistics.median(times[1]) / statistics.median(times[count]), 2)
    print(f"\n{count} threads, times as fast as one: {rows}")
    return rows


def peak(similarity: str, batch: int) -> int:
    """Bytes that two training steps of ResNet-20 add to this process at its highest."""

    def high_water() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    step("adder_resnet20", similarity, None, 2, (3, 32, 32))()  # libraries are loaded, threads are there
    run = step("adder_resnet20", similarity, None, batch, (3, 32, 32))
    before = high_water()
    run()
    run()
    return high_water() - before


def memory() -> dict[str, float]:
    """Memory of a training step, as a multiple of the twin's; each in a process of its own."""
    rows = {}
    for batch in (2, 8, 32, 128):  # batch norm cannot learn from one image
        sizes = {}
        for similarity in ("adder", "conv"):
            command = [sys.executable, __file__, "--peak", similarity, str(batch)]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            sizes[similarity] = int(done.stdout)
        rows[f"batch {batch}"] = round(sizes["adder"] / sizes["conv"], 3)
    print(f"\nmemory of a training step, ResNet-20, as a multiple of the twin's: {rows}")
    return rows


def keep_freed_memory() -> None:
    """Has glibc take large blocks from the heap, and never give its end back (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, 2**31 - 1)


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def summary(record: dict[str, Any], ranges: bool = False) -> str:
    """A row of the table of speeds: ResNet-20's layers all together, a training step, inference.

    README's row has one number in a cell. With ``ranges``, as in docs/results.md, it also has the slowest and the
    fastest layer, the forward against ``cdist``, and LeNet-5-BN.
    """
    environment = record["environment"]
    whole = record["resnet20_layers"]["all of the network"]
    each = [row for title, row in record["resnet20_layers"].items() if title != "all of the network"]

    def cell(key: str, digits: int = 2) -> str:
        values = [row[key] for row in each]
        spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if ranges else ""
        return f"{whole[key]:.{digits}f}{spread}"

    lenet, resnet = (f"{record[name]['vs_conv']:.2f}" for name in ("lenet5_bn_step", "resnet20_step"))
    inference = [f"{record['inference'][name]['vs_conv']:.2f}" for name in ("resnet20", "resnet50")]
    threads = "one thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    cells = [f"{environment['processor']}, {environment['isa'].upper().replace('AVX512', 'AVX-512')}, {threads}"]
    cells += [cell("forward_vs_conv"), *([cell("forward_vs_cdist", 0)] if ranges else [])]
    cells += [cell("dx_vs_conv"), cell("dw_vs_conv")]
    cells += [f"{lenet}, {resnet}", ", ".join(inference)] if ranges else [resnet, *inference]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Adder layers against what a user would run instead, on this CPU.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each candidate (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--batch", type=int, help="images for the layers (default: 128 and 8)")
    parser.add_argument("--json", type=Path, help="write the figures there; parts that were not run stay")
    parser.add_argument("--isa", choices=("avx512", "avx2"), help="hold both sides to it (default: the CPU's best)")
    parser.add_argument("--processor", help="its name, where it does not call itself by it (default: as it does)")
    parser.add_argument("--summary", nargs="+", type=Path, metavar="FILE", help="print rows for README and leave")
    parser.add_argument("--ranges", action="store_true", help="with --summary: the rows of docs/results.md")
    parser.add_argument("--peak", nargs=2, metavar=("SIMILARITY", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.summary:
        print("\n".join(summary(json.loads(path.read_text()), args.ranges) for path in args.summary))
        return
    if args.peak:
        print(peak(args.peak[0], int(args.peak[1])))
        return
    keep_freed_memory()
    if args.isa:
        # Read at the first call. 1x1 convolutions of channels_last images are MKL's.
        os.environ["ONEDNN_MAX_CPU_ISA"] = {"avx512": "AVX512_CORE", "avx2": "AVX2"}[args.isa]
        os.environ["MKL_ENABLE_INSTRUCTIONS"] = {"avx512": "AVX512", "avx2": "AVX2"}[args.isa]
        cpu.library().use(args.isa)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{cpu.library().isa}, {args.threads} threads; times an adder layer is as fast")

    record = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    environment = {
        "adder_zoo": adder_zoo.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processor": args.processor or processor(),
        "isa": cpu.library().isa,
        "threads": args.threads,
        "repeats": args.repeats,
    }
    if record.setdefault("environment", environment) != environment and not set(PARTS) <= set(args.parts):
        parser.error(f"{args.json} holds figures of {record['environment']}; name another file, or run all parts")
    record["environment"] = environment
    if args.threads == 1 and "threads" in args.parts:
        print("\nthreads against one: not with --threads 1")
    for part in args.parts:
        if part == "threads" and args.threads == 1:
            continue
        for name, figures in run(part, args).items():
            record[name] = figures
        record.setdefault("measured", {})[part] = measured()
        if args.json:  # after each, so that nothing is lost
            args.json.write_text(json.dumps(record, indent=2) + "\n")


def run(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part, by their names in the record."""
    if part == "grouped_layers":
        return {part: grouped_layers(args.batch, args.repeats)}
    if part.endswith("_layers"):
        return {part: layers(part.removesuffix("_layers"), args.batch, args.repeats)}
    if part == "steps":
        return steps(args.repeats)
    if part == "threads":
        return {part: threads(args.threads, args.repeats)}
    if part == "memory":
        return {part: memory()}
    return {part: {"broadcast": broadcasting, "inference": inference}[part](args.repeats)}


if __name__ == "__main__":
    main()
