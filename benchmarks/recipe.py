"""What a step of a recipe costs beyond forward, backward and update: loading, augmentation, sums, progress, schedule.

    python benchmarks/recipe.py [--recipe cifar] [--model adder_resnet20] [--batch-size 128] [--steps 30] [--json FILE]
    python benchmarks/recipe.py --recipe imagenet --data-dir FOLDER [--workers 0]

One process: each step of the recipe is followed by a bare step of another such network on one batch that is always the
same; the ratio is taken of the medians. `recipes/cifar.py` trains on noise, as it keeps its images in memory either
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


def arguments() -> argparse.Namespace:
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
    _, name, batch_size = RECIPES[args.recipe]
    args.model, args.batch_size = args.model or name, args.batch_size or batch_size
    return args


class BareSteps:
    """Forward, backward and update of a network on one batch, again and again, between the steps of a recipe."""

    def __init__(self, name: str, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = timm.create_model(name).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.train()
        self.optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        images = torch.randn(batch_size, *model.pretrained_cfg["input_size"], device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.arange(batch_size, device=self.device) % model.num_classes
        self.recipe_times: list[float] = []
        self.bare_times: list[float] = []
        self.last = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> None:
        """One bare step; what passed since the last one was a step of the recipe."""
        begin = self.now()
        self.recipe_times.append(begin - self.last)
        F.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.bare_times.append(self.now() - begin)
        self.last = self.now()

    def ratio(self) -> float:
        """A step of the recipe over a bare one: medians, without the first steps."""
        whole, alone = (statistics.median(times[WARMUP + 1 :]) for times in (self.recipe_times, self.bare_times))
        return whole / alone


def run_recipe(args: argparse.Namespace, bare: BareSteps) -> None:
    """Trains by the recipe, with a bare step as each of its own begins."""
    seed = loop.seed_everything

    def between(*key: int) -> None:
        bare.step()
        seed(*key)

    loop.seed_everything = between
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max-steps", str(args.steps + WARMUP + 1), "--model", args.model]
        flags += ["--batch-size", str(args.batch_size), "--threads", str(args.threads)]
        flags += ["--bn-batches", "1", "--report-to", "none", "--output-dir", folder]
        if args.data_dir:
            flags += ["--data-dir", str(args.data_dir), "--train-split", "", "--val-split", ""]
            flags += ["--workers", str(args.workers), "--eval-every", "1000000"]
        else:
            flags += ["--synthetic"]
        RECIPES[args.recipe][0].main(flags)


def main() -> None:
    args = arguments()
    bare = BareSteps(args.model, args.batch_size)
    run_recipe(args, bare)
    record = {
        **measured(),
        "recipe": args.recipe,
        "model": args.model,
        "batch_size": args.batch_size,
        "device": torch.cuda.get_device_name() if bare.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **({"workers": args.workers} if args.data_dir else {}),
        "steps": args.steps,
        "recipe_over_bare": round(bare.ratio(), 3),
    }
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
