"""Images for training, augmented so that a run can be taken up anywhere.

What happens to an image depends on the seed, the epoch and the image alone: any number of processes, of whatever kind,
sees the same ones, and so does a run that was taken up again.
"""

from __future__ import annotations

import random
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..datasets import DataError

SIZE = 32
PAD = 4
NOISE_TEST_IMAGES = 1_000  # accuracy on noise means nothing


@dataclass
class Data:
    """A data set: two parts, and what results.json says of it."""

    name: str
    train: Dataset
    test: Dataset
    classes: int
    top5: bool = False
    record: dict[str, Any] = field(default_factory=dict)


def seed_everything(*key: int) -> None:
    """Seeds all generators of this process by ``key``, without looking at what they were."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def hold_out(train: tuple[Tensor, Tensor], count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Splits the training images: ``count`` of them, drawn once and for all, become the test images.

    The drawing does not depend on the run's seed, so runs of several seeds are judged on the same images.

    Args:
        train: Images and labels, [N, ...] and [N].
        count: How many to keep out of training, from 1 to N - 1.

    Raises:
        DataError: ``count`` is out of range.
    """
    images, labels = train
    if not 0 < count < len(labels):
        raise DataError(f"--held-out must lie between 0 and the number of training images, {len(labels)}; got {count}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[:count].sort().values, order[count:].sort().values
    return {"train": (images[rest], labels[rest]), "test": (images[held_out], labels[held_out])}


class Images(Dataset):
    """Labelled images in memory; a batch is gathered in one go.

    Args:
        images: [N, C, H, W], float32.
        labels: [N], int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def to(self, device: torch.device) -> None:
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i], self.labels[i]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


class Augmented(Dataset):
    """Images in memory, normalised; in training padded by 4, cropped at random and mirrored at random.

    Args:
        images: [N, 3, 32, 32], uint8.
        labels: [N], int64.
        mean, std: For each channel, on the scale from 0 to 1.
        seed: Of the augmentation; None leaves the images as they are.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], seed: int | None = None
    ) -> None:
        scale = 1 / (255 * torch.tensor(std))
        self.shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
        self.scale = scale.view(3, 1, 1)
        self.images = images
        self.labels = labels
        self.seed = seed
        self.set_epoch(0)

    def to(self, device: torch.device) -> None:
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)

    def set_epoch(self, epoch: int) -> None:
        """Draws this epoch's crops and mirrors; call it before the epoch begins."""
        if self.seed is None:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.offsets = torch.randint(2 * PAD + 1, (len(self.labels), 2), generator=generator)
        self.mirrored = torch.randint(2, (len(self.labels),), generator=generator).bool()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([i])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch in one go: images [B, 3, 32, 32] float32 in channels_last, labels [B]."""
        images = self.images[indices] * self.scale - self.shift
        if self.seed is not None:
            # The border is black, as of torchvision's RandomCrop on an image, so it is not 0 once normalised.
            padded = (-self.shift).expand(3, SIZE + 2 * PAD, SIZE + 2 * PAD).repeat(len(indices), 1, 1, 1)
            padded[:, :, PAD:-PAD, PAD:-PAD] = images
            device = images.device
            top, left = self.offsets[indices].T.to(device)
            row = torch.arange(SIZE, device=device)
            column = torch.where(self.mirrored[indices, None].to(device), row.flip(0), row) + left[:, None]
            row = row + top[:, None]
            batch = torch.arange(len(indices), device=device)[:, None, None]
            # [B, 32, 32, 3]: gathered pixel by pixel, which leaves the batch in channels_last.
            images = padded.permute(0, 2, 3, 1)[batch, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
        return images.contiguous(memory_format=torch.channels_last), self.labels[indices]


class Seeded(Dataset):
    """A data set of files whose transform draws from the generators of Python, NumPy and torch.

    They are seeded for each image, and left as they were.

    Args:
        dataset: One of ``timm.data.create_dataset``, for example.

    Raises:
        DataError: (by an item) a file cannot be read; names it.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            seed_everything(self.seed, self.epoch, i)
            return self.dataset[i]
        except DataError:
            raise
        except (OSError, ValueError, RuntimeError, SyntaxError) as error:  # what PIL raises for damaged files
            raise DataError(f"{self._name(i)} cannot be read: {error}") from error
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])

    def _name(self, i: int) -> str:
        if hasattr(self.dataset, "filename"):
            return str(self.dataset.filename(i, absolute=True))
        return str(self.dataset.samples[i][0]) if hasattr(self.dataset, "samples") else f"image {i}"


def noise_splits(train: int, shape: tuple[int, ...], classes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Bytes of noise instead of a data set, for timing: images [N, *shape] uint8 and labels [N] of each split."""
    counts = {"train": train, "test": NOISE_TEST_IMAGES}
    return {
        split: (torch.randint(256, (count, *shape), dtype=torch.uint8), torch.arange(count) % classes)
        for split, count in counts.items()
    }


class Noise(Dataset):
    """Images of noise, for timing: always the same one, so that only the training takes time."""

    def __init__(self, count: int, shape: tuple[int, ...], classes: int) -> None:
        self.image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.count = count
        self.classes = classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.image, i % self.classes


class EpochSubset(Subset):
    """Some images of a data set that may augment them in another way in each epoch."""

    def set_epoch(self, epoch: int) -> None:
        set_epoch(self.dataset, epoch)


def set_epoch(data: Any, epoch: int) -> None:
    """Tells ``data`` the epoch, where it wants to know."""
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)


def fixed_subset(data: Dataset, count: int) -> Dataset:
    """``count`` items of ``data``, always the same ones, in shuffled order: a bare prefix may be sorted by class."""
    assert isinstance(data, Sized)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    return EpochSubset(data, order[:count])
