"""Milliseconds of networks in ONNX Runtime, with and without our kernels, beside the same networks in PyTorch.

    python benchmarks/onnx_speed.py [--threads 1] [--repeats 9] [--json FILE] [--write]

What takes turns within one process, for float and quantised networks: PyTorch after ``fuse`` or ``quantize``; ONNX
Runtime with our kernels (``onnx_session``); ONNX Runtime alone; the network with convolutions in ONNX Runtime, in the
same form (batch norm folded; bytes by ``quantize_static``); and, for float layers, how adder layers are usually written
in PyTorch, by ``unfold`` and ``cdist``. ``--write`` makes docs/deploy/onnx_speed.md of the figures in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _int8_rivals as rivals
import onnxruntime
import timm
import torch
from _measured import ROOT, measured
from cpu import cdist, interleaved, keep_freed_memory, processor
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fold_batch_norm

import adder_zoo
from adder_zoo import Adder2d
from adder_zoo.ops.cpu import library

RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/deploy/onnx_speed.md"
# Networks, and how many images at once.
NETWORKS = {
    "adder_lenet5_bn.mnist": (1, 64),
    "adder_resnet20.cifar10": (1, 8),
    "adder_resnet18": (1,),
    "adder_mobilenetv2_100": (1,),
}
WAYS = {
    "torch": "PyTorch",
    "native": "ONNX Runtime, our kernels",
    "plain": "ONNX Runtime alone",
    "conv": "convolutions in ONNX Runtime",
    "cdist": "unfold and cdist in PyTorch",
}


class Unfolded(nn.Module):
    """An adder layer by unfold and cdist."""

    def __init__(self, layer: Adder2d):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return cdist(x, self.layer.weight, self.layer.stride[0], self.layer.padding[0])


def unfolded(model: nn.Module) -> nn.Module:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adder2d):
            model.set_submodule(name, Unfolded(layer))
    return model


def made(name: str, images: Tensor) -> nn.Module:
    """The network with its weights, or with random ones and a batch norm that knows what becomes of the images."""
    if timm.models.is_model_pretrained(name):
        return timm.create_model(name, pretrained=True).eval()
    return with_statistics(timm.create_model(name), images)


def with_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """The network in evaluation mode, its batch norm with the statistics of these images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return model.eval()


def twin_of(name: str, images: Tensor) -> nn.Module:
    """The same network with convolutions, batch norm folded."""
    family = name.partition(".")[0]
    own = not timm.models.is_model(family.removeprefix("adder_"))  # timm has no such network with convolutions
    model = timm.create_model(family, similarity="conv") if own else timm.create_model(family.removeprefix("adder_"))
    return fold_batch_norm(with_statistics(model, images))


def started(path: Path, start: Callable[..., Any], threads: int) -> Callable[[Tensor], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: it warns of each function that it puts in a node's place
    session = start(str(path), options)
    return lambda images: session.run(None, {"images": images.numpy()})


def plain(path: str, options: Any) -> Any:
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ways(name: str, quantised: bool, images: Tensor, folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """How the network is run, each as a call without arguments."""
    torch.manual_seed(0)
    seen = torch.randn(16, *images.shape[1:])
    model, twin = made(name, seen), twin_of(name, seen)
    network = adder_zoo.quantize(model, seen) if quantised else model
    path = folder / f"{name}-{quantised}.onnx"
    adder_zoo.export_onnx(network, path, tuple(images.shape[1:]), check=False, force=True)
    in_torch = (network if quantised else adder_zoo.fuse(model)).to(memory_format=torch.channels_last)
    native = started(path, adder_zoo.onnx_session, threads)
    alone = started(path, plain, threads)
    calls: dict[str, Callable[[], Any]] = {
        "torch": lambda: in_torch(images), "native": lambda: native(images), "plain": lambda: alone(images)
    }  # fmt: skip
    if quantised:
        calls["conv"] = rivals.onnxruntime_twin(twin, images, seen, threads)
    else:
        calls["conv"] = rivals.onnxruntime_float_twin(twin, images, threads)
        if "mobilenet" not in name:  # which has groups
            usual = unfolded(model)
            calls["cdist"] = lambda: usual(images)
    return calls


@torch.no_grad()
def measure(threads: int, repeats: int, networks: list[str]) -> dict[str, Any]:
    torch.set_num_threads(threads)
    keep_freed_memory()
    record: dict[str, Any] = {
        **measured(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "processor": processor(),
        "isa": library().isa, "threads": threads, "rows": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name in networks:
            size = timm.get_pretrained_cfg(name).input_size
            for quantised in (False, True):
                for batch in NETWORKS[name]:
                    calls = ways(name, quantised, torch.randn(batch, *size), Path(folder), threads)
                    times = interleaved(calls, repeats)
                    row = {"network": name, "form": "int8" if quantised else "float", "batch": batch}
                    row["milliseconds"] = {way: round(1000 * seconds, 3) for way, seconds in times.items()}
                    record["rows"].append(row)
                    print(row, flush=True)
    return record


def page() -> str:
    """What the recorded figures say, as Markdown."""
    lines = [
        "# Speed in ONNX Runtime",
        "",
        "Milliseconds of a batch, medians of runs that took turns in one process. *Speed* compares ONNX Runtime with",
        "our kernels and PyTorch with the same kernels, after `fuse` or `quantize`: above 1, ONNX Runtime is faster.",
        "*Against convolutions* compares it with the convolutional network of the same form in ONNX Runtime: above 1,",
        "the adder network is faster. Convolutions in int8 use VNNI where the processor has it, for ONNX Runtime has",
        "no switch for that.",
        "Networks without a data set in their name have random weights.",
    ]
    for path in sorted(RESULTS.glob("onnx-*.json")):
        record = json.loads(path.read_text())
        lines += [
            "",
            f"{record['processor']}, {record['isa']}, {record['threads']} thread(s), {record['date']}. ONNX Runtime "
            f"{record['onnxruntime']}, PyTorch {record['torch']}.",
            "",
            "```bash",
            f"python benchmarks/onnx_speed.py --threads {record['threads']} \\",
            f"    --json benchmarks/results/{path.name} --write",
            "```",
            "",
            f"| network | form | batch | {' | '.join(WAYS.values())} | speed | against convolutions |",
            "|---" * (5 + len(WAYS)) + "|",
        ]
        for row in record["rows"]:
            times = row["milliseconds"]
            cells = [f"{times[way]:.{3 if times[way] < 1 else 1}f}" if way in times else "" for way in WAYS]
            speed, against = (f"{times[other] / times['native']:.2f}" for other in ("torch", "conv"))
            name = row["network"].removeprefix("adder_")
            lines.append(f"| {name} | {row['form']} | {row['batch']} | {' | '.join(cells)} | {speed} | {against} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=9, help="calls of each (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--write", action="store_true", help="write the page in docs/ of all recorded figures")
    args = parser.parse_args()
    record = measure(args.threads, args.repeats, args.networks)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.write:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
