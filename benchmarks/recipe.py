"""What a step of a recipe costs beyond forward, backward and update: loading, augmentation, sums, progress, schedule.

    python benchmarks/recipe.py [--recipe cifar] [--model adder_resnet20] [--batch-size 128] [--steps 30] [--json FILE]
    python benchmarks/recipe.py --recipe imagenet --data-dir FOLDER [--workers 0]

One process: each step of the recipe is followed by a bare step of another such network on one batch that is always the
same; the ratio is that of the medians. `recipes/cifar.py` trains on noise, as it keeps its images in memory either
way; `recipes/imagenet.py` on the photographs of FOLDER/<class>/*, read, cropped and mirrored as it does by default,
and by the training process itself, so that all of that counts: processes of their own (--workers) would work in the
bare steps' time as well.
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
from _measured import measured

from adder_zoo import AdderSGD
from adder_zoo.training import loop

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import cifar
import imagenet

RECIPES = {"cifar": (cifar, "adder_resnet20", 128), "imagenet": (imagenet, "adder_resnet18", 16)}
WARMUP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, default="cifar")
    parser.add_argument("--model", help="default: adder_resnet20 or adder_resnet18")
    parser.add_argument("--batch-size", type=int, help="default: 128 or 16")
    parser.add_argument("--data-dir", type=Path, help="classes of photographs, for --recipe imagenet")
    parser.add_argument("--workers", type=int, default=0, help="processes that load photographs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if (args.recipe == "imagenet") != bool(args.data_dir):
        parser.error("--data-dir belongs to --recipe imagenet, which needs it")
    recipe, name, batch_size = RECIPES[args.recipe]
    name, batch_size = args.model or name, args.batch_size or batch_size

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(name).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    images = torch.randn(batch_size, *model.pretrained_cfg["input_size"], device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % model.num_classes

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def bare() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    seed = loop.seed_everything
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

    loop.seed_everything = between
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max-steps", str(args.steps + WARMUP + 1), "--model", name, "--batch-size", str(batch_size)]
        flags += ["--bn-batches", "1", "--report-to", "none", "--threads", str(args.threads), "--output-dir", folder]
        if args.data_dir:
            flags += ["--data-dir", str(args.data_dir), "--train-split", "", "--val-split", ""]
            flags += ["--workers", str(args.workers), "--eval-every", "1000000"]
        else:
            flags += ["--synthetic"]
        recipe.main(flags)
    whole, alone = (statistics.median(t[WARMUP + 1 :]) for t in (recipe_times, bare_times))
    record = {
        **measured(),
        "recipe": args.recipe,
        "model": name,
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **({"workers": args.workers} if args.data_dir else {}),
        "steps": args.steps,
        "recipe_over_bare": round(whole / alone, 3),
    }
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
