"""How fast adder layers are on this GPU, beside what a user would run instead.

    python benchmarks/gpu.py [--network resnet50] [--batch 64] [--layers 6] [--compiled 2] [--json FILE] [--no-steps]

Layers: the layers of ResNet-18 and ResNet-50 that have most taps, forward, dx and dw, each of

    adder          float32 in NCHW and channels_last, float16, bfloat16 (channels_last)
    conv           cuDNN in float32 without and with TF32, and in bfloat16 (channels_last)
    cdist          the authors' formulation: unfold, then torch.cdist(p=1); forward, where it fits into memory
    compiled       torch.compile of the broadcasting form; forward, of the first few layers

Steps: forward, backward and update of the whole network, adder and convolution, time and memory.

Everything that is compared takes turns; a figure is the median of the turns, by CUDA events, after a warm-up that the
cache's contents do not outlive (a buffer larger than L2 is overwritten before each). "FADD" is the share of the peak of
fp32 additions, 2 for each tap, at the multiprocessors' clock as nvidia-smi reads it during the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from _measured import measured
from layers import NETWORKS, Layer

from adder_zoo.ops.backends import resolve
from adder_zoo.ops.geometry import Geometry

LANES = {8.0: 64, 9.0: 128, 10.0: 128, 8.6: 128, 8.9: 128, 12.0: 128}  # fp32 additions a clock and multiprocessor


def interleaved(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each candidate; they take turns. A rival that cannot run is named and left out."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {}
    for name, call in candidates.items():
        try:
            call()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            if "adder" in name:
                raise
            print(f"  {name} does not run: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
        else:
            times[name] = []
    for _ in range(repeats):
        for name, call in ((name, candidates[name]) for name in times):
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def smi(what: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def broadcast(x, w, stride, padding):
    """y by the definition, in a form that Inductor may fuse."""
    patches = F.unfold(x, w.shape[2:], padding=padding, stride=stride).transpose(1, 2)  # [N, PQ, CRS]
    return -(patches.unsqueeze(2) - w.flatten(1)).abs().sum(-1)


def cdist(x, w, stride, padding):
    patches = F.unfold(x, w.shape[2:], padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)
    return -torch.cdist(patches, w.flatten(1), p=1)


class tf32:
    """A call with cuDNN's switch set."""

    def __init__(self, allow: bool, call: Callable[[], Any]):
        self.allow, self.call = allow, call

    def __call__(self):
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, self.allow
        try:
            return self.call()
        finally:
            torch.backends.cudnn.allow_tf32 = before


