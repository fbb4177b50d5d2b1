"""Images of MNIST and CIFAR-10 as an exported program takes them: uint8 [N, H, W, C], resized, not normalised."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adder_zoo import datasets


def read(dataset, split, folder, count, size=32):
    """The first ``count`` images of a split and their labels."""
    images, labels = raw(dataset, split, folder, count)
    if images.dim() == 4:
        return images.permute(0, 2, 3, 1).contiguous(), labels
    resized = [np.array(Image.fromarray(i.numpy()).resize((size, size), Image.Resampling.BILINEAR)) for i in images]
    return torch.from_numpy(np.stack(resized))[..., None], labels


def raw(dataset, split, folder, count):
    """The same as they come: [N, 28, 28] or [N, 3, 32, 32]."""
    sheets = sorted(Path(folder, dataset).glob(f"{split}_*.webp"))
    if sheets:
        return _from_sheets(sheets, split, count)
    images, labels = datasets.load(dataset, datasets.find(dataset, str(folder)), quiet=True)[split]
    return images[:count], labels[:count]


def _from_sheets(sheets, split, count):
    """CIFAR-10 as sheets of 25 rows of 40 images, in order, with a digit for each label."""
    found = []
    for sheet in sheets[: -(-count // 1000)]:
        tiles = np.asarray(Image.open(sheet).convert("RGB")).reshape(25, 32, 40, 32, 3).swapaxes(1, 2)
        found.append(tiles.reshape(1000, 32, 32, 3))
    images = torch.from_numpy(np.concatenate(found)[:count]).permute(0, 3, 1, 2).contiguous()
    labels = (sheets[0].parent / f"{split}_labels.txt").read_text().strip()[:count]
    return images, torch.tensor([int(label) for label in labels])
