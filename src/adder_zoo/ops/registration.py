"""How a function becomes an operator ``adder_zoo::<name>`` of ``torch.library``, which compile, export and opcheck see.

Every operator runs with autocast off: it computes in float32 whatever comes in. And it lays its result out as its fake
kernel promises: channels_last where the input or the filters are, as ``conv2d`` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("adder_zoo", "FRAGMENT")  # what it registers lives as long as it does


def operator(fake: Callable[..., Any], vmap: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Makes an operator ``adder_zoo::<name>`` of a function: ``fake`` says how the result is laid out.

    ``vmap(operator, B, in_dims, *args)``, if given, computes it for B samples at once and returns (result, dimension).
    """

    def define(function: Callable[..., Any]) -> Any:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, without_autocast(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"adder_zoo::{name}", fake, lib=LIBRARY)
        overload = getattr(torch.ops.adder_zoo, name).default
        if vmap is not None:

            def rule(info: Any, in_dims: tuple, *args: Any) -> Any:
                return vmap(overload, info.batch_size, in_dims, *args)

            torch.library.register_vmap(f"adder_zoo::{name}", rule, lib=LIBRARY)
        return overload

    return define


@torch.compiler.assume_constant_result  # torch.compile of torch 2.10 cannot look inside
def has_autocast(device: str) -> bool:
    """Whether torch knows autocast for this kind of device; to ask others for it is an error."""
    return torch.amp.is_autocast_available(device)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose first argument is a tensor, run with autocast off for that tensor's kind of device."""

    @functools.wraps(function)
    def run(x: Tensor, *args: Any) -> Any:
        device = x.device.type
        if not has_autocast(device) or not torch.is_autocast_enabled(device):
            return function(x, *args)
        with torch.autocast(device, enabled=False):
            return function(x, *args)

    return run


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if one of the tensors is that and nothing else; like ``conv2d``, the filters have a say."""
    for t in tensors:
        if t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format
