"""The optimizer of a run, and its learning rate at each update."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from ..optim import AdderSGD
from .loaders import Stream
from .objectives import exponent
from .settings import RecipeError, Settings


def make_optimizer(config: Settings, objective: nn.Module) -> torch.optim.Optimizer:
    """``AdderSGD``, or the optimizer of timm that ``--opt`` names.

    Raises:
        RecipeError: timm does not know it, or not with these options.
    """
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


class Schedule:
    """How many updates a run has, and the learning rate of each.

    The rate follows from the number of the update alone, so it needs no place in a checkpoint.

    Args:
        config: The settings.
        loader: The batches of one epoch.
        optimizer: The rates of its groups are set.

    Raises:
        RecipeError: there is less data than one update takes, or the run ends before ``--l2-to-l1`` does.
    """

    def __init__(self, config: Settings, loader: Any, optimizer: torch.optim.Optimizer) -> None:
        self.batches_per_epoch = len(loader)
        if isinstance(loader, Stream):  # nothing tells Accelerate where it ends: leave out what makes no full update
            self.batches_per_epoch -= len(loader) % config.gradient_accumulation_steps
        updates_per_epoch = math.ceil(self.batches_per_epoch / config.gradient_accumulation_steps)
        if not updates_per_epoch:
            raise RecipeError(f"the data gives {len(loader)} batches to each process, too few for one update")
        self.updates = config.epochs * updates_per_epoch
        if config.max_steps:
            self.updates = min(self.updates, config.max_steps)
        epochs = math.ceil(self.updates / updates_per_epoch)
        if exponent(epochs - 1, config.l2_to_l1) != 1:
            raise RecipeError(
                f"--l2-to-l1 {config.l2_to_l1}: the training ends after {epochs} epochs, before the exponent is 1; "
                "give no more than that"
            )
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            config.sched,
            num_epochs=self.updates,
            decay_rate=config.poly_power,  # timm's name for it
            warmup_epochs=round(config.warmup_epochs * updates_per_epoch),
            warmup_lr=0.0,
            warmup_prefix=False,
            updates_per_epoch=1,
            step_on_epochs=False,
        )

    def set_rate(self, updates: int) -> None:
        """Sets the learning rate for the update after the first ``updates``."""
        self._scheduler.step_update(updates)  # type: ignore[union-attr]
