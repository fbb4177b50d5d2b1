"""A whole test set through ResNet-20: this package's kernels against the formulation of the authors' code.

    python benchmarks/validate.py --model FOLDER --data-dir FOLDER [--images N] [--threads 2]

The same images, the same network, in turns, batch by batch: with the adder layers of the package, and with each of them
computed by unfold and torch.cdist(p=1). Prints images per second of both, their ratio and both accuracies as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import types
from pathlib import Path

import timm
import torch
from cpu import cdist
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import adder_zoo


def by_cdist(layer: adder_zoo.Adder2d, x: torch.Tensor) -> torch.Tensor:
    return cdist(x, layer.weight, layer.stride[0], layer.padding[0])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder that a recipe or `adder-zoo import` wrote")
    parser.add_argument("--data-dir", required=True, help="folder with <class>/<image>")
    parser.add_argument("--images", type=int, default=0, help="number of images, spread over the classes; 0: all")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    networks = {}
    for name in ("adder_zoo", "cdist"):
        network = timm.create_model(f"local-dir:{args.model}", pretrained=True).eval()
        networks[name] = network.to(memory_format=torch.channels_last)
    for layer in networks["cdist"].modules():
        if isinstance(layer, adder_zoo.Adder2d):
            layer.forward = types.MethodType(by_cdist, layer)
    transform = create_transform(**resolve_data_config(model=network), is_training=False)
    data = ImageFolder(args.data_dir, transform)
    if args.images:
        data.samples = data.samples[:: len(data) // args.images][: args.images]
    right = dict.fromkeys(networks, 0)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for x, labels in tqdm(DataLoader(data, args.batch_size), disable=None):
        x = x.contiguous(memory_format=torch.channels_last)
        for name, network in networks.items():
            if not seconds[name]:
                network(x)
            began = time.perf_counter()
            logits = network(x)
            seconds[name].append((time.perf_counter() - began) / len(x))
            right[name] += int((logits.argmax(1) == labels).sum())
    rates = {name: round(1 / statistics.median(s), 1) for name, s in seconds.items()}
    result = {
        "images": len(data),
        "threads": args.threads,
        "kernels": adder_zoo.implementations()["cpu"].detail,
        "torch": torch.__version__,
        "images_per_second": rates,
        "ratio": round(rates["adder_zoo"] / rates["cdist"], 1),
        "accuracy": {name: round(100 * hits / len(data), 2) for name, hits in right.items()},
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
