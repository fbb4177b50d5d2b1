"""The folder of a run: settings, checkpoints, the best weights, log, learning curves and results."""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..atomic import replace_file, replace_folder, write_text
from ..results import ResultsError, read_results, write_results
from .checkpoint import read_state, reported_write, write_state
from .record import environment, plot_curves
from .settings import RecipeError, Settings


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

    Attributes:
        results: What results.json holds, if the run is finished; else None.

    Raises:
        RecipeError: the folder holds a run with other settings, or results that cannot be read.
    """

    _lock: Any = None

    def __init__(self, config: Settings, accelerator: Accelerator) -> None:
        self.folder = Path(config.output_dir)
        self.accelerator = accelerator
        self.config = config.record()
        self.checkpoints_to_keep = config.checkpoint_hist
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.folder / "best"
        try:
            self.results = read_results(self.folder)
        except ResultsError as error:
            raise RecipeError(f"{error} Or give another --output-dir.") from error
        args = self.folder / "args.yaml"
        if self.results is not None:
            self._require_settings(self.results.get("config", {}), type(config)(), "a finished run")
            accelerator.print(
                f"the run in {self.folder} is finished: {self.results['test_accuracy']:.2f} % of "
                f"{self.results['test_images']} test images. For another run give another --output-dir."
            )
        elif args.exists():
            self._require_settings(yaml.safe_load(args.read_text()), type(config)(), "a run")
        accelerator.wait_for_everyone()

    def _require_settings(self, before: dict[str, Any], defaults: Settings, what: str) -> None:
        # A setting that the run's older version did not have was at its default.
        before = {**defaults.record(), **before}
        changed = [
            f"{name} was {before.get(name)!r} and is {self.config.get(name)!r}"
            for name in sorted({*before, *self.config})
            if before.get(name) != self.config.get(name)
        ]
        if changed:
            raise RecipeError(
                f"{self.folder} holds {what} with other settings ({'; '.join(changed)}). Give another --output-dir, "
                "or the same settings to go on with it."
            )

    def begin(self) -> None:
        """Makes the folder this process's and writes the settings into it.

        Raises:
            RecipeError: another process trains in the folder.
        """
        if self.accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._acquire_lock()
            write_text(self.folder / "args.yaml", yaml.safe_dump(self.config, sort_keys=False))
        self.accelerator.wait_for_everyone()

    def _acquire_lock(self) -> None:
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

    # ---- checkpoints

    def load(self, progress: Progress, sharded: bool) -> dict[str, Any] | None:
        """The state in the newest checkpoint, or None; sets ``progress`` from it.

        Args:
            progress: Set from the checkpoint.
            sharded: Whether each process wrote a part of the state, as for ``save``.

        Raises:
            RecipeError: the checkpoint cannot be read, or the run began with other processes or precision.
        """
        newest = self.saved_checkpoints()[-1:]
        state = None
        if newest:
            progress.load_state_dict(read_state(newest[0], "progress"))
            self._require_same_machine(progress)
            state = read_state(newest[0], self._file_name(sharded))
        progress.processes = self.accelerator.num_processes
        progress.precision = self.accelerator.mixed_precision
        return state

    def _require_same_machine(self, progress: Progress) -> None:
        processes, precision = self.accelerator.num_processes, self.accelerator.mixed_precision
        if progress.processes != processes:
            raise RecipeError(
                f"the run in {self.folder} has {progress.processes} processes, and here are {processes}: each would "
                "get other batches. Start as many, or a new run."
            )
        if progress.precision != precision:
            raise RecipeError(
                f"the run in {self.folder} computes in mixed precision {progress.precision!r}, and here it would "
                f"be {precision!r}. Give --mixed-precision {progress.precision}, or another --output-dir."
            )

    def _file_name(self, sharded: bool) -> str:
        return f"state-{self.accelerator.process_index:05d}" if sharded else "state"

    def save(self, progress: Progress, state: dict[str, Any], sharded: bool) -> None:
        """Writes a checkpoint and the log; keeps the newest checkpoints.

        Args:
            progress: Where the run stands.
            state: Tensors and numbers, as ``write_state`` takes them.
            sharded: Whether ``state`` is this process's part; otherwise all processes have the same.

        Raises:
            RecipeError: the disk is full, for example; the checkpoints before it are whole.
        """
        place = self.checkpoints / f"update-{progress.updates:08d}"
        is_main = self.accelerator.is_main_process
        with reported_write(f"the checkpoint {place}"):
            with self._new_folder(place) as folder:
                if is_main:
                    write_state(folder, "progress", progress.state_dict())
                if is_main or sharded:
                    write_state(folder, self._file_name(sharded), state)
            if is_main:
                for old in self.saved_checkpoints()[: -self.checkpoints_to_keep]:
                    shutil.rmtree(old)
                self._write_log(progress.rows)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _new_folder(self, place: Path) -> Iterator[Path]:
        """A folder that all processes fill, and that takes its place when they have."""
        with contextlib.ExitStack() as stack:
            name: list[Any] = [None]
            if self.accelerator.is_main_process:
                name[0] = str(stack.enter_context(replace_folder(place)))
            yield Path(broadcast_object_list(name)[0])
            self.accelerator.wait_for_everyone()

    def saved_checkpoints(self) -> list[Path]:
        """The checkpoints, the newest one last."""
        return sorted(p for p in self.checkpoints.glob("update-*") if p.is_dir())

    # ---- the end

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
            with reported_write(f"the results in {self.folder}"):
                self._write_log(progress.rows)
                title = f"{record['model']} on {record['dataset']}"
                if not plot_curves(progress.rows, self.folder / "curves.png", title):
                    self.accelerator.print("no learning curves: matplotlib is not installed")
                record = write_results(self.folder, record)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return record

    def _write_log(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            with replace_file(self.folder / "log.csv") as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
