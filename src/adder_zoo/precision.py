"""Half precision: which dtypes it is, and why the statistics of batch norm may not be in it.

An adder layer's sums are large with a small spread, about -5000 ± 40 for 4608 taps. The running mean of the batch norm
behind it is that large too, and there bfloat16 steps by 32 and float16 by 4: rounded once, the statistics are wrong for
good, and the network answers at random (adder_resnet20 on CIFAR-10: 1.45 % instead of 92.9 %) without an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
WIDE = (torch.float32, torch.float64)
STATISTICS = {"running_mean": 0.0, "running_var": 1.0}  # and what they are before the first batch
ADVICE = (
    "Rounded to half precision, the running statistics of an adder network are destroyed: its sums are large with a "
    "small spread. Take the float32 checkpoint (half-precision filters beside float32 statistics are fine). If there "
    "is none: widen it ({key: value.float() ...}), load that, and save the network inside "
    "adder_zoo.reestimated_batch_norm(model, batches of training images), which re-estimates the statistics."
)


def half_statistics(state: Mapping[str, Tensor]) -> list[str]:
    """Keys of batch norm's running statistics that are in half precision and more than what a new layer begins with."""
    return [
        key
        for key, value in state.items()
        if isinstance(value, Tensor) and value.dtype in HALF and _has_lost(key.rpartition(".")[2], value)
    ]


def rounded_statistics(state: Mapping[str, Tensor]) -> list[str]:
    """Keys of running means that are rounded to half precision though they are not in it: it was widened afterwards.

    Only large ones count, where bfloat16 steps by 2 or more. That eight of them or more are multiples of that step by
    chance does not happen.
    """
    found = []
    for key, value in state.items():
        if key.rpartition(".")[2] == "running_mean" and value.dtype in WIDE and not value.is_meta:
            large = value[value.abs() > 256]
            if len(large) >= 8 and any(torch.equal(large.to(dtype).to(value.dtype), large) for dtype in HALF):
                found.append(key)
    return found


def _has_lost(name: str, value: Tensor) -> bool:
    return name in STATISTICS and (value.is_meta or not bool((value == STATISTICS[name]).all()))
