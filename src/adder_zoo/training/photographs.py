"""Photographs in files and in shards, read by timm's readers. One that cannot be read ends the run with its name."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.distributed as dist
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..datasets import DataError

UNREADABLE = (OSError, ValueError, RuntimeError, SyntaxError, KeyError)  # what PIL and the readers raise
SHUFFLE_BUFFER = 8192  # images of shards that are held back to be mixed


class Photographs(Dataset):
    """Images and labels of a reader of timm.

    timm's own ``ImageDataset`` takes the next image instead of one that it cannot read.

    Args:
        reader: Gives an open file and a label by number, like ``timm.data.create_dataset(...).reader``.
        transform: From a PIL image in RGB to a tensor.

    Raises:
        DataError: (by an item) the file cannot be read; names it.
    """

    def __init__(self, reader: Any, transform: Callable[[Image.Image], Any]) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        try:
            file, label, *_ = self.reader[i]
            image = Image.open(file).convert("RGB")
        except UNREADABLE as error:
            raise DataError(f"{self.reader.filename(i, absolute=True)} cannot be read: {error}") from error
        return self.transform(image), -1 if label is None else int(label)


class Shards(IterableDataset):
    """Images and labels of WebDataset's shards, split among processes and loaders.

    In training, the shards are shuffled for each epoch, then the images of a buffer. Each loader gives equally many; it
    begins its shards again where they do not suffice. To test with, each image comes once.

    Args:
        reader: The reader of ``timm.data.create_dataset("wds/", ...)``, which read the list of shards, ``_info.json``.
        transform: From a PIL image in RGB to a tensor.
        training: As above.
        batch_size: In training, the images of each loader fill whole batches.
        workers: Loaders in each process, at least 1.
        seed: Of the order.

    Raises:
        DataError: (while it is read) a shard or an image cannot be read, or a loader has no shard; names it.
    """

    def __init__(
        self,
        reader: Any,
        transform: Callable[[Image.Image], Any],
        training: bool,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        self.shards = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
        self.count = reader.num_samples
        self.image_keys = reader.input_key.split(";")
        self.label_field = reader.split_info.alt_label  # of a JSON file beside each image; empty: a file .cls
        self.transform = transform
        self.training = training
        self.batch_size = batch_size
        self.workers = max(1, workers)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _images_of_each_loader(self) -> int:
        images = math.ceil(self.count / (_processes() * self.workers))
        return math.ceil(images / self.batch_size) * self.batch_size if self.training else images

    def __len__(self) -> int:
        return self._images_of_each_loader() * self.workers

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        worker = get_worker_info()
        number = (dist.get_rank() if _processes() > 1 else 0) * self.workers + (worker.id if worker else 0)
        loaders = _processes() * self.workers
        shards = list(self.shards)
        if self.training:
            random.Random(f"{self.seed} {self.epoch}").shuffle(shards)
        own = shards[number::loaders]
        if self.training and not own:
            raise DataError(
                f"{len(shards)} shards are too few for {loaders} loaders: start fewer processes or --workers, or cut "
                "the data into more shards"
            )
        samples = self._samples(own, random.Random(f"{self.seed} {self.epoch} {number}"))
        count = self._images_of_each_loader() if self.training else None
        labelled = ((sample, label) for sample in samples if (label := self._label(sample)) >= 0)  # -1: left out
        for sample, label in itertools.islice(labelled, count):
            yield self.transform(self._image(sample)), label

    def _samples(self, shards: list[str], rng: random.Random) -> Iterator[dict[str, Any]]:
        """The files of each image by their endings; in training without an end."""
        import webdataset

        read = webdataset.tarfile_to_samples(handler=webdataset.reraise_exception)
        mix = webdataset.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER // 4, rng=rng)
        passes = itertools.count() if self.training else range(1)
        try:
            for _ in passes:
                samples: Iterable[dict[str, Any]] = read({"url": shard} for shard in shards)
                yield from mix(samples) if self.training else samples
        except DataError:
            raise
        except Exception as error:  # whatever a damaged archive makes tarfile and webdataset raise
            raise DataError(f"the shards cannot be read: {error}") from error

    def _label(self, sample: dict[str, Any]) -> int:
        try:
            return int(json.loads(sample["json"])[self.label_field] if self.label_field else sample["cls"])
        except UNREADABLE as error:
            raise DataError(f"the label of {_place(sample)} cannot be read: {error!r}") from error

    def _image(self, sample: dict[str, Any]) -> Image.Image:
        content = next((sample[key] for key in self.image_keys if key in sample), None)
        if content is None:
            raise DataError(f"{_place(sample)} has no file that ends in .{', .'.join(self.image_keys)}")
        try:
            return Image.open(io.BytesIO(content)).convert("RGB")
        except UNREADABLE as error:
            raise DataError(f"{_place(sample)} cannot be read: {error}") from error


def _place(sample: dict[str, Any]) -> str:
    return f"image {sample.get('__key__')} of {sample.get('__url__')}"


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def open_split(
    dataset: str, root: str | None, split: str, training: bool, batch_size: int, seed: int, download: bool
) -> Any:
    """The images of ``split``, as ``timm.data.create_dataset`` opens them.

    Raises:
        DataError: there are none, or a package is missing.
    """
    try:
        part: Any = create_dataset(
            dataset, root, split=split, is_training=training, download=download, seed=seed, batch_size=batch_size
        )
    except ImportError as error:
        raise DataError(f"--dataset {dataset} needs a package that is not installed: {error}") from error
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"no {split} images in {root}: {error or type(error).__name__}") from error
    if split and root and not dataset and os.path.samefile(part.reader.root, root):  # timm takes all there is
        raise DataError(
            f"{root} has no folder {split}/, nor one of the names that timm knows for it. If the classes lie in it "
            f"directly, say so by an empty --{'train' if training else 'val'}-split=''"
        )
    return part


def check_classes(root: str | None, classes: int, known: dict[str, int], tested: dict[str, int]) -> None:
    """Refuses folders whose classes are more than the network's, or not the same in training and test.

    Raises:
        DataError: see above.
    """
    if len(known) > classes:
        raise DataError(f"{root} holds {len(known)} classes, the network {classes}: give --num-classes {len(known)}")
    if known and tested and known != tested:
        others = sorted({*known} ^ {*tested})
        raise DataError(
            f"the classes of --train-split and --val-split in {root} differ, which would shift the labels: only one "
            f"has {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
        )
