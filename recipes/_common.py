"""What the recipes share: settings from flags and files, checkpoints of a run, and the record that it leaves."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import accelerate
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn

import adder_zoo

ConfigT = TypeVar("ConfigT")
CHECKPOINTS_KEPT = 2
# Where a run reads and writes, and how long: may differ when it is taken up again, and is not part of its record.
PLACES = ("data_dir", "output_dir", "cpu", "threads")


class RecipeError(Exception):
    """The run cannot go on; the message says why and what to do."""


def parse(config: type[ConfigT], description: str, argv: Sequence[str] | None = None) -> ConfigT:
    """Settings from flags over ``--config FILE.yaml`` over the defaults of the dataclass ``config``.

    A field's metadata may give ``help`` and ``choices``; ``field_name`` becomes ``--field-name``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings by name; flags override it")
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, field in fields.items():
        flag = "--" + name.replace("_", "-")
        options: dict[str, Any] = {"default": field.default, "help": field.metadata.get("help", " ")}
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            kind = field.metadata.get("type") or type(field.default)
            parser.add_argument(flag, type=kind, choices=field.metadata.get("choices"), **options)
    path = parser.parse_known_args(argv)[0].config
    if path:
        try:
            settings = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            parser.error(f"--config {path}: {error}")
        if not isinstance(settings, dict):
            parser.error(f"--config {path}: expected settings by name")
        settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
        unknown = sorted(set(settings) - set(fields))
        if unknown:
            parser.error(f"--config {path}: unknown settings {', '.join(unknown)}; known are {', '.join(fields)}")
        for name, value in settings.items():
            default = fields[name].default
            if isinstance(default, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
                with contextlib.suppress(ValueError):  # YAML reads 5e-4 as text
                    settings[name] = value = float(value)
            if default is not None and not isinstance(value, type(default)):
                parser.error(f"--config {path}: {name} must be a {type(default).__name__}, got {value!r}")
        parser.set_defaults(**settings)
    chosen = vars(parser.parse_args(argv))
    chosen.pop("config")
    return config(**chosen)


def start(cpu: bool, threads: int = 0, gradient_accumulation_steps: int = 1) -> Accelerator:
    """The ``Accelerator`` of a run, shuffled the same way on every machine.

    Args:
        cpu: Whether to stay on the CPU even where there is a GPU.
        threads: CPU threads for each process; 0 divides the cores among the processes of a machine. (The launcher's
            own default is one thread, which leaves a laptop idle.)
        gradient_accumulation_steps: Batches whose gradients are added up for one update.

    Raises:
        RecipeError: the launcher started other processes than this one knows of.
    """
    accelerator = Accelerator(
        cpu=cpu,
        gradient_accumulation_steps=gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )
    wanted = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != wanted:
        raise RecipeError(
            f"the launcher started {wanted} processes, but this one knows of {accelerator.num_processes}: each would "
            "train on its own. For several processes on CPUs use `torchrun --nproc-per-node N` with --cpu, or "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N`."
        )
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return accelerator


class Progress:
    """Where a run stands: epochs done, updates done, and the rows of its log. Saved in each checkpoint."""

    def __init__(self) -> None:
        self.epoch = 0
        self.updates = 0
        self.seconds = 0.0
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Run:
    """The folder of a run: settings, checkpoints, log and results.

    A checkpoint is written beside its place and then renamed, so that there never is half of one, and the log is
    written from what a checkpoint holds, so that it fits after a run was killed and taken up again.

    Raises:
        RecipeError: the folder holds a run with other settings.
    """

    def __init__(self, folder: str | Path, config: Any, accelerator: Accelerator) -> None:
        self.folder = Path(folder)
        self.accelerator = accelerator
        self.config = {name: value for name, value in dataclasses.asdict(config).items() if name not in PLACES}
        self.checkpoints = self.folder / "checkpoints"
        args = self.folder / "args.yaml"
        if args.exists():
            before = yaml.safe_load(args.read_text())
            changed = [
                f"{name} was {before.get(name)!r} and is {self.config.get(name)!r}"
                for name in sorted({*before, *self.config})
                if before.get(name) != self.config.get(name)
            ]
            if changed:
                raise RecipeError(
                    f"{self.folder} holds a run with other settings ({'; '.join(changed)}). Give another --output-dir, "
                    "or the same settings to go on with it."
                )
        elif accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(args, yaml.safe_dump(self.config, sort_keys=False))
        accelerator.wait_for_everyone()

    @property
    def finished(self) -> bool:
        return (self.folder / "results.json").exists()

    def resume(self, progress: Progress) -> bool:
        """Takes up the newest checkpoint, if there is one; call it after ``prepare``."""
        self.accelerator.register_for_checkpointing(progress)
        newest = self._saved()[-1:]
        if newest:
            self.accelerator.load_state(str(newest[0]))
        return bool(newest)

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint and the log; keeps the newest CHECKPOINTS_KEPT."""
        place = self.checkpoints / f"epoch-{progress.epoch:05d}"
        part = self.checkpoints / f"{place.name}.part"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if main:
            shutil.rmtree(place, ignore_errors=True)
            part.rename(place)
            for old in self._saved()[:-CHECKPOINTS_KEPT]:
                shutil.rmtree(old)
            self._write_log(progress.rows)
        self.accelerator.wait_for_everyone()

    def finish(self, progress: Progress, results: dict[str, Any]) -> dict[str, Any]:
        """Writes ``results.json``, last of all, and returns what it holds; the checkpoints are no longer needed."""
        record = {
            **results,
            "epochs": progress.epoch,
            "updates": progress.updates,
            "training_seconds": round(progress.seconds, 1),
            "config": self.config,
            "environment": environment(self.accelerator),
        }
        if self.accelerator.is_main_process:
            self._write_log(progress.rows)
            write_atomically(self.folder / "results.json", json.dumps(record, indent=2) + "\n")
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return record

    def _saved(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("epoch-*") if p.is_dir() and p.suffix != ".part")

    def _write_log(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            with replaced(self.folder / "log.csv") as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends well."""
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


def write_atomically(path: Path, text: str) -> None:
    with replaced(path) as part:
        part.write_text(text)


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a figure depends on beside its settings: versions, commit, device, processes and date."""
    device = accelerator.device
    cpu = adder_zoo.implementations()["cpu"]
    return {
        "adder_zoo": adder_zoo.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "kernels": cpu.detail if device.type == "cpu" else "triton",
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def commit() -> str | None:
    """The commit of the source tree, with "+" where tracked files differ from it; None outside of a repository."""
    here = Path(__file__).resolve().parent
    try:
        git = ("git", "-C", str(here))
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Any], accelerator: Accelerator) -> float:
    """Share of the images that are classified right, in percent."""
    model.eval()
    right = count = 0
    for images, labels in batches:
        hits = accelerator.gather_for_metrics(model(images).argmax(1) == labels)
        right, count = right + int(hits.sum()), count + len(hits)
    return 100 * right / count


@torch.no_grad()
def check_saved(folder: Path, model: nn.Module, images: Tensor) -> None:
    """Builds the network again from ``folder``, as a user will, and compares its logits bit by bit.

    Raises:
        RecipeError: they differ.
    """
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).to(images.device)
    again = again.to(memory_format=torch.channels_last)
    if not torch.equal(model.eval()(images), again.eval()(images)):
        raise RecipeError(f"the network that timm builds from {folder} answers otherwise than the trained one")


def fail(error: BaseException) -> int:
    """Prints a message instead of a traceback; the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return 1
