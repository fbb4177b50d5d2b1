"""CIFAR-10 and CIFAR-100 in memory, from torchvision's files or from folders of images, and the usual augmentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from _common import DATA_ENVIRONMENT, DataError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from tqdm import tqdm

CLASSES = {"cifar10": 10, "cifar100": 100}
TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
SIZE = 32
PAD = 4


def find(dataset: str, data_dir: str | None) -> Path:
    """The folder that holds ``dataset``: torchvision's root, or one with train/<class>/* and test/<class>/*.

    Args:
        dataset: "cifar10" or "cifar100".
        data_dir: That folder or the one above it; None takes the one that ADDER_ZOO_DATA names.

    Raises:
        DataError: nothing was found; lists every folder looked in.
    """
    root = data_dir if data_dir is not None else os.environ.get(DATA_ENVIRONMENT)
    base = TORCHVISION[dataset].base_folder
    folders = [Path(root).expanduser(), Path(root).expanduser() / dataset] if root else []
    for folder in folders:
        if (folder / base).is_dir() or all((folder / split).is_dir() for split in ("train", "test")):
            return folder
    looked = "".join(f"\n  {folder}" for folder in folders) or f"\n  nowhere: no --data-dir, and no {DATA_ENVIRONMENT}"
    raise DataError(
        f"no {dataset} found. Give --data-dir (or {DATA_ENVIRONMENT}) a folder that holds {base}, as torchvision "
        f"unpacks it, or train/<class>/*.png and test/<class>/*.png. Looked in:{looked}"
    )


def load(dataset: str, folder: Path, quiet: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """The two splits of ``dataset`` in ``folder``.

    Returns:
        {"train": (images, labels), "test": ...}, images [N, 3, 32, 32] uint8, labels [N] int64.

    Raises:
        DataError: a file is missing, damaged or no image of 32 x 32 pixels, or there are other classes; names the file.
    """
    kind = TORCHVISION[dataset]
    splits = {}
    for split in ("train", "test"):
        if (folder / kind.base_folder).is_dir():
            try:
                data = kind(str(folder), train=split == "train", download=False)  # checks every file's MD5 first
            except RuntimeError as error:
                raise DataError(f"{folder / kind.base_folder} is incomplete or damaged; fetch it again") from error
            images, labels = data.data, data.targets
        else:
            images, labels = _read_folder(folder / split, CLASSES[dataset], quiet)
        splits[split] = (torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
    return splits


def _read_folder(folder: Path, classes: int, quiet: bool) -> tuple[np.ndarray, list[int]]:
    try:
        data = datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}") from error
    if len(data.classes) != classes:
        raise DataError(f"{folder} holds {len(data.classes)} classes, expected {classes}")
    images = np.empty((len(data), SIZE, SIZE, 3), np.uint8)
    for i, (path, _) in enumerate(tqdm(data.samples, desc=f"reading {folder.name}", unit="img", disable=quiet)):
        try:
            image = data.loader(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if image.size != (SIZE, SIZE):
            raise DataError(f"{path} has {image.size[0]} x {image.size[1]} pixels, expected {SIZE} x {SIZE}")
        images[i] = np.asarray(image)
    return images, list(data.targets)


class Augmented(Dataset):
    """Images in memory, normalised; in training padded by 4, cropped at random and mirrored at random.

    What happens to an image depends on the seed, the epoch and the image alone, so any number of processes sees the
    same ones, and so does a run that was taken up again.

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
            top, left = self.offsets[indices].T
            row = torch.arange(SIZE)
            column = torch.where(self.mirrored[indices, None], row.flip(0), row) + left[:, None]
            row = row + top[:, None]
            batch = torch.arange(len(indices))[:, None, None]
            # [B, 32, 32, 3]: gathered pixel by pixel, which leaves the batch in channels_last.
            images = padded.permute(0, 2, 3, 1)[batch, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
        return images.contiguous(memory_format=torch.channels_last), self.labels[indices]
