"""CIFAR's images in memory with the usual augmentation, drawn so that a run can be taken up anywhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

SIZE = 32
PAD = 4


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
