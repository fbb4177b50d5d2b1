"""Images of MNIST and CIFAR-10 as an exported program takes them: uint8 [N, H, W, C], resized, not normalised."""

import numpy as np
import torch
from PIL import Image

from adder_zoo import datasets


def read(dataset, split, folder, count, size=32):
    """The first ``count`` images of a split and their labels."""
    images, labels = datasets.load(dataset, datasets.find(dataset, str(folder)), quiet=True)[split]
    images, labels = images[:count], labels[:count]
    if images.dim() == 4:
        return images.permute(0, 2, 3, 1).contiguous(), labels
    resized = [np.array(Image.fromarray(i.numpy()).resize((size, size), Image.Resampling.BILINEAR)) for i in images]
    return torch.from_numpy(np.stack(resized))[..., None], labels
