"""The small data sets of the paper in memory: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, found, read and checked."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from . import cifar, idx
from ._common import DATA_ENVIRONMENT, DataError

__all__ = ["DATA_ENVIRONMENT", "NAMES", "DataError", "find", "load"]

NAMES = (*idx.FOLDERS, *cifar.CLASSES)


def find(dataset: str, data_dir: str | None = None) -> Path:
    """The folder that holds ``dataset``, one of ``NAMES``; see ``idx.find`` and ``cifar.find``.

    Raises:
        DataError: nothing was found; lists every folder looked in.
    """
    return (cifar if dataset in cifar.CLASSES else idx).find(dataset, data_dir)


def load(dataset: str, folder: Path, quiet: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """The two splits of ``dataset`` in ``folder``.

    Returns:
        {"train": (images, labels), "test": ...}, images uint8, [N, 28, 28] or [N, 3, 32, 32], labels [N] int64.

    Raises:
        DataError: the data is damaged or other data; names the file.
    """
    if dataset in cifar.CLASSES:
        return cifar.load(dataset, folder, quiet)
    return idx.load(dataset, folder)[0]
