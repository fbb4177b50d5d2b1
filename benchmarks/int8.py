"""How fast int8 adder layers are on this CPU, beside float32 and int8 convolutions of the same shape.

    python benchmarks/int8.py [--threads 2] [--isa avx2] [--repeats 15] [--layers-only] [--json FILE]

Layers, each from bytes to bytes, with a scale and a shift behind the sum, and in turns within one process:

    conv        torch's float32 convolution (oneDNN), without anything behind it
    conv int8   ``torch.ops.quantized.conv2d`` with each of torch's engines, the fastest of them counts
    adder       the float32 adder layer
    adder int8  ``adder_zoo::adder2d_int8_fused``; its filters are packed at each call, the engines' were packed before

Networks: ResNet-20 (batch 128) and a converted ResNet-50 at 224 x 224 (batch 1 and 8) through ``adder_zoo.quantize``,
beside their convolutional twins in float32 with batch norm folded. The figures are ratios of medians: 2.0 means that
the int8 adder layer takes half the other's time. With one thread the process's CPU time counts, see ``cpu.py``. ONNX
Runtime and whole int8 twins are not in it yet. ``--isa avx2`` does not hold fbgemm, which knows no such switch.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _measured import measured
from cpu import interleaved, keep_freed_memory, processor
from torch.fx.experimental.optimization import fuse as fold_batch_norm

import adder_zoo
from adder_zoo import adder2d

# images, C, H = W, K, kernel
LAYERS = [
    (128, 16, 32, 16, 3),
    (128, 32, 16, 32, 3),
    (128, 64, 8, 64, 3),
    (8, 64, 56, 64, 3),
    (8, 128, 28, 128, 3),
    (8, 256, 14, 256, 3),
    (8, 512, 7, 512, 3),
    (8, 256, 56, 64, 1),
    (8, 256, 14, 1024, 1),
    (8, 2048, 7, 512, 1),
]
NETWORKS = [
    ("adder_resnet20", 128, (3, 32, 32)),
    ("adder_resnet50", 1, (3, 224, 224)),
    ("adder_resnet50", 8, (3, 224, 224)),
]
CHANNELS_LAST = torch.channels_last


def quantised_convolution(engine: str, x: torch.Tensor, weight: torch.Tensor, padding: int) -> Any:
    """A call of torch's int8 convolution by ``engine``, on bytes of x."""
    torch.backends.quantized.engine = engine
    bytes_of_x = torch.quantize_per_tensor(x, float(x.max()) / 255, 0, torch.quint8)
    bytes_of_x = bytes_of_x.contiguous(memory_format=CHANNELS_LAST)
    filters = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(filters, None, [1, 1], [padding] * 2, [1, 1], 1)

    def call() -> Any:
        torch.backends.quantized.engine = engine
        return torch.ops.quantized.conv2d(bytes_of_x, packed, 1.0, 0)

    return call


@torch.no_grad()
def layer(N: int, C: int, H: int, K: int, R: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each candidate."""
    padding = R // 2
    x = torch.randn(N, C, H, H).relu_().contiguous(memory_format=CHANNELS_LAST)
    weight = torch.randn(K, C, R, R).contiguous(memory_format=CHANNELS_LAST)
    levels, filters = ((t * 60).clamp(0, 255).to(torch.uint8) for t in (x, weight))
    levels, filters = (t.contiguous(memory_format=CHANNELS_LAST) for t in (levels, filters))
    scale, shift = torch.full((K,), 1e-3), torch.ones(K)
    geometry = [1, 1], [padding] * 4, [1, 1], 1
    fused = torch.ops.adder_zoo.adder2d_int8_fused

    candidates: dict[str, Any] = {
        "adder int8": lambda: fused(
            levels, filters, 0, scale, shift, None, True, False, 50.0, 0, 255, True, *geometry, "cpu"
        ),
        "conv": lambda: F.conv2d(x, weight, None, 1, padding),
        "adder": lambda: adder2d(x, weight, None, 1, padding),
    }
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine in ("fbgemm", "onednn", "x86")]
    for engine in engines:
        candidates[f"conv int8 ({engine})"] = quantised_convolution(engine, x, weight, padding)
    return interleaved(candidates, repeats)


def ratios(times: dict[str, float]) -> dict[str, float]:
    """How many times as fast as each other candidate the int8 adder layer is."""
    own = times["adder int8"]
    found = {f"over {name}": round(times[name] / own, 3) for name in ("conv", "adder") if name in times}
    rivals = [seconds for name, seconds in times.items() if name.startswith("conv int8")]
    return {**found, "over conv int8": round(min(rivals) / own, 3)} if rivals else found


@torch.no_grad()
def network(name: str, batch: int, image: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Median seconds of the int8 network, the fused float one, and the convolutional twin."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    twin = timm.create_model(name, similarity="conv") if name == "adder_resnet20" else timm.create_model(name[6:])
    images = torch.randn(batch, *image).contiguous(memory_format=CHANNELS_LAST)
    calibration = torch.randn(16, *image)
    with adder_zoo.reestimated_batch_norm(model, [calibration]):
        model = model.eval()
        small, fused = adder_zoo.quantize(model, calibration), adder_zoo.fuse(model)
    twin = fold_batch_norm(twin.eval()).to(memory_format=CHANNELS_LAST)
    candidates = {"adder int8": small, "conv": twin, "adder": fused}
    return interleaved({what: lambda net=net: net(images) for what, net in candidates.items()}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each candidate (default: %(default)s)")
    parser.add_argument("--isa", choices=("avx2",), help="hold both sides to it (default: the CPU's best)")
    parser.add_argument("--layers-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    keep_freed_memory()
    if args.isa:  # before the first convolution; 1x1 convolutions of channels_last images are MKL's
        os.environ["ONEDNN_MAX_CPU_ISA"], os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2", "AVX2"
        hold_to_avx2()
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        **measured(), "torch": torch.__version__, "processor": processor(), "threads": args.threads,
        "isa": args.isa or "the CPU's best", "layers": {}, "networks": {},
    }  # fmt: skip
    for N, C, H, K, R in LAYERS:
        name = f"{R}x{R} {C}->{K} @{H}, batch {N}"
        times = layer(N, C, H, K, R, args.repeats)
        record["layers"][name] = {**ratios(times), "seconds": times}
        print(f"{name:32}", "  ".join(f"{key} {value:.2f}" for key, value in ratios(times).items()), flush=True)
    for model, batch, image in () if args.layers_only else NETWORKS:
        times = network(model, batch, image, args.repeats)
        record["networks"][f"{model}, batch {batch}"] = {**ratios(times), "seconds": times}
        print(f"{model}, batch {batch}:", ratios(times), flush=True)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


def hold_to_avx2() -> None:
    from adder_zoo.ops import cpu
    from adder_zoo.ops.int8.cpu import int8_library

    cpu.library().use("avx2")
    int8_library().use("avx2")


if __name__ == "__main__":
    main()
