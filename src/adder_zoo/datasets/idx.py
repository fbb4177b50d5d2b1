"""MNIST and Fashion-MNIST from idx files, wherever they lie: found, read and checked.

Both data sets consist of four files, which bear the same names in both (Debian, torchvision and the authors agree)::

    train-images-idx3-ubyte[.gz]    train-labels-idx1-ubyte[.gz]
    t10k-images-idx3-ubyte[.gz]     t10k-labels-idx1-ubyte[.gz]

The names do not tell the two apart, so the training labels do: see ``FINGERPRINTS``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ._common import DATA_ENVIRONMENT, DataError

SPLITS = {"train": "train", "test": "t10k"}

# Where the files may lie below a root: torchvision's layout, then plain folders, then the root itself.
FOLDERS = {
    "mnist": ("MNIST/raw", "MNIST", "mnist/raw", "mnist", "raw", "."),
    "fashion_mnist": (
        "FashionMNIST/raw", "FashionMNIST", "fashion_mnist/raw", "fashion_mnist", "fashion-mnist/raw", "fashion-mnist",
        "raw", ".",
    ),
}  # fmt: skip
# Where a package of the system puts them.
SYSTEM = {"mnist": (), "fashion_mnist": (Path("/usr/share/datasets/fashion-mnist"),)}
# SHA-256 of the training labels (the bytes behind the header): data set, and which part of it.
FINGERPRINTS = {
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13": ("mnist", "full"),
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7": ("fashion_mnist", "full"),
    "7b33326cdde534e99414f7e0538b3b36d996ada915ed5d9ba5f90b7370638ba6": ("fashion_mnist", "sample"),
}


def find(dataset: str, data_dir: str | None) -> Path:
    """The folder with the four files of ``dataset``.

    Args:
        dataset: "mnist" or "fashion_mnist".
        data_dir: A folder that holds the files or one of the usual layouts; None looks in the folder that the
            environment variable ADDER_ZOO_DATA names, then where the system keeps them.

    Raises:
        DataError: nothing was found; lists every folder looked in.
    """
    if data_dir is not None:
        candidates = _below(Path(data_dir), dataset)
    else:
        root = os.environ.get(DATA_ENVIRONMENT)
        candidates = (_below(Path(root), dataset) if root else []) + list(SYSTEM[dataset])
    for folder in candidates:
        if all(_file(folder, kind, split) for kind in ("images", "labels") for split in SPLITS.values()):
            return folder
    looked = "".join(f"\n  {folder}" for folder in candidates) or f"\n  nowhere: no --data-dir, no {DATA_ENVIRONMENT}"
    raise DataError(
        f"no {dataset} found. Give --data-dir (or {DATA_ENVIRONMENT}) a folder that holds train-images-idx3-ubyte.gz, "
        f"train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz, compressed or not, or "
        f"torchvision's root. Looked in:{looked}"
    )


def load(dataset: str, folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
    """The two splits of ``dataset`` in ``folder``, and what they are: "full", "sample" or "unknown".

    Returns:
        {"train": (images, labels), "test": ...}, images [N, 28, 28] uint8, labels [N] int64 from 0 to 9.

    Raises:
        DataError: a file is damaged, files do not belong together, or it is the other data set.
    """
    splits = {}
    part = "unknown"
    for split, prefix in SPLITS.items():
        image_file, label_file = _file(folder, "images", prefix), _file(folder, "labels", prefix)
        if image_file is None or label_file is None:
            raise DataError(f"{folder} lacks the {split} images or labels")
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.dim() != 3 or images.shape[1:] != (28, 28):
            raise DataError(f"{image_file}: expected images of 28 x 28 pixels, found shape {tuple(images.shape)}")
        if labels.dim() != 1 or len(labels) != len(images):
            raise DataError(f"{label_file}: shape {tuple(labels.shape)} does not fit {len(images)} images")
        if len(labels) == 0 or labels.max() > 9:
            raise DataError(f"{label_file}: expected labels from 0 to 9, at least one")
        if split == "train":
            known, part = FINGERPRINTS.get(hashlib.sha256(bytes(labels.tolist())).hexdigest(), (dataset, part))
            if known != dataset:
                raise DataError(f"{folder} holds {known}, not {dataset}; give --dataset {known} or another --data-dir")
        splits[split] = (images, labels.long())
    return splits, part


def read_idx(path: Path) -> Tensor:
    """The content of an idx file of unsigned bytes, gzipped or not, as a uint8 tensor.

    Raises:
        DataError: it is not such a file, or is cut off, too long or otherwise damaged.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        begins = content[:4].hex(" ") or "nothing"
        raise DataError(f"{path} is not an idx file of unsigned bytes: it starts with {begins}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is cut off in its header; fetch it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    count = 1
    for size in shape:
        count *= size
    if len(content) - start != count:
        raise DataError(f"{path} holds {len(content) - start} values where shape {shape} needs {count}; fetch it again")
    if count == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


def resize(images: Tensor, size: int) -> Tensor:
    """Images [N, H, W] to [N, size, size], uint8, with PIL's bilinear filter: what timm's own transform does."""
    resized = torch.empty(len(images), size, size, dtype=torch.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BILINEAR)
        resized[i] = torch.from_numpy(np.array(picture))
    return resized


def _below(root: Path, dataset: str) -> list[Path]:
    return [root.expanduser() / folder for folder in FOLDERS[dataset]]


def _file(folder: Path, kind: str, prefix: str) -> Path | None:
    stem = f"{prefix}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    for name in (stem, stem + ".gz"):
        if (folder / name).is_file():
            return folder / name
    return None
