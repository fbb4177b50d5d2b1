"""The training that the recipes share: from the data and the network to the results."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from ..layers import is_adder_weight
from .checkpoint import load_network, load_optimizer
from .data import Data, seed_everything, set_epoch
from .display import epoch_display
from .evaluate import Evaluator
from .few_bits import prepare
from .loaders import limit_data, make_loaders, remaining_batches
from .networks import full_name, require_same_classes
from .objectives import exponent, make_objective, set_exponent
from .run import Progress, Run
from .schedule import Schedule, make_optimizer
from .settings import RecipeError, Settings
from .stop import StopRequest

LOOK_EVERY = 10  # updates between two looks at the loss: each waits for the device


def train(
    config: Settings, accelerator: Accelerator, run: Run, data: Data, model: nn.Module, teacher: nn.Module | None = None
) -> dict[str, Any]:
    """Trains ``model`` on ``data`` as ``config`` says, or goes on with it; returns what results.json holds.

    Every batch begins with generators seeded by its number, so that a run which was stopped anywhere goes on to the
    same weights, bit by bit where the device computes so.

    Args:
        teacher: The convolutional twin of ``--distillation``.

    Raises:
        RecipeError: the loss is not finite, or a setting cannot be met here.
        SystemExit: a signal ended the run, after a checkpoint.
    """
    training = Training(config, accelerator, run, data, model, teacher)
    training.resume()
    with StopRequest(accelerator) as stop:
        while not training.is_done():
            training.train_epoch(stop)
            row = training.end_epoch()
            training.evaluate(row)
            if not training.is_done():
                training.save()
    return training.finish()


class Training:
    """A training in progress: network, optimizer, batches, schedule, and where it stands."""

    def __init__(
        self,
        config: Settings,
        accelerator: Accelerator,
        run: Run,
        data: Data,
        model: nn.Module,
        teacher: nn.Module | None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.run = run
        self.data = data
        self.is_main = accelerator.is_main_process
        self.images_at_once = config.batch_size * accelerator.num_processes
        if config.limit_batches:
            limit_data(data, config.limit_batches * self.images_at_once)
        if config.bits:
            model = prepare(config, accelerator, data, model)
        self._prepare_network(model, teacher)
        self.loaders = make_loaders(config, accelerator, data)
        self.schedule = Schedule(config, self.loaders.train, self.optimizer.optimizer)
        self.evaluator = Evaluator(config, accelerator, self.objective, self.loaders, data)
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=data.classes)
        self.progress = Progress()
        self.epoch_began = 0.0
        self.sums: Tensor  # of this process and epoch: loss, right answers, images

    def _prepare_network(self, model: nn.Module, teacher: nn.Module | None) -> None:
        config, accelerator = self.config, self.accelerator
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if config.sync_bn and accelerator.device.type != "cuda":
            raise RecipeError("--sync-bn: torch has it for GPUs only")
        if config.model_ema and self.sharded:
            raise RecipeError("--model-ema: not with FSDP, whose weights lie in parts")
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        if teacher is not None and config.distillation == "trained":
            require_same_classes(config.teacher, teacher, model)
        objective: nn.Module = make_objective(config, model, teacher)
        if config.sync_bn:
            objective = convert_sync_batchnorm(objective)  # in place, the teacher's and PKKD's own as well
        if not self.sharded:  # FSDP takes no filters in channels_last; the images are
            objective = objective.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.skeleton = copy.deepcopy(model) if self.sharded else model
        self.ema = None
        if config.model_ema:
            self.ema = ModelEmaV3(model, decay=config.model_ema_decay, device=accelerator.device)
        if config.compile:
            model.compile()
        is_adder = is_adder_weight(list(objective.parameters()))
        self.objective, self.optimizer = accelerator.prepare(objective, make_optimizer(config, objective))
        parameters = zip(self.objective.parameters(), is_adder, strict=True)
        self.parameters_to_clip = [p for p, adder in parameters if not adder]

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.objective, keep_torch_compile=False)

    @property
    def network(self) -> nn.Module:
        """The network itself, without objective and wrappers."""
        return self._unwrapped().model

    def is_done(self) -> bool:
        return self.progress.updates >= self.schedule.updates

    def resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one."""
        self.run.begin()
        state = self.run.load(self.progress, self.sharded)
        if state is not None:
            load_network(self._unwrapped(), state["objective"])
            load_optimizer(self.optimizer, state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.accelerator.print(f"going on after epoch {self.progress.epoch}, update {self.progress.updates}")
        if self.accelerator.log_with:
            self.accelerator.init_trackers("logs", config=self.run.config)

    def save(self) -> None:
        """Writes a checkpoint. Random numbers are not in it: each batch begins with generators of its own."""
        scaler = self.accelerator.scaler
        state = {
            "objective": self._unwrapped().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        self.run.save(self.progress, state, self.sharded)

    # ---- an epoch

    def train_epoch(self, stop: StopRequest) -> None:
        """Trains to the end of an epoch or of the run.

        Raises:
            RecipeError: the loss or a weight is not finite.
            SystemExit: ``stop`` was asked for; a checkpoint is written.
        """
        self._begin_epoch()
        progress = self.progress
        updates_before = progress.updates  # of this process
        display = epoch_display(
            f"epoch {progress.epoch + 1}/{self.config.epochs}",
            min(self.schedule.batches_per_epoch * self.images_at_once, len(self.data.train)),  # type: ignore[arg-type]
            progress.batches * self.images_at_once,
            self.is_main,
        )
        try:
            for images, labels in self._batches():
                self._train_batch(images, labels)
                display.update(len(labels) * self.accelerator.num_processes)
                if not self.accelerator.sync_gradients:
                    continue
                self._after_update()
                if progress.updates % LOOK_EVERY == 0 or self.is_done():
                    display.set_postfix(**self._look_at_loss(progress.updates - updates_before))
                if self.is_done():
                    break
                self._checkpoint_if_due(stop)
        finally:
            display.close()

    def _begin_epoch(self) -> None:
        self.epoch_began = time.monotonic()
        progress = self.progress
        self.loaders.train.set_epoch(progress.epoch)
        set_epoch(self.data.train, progress.epoch)
        for network in (self.network, *([self.ema.module] if self.ema else [])):
            set_exponent(network, exponent(progress.epoch, self.config.l2_to_l1))
        self.schedule.set_rate(progress.updates)
        if not progress.batches:
            progress.rate = self.optimizer.param_groups[0]["lr"]
        self.objective.train()
        device = self.accelerator.device
        precision = torch.float32 if device.type == "mps" else torch.float64
        # What a checkpoint knows of all processes goes on in the first.
        self.sums = torch.tensor(progress.sums if self.is_main else [0.0, 0.0, 0.0], dtype=precision, device=device)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's remaining batches, each after the generators were seeded for it."""
        progress = self.progress
        batches = remaining_batches(self.loaders.train, progress.batches, self.schedule.batches_per_epoch)
        for images, labels in batches:
            seed_everything(self.config.seed, progress.epoch, progress.batches, self.accelerator.process_index)
            yield images.contiguous(memory_format=self.layout), labels

    def _train_batch(self, images: Tensor, labels: Tensor) -> None:
        """Forward and backward, and the update where the batch completes one."""
        targets = labels
        if self.mixup and len(images) % 2 == 0:
            images, targets = self.mixup(images, labels)
        with self.accelerator.accumulate(self.objective):
            loss, logits = self.objective(images, targets)
            self.accelerator.backward(loss)
            if self.config.clip_grad and self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.parameters_to_clip, self.config.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.progress.batches += 1
        right = (logits.detach().argmax(1) == labels).sum()
        count = self.sums.new_tensor(len(labels))
        self.sums += torch.stack([loss.detach().to(self.sums) * count, right.to(self.sums), count])

    def _after_update(self) -> None:
        self.progress.updates += 1
        self.schedule.set_rate(self.progress.updates)
        if self.ema:
            self.ema.update(self.network, step=self.progress.updates)

    def _look_at_loss(self, updates_here: int) -> dict[str, str]:
        """Loss, accuracy and time left, for the display; also hands them to the tracker.

        Raises:
            RecipeError: the loss is not finite.
        """
        progress = self.progress
        loss_sum, right, seen = self.sums.tolist()
        loss, accuracy = loss_sum / seen, 100 * right / seen
        if not math.isfinite(loss):
            raise self._diverged()
        values = {"loss": loss, "accuracy": accuracy, "lr": self.optimizer.param_groups[0]["lr"]}
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=progress.updates)
        seconds = (time.monotonic() - self.epoch_began) / updates_here * (self.schedule.updates - progress.updates)
        return {"loss": f"{loss:.4f}", "acc": f"{accuracy:.2f}%", "left": tqdm.format_interval(seconds)}

    def _checkpoint_if_due(self, stop: StopRequest) -> None:
        progress, every = self.progress, self.config.checkpointing_steps
        stopping = stop.should_stop(progress.updates)
        if not stopping and not (every and progress.updates % every == 0):
            return
        progress.sums = self.accelerator.reduce(self.sums, "sum").tolist()
        self._require_finite(progress.sums[0])
        seconds_before = progress.seconds
        progress.seconds += time.monotonic() - self.epoch_began
        self.save()
        progress.seconds = seconds_before
        if stopping:
            self.accelerator.print(f"stopped at update {progress.updates}; the same command goes on from there")
            self.accelerator.end_training()
            raise SystemExit(stop.exit_status())

    def end_epoch(self) -> dict[str, float]:
        """Counts the epoch as finished; the training's part of its row in the log.

        Raises:
            RecipeError: the loss or a weight is not finite.
        """
        progress = self.progress
        loss_sum, right, seen = self.accelerator.reduce(self.sums, "sum").tolist()
        self._require_finite(loss_sum)
        progress.epoch += 1
        progress.batches = 0
        progress.sums = [0.0, 0.0, 0.0]
        progress.seconds += time.monotonic() - self.epoch_began
        return {
            "epoch": progress.epoch,
            "lr": round(progress.rate, 8),
            "train_loss": round(loss_sum / seen, 6),
            "train_accuracy": round(100 * right / seen, 4),
        }

    def evaluate(self, row: dict[str, float]) -> None:
        """Measures where it is due, keeps the best weights, and adds ``row`` to the log."""
        progress = self.progress
        due = self.is_done() or progress.epoch % self.config.eval_every == 0
        row |= self.evaluator(self.network, due)
        if self.ema:
            averaged = self.evaluator(self.ema.module, due, running=False)
            row |= {f"ema_{name}": value for name, value in averaged.items()}
        # While p falls, timm would build another network from what is saved.
        final_exponent = exponent(progress.epoch - 1, self.config.l2_to_l1) == 1
        if due and final_exponent and row["test_accuracy"] > progress.best.get("best_test_accuracy", -1.0):
            progress.best = {"best_test_accuracy": row["test_accuracy"], "best_epoch": progress.epoch}
            self.evaluator.save(self.network, self.skeleton, self.run.best)
        progress.rows.append({**row, "seconds": round(time.monotonic() - self.epoch_began, 2)})
        measured = {name: value for name, value in row.items() if name != "epoch" and not math.isnan(value)}
        self.accelerator.log(measured, step=progress.updates)
        self.accelerator.print(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in row.items()))

    # ---- the end

    def finish(self) -> dict[str, Any]:
        """Saves the weights and writes the results, which it returns."""
        self.evaluator.save(self.network, self.skeleton, self.run.folder, check=not self.sharded)
        if self.ema:
            self.evaluator.save(self.ema.module, self.skeleton, self.run.folder / "ema", check=True)
        integers = self.evaluator.quantized(self.network) if self.config.bits else {}
        row = self.progress.rows[-1]
        known_length = not isinstance(self.data.train, IterableDataset)
        results = self.run.finish(
            self.progress,
            {
                "model": full_name(self.skeleton),
                "similarity": self.config.similarity,
                "dataset": self.data.name,
                **self.data.record,
                **({"train_images": len(self.data.train)} if known_length else {}),  # type: ignore[arg-type]
                "parameters": sum(p.numel() for p in self.skeleton.parameters()),
                "test_images": len(self.data.test),  # type: ignore[arg-type]
                **{name: value for name, value in row.items() if "test_" in name or name == "train_loss"},
                **integers,
            },
        )
        self.accelerator.print(
            f"{self.run.folder}: {results['test_accuracy']:.2f} % of {results['test_images']} test images"
        )
        self.accelerator.end_training()
        return results

    def _require_finite(self, loss: float) -> None:
        """Checks the sum of all processes' losses, and the weights of all of them."""
        parameters = self.objective.parameters()
        local = (p.to_local() if hasattr(p, "to_local") else p for p in parameters)  # FSDP holds a part
        bad = torch.stack([~p.detach().isfinite().all() for p in local]).any()
        if not math.isfinite(loss) or self.accelerator.reduce(bad.float(), "sum").item():
            raise self._diverged()

    def _diverged(self) -> RecipeError:
        saved = self.run.saved_checkpoints()
        updates, epoch = self.progress.updates, self.progress.epoch + 1
        return RecipeError(
            f"the loss or a weight is not finite at update {updates}, in epoch {epoch}: "
            "the training diverged. Begin again with a lower --lr or --eta in another --output-dir"
            + (f"; {saved[-1]} is the last checkpoint before it." if saved else ".")
        )
