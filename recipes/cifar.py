"""Trains ResNet-20 and its kin on CIFAR-10 or CIFAR-100 (AdderNet, arXiv 1912.13200, sec. 4.2, Table 2).

    accelerate launch recipes/cifar.py --model adder_resnet20 --data-dir FOLDER --output-dir runs/resnet20
    accelerate launch recipes/cifar.py --similarity conv --data-dir FOLDER --output-dir runs/resnet20-conv

FOLDER holds cifar-10-batches-py or cifar-100-python, as torchvision unpacks them, or train/<class>/*.png and
test/<class>/*.png; without --data-dir the recipe looks in the folder that ADDER_ZOO_DATA names. The defaults are the
paper's. The same command on the same --output-dir goes on with a run that was stopped, and ends with the same weights.

The output folder gets model.safetensors and config.json (the last epoch's weights, with batch norm statistics taken
anew: `timm.create_model("local-dir:FOLDER", pretrained=True)`), results.json, log.csv and args.yaml.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _cifar import Augmented
from _common import Progress, RecipeError, Run, accuracy, check_saved, fail, parse, start
from accelerate.utils import set_seed
from timm.data import resolve_data_config
from timm.scheduler import create_scheduler_v2
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from adder_zoo import AdderSGD, reestimated_batch_norm
from adder_zoo.datasets import DataError
from adder_zoo.datasets.cifar import CLASSES, find, load
from adder_zoo.hub import save_pretrained
from adder_zoo.models import SIMILARITIES
from adder_zoo.optim import ADDER_LRS


@dataclass(frozen=True)
class Config:
    dataset: str = field(default="cifar10", metadata={"choices": tuple(CLASSES)})
    data_dir: str | None = field(default=None, metadata={"type": str, "help": "folder of the data set"})
    output_dir: str = field(default="runs/cifar", metadata={"help": "the run's folder; a run in it is taken up"})
    model: str = "adder_resnet20"
    similarity: str = field(
        default="adder", metadata={"choices": SIMILARITIES, "help": "conv, xnor: the paper's CNN and binary network"}
    )
    epochs: int = 400  # sec. 4.2
    batch_size: int = field(default=256, metadata={"help": "for each process"})  # sec. 4.2
    lr: float = 0.1  # sec. 4.2
    sched: str = field(default="cosine", metadata={"choices": ("cosine", "poly")})  # the authors' code; the paper: poly
    momentum: float = 0.9  # sec. 4.2; Nesterov's, as in sec. 4.1
    weight_decay: float = 5e-4  # sec. 4.2
    adder_lr: str = field(default="adaptive", metadata={"choices": ADDER_LRS, "help": "ALR (Eq. 13), ILR or neither"})
    eta: float = field(default=0.2, metadata={"help": "η of Eq. 13"})  # the authors' code
    bn_batches: int = field(default=20, metadata={"help": "training batches to take batch norm statistics over"})
    eval_every: int = field(default=1, metadata={"help": "evaluate after every so many epochs, and after the last"})
    gradient_accumulation_steps: int = 1
    max_steps: int = field(default=0, metadata={"help": "stop after so many updates, schedule included; 0: by epochs"})
    seed: int = 0
    cpu: bool = field(default=False, metadata={"help": "train on the CPU even where there is a GPU"})
    threads: int = field(default=0, metadata={"help": "CPU threads for each process; 0: all cores"})


def loader(data: Any, batch_size: int, shuffle: bool) -> DataLoader:
    # The batches come whole from __getitems__, so there is nothing to collate.
    return DataLoader(data, batch_size, shuffle=shuffle, collate_fn=lambda batch: batch)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe with ``argv`` (the command line by default); returns what results.json holds."""
    config = parse(Config, (__doc__ or "").splitlines()[0], argv)
    for name in ("epochs", "batch_size", "bn_batches", "eval_every", "gradient_accumulation_steps"):
        if getattr(config, name) < 1:
            raise RecipeError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    accelerator = start(config.cpu, config.threads, config.gradient_accumulation_steps)
    folder = find(config.dataset, config.data_dir)
    run = Run(config.output_dir, config, accelerator)
    if run.finished:
        raise RecipeError(f"the run in {run.folder} is finished (see results.json); give another --output-dir")
    splits = load(config.dataset, folder, quiet=not accelerator.is_main_process)
    set_seed(config.seed)

    # ---- model and data
    name = config.model if "." in config.model else f"{config.model}.{config.dataset}"
    model = timm.create_model(name, num_classes=CLASSES[config.dataset], similarity=config.similarity)
    preprocessing = resolve_data_config(model=model)
    mean, std = preprocessing["mean"], preprocessing["std"]
    train_data = Augmented(*splits["train"], mean, std, config.seed)
    test_data = Augmented(*splits["test"], mean, std)
    train_loader = loader(train_data, config.batch_size, shuffle=True)
    # Statistics are taken over augmented images, as in training, always the same ones and in shuffled order: a bare
    # prefix may be sorted by class.
    order = torch.randperm(len(train_data), generator=torch.Generator().manual_seed(0)).tolist()
    bn_data = Subset(train_data, order[: config.bn_batches * config.batch_size * accelerator.num_processes])

    # ---- optimizer and schedule
    optimizer = AdderSGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
        eta=config.eta,
        adder_lr=config.adder_lr,
    )
    model, optimizer, train_loader, bn_loader, test_loader = accelerator.prepare(
        model.to(memory_format=torch.channels_last),
        optimizer,
        train_loader,
        loader(bn_data, config.batch_size, shuffle=False),
        loader(test_data, config.batch_size, shuffle=False),
    )
    plain = accelerator.unwrap_model(model, keep_torch_compile=False)
    updates_per_epoch = math.ceil(len(train_loader) / config.gradient_accumulation_steps)
    updates = config.epochs * updates_per_epoch
    if config.max_steps:
        updates = min(updates, config.max_steps)
    scheduler, _ = create_scheduler_v2(
        optimizer.optimizer, config.sched, num_epochs=updates, updates_per_epoch=1, step_on_epochs=False
    )

    # ---- training
    progress = Progress()
    if run.resume(progress):
        accelerator.print(f"going on after epoch {progress.epoch}")
    while progress.updates < updates:
        began = time.monotonic()
        epoch = progress.epoch
        train_loader.set_epoch(epoch)
        train_data.set_epoch(epoch)
        scheduler.step_update(progress.updates)
        rate = optimizer.param_groups[0]["lr"]
        model.train()
        loss_sum = torch.zeros((), device=accelerator.device)
        right = torch.zeros((), device=accelerator.device)
        seen = 0
        bar = tqdm(
            total=len(train_data), unit="img", desc=f"epoch {epoch + 1}", disable=not accelerator.is_main_process
        )
        for images, labels in train_loader:
            with accelerator.accumulate(model):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                progress.updates += 1
                scheduler.step_update(progress.updates)
            seen += len(labels)
            loss_sum += loss.detach() * len(labels)
            right += (logits.detach().argmax(1) == labels).sum()
            bar.update(len(labels) * accelerator.num_processes)
            if progress.updates % 10 == 0 or not accelerator.sync_gradients:
                bar.set_postfix(loss=f"{loss_sum.item() / seen:.4f}", acc=f"{100 * right.item() / seen:.2f}%")
            if progress.updates >= updates:
                break
        bar.close()
        totals = accelerator.reduce(torch.stack([loss_sum, right, torch.tensor(float(seen)).to(loss_sum)]), "sum")
        train_loss, train_accuracy = (totals[0] / totals[2]).item(), (100 * totals[1] / totals[2]).item()
        if not math.isfinite(train_loss):
            raise RecipeError(
                f"the loss is {train_loss} in epoch {epoch + 1}: the training diverged. Lower --lr or --eta; the last "
                f"good checkpoint is in {run.checkpoints}."
            )
        progress.epoch += 1
        progress.seconds += time.monotonic() - began
        last = progress.updates >= updates

        # ---- evaluation: with the running statistics of batch norm, and with statistics taken anew
        running = reestimated = math.nan
        if last or progress.epoch % config.eval_every == 0:
            running = accuracy(model, test_loader, accelerator)
            with reestimated_batch_norm(plain, bn_loader, lambda t: accelerator.reduce(t, "mean")):
                reestimated = accuracy(model, test_loader, accelerator)
                if last and accelerator.is_main_process:
                    save_pretrained(plain, run.folder)
                    some = test_data.__getitems__(list(range(min(len(test_data), config.batch_size))))[0]
                    check_saved(run.folder, plain, some.to(accelerator.device))
                    accelerator.print(f"{run.folder} holds the weights; timm loads them and gives the same logits")
        progress.rows.append(
            {
                "epoch": progress.epoch,
                "lr": round(rate, 8),
                "train_loss": round(train_loss, 6),
                "train_accuracy": round(train_accuracy, 4),
                "test_accuracy": round(reestimated, 4),
                "test_accuracy_running_statistics": round(running, 4),
                "seconds": round(time.monotonic() - began, 2),
            }
        )
        accelerator.print(
            f"epoch {progress.epoch}: loss {train_loss:.4f}, train {train_accuracy:.2f} %, test {reestimated:.2f} % "
            f"({running:.2f} % with running statistics)"
        )
        if not last:
            run.save(progress)

    row = progress.rows[-1]
    results = run.finish(
        progress,
        {
            "model": name,
            "similarity": config.similarity,
            "dataset": config.dataset,
            "parameters": sum(p.numel() for p in plain.parameters()),
            "train_images": len(train_data),
            "test_images": len(test_data),
            "test_accuracy": row["test_accuracy"],
            "test_accuracy_running_statistics": row["test_accuracy_running_statistics"],
            "train_loss": row["train_loss"],
        },
    )
    accelerator.print(f"{run.folder}: {results['test_accuracy']:.2f} % of {len(test_data)} test images")
    accelerator.end_training()
    return results


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        sys.exit(fail(error))
