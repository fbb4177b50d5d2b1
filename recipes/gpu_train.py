"""The paper's trainings on a GPU for as long as there is one: LeNet-5-BN on MNIST, then ResNet-20 on CIFAR-10.

    make gpu-train MINUTES=10            (or: python recipes/gpu_train.py --minutes 10 --data-dir FOLDER)

Both by the paper's settings, 50 and 400 epochs. When the time is over the run in progress is stopped at a checkpoint,
and the next call goes on with it. The folder runs/gpu gets one folder for each run, and summary.json: the results so
far, and of what is unfinished its last epoch and the last that was tested, with device, versions and commit.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from adder_zoo.atomic import write_text
from adder_zoo.training import RecipeError, exit_with_message
from adder_zoo.training.record import environment

RECIPES = Path(__file__).resolve().parent
RUNS = {
    "lenet5_bn.mnist": ["mnist.py", "--dataset", "mnist"],
    "resnet20.cifar10": ["cifar.py", "--model", "adder_resnet20", "--eval-every", "10"],
    "resnet20.cifar10-conv": ["cifar.py", "--model", "adder_resnet20", "--eval-every", "10", "--similarity", "conv"],
    "resnet20.cifar10-xnor": ["cifar.py", "--model", "adder_resnet20", "--eval-every", "10", "--similarity", "xnor"],
}
GRACE = 60  # seconds for a checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="more than one: the last is for a checkpoint")
    parser.add_argument("--data-dir", help="folder of the data sets; default: the one that ADDER_ZOO_DATA names")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--cpu", action="store_true", help="to see how it goes where there is no GPU")
    args, flags = parser.parse_known_args()
    if not args.cpu and not torch.cuda.is_available():
        raise RecipeError("there is no GPU here (--cpu trains on the CPU)")
    if 60 * args.minutes <= GRACE:
        raise RecipeError(f"--minutes {args.minutes:g}: give more than {GRACE // 60}, which is kept for a checkpoint")
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    flags += ["--cpu"] if args.cpu else []
    end = time.monotonic() + 60 * args.minutes
    args.output_dir.mkdir(parents=True, exist_ok=True)
    here = environment(Accelerator(cpu=args.cpu))
    for name, (recipe, *settings) in RUNS.items():
        folder = args.output_dir / name
        if (folder / "results.json").exists():
            continue
        command = [sys.executable, str(RECIPES / recipe), *settings, "--output-dir", str(folder), *flags]
        process = subprocess.Popen(command)
        try:
            code = process.wait(max(0.0, end - time.monotonic() - GRACE))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        summarise(args.output_dir, here)
        if code in (128 + signal.SIGTERM, -signal.SIGTERM):  # the latter: it had not even begun
            print(f"{name} is stopped; the same command goes on with it")
            break
        if code:
            raise RecipeError(f"{' '.join(command)} failed")


def summarise(folder: Path, here: dict[str, Any]) -> None:
    """Writes summary.json; ``here`` is the environment of this call; a finished run keeps its own."""
    summary: dict[str, Any] = {"environment": here}
    for name in RUNS:
        run = folder / name
        if (run / "results.json").exists():
            summary[name] = json.loads((run / "results.json").read_text())
        elif (run / "args.yaml").exists():
            rows = list(csv.DictReader((run / "log.csv").open())) if (run / "log.csv").exists() else []
            tested = [row for row in rows if row["test_accuracy"] != "nan"]
            summary[name] = {"finished": False, "last_epoch": rows[-1:], "last_tested": tested[-1:]}
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except RecipeError as error:
        exit_with_message(error)
