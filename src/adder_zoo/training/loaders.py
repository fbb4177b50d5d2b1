"""Batches of a data set, whether it lies in memory, in files, or can only be read from its beginning."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .data import Augmented, Data, EpochSubset, Images, fixed_subset, seed_everything, set_epoch
from .settings import RecipeError, Settings


@dataclass
class Loaders:
    """Batches to train with, to take batch norm statistics over, and to test with; each process gets its share."""

    train: Any
    statistics: Any
    test: Any


def make_loaders(config: Settings, accelerator: Accelerator, data: Data) -> Loaders:
    """The loaders of a run, prepared for the processes of ``accelerator``."""

    def batches(part: Dataset, shuffle: bool) -> Any:
        return make_loader(part, config.batch_size, shuffle, config.workers, accelerator.device)

    train, test = batches(data.train, shuffle=True), batches(data.test, shuffle=False)
    if not isinstance(test, Stream):
        test = accelerator.prepare(test)
    if isinstance(train, Stream):
        return Loaders(train, train, test)
    # Statistics are taken over images as training sees them, always the same ones.
    count = config.bn_batches * config.batch_size * accelerator.num_processes
    statistics = batches(fixed_subset(data.train, count), shuffle=False)
    return Loaders(accelerator.prepare(train), accelerator.prepare(statistics), test)


def make_loader(data: Dataset, batch_size: int, shuffle: bool, workers: int, device: torch.device) -> Any:
    """Batches of ``data``, on its device where it is a stream or lies in memory."""
    whole = data
    while isinstance(whole, EpochSubset):
        whole = whole.dataset
    if isinstance(whole, (Images, Augmented)):  # in memory: the device's is the best place, and batches come whole
        whole.to(device)
        return DataLoader(data, batch_size, shuffle=shuffle, collate_fn=_unchanged)
    options: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda"}
    if isinstance(data, IterableDataset):
        return Stream(DataLoader(data, batch_size, **options), device)
    return DataLoader(data, batch_size, shuffle=shuffle, **options)


def _unchanged(batch: Any) -> Any:
    return batch


class Stream:
    """Batches of a data set that can only be read from its beginning (shards of WebDataset, for example).

    The data set has split itself among the processes, and Accelerate knows nothing of it.
    """

    def __init__(self, batches: DataLoader, device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        set_epoch(self.batches.dataset, epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        seed_everything(self.epoch)  # of which the loader draws the seeds of its workers
        batches = iter(self.batches)
        for number in itertools.count():
            seed_everything(self.epoch, number)
            try:
                images, labels = next(batches)
            except StopIteration:
                return
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def remaining_batches(batches: Any, done: int, count: int) -> Iterable[Any]:
    """An epoch's ``count`` batches without the first ``done``."""
    if isinstance(batches, Stream):
        return itertools.islice(batches, done, count)
    if not done:
        return batches
    return skip_first_batches(batches, done) if done < len(batches) else ()


def limit_data(data: Data, images: int) -> None:
    """Shortens each part of ``data`` to at most ``images`` images.

    Raises:
        RecipeError: a part is read as a stream.
    """
    if any(isinstance(part, IterableDataset) for part in (data.train, data.test)):
        raise RecipeError("--limit-batches: not for data that is read as a stream; use --max-steps")
    data.train, data.test = fixed_subset(data.train, images), fixed_subset(data.test, images)
    if data.record.get("data") == "full":
        data.record["data"] = "part"
