"""Accuracy and saved weights of a network in training, with batch norm statistics that fit its weights."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ..atomic import replace_files
from ..batchnorm import reestimated_batch_norm
from ..hub import save_pretrained
from ..int8.quantize import quantize
from .checkpoint import reported_write
from .data import Data, set_epoch
from .loaders import Loaders, Stream
from .settings import RecipeError, Settings


class Evaluator:
    """Measures and saves a network with batch norm statistics that are recomputed over training batches.

    During training the running statistics are so far behind an adder network's weights that what is measured with them
    says nothing; the log has it for comparison.
    """

    def __init__(
        self, config: Settings, accelerator: Accelerator, objective: nn.Module, loaders: Loaders, data: Data
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.objective = objective
        self.unwrapped = accelerator.unwrap_model(objective, keep_torch_compile=False)
        self.loaders = loaders
        self.data = data

    def __call__(self, model: nn.Module, due: bool = True, running: bool = True) -> dict[str, float]:
        """Accuracies in percent and the loss, by the names of the log.

        Args:
            model: The network, or the average of its weights.
            due: Whether to measure now; otherwise all values are NaN.
            running: Whether to measure with the running statistics as well.
        """
        row: dict[str, float] = {}
        with self._in_objective(model):
            with_running = self._measure() if due and running else {}
            with self._recomputed_statistics() if due else contextlib.nullcontext():
                measured = self._measure() if due else {}
        for name in ("accuracy", *(["top5_accuracy"] if self.data.top5 else []), "loss"):
            row[f"test_{name}"] = round(measured.get(name, math.nan), 4)
        if running:
            row["test_accuracy_running_statistics"] = round(with_running.get("accuracy", math.nan), 4)
        return row

    def quantized(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of a network that was fine-tuned for few bits, in integers, by its name in the results."""
        with self._in_objective(model), self._recomputed_statistics():
            with warnings.catch_warnings():  # what stays float32 was said when the training began
                warnings.filterwarnings("ignore", message="quantize: these adder layers stay float32")
                self.unwrapped.model = quantize(without_hooks(copy.deepcopy(model)).eval())
            return {"quantized_test_accuracy": round(self._measure()["accuracy"], 4)}

    def save(self, model: nn.Module, skeleton: nn.Module, folder: Path, check: bool = False) -> None:
        """Writes model.safetensors and config.json, with recomputed statistics; old ones stay until both are whole.

        Args:
            model: The network, or the average of its weights.
            skeleton: A network of the same kind that holds whole weights, for one whose weights lie in parts.
            folder: Where they go.
            check: Whether to build the network again from the folder and to compare its logits.

        Raises:
            RecipeError: they cannot be written, or with ``check``: the logits differ.
        """
        with self._in_objective(model), self._recomputed_statistics():
            whole = model
            if self.accelerator.distributed_type == DistributedType.FSDP:
                state = self.accelerator.get_state_dict(self.objective)
                whole = skeleton
                if self.accelerator.is_main_process:
                    skeleton.load_state_dict(
                        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
                    )
            if self.accelerator.is_main_process:
                with reported_write(f"the weights in {folder}"), replace_files(folder) as part:
                    save_pretrained(whole, part)
                    if check:
                        images = next(iter(self.loaders.test))[0].to(self.accelerator.device)
                        check_saved(part, whole, images)
                if check:
                    print(f"{folder} holds the weights; timm loads them again and gives the same logits")
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _in_objective(self, model: nn.Module) -> Iterator[None]:
        """Puts ``model`` (the average of the weights, say) where the objective has the network."""
        before = self.unwrapped.model
        self.unwrapped.model = model
        try:
            yield
        finally:
            self.unwrapped.model = before

    def _recomputed_statistics(self) -> Any:
        batches = self.loaders.statistics
        set_epoch(self.data.train, 0)
        set_epoch(batches, 0)
        if isinstance(batches, Stream):
            batches = itertools.islice(batches, self.config.bn_batches)
        return reestimated_batch_norm(self.unwrapped, batches, lambda t: self.accelerator.reduce(t, "mean"))

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        self.objective.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for images, labels, counted_by in _batches_in_step(self.loaders.test, self.accelerator):
            logits = self.objective(images).float()
            top = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="none")
            each = torch.stack([top[:, 0], top.any(1), loss, torch.ones_like(loss)], 1)
            if counted_by == "all":
                each = self.accelerator.gather_for_metrics(each)
            sums += each.sum(0).double().cpu() * (counted_by != "nobody")
        if isinstance(self.loaders.test, Stream):
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        first, five, total, count = sums.tolist()
        if not count:
            raise RecipeError("there is not one image to test with")
        return {"accuracy": 100 * first / count, "top5_accuracy": 100 * five / count, "loss": total / count}


def without_hooks(model: nn.Module) -> nn.Module:
    """``model`` without what PKKD looks at its layers by; a layer that is looked at is not fused."""
    for module in model.modules():
        module._forward_hooks.clear()
    return model


def _batches_in_step(batches: Any, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Images, labels, and who is to count them: "all" processes together, "this" one or "nobody".

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
        raise RecipeError(f"the network that timm builds from {folder} gives other logits than the trained one")
