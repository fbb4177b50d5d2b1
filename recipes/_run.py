"""The folder of a run: settings, checkpoints, the best weights, log, learning curves and results."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import accelerate
import psutil
import timm
import torch
import yaml
from _settings import RecipeError, Settings
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DataLoaderConfiguration

import adder_zoo

TRACKER = "tensorboard"  # where nobody asked for another


def start(config: Settings) -> Accelerator:
    """The ``Accelerator`` of a run, shuffled the same way on every machine.

    Raises:
        RecipeError: the launcher started other processes than this one knows of, or a tracker is not installed.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    accelerator = Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision or None,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
        step_scheduler_with_optimizer=False,
        log_with=tracker(config.report_to),
        project_dir=config.output_dir,
    )
    wanted = int(os.environ.get("WORLD_SIZE", 0)) or asked_processes()
    if accelerator.num_processes != wanted:
        raise RecipeError(
            f"the launcher was told {wanted} processes, but this one knows of {accelerator.num_processes}: each would "
            "train on its own, or fewer than you think. For several processes on CPUs use `torchrun --nproc-per-node "
            "N` with --cpu, or `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N`."
        )
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "fp16":
            raise RecipeError("fp16 is for GPUs: on a CPU leave --mixed-precision, or take bf16")
        # The launcher's own default is one thread, which leaves a laptop idle.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(config.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return accelerator


def asked_processes() -> int:
    """How many processes ``accelerate launch`` was told to start, where it is this one's parent; else 1.

    Without a GPU it starts a single process whatever ``--num_processes`` says, and leaves no trace of the number.
    """
    words = launcher_arguments()
    if words is None:
        return 1
    args, _ = launch_command_parser().parse_known_args(words)
    if args.num_processes:
        return args.num_processes
    file = args.config_file or (default_config_file if Path(default_config_file).is_file() else None)
    return load_config_from_file(file).num_processes if file else 1


def launcher_arguments() -> list[str] | None:
    """What follows ``accelerate launch``, by any of its names, in this process's parent; None if it is another."""
    parent = psutil.Process().parent()
    command = parent.cmdline() if parent else []
    for i, word in enumerate(command):
        path = Path(word)
        if path.stem == "accelerate-launch" or word == "accelerate.commands.launch":
            return command[i + 1 :]
        if path.name == "launch.py" and path.parent.name == "commands":
            return command[i + 1 :]
        if word == "launch" and any("accelerate" in before for before in command[:i]):
            return command[i + 1 :]
    return None


def tracker(name: str) -> str | None:
    """What ``--report-to`` names, if it is there: only the default may be left out without an error."""
    known = {t.value for t in accelerate.utils.LoggerType} - {"all"}
    here = {t.value if hasattr(t, "value") else str(t) for t in accelerate.tracking.get_available_trackers()}
    if name == "auto":
        return TRACKER if TRACKER in here else None
    if name == "none":
        return None
    if name not in known:
        raise RecipeError(f"--report-to {name}: Accelerate knows {', '.join(sorted(known))}")
    if name not in here:
        raise RecipeError(f"--report-to {name}: it is not installed; `pip install {name}`, or --report-to none")
    return name


