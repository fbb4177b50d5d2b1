"""The training that the recipes share: one loop, from the data and the network to the results."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _data import Stream, loader, seed_everything, set_epoch, some
from _objectives import exponent, objective_for, set_exponent
from _run import Progress, Run, Stop
from _settings import RecipeError, Settings
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DistributedType
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from adder_zoo import AdderSGD, reestimated_batch_norm
from adder_zoo.hub import save_pretrained
from adder_zoo.layers import is_adder_weight

EVERY = 10  # updates between two looks at the loss: each waits for the device


@dataclass
class Data:
    """A data set: two parts, and what results.json says of it."""

    name: str
    train: Dataset
    test: Dataset
    classes: int
    top5: bool = False
    record: dict[str, Any] = field(default_factory=dict)


def create(config: Settings, name: str, **kwargs: Any) -> nn.Module:
    """The network ``name`` as the settings want it, from ``timm.create_model``.

    Raises:
        RecipeError: timm does not know it, or it has no such option.
    """
    if config.drop_path:
        kwargs["drop_path_rate"] = config.drop_path
    try:
        model = timm.create_model(name, pretrained=config.pretrained, **kwargs)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # OSError: no weights, or no network to fetch them
        raise RecipeError(f"--model {name}: {error}") from error
    for module in model.modules():
        for option in ("weight_grad", "input_grad"):
            if hasattr(module, option):
                setattr(module, option, getattr(config, option))
    return model


def tagged(model: str, dataset: str) -> str:
    """The name of ``model`` as it is made for ``dataset``, whose mean, classes and size it has.

    Raises:
        RecipeError: there is no such network; names those that there are.
    """
    names = timm.list_models(f"adder_*.{dataset}", include_tags=True)
    name = model if "." in model else f"{model}.{dataset}"
    if name not in names:
        known = ", ".join(n.removesuffix(f".{dataset}") for n in names)
        raise RecipeError(f"--model {model}: no network of this zoo for {dataset} has this name; there are {known}")
    return name


def networks(config: Settings, name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module | None]:
    """The network ``name`` in the similarity of the settings, and the convolutional twin that teaches it, if any."""
    model = create(config, name, similarity=config.similarity, **kwargs)
    if config.distillation == "none":
        return model, None
    # The twin begins untrained: weights under this name are the adder network's.
    return model, create(dataclasses.replace(config, pretrained=False), name, similarity="conv", **kwargs)


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
    main = accelerator.is_main_process
    sharded = accelerator.distributed_type == DistributedType.FSDP
    images_at_once = config.batch_size * accelerator.num_processes
    if config.limit_batches:
        data.train, data.test = (
            _limited(part, config.limit_batches * images_at_once) for part in (data.train, data.test)
        )
        if data.record.get("data") == "full":
            data.record["data"] = "part"

    # ---- network and objective
    if config.sync_bn and accelerator.device.type != "cuda":
        raise RecipeError("--sync-bn: torch has it for GPUs only")
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    objective: nn.Module = objective_for(config, model, teacher)
    if config.sync_bn:
        objective = convert_sync_batchnorm(objective)  # in place, the teacher's and PKKD's own as well
    objective = objective.to(memory_format=layout)  # type: ignore[call-overload]
    skeleton = copy.deepcopy(model) if sharded else model
    ema = None
    if config.model_ema:
        if sharded:
            raise RecipeError("--model-ema: not with FSDP, whose weights lie in parts")
        ema = ModelEmaV3(model, decay=config.model_ema_decay, device=accelerator.device)
    if config.compile:
        model.compile()

    # ---- optimizer and data
    is_adder = is_adder_weight(list(objective.parameters()))
    objective, optimizer = accelerator.prepare(objective, optimizer_for(config, objective))
    device = accelerator.device
    train_loader = loader(data.train, config.batch_size, True, config.workers, device)
    test_loader = loader(data.test, config.batch_size, False, config.workers, device)
    bn_loader = train_loader
    if not isinstance(train_loader, Stream):
        # Statistics are taken over images as training sees them, always the same ones.
        bn_loader = loader(
            some(data.train, config.bn_batches * images_at_once), config.batch_size, False, config.workers, device
        )
        train_loader, bn_loader, test_loader = accelerator.prepare(train_loader, bn_loader, test_loader)
    elif not isinstance(test_loader, Stream):
        test_loader = accelerator.prepare(test_loader)
    others = [p for p, yes in zip(objective.parameters(), is_adder, strict=True) if not yes]
    mixup = None
    if config.mixup or config.cutmix:
        mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=data.classes)

    # ---- schedule
    accumulation = config.gradient_accumulation_steps
    batches_per_epoch = len(train_loader)
    if isinstance(train_loader, Stream):  # nothing tells accelerate where it ends: leave out what makes no full update
        batches_per_epoch -= batches_per_epoch % accumulation
    precision = torch.float32 if device.type == "mps" else torch.float64  # of sums over an epoch
    updates_per_epoch = math.ceil(batches_per_epoch / accumulation)
    if not updates_per_epoch:
        raise RecipeError(f"the data gives {len(train_loader)} batches to each process, too few for one update")
    updates = config.epochs * updates_per_epoch
    if config.max_steps:
        updates = min(updates, config.max_steps)
    epochs = math.ceil(updates / updates_per_epoch)
    if exponent(epochs - 1, config.l2_to_l1) != 1:
        raise RecipeError(
            f"--l2-to-l1 {config.l2_to_l1}: the training ends after {epochs} epochs, before the exponent is 1; give no "
            "more than that"
        )
    scheduler, _ = create_scheduler_v2(
        optimizer.optimizer,
        config.sched,
        num_epochs=updates,
        decay_rate=config.poly_power,  # timm's name for it
        warmup_epochs=round(config.warmup_epochs * updates_per_epoch),
        warmup_lr=0.0,
        warmup_prefix=False,
        updates_per_epoch=1,
        step_on_epochs=False,
    )

    # ---- training
    progress = Progress()
    if run.resume(progress, *([ema] if ema else [])):
        accelerator.print(f"going on after epoch {progress.epoch}, update {progress.updates}")
    if accelerator.log_with:
        accelerator.init_trackers("logs", config=run.config)
    inner = accelerator.unwrap_model(objective, keep_torch_compile=False)
    evaluator = Evaluator(config, accelerator, objective, bn_loader, test_loader, data)
    with Stop(accelerator) as stop:
        while progress.updates < updates:
            began = time.monotonic()
            epoch = progress.epoch
            train_loader.set_epoch(epoch)
            set_epoch(data.train, epoch)
            p = exponent(epoch, config.l2_to_l1)
            for network in (inner.model, *([ema.module] if ema else [])):
                set_exponent(network, p)
            scheduler.step_update(progress.updates)
            if not progress.batches:
                progress.rate = optimizer.param_groups[0]["lr"]
            objective.train()
            # Of this process; what a checkpoint knows of all of them goes on in the first.
            sums = torch.tensor(progress.sums if main else [0.0, 0.0, 0.0], dtype=precision, device=device)
            bar = tqdm(
                total=min(batches_per_epoch * images_at_once, len(data.train)),  # type: ignore[arg-type]
                initial=progress.batches * images_at_once,
                unit="img",
                desc=f"epoch {epoch + 1}/{config.epochs}",
                disable=not main,
            )
            here = progress.updates  # when this process began
            for images, labels in _rest(train_loader, progress.batches, batches_per_epoch):
                seed_everything(config.seed, epoch, progress.batches, accelerator.process_index)
                targets = labels
                images = images.contiguous(memory_format=layout)
                if mixup and len(images) % 2 == 0:
                    images, targets = mixup(images, labels)
                with accelerator.accumulate(objective):
                    loss, logits = objective(images, targets)
                    accelerator.backward(loss)
                    if config.clip_grad and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(others, config.clip_grad)
                    optimizer.step()
                    optimizer.zero_grad()
                progress.batches += 1
                right = (logits.detach().argmax(1) == labels).sum()
                count = sums.new_tensor(len(labels))
                sums += torch.stack([loss.detach().to(sums) * count, right.to(sums), count])
                bar.update(len(labels) * accelerator.num_processes)
                if not accelerator.sync_gradients:
                    continue
                progress.updates += 1
                scheduler.step_update(progress.updates)
                if ema:
                    ema.update(inner.model, step=progress.updates)
                last = progress.updates >= updates
                if progress.updates % EVERY == 0 or last:
                    loss_sum, right_sum, seen = sums.tolist()
                    mean = loss_sum / seen
                    if not math.isfinite(mean):
                        bar.close()
                        raise diverged(run, progress)
                    left = (time.monotonic() - began) / (progress.updates - here) * (updates - progress.updates)
                    share = 100 * right_sum / seen
                    bar.set_postfix(loss=f"{mean:.4f}", acc=f"{share:.2f}%", left=tqdm.format_interval(left))
                    values = {"loss": mean, "accuracy": share, "lr": optimizer.param_groups[0]["lr"]}
                    accelerator.log({f"train/{k}": v for k, v in values.items()}, step=progress.updates)
                if last:
                    break
                told = stop.told(progress.updates)
                if told or (config.checkpointing_steps and progress.updates % config.checkpointing_steps == 0):
                    progress.sums = accelerator.reduce(sums, "sum").tolist()
                    if not finite(accelerator, objective, progress.sums[0]):
                        bar.close()
                        raise diverged(run, progress)
                    before, progress.seconds = progress.seconds, progress.seconds + time.monotonic() - began
                    run.save(progress)
                    progress.seconds = before
                    if told:
                        bar.close()
                        accelerator.print(f"stopped at update {progress.updates}; the same command goes on from there")
                        accelerator.end_training()
                        raise SystemExit(128 + (stop.signal or 15))
            bar.close()
            loss_sum, right_sum, seen = accelerator.reduce(sums, "sum").tolist()
            if not finite(accelerator, objective, loss_sum):
                raise diverged(run, progress)
            progress.epoch += 1
            progress.batches = 0
            progress.sums = [0.0, 0.0, 0.0]
            progress.seconds += time.monotonic() - began
            last = progress.updates >= updates
            row = {
                "epoch": progress.epoch,
                "lr": round(progress.rate, 8),
                "train_loss": round(loss_sum / seen, 6),
                "train_accuracy": round(100 * right_sum / seen, 4),
            }

            # ---- evaluation
            due = last or progress.epoch % config.eval_every == 0
            row |= evaluator(inner.model, due)
            if ema:
                row |= {f"ema_{name}": value for name, value in evaluator(ema.module, due, running=False).items()}
            # While p falls, the network is none that timm would build from what is saved.
            if due and p == 1 and row["test_accuracy"] > progress.best.get("best_test_accuracy", -1.0):
                progress.best = {"best_test_accuracy": row["test_accuracy"], "best_epoch": progress.epoch}
                evaluator.save(inner.model, skeleton, run.best)
            progress.rows.append({**row, "seconds": round(time.monotonic() - began, 2)})
            accelerator.log({k: v for k, v in row.items() if k != "epoch" and v == v}, step=progress.updates)
            accelerator.print(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in row.items()))
            if not last:
                run.save(progress)

    # ---- what the run leaves
    evaluator.save(inner.model, skeleton, run.folder, check=not sharded)
    if ema:
        evaluator.save(ema.module, skeleton, run.folder / "ema", check=True)
    row = progress.rows[-1]
    results = run.finish(
        progress,
        {
            "model": name_of(skeleton),
            "similarity": config.similarity,
            "dataset": data.name,
            **data.record,
            **({} if isinstance(data.train, IterableDataset) else {"train_images": len(data.train)}),  # type: ignore[arg-type]
            "parameters": sum(p.numel() for p in skeleton.parameters()),
            "test_images": len(data.test),  # type: ignore[arg-type]
            **{name: value for name, value in row.items() if "test_" in name or name == "train_loss"},
        },
    )
    accelerator.print(f"{run.folder}: {results['test_accuracy']:.2f} % of {results['test_images']} test images")
    accelerator.end_training()
    return results


def finite(accelerator: Accelerator, objective: nn.Module, loss: float) -> bool:
    """Whether the sum of all processes' losses and all of their weights are finite."""
    local = (p.to_local() if hasattr(p, "to_local") else p for p in objective.parameters())  # FSDP holds a part
    bad = torch.stack([~p.detach().isfinite().all() for p in local]).any()
    return math.isfinite(loss) and not accelerator.reduce(bad.float(), "sum").item()


