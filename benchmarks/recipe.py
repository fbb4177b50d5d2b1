"""What a step of a recipe costs beyond forward, backward and update: loading, augmentation, sums, progress, schedule.

    python benchmarks/recipe.py [--model adder_resnet20] [--batch-size 128] [--steps 30] [--json FILE]

One process: each step of `recipes/cifar.py` on noise is followed by a bare step of another such network on one batch
that is always the same; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from adder_zoo import AdderSGD

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import _training
import cifar

WARMUP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="adder_resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(args.model).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    images = torch.randn(args.batch_size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(args.batch_size, device=device) % 10

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def bare() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    seed = _training.seed_everything
    recipe_times: list[float] = []
    bare_times: list[float] = []
    last = [0.0]

    def between(*key: int) -> None:
        """Called by the recipe as each of its steps begins."""
        now = wait()
        recipe_times.append(now - last[0])
        bare()
        bare_times.append(wait() - now)
        last[0] = wait()
        seed(*key)

    _training.seed_everything = between
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--synthetic", "--max-steps", str(args.steps + WARMUP + 1), "--model", args.model]
        flags += ["--batch-size", str(args.batch_size), "--bn-batches", "1", "--report-to", "none"]
        flags += ["--threads", str(args.threads), "--output-dir", folder]
        cifar.main(flags)
    recipe, alone = (statistics.median(t[WARMUP + 1 :]) for t in (recipe_times, bare_times))
    record = {
        "model": args.model,
        "batch_size": args.batch_size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "steps": args.steps,
        "recipe_over_bare": round(recipe / alone, 3),
    }
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