class Progress:
    """Where a run stands. Saved in each checkpoint."""

    def __init__(self) -> None:
        self.processes = 0
        self.precision = "no"
        self.epoch = 0  # finished ones
        self.batches = 0  # done in this epoch
        self.rate = 0.0  # the learning rate that this epoch began with
        self.updates = 0
        self.seconds = 0.0  # of training
        self.sums = [0.0, 0.0, 0.0]  # of this epoch: loss, right answers, images
        self.rows: list[dict[str, Any]] = []  # of the log
        self.best: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Run:
    """The folder of a run.

    A checkpoint is written beside its place, brought to the disk and then renamed, so that there never is half of one,
    and the log is written from what a checkpoint holds, so that it fits after a run was killed and taken up again.
    With several machines the folder must be on storage that all of them see.

    Raises:
        RecipeError: the folder holds a finished run, or one with other settings.
    """

    _lock: Any = None

    def __init__(self, config: Settings, accelerator: Accelerator) -> None:
        self.folder = Path(config.output_dir)
        self.accelerator = accelerator
        self.config = config.record()
        self.kept = config.checkpoint_hist
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.folder / "best"
        args = self.folder / "args.yaml"
        if (self.folder / "results.json").exists():
            raise RecipeError(f"the run in {self.folder} is finished (see results.json); give another --output-dir")
        if args.exists():
            # What a run of an older version did not know was as it is by default.
            before = {**type(config)().record(), **yaml.safe_load(args.read_text())}
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
        accelerator.wait_for_everyone()

    def resume(self, progress: Progress, *others: Any) -> bool:
        """Takes up the newest checkpoint, or begins the folder where there is none; call it after ``prepare``.

        Args:
            progress, others: What has a ``state_dict`` and is not known to the accelerator.

        Raises:
            RecipeError: another process trains in the folder, or the run began with other processes or precision.
        """
        precision = self.accelerator.mixed_precision
        if self.accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._take()
            for old in self.checkpoints.glob("update-*.old.part"):  # killed while one took another's place
                with contextlib.suppress(OSError):
                    old.rename(old.with_name(old.name.removesuffix(".old.part")))
            write_atomically(self.folder / "args.yaml", yaml.safe_dump(self.config, sort_keys=False))
        self.accelerator.register_for_checkpointing(progress, *others)
        self.accelerator.wait_for_everyone()
        newest = self.saved()[-1:]
        if newest:
            self.accelerator.load_state(str(newest[0]))
            if progress.processes != self.accelerator.num_processes:
                raise RecipeError(
                    f"the run in {self.folder} has {progress.processes} processes, and here are "
                    f"{self.accelerator.num_processes}: their batches would be others. Start as many, or a new run."
                )
            if progress.precision != precision:
                raise RecipeError(
                    f"the run in {self.folder} computes in mixed precision {progress.precision!r}, and here it would "
                    f"be {precision!r}. Give --mixed-precision {progress.precision}, or another --output-dir."
                )
        progress.processes = self.accelerator.num_processes
        progress.precision = precision
        return bool(newest)

    def _take(self) -> None:
        """Makes the folder this process's, for as long as it lives."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self._lock = (self.checkpoints / "lock").open("a+")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock.seek(0)
            raise RecipeError(
                f"process {self._lock.read().strip()} trains in {self.folder}. Wait until it has ended (a run that was "
                "told to stop writes a checkpoint first), or give another --output-dir."
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()} on {platform.node()}\n")
        self._lock.flush()

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint and the log; keeps the newest."""
        place = self.checkpoints / f"update-{progress.updates:08d}"
        part = place.with_name(place.name + ".part")
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if main:
            replace_folder(part, place)
            for old in self.saved()[: -self.kept]:
                shutil.rmtree(old)
            self._write_log(progress.rows)
        self.accelerator.wait_for_everyone()

    def finish(self, progress: Progress, results: dict[str, Any]) -> dict[str, Any]:
        """Writes ``results.json``, last of all, and returns what it holds; the checkpoints are no longer needed."""
        record = {
            **results,
            **progress.best,
            "epochs": progress.epoch,
            "updates": progress.updates,
            "training_seconds": round(progress.seconds, 1),
            "config": self.config,
            "environment": environment(self.accelerator),
        }
        if self.accelerator.is_main_process:
            self._write_log(progress.rows)
            if not plot_curves(progress.rows, self.folder / "curves.png", f"{record['model']} on {record['dataset']}"):
                self.accelerator.print("no learning curves: matplotlib is not installed")
            write_atomically(self.folder / "results.json", json.dumps(record, indent=2) + "\n")
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return record

    def saved(self) -> list[Path]:
        """The checkpoints, the newest one last."""
        return sorted(p for p in self.checkpoints.glob("update-*") if p.is_dir() and p.suffix != ".part")

    def _write_log(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            with replaced(self.folder / "log.csv") as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


class Stop:
    """Whether the run was told to end, by SIGTERM (a cluster's scheduler) or Ctrl-C; a second one ends it at once.

    ``accelerate launch`` does not pass a signal on to a single process, so that its end counts as one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signal = 0
        self.launcher = None if launcher_arguments() is None else os.getppid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def told(self, updates: int) -> bool:
        """Whether to end after this update; all processes answer alike, so some wait for up to ten updates."""
        if self.launcher and os.getppid() != self.launcher:
            self.signal = self.signal or signal.SIGTERM
        if self.accelerator.num_processes == 1:
            return bool(self.signal)
        if updates % 10:
            return False
        return bool(self.accelerator.reduce(torch.tensor(float(self.signal), device=self.accelerator.device), "sum"))


def plot_curves(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draws loss and accuracy by epoch; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["train_loss"] for row in rows], label="training")
    for name in [n for n in rows[0] if n.endswith("accuracy")]:
        measured = [(row["epoch"], row[name]) for row in rows if row[name] == row[name]]
        accuracy.plot(*zip(*measured, strict=True), label=name.replace("_", " "))
    for axes, label in ((loss, "loss"), (accuracy, "accuracy [%]")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    with replaced(path) as part:
        figure.savefig(part, format="png", dpi=100)
    return True


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends well."""
    part = path.with_name(path.name + ".part")
    yield part
    to_disk(part)
    part.replace(path)
    to_disk(path.parent)


def replace_folder(part: Path, place: Path) -> None:
    """Puts the folder ``part`` in the place of ``place``; killed in between, one of the two is whole."""
    for path in sorted(part.rglob("*")):
        to_disk(path)
    to_disk(part)
    old = place.with_name(place.name + ".old.part")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    part.rename(place)
    to_disk(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's names, would outlive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        "mixed_precision": accelerator.mixed_precision,
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