def candidates(layer: Layer, batch: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    """By "direction / who"."""
    backend = resolve("triton", torch.empty(0, device="cuda"), 1.0)
    stride, padding = (layer.stride,) * 2, (layer.padding,) * 2
    geometry = Geometry.of(stride, (layer.padding,) * 4, (1, 1), 1)
    found: dict[str, Callable[[], Any]] = {}
    x32 = torch.randn(batch, layer.C, layer.H, layer.H, device="cuda")
    w32 = torch.randn(layer.K, layer.C, layer.R, layer.R, device="cuda")
    dy32 = torch.randn(batch, layer.K, layer.P, layer.P, device="cuda")

    def gradient(dy, x, w, which):
        mask = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward(dy, x, w, None, stride, padding, (1, 1), False, [0, 0], 1, mask)

    for name, dtype, memory_format in (
        ("float32", torch.float32, torch.contiguous_format),
        ("float32 channels_last", torch.float32, torch.channels_last),
        ("float16", torch.float16, torch.channels_last),
        ("bfloat16", torch.bfloat16, torch.channels_last),
    ):
        x, w = (t.to(dtype).to(memory_format=memory_format) for t in (x32, w32))
        dy = dy32.to(memory_format=memory_format)
        found[f"forward / adder {name}"] = lambda x=x, w=w: backend.forward(x, w, geometry)
        found[f"dx / adder {name}"] = lambda x=x, w=w, dy=dy: backend.grad_input(dy, x, w, geometry, "clipped")
        if dtype == torch.float32:
            call = lambda x=x, w=w, dy=dy: backend.grad_weight(dy, x, w, geometry, "full")  # noqa: E731
            found[f"dw / adder {name}"] = tf32(False, call)
            found[f"dw / adder {name} TF32"] = tf32(True, call)
    for name, dtype, memory_format, allow in (
        ("float32", torch.float32, torch.contiguous_format, False),
        ("TF32", torch.float32, torch.channels_last, True),
        ("bfloat16", torch.bfloat16, torch.channels_last, True),
    ):
        x, w, dy = (t.to(dtype).to(memory_format=memory_format) for t in (x32, w32, dy32))
        found[f"forward / conv {name}"] = tf32(allow, lambda x=x, w=w: F.conv2d(x, w, None, stride, padding))
        for which, direction in enumerate(("dx", "dw")):
            call = lambda x=x, w=w, dy=dy, i=which: gradient(dy, x, w, i)  # noqa: E731
            found[f"{direction} / conv {name}"] = tf32(allow, call)
    patches = batch * layer.P**2 * layer.C * layer.R**2 * 4
    if patches < torch.cuda.mem_get_info()[0] // 4:
        found["forward / cdist"] = lambda: cdist(x32, w32, layer.stride, layer.padding)
        if compiled:
            form = torch.compile(broadcast, dynamic=False)
            found["forward / compiled broadcast"] = lambda: form(x32, w32, layer.stride, layer.padding)
    return found


def steps(name: str, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds and MiB of a training step, by who."""
    import timm

    import adder_zoo

    answer = {}
    for who, model_name, dtype, allow in (
        ("adder float32", f"adder_{name}", None, False),
        ("adder bfloat16", f"adder_{name}", torch.bfloat16, False),
        ("conv float32", name, None, False),
        ("conv TF32", name, None, True),
        ("conv bfloat16", name, torch.bfloat16, True),
    ):
        model = timm.create_model(model_name).cuda().to(memory_format=torch.channels_last).train()
        optimizer = adder_zoo.AdderSGD(model.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
        labels = torch.randint(1000, (batch,), device="cuda")

        def step(model=model, optimizer=optimizer, x=x, labels=labels, dtype=dtype):
            with torch.autocast("cuda", dtype or torch.float32, enabled=dtype is not None):
                loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        milliseconds = interleaved({who: tf32(allow, step)}, repeats)[who]
        answer[who] = {"ms": milliseconds, "MiB": torch.cuda.max_memory_allocated() / 2**20}
        del model, optimizer, step
        torch.cuda.empty_cache()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6, help="of each network, those with most taps first")
    parser.add_argument("--compiled", type=int, default=2, help="layers for which torch.compile is tried")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-steps", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    properties = torch.cuda.get_device_properties(0)
    about = {
        "device": properties.name, "driver": smi("driver_version"), "torch": torch.__version__,
        "triton": triton.__version__, "cuda": torch.version.cuda, **measured(), "batch": options.batch,
    }  # fmt: skip
    print(about)
    lanes = LANES.get(float(f"{properties.major}.{properties.minor}"))
    results = []
    for network in options.network:
        layers = sorted(NETWORKS[network](), key=lambda layer: -layer.taps * layer.count)[: options.layers]
        for i, layer in enumerate(layers):
            times = interleaved(candidates(layer, options.batch, i < options.compiled), options.repeats)
            clock = smi("clocks.sm")
            peak = lanes * properties.multi_processor_count * float(clock) * 1e6 if lanes and clock else None
            taps = layer.taps * options.batch
            print(f"\n{network}: {layer.count} x {layer.name}, {taps / 1e9:.1f} G taps, {clock} MHz")
            for name, ms in sorted(times.items()):
                rate = taps / ms / 1e9  # T taps/s
                fp32 = "adder float32" in name and not name.startswith("dw")
                share = 2e12 * rate / peak if peak and fp32 else None
                print(f"  {name:34} {ms:9.3f} ms {rate:8.2f} T taps/s" + (f" {share:6.1%} of FADD" if share else ""))
                results.append(
                    {"network": network, "layer": layer.name, "count": layer.count, "what": name, "ms": ms,
                     "taps_per_s": rate * 1e12, "clock_MHz": clock, "share_of_fadd": share}
                )  # fmt: skip
            torch.cuda.empty_cache()
    answer = {**about, "layers": results}
    if not options.no_steps:
        answer["steps"] = {network: steps(network, options.batch, 5) for network in options.network}
        for network, rows in answer["steps"].items():
            for who, row in rows.items():
                print(f"{network}, a step, {who:16} {row['ms']:9.1f} ms {row['MiB']:9.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
