"""Weights that were trained in layers of another kind: shapes do not tell, but batch norm's running means do.

    an adder layer answers -Σ|x - w| <= 0      so no mean behind it is positive
    a convolution answers on both sides of 0   so not all of its means lie far below 0

"Far below" is more than a standard deviation. A network that was never trained has means of 0, and fits everything.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .convert import abbreviated
from .layers import AdderLayer

SIZE = (64, 64)  # of an image, where a network does not say for which it is made


def misfits(network: nn.Module) -> str | None:
    """Which layers of ``network`` have weights that were trained in another kind of layer, in words; None if none has.

    A layer is judged by the batch norm that takes its output: an image on the device "meta", which computes nothing,
    shows which that is. What a layer's own bias adds is taken off the mean first.
    """
    modules = dict(network.named_modules())
    convolved, added = [], []
    for name, norm in _pairs(network):
        mean, variance = (getattr(modules[norm], key) for key in ("running_mean", "running_var"))
        bias: Any = modules[name].bias
        mean = mean if bias is None else mean - bias.detach()
        if isinstance(modules[name], AdderLayer):
            if (mean > 0).any():
                convolved.append(name)
        elif (mean < -variance.sqrt()).all():
            added.append(name)
    lines = []
    if convolved:
        lines.append(f"means behind {abbreviated(convolved, 2)} are positive, and what an adder layer answers never is")
    if added:
        lines.append(f"means behind {abbreviated(added, 2)} are those of adder layers, and here are convolutions")
    return "; ".join(lines) or None


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of layers and of the batch norm that takes the output of each."""
    twin = copy.deepcopy(network).to("meta").eval()
    answers: list[tuple[Tensor, str]] = []
    found: list[tuple[str, str]] = []
    first: Tensor | None = None
    for name, module in twin.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, AdderLayer) or type(module) is nn.Conv2d:
            first = weight if first is None else first
            _remember(module, name, answers)
        elif getattr(module, "running_mean", None) is not None:
            _look_up(module, name, answers, found)
    if first is None or first.dim() != 4:
        return
    size = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", SIZE)[-2:]
    with torch.no_grad(), contextlib.suppress(Exception):  # whatever it does, it is judged as far as it got
        twin(torch.zeros(1, first.shape[1], *size, device="meta"))
    yield from found


def _remember(layer: nn.Module, name: str, answers: list[tuple[Tensor, str]]) -> None:
    def hook(_: nn.Module, inputs: Any, output: Any) -> None:
        answers.append((output, name))

    layer.register_forward_hook(hook)


def _look_up(norm: nn.Module, name: str, answers: list[tuple[Tensor, str]], found: list[tuple[str, str]]) -> None:
    def hook(_: nn.Module, inputs: Any) -> None:
        found.extend((layer, name) for answer, layer in answers if inputs and inputs[0] is answer)

    norm.register_forward_pre_hook(hook)
