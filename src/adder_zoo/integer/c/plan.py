"""Where each tensor lies in the one buffer, planned so that tensors that are not needed at once share memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..network import IntegerNetwork
from ..reference import reads, writes
from ..steps import Placed, Weighted

BYTES = {"uint8": 1, "int16": 2, "int32": 4}


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes by a tensor's name, all multiples of 4; where patches are gathered; and the size of it all."""

    offsets: dict[str, int]
    patch: int
    size: int


def size_of(placed: Placed) -> int:
    """Bytes of a tensor, filled up to words."""
    return -(-placed.elements * BYTES[placed.dtype] // 4) * 4


def patch_words(step: Weighted) -> int:
    """Words of a filter, and of a patch."""
    return -(-step.weight[0].numel() // 4)


def plan(network: IntegerNetwork) -> Plan:
    """The first place that is free, largest tensors first; the image and the logits are the caller's memory."""
    lives: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    for i, step in enumerate(network.steps):
        for placed in writes(step):
            if placed.name != network.logits.name:
                lives[placed.name], sizes[placed.name] = (i, i), size_of(placed)
        for name in reads(step):
            if name in lives:
                lives[name] = lives[name][0], i
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], lives[n])):
        begin, end = lives[name]
        others = sorted(
            (offsets[o], offsets[o] + sizes[o]) for o in offsets if lives[o][0] <= end and lives[o][1] >= begin
        )
        at = 0
        for low, high in others:
            if at + sizes[name] <= low:
                break
            at = max(at, high)
        offsets[name] = at
    patch = max((offsets[n] + sizes[n] for n in offsets), default=0)
    words = max((patch_words(step) for step in network.steps if isinstance(step, Weighted)), default=0)
    return Plan(offsets, patch, patch + 3 * words * 4)
