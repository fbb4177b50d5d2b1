"""``IntegerNetwork``: a network in whole numbers, from pixels to logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .reference import reads, run_step
from .steps import Placed, Step


@dataclass(frozen=True)
class IntegerNetwork:
    """A network in whole numbers, as ``adder_zoo.to_integers`` makes it.

    Call it with uint8 images [N, H, W, C], as decoded from files, and it answers with integer logits, int64
    [N, classes]. ``activations`` gives every tensor between the layers.

    Attributes:
        steps: In the order in which they are computed.
        image: The shape of an image, (height, width, channels).
        logits: The tensor that holds the answer.
        logit_step: What one unit of a logit is worth in the float network.
        multiplier_free: Whether every multiplier and every filter of a product is a sum of a few signed powers of two.
    """

    steps: tuple[Step, ...]
    image: tuple[int, int, int]
    logits: Placed
    logit_step: float
    multiplier_free: bool
    attributes: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __call__(self, images: Tensor, *, plain: bool = False) -> Tensor:
        """Integer logits, int64 [N, classes].

        Args:
            images: uint8 [N, H, W, C].
            plain: Take every sum from its equation in int64, and not from the package's fast exact operators.

        Raises:
            TypeError, ValueError: images of another dtype or shape.
        """
        parts = [self._run(part, plain)[self.logits.name] for part in images.split(64)] if len(images) else []
        if not parts:
            return torch.empty(0, self.logits.elements, dtype=torch.int64)
        return torch.cat(parts).flatten(1)

    def activations(self, images: Tensor, *, plain: bool = False) -> dict[str, Tensor]:
        """Every tensor by name, in order of computation: int64 [N, H, W, C]. The first is the image itself."""
        return self._run(images, plain, keep=True)

    def _run(self, images: Tensor, plain: bool = False, keep: bool = False) -> dict[str, Tensor]:
        """Tensors by name, int64 [N, H, W, C]: all of them with ``keep``, else the logits alone.

        Raises:
            TypeError: images are not uint8. ValueError: they are not [N, H, W, C] of the network's size.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"the integer network takes images as decoded, uint8 [N, H, W, C], got {images.dtype}")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.image:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image))}], got {list(images.shape)}")
        values = {"image": images.long()}
        last = {name: i for i, step in enumerate(self.steps) for name in reads(step)}
        for i, step in enumerate(self.steps):
            values |= run_step(step, values, plain)
            for name in reads(step):
                if not keep and last[name] == i:
                    values.pop(name, None)
        return values if keep else {self.logits.name: values[self.logits.name]}