def diverged(run: Run, progress: Progress) -> RecipeError:
    saved = run.saved()
    return RecipeError(
        f"the loss or a weight is not finite at update {progress.updates}, in epoch {progress.epoch + 1}: the training "
        "diverged. Begin again with a lower --lr or --eta in another --output-dir"
        + (f"; {saved[-1]} is the last checkpoint before it." if saved else ".")
    )


def optimizer_for(config: Settings, objective: nn.Module) -> torch.optim.Optimizer:
    if config.opt == "addersgd":
        return AdderSGD(
            objective.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,  # sec. 4.1 of arXiv 1912.13200
            eta=config.eta,
            adder_lr=config.adder_lr,
            factor=config.factor,
        )
    try:
        return create_optimizer_v2(
            objective, config.opt, config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (AssertionError, ValueError) as error:
        raise RecipeError(f"--opt {config.opt}: {error}") from error


def name_of(model: nn.Module) -> str:
    cfg: Any = model.pretrained_cfg
    return f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else cfg["architecture"]


class Evaluator:
    """Measures a network with the running statistics of batch norm and with statistics taken anew, and saves it.

    Mid-training the running ones lag so far behind an adder network's weights that nothing measured with them counts.
    """

    def __init__(
        self,
        config: Settings,
        accelerator: Accelerator,
        objective: nn.Module,
        bn_loader: Any,
        test_loader: Any,
        data: Data,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.objective = objective
        self.inner = accelerator.unwrap_model(objective, keep_torch_compile=False)
        self.bn_loader = bn_loader
        self.test_loader = test_loader
        self.data = data

    def __call__(self, model: nn.Module, due: bool = True, running: bool = True) -> dict[str, float]:
        """Accuracies in percent and the loss, by the names of the log; not a number where nothing is due."""
        row: dict[str, float] = {}
        with self._as_trained(model):
            before = self._measure() if due and running else {}
            with self._fresh_statistics() if due else contextlib.nullcontext():
                anew = self._measure() if due else {}
        names = ("accuracy", *(["top5_accuracy"] if self.data.top5 else []), "loss")
        for name in names:
            row[f"test_{name}"] = round(anew.get(name, math.nan), 4)
        if running:
            row["test_accuracy_running_statistics"] = round(before.get("accuracy", math.nan), 4)
        return row

    def save(self, model: nn.Module, skeleton: nn.Module, folder: Path, check: bool = False) -> None:
        """Writes model.safetensors and config.json, with statistics taken anew.

        Raises:
            RecipeError: with ``check``: the network that timm builds from them gives other logits.
        """
        with self._as_trained(model), self._fresh_statistics():
            plain = model
            if self.accelerator.distributed_type == DistributedType.FSDP:
                state = self.accelerator.get_state_dict(self.objective)
                plain = skeleton
                if self.accelerator.is_main_process:
                    skeleton.load_state_dict(
                        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
                    )
            if self.accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                save_pretrained(plain, folder)
                if check:
                    images = next(iter(self.test_loader))[0].to(self.accelerator.device)
                    check_saved(folder, plain, images)
                    print(f"{folder} holds the weights; timm loads them again and gives the same logits")
        self.accelerator.wait_for_everyone()

    def _as_trained(self, model: nn.Module) -> Any:
        """Puts ``model`` (the average of the weights, say) where the objective has the network."""
        return _attribute(self.inner, "model", model)

    def _fresh_statistics(self) -> Any:
        set_epoch(self.data.train, 0)
        set_epoch(self.bn_loader, 0)
        batches = self.bn_loader
        if isinstance(batches, Stream):
            batches = itertools.islice(batches, self.config.bn_batches)
        return reestimated_batch_norm(self.inner, batches, lambda t: self.accelerator.reduce(t, "mean"))

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        self.objective.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for images, labels, whose in _in_step(self.test_loader, self.accelerator):
            logits = self.objective(images).float()
            top = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="none")
            each = torch.stack([top[:, 0], top.any(1), loss, torch.ones_like(loss)], 1)
            if whose == "all":
                each = self.accelerator.gather_for_metrics(each)
            sums += each.sum(0).double().cpu() * (whose != "nobody")
        if isinstance(self.test_loader, Stream):
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        first, five, total, count = sums.tolist()
        if not count:
            raise RecipeError("there is not one image to test with")
        return {"accuracy": 100 * first / count, "top5_accuracy": 100 * five / count, "loss": total / count}


def _in_step(batches: Any, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Batches, and whether they are to be counted for all processes, this one or nobody.

    Streams may hold different numbers of batches, but a wrapped network must be called everywhere: those that have none
    left repeat their last one.
    """
    if not isinstance(batches, Stream):
        for images, labels in batches:
            yield images, labels, "all"
        return
    latest: tuple[Tensor, Tensor] | None = None
    stream = iter(batches)
    while True:
        batch = next(stream, None)
        if not accelerator.reduce(torch.tensor(float(batch is not None), device=accelerator.device), "sum"):
            return
        latest = batch or latest
        if latest is None:
            raise RecipeError("a process got no test images: start fewer processes, or cut the data into more shards")
        yield *latest, "this" if batch else "nobody"


def _limited(part: Dataset, images: int) -> Dataset:
    if isinstance(part, IterableDataset):
        raise RecipeError("--limit-batches: not for data that is read as a stream; use --max-steps")
    return some(part, images)


def _rest(batches: Any, done: int, count: int) -> Iterable[Any]:
    """What is left of an epoch's ``count`` batches."""
    if isinstance(batches, Stream):
        return itertools.islice(batches, done, count)
    if not done:
        return batches
    return skip_first_batches(batches, done) if done < len(batches) else ()


@torch.no_grad()
def check_saved(folder: Path, model: nn.Module, images: Tensor) -> None:
    """Builds the network again from ``folder``, as a user will, and compares its logits bit by bit.

    Raises:
        RecipeError: they differ.
    """
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).to(images.device)
    again = again.to(memory_format=torch.channels_last)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if not torch.equal(model.eval()(images), again.eval()(images)):
        raise RecipeError(f"the network that timm builds from {folder} answers otherwise than the trained one")


@contextlib.contextmanager
def _attribute(module: nn.Module, name: str, value: nn.Module) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
