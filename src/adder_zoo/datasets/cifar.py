"""CIFAR-10 and CIFAR-100 in memory, from torchvision's files or from folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from ._common import DATA_ENVIRONMENT, DataError

CLASSES = {"cifar10": 10, "cifar100": 100}
TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
SIZE = 32


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
                base = folder / kind.base_folder
                files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
                bad = [str(base / name) for name, md5 in files if not check_integrity(str(base / name), md5)]
                raise DataError(f"missing or damaged: {', '.join(bad) or base}; fetch it again") from error
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
    hidden = True if quiet else None  # None: hidden where stderr is not a terminal
    for i, (path, _) in enumerate(tqdm(data.samples, desc=f"reading {folder.name}", unit="img", disable=hidden)):
        try:
            image = data.loader(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if image.size != (SIZE, SIZE):
            raise DataError(f"{path} has {image.size[0]} x {image.size[1]} pixels, expected {SIZE} x {SIZE}")
        images[i] = np.asarray(image)
    return images, list(data.targets)
