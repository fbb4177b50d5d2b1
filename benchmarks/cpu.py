"""How fast adder layers are on this CPU, against what a user would run instead.

    python benchmarks/cpu.py [--threads 2] [--isa avx2] [--repeats 15] [--json FILE]

Layers: those of ResNet-20 on CIFAR-10 (batch 128), forward and input gradient, each beside

    conv    torch's convolution (oneDNN) of the same shape, which the adder layer is to be as fast as
    cdist   the formulation of the authors' code: unfold, then torch.cdist(p=1); forward only

Steps: forward, backward and update of LeNet-5-BN (batch 256), beside its convolutional twin and eager torch
(``impl="reference"``).

Everything that is compared runs in one process and takes turns, so that what else the machine does meets all alike;
the figures are ratios of medians: 2.0 means that the adder layer takes half the other's time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F

import adder_zoo
from adder_zoo import AdderSGD, adder2d, cpu

BATCH = 128
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


def interleaved(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate. They take turns; a call that is not timed goes before each that is.

    Without it a candidate would pay for what the one before it left: caches, and memory given back to the system.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            call()
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def cdist(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """y by unfold and torch.cdist(p=1)."""
    N, _, H, W = x.shape
    K, _, R, S = weight.shape
    P, Q = (H + 2 * padding - R) // stride + 1, (W + 2 * padding - S) // stride + 1
    patches = F.unfold(x, (R, S), padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)
    return -torch.cdist(patches, weight.flatten(1), p=1).view(N, P, Q, K).permute(0, 3, 1, 2)


@torch.no_grad()
def layer(C: int, H: int, K: int, R: int, stride: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each candidate, by direction."""
    padding = R // 2
    x = torch.randn(BATCH, C, H, H).relu_().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(K, C, R, R).contiguous(memory_format=torch.channels_last)
    geometry = ((stride,) * 2, (padding,) * 4, (1, 1), 1)
    forward = interleaved(
        {
            "adder": lambda: adder2d(x, weight, None, stride, padding, impl="cpu"),
            "conv": lambda: F.conv2d(x, weight, None, stride, padding),
            "cdist": lambda: cdist(x, weight, stride, padding),
        },
        repeats,
    )
    dy = torch.randn_like(F.conv2d(x, weight, None, stride, padding))
    backward = interleaved(
        {
            "adder": lambda: torch.ops.adder_zoo.adder2d_grad_input(dy, x, weight, *geometry, "clipped", 1.0, "cpu"),
            "conv": lambda: torch.ops.aten.convolution_backward(
                dy, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
            ),
        },
        repeats,
    )
    return {"forward": forward, "dx": backward}


def ratios(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times as fast the adder layer is."""
    forward, dx = times["forward"], times["dx"]
    return {
        "forward_vs_conv": round(forward["conv"] / forward["adder"], 3),
        "forward_vs_cdist": round(forward["cdist"] / forward["adder"], 2),
        "dx_vs_conv": round(dx["conv"] / dx["adder"], 3),
    }


def step(similarity: str, impl: str | None) -> Callable[[], None]:
    model = timm.create_model("adder_lenet5_bn", similarity=similarity).to(memory_format=torch.channels_last)
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = impl  # type: ignore[assignment]
    optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, labels = torch.randn(256, 1, 32, 32), torch.randint(10, (256,))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Adder layers against what a user would run instead, on this CPU.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each candidate (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--isa", choices=("avx512", "avx2"), help="hold both sides to it (default: the CPU's best)")
    args = parser.parse_args()
    if args.isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = {"avx512": "AVX512_CORE", "avx2": "AVX2"}[args.isa]  # read at the first call
        cpu.library().use(args.isa)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    layers: dict[str, dict[str, float]] = {}
    whole: dict[str, dict[str, float]] = {"forward": {}, "dx": {}}
    for name, count, C, H, K, R, stride in RESNET20:
        times = layer(C, H, K, R, stride, args.repeats)
        layers[name] = ratios(times)
        for direction, seconds in times.items():
            for candidate, value in seconds.items():
                whole[direction][candidate] = whole[direction].get(candidate, 0) + count * value
    layers["all of the network"] = ratios(whole)
    print(f"ResNet-20, batch {BATCH}, {cpu.library().isa}, {args.threads} threads; times an adder layer is as fast\n")
    print("| layer | forward, conv | forward, unfold + cdist | dx, conv |")
    print("|---|---|---|---|")
    for name, r in layers.items():
        print(f"| {name} | {r['forward_vs_conv']:.2f} | {r['forward_vs_cdist']:.1f} | {r['dx_vs_conv']:.2f} |")
    steps = interleaved(
        {"adder": step("adder", "cpu"), "conv": step("conv", None), "eager": step("adder", "reference")}, args.repeats
    )
    lenet = {name: round(steps[name.removeprefix("vs_")] / steps["adder"], 3) for name in ("vs_conv", "vs_eager")}
    print(
        f"\nTraining step of LeNet-5-BN, batch 256: {lenet['vs_conv']:.2f} times as fast as the convolutional twin, "
        f"{lenet['vs_eager']:.1f} times as fast as eager torch"
    )
    if args.json:
        environment = {
            "adder_zoo": adder_zoo.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "isa": cpu.library().isa,
            "threads": args.threads,
            "repeats": args.repeats,
        }
        record = {"environment": environment, "resnet20_layers": layers, "lenet5_bn_step": lenet}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
