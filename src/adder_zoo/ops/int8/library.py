"""The int8 operator as ``torch.library`` operators, so that compile, export and opcheck see it.

    adder_zoo::adder2d_int8        the sums as int32
    adder_zoo::adder2d_int8_fused  the sums, then batch norm, shortcut and ReLU in float32, then the next layer's bytes
    adder_zoo::int8_levels         the bytes of a float image

``reference.py`` is what both mean; an implementation must give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import triton
from ..backends import CPU, TRITON
from ..geometry import Geometry
from ..registration import memory_format, operator
from . import cpu, reference
from . import triton as kernels
from .reference import Epilogue


@dataclass(frozen=True)
class Backend:
    """An implementation's functions, as in ``reference.py``."""

    forward: Callable[[Tensor, Tensor, int, Geometry], Tensor]
    forward_fused: Callable[[Tensor, Tensor, int, Epilogue, Geometry], tuple[Tensor | None, Tensor | None]]
    levels: Callable[[Tensor, float, int, int], Tensor]


BACKENDS = {
    "reference": Backend(reference.forward, reference.forward_fused, reference.levels),
    "cpu": Backend(cpu.forward, cpu.forward_fused, cpu.levels),
    "triton": Backend(kernels.forward, kernels.forward_fused, reference.levels),
}


def _fake_int8(x, weight, zero_point, stride, padding, dilation, groups, impl="auto"):
    shape = Geometry.of(stride, padding, dilation, groups).output_shape(x, weight)
    return x.new_empty(shape, dtype=torch.int32).contiguous(memory_format=memory_format(x, weight))


@operator(_fake_int8)
def adder2d_int8(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    impl: str = "auto",
) -> Tensor:
    """``-Σ|x - w|`` over bytes, exact (AdderNet, arXiv 1912.13200, Eq. 2).

    Args:
        x, weight: [N, C, H, W] and [K, C/groups, R, S], uint8, with one scale and one zero point for both.
        zero_point: The byte that stands for 0, 0 to 255: what a padded pixel is.
        stride, dilation: Pairs (height, width), at least 1. padding: (top, bottom, left, right), at least 0.
        groups: Divides C and K.
        impl: "reference" (eager torch, any device), "cpu" (native kernels), "triton" (a GPU), or "auto", by device.

    Returns:
        [N, K, P, Q], int32, channels_last where x or weight is. It has no gradient.

    Raises:
        TypeError: x or weight is not uint8.
        ValueError: shapes or options do not fit, or a filter has so many taps (over 8,421,504) that a sum may overflow.
        RuntimeError: ``impl`` cannot run here.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    _check(x, weight, zero_point, geometry)
    y = _resolve(impl, x).forward(x, weight, zero_point, geometry)
    return y.contiguous(memory_format=memory_format(x, weight))


def _fake_int8_fused(
    x, weight, zero_point, scale, shift, residual, relu, wide, inverse_step, next_zero_point, top, narrow,
    stride, padding, dilation, groups, impl="auto",
):  # fmt: skip
    shape = Geometry.of(stride, padding, dilation, groups).output_shape(x, weight)
    order = memory_format(x, weight)

    def made(wanted, dtype):
        t = x.new_empty(shape if wanted else 0, dtype=dtype)
        return t.contiguous(memory_format=order) if wanted else t

    return made(wide, torch.float32), made(narrow, torch.uint8)


@operator(_fake_int8_fused)
def adder2d_int8_fused(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    relu: bool,
    wide: bool,
    inverse_step: float,
    next_zero_point: int,
    top: int,
    narrow: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``adder2d_int8`` and what follows it in a network, in one pass.

        v = act(scale[k]·y + shift[k] + residual)        in float32, each operation rounded by itself
        levels = clamp(round(v·inverse_step) + next_zero_point, 0, top)

    Args:
        x, weight, zero_point, stride, padding, dilation, groups, impl: As in ``adder2d_int8``.
        scale, shift: [K], float32.
        residual: [N, K, P, Q], float32, or None.
        relu: Whether act is a ReLU.
        wide: Whether v is wanted; narrow: whether levels are.
        inverse_step: Levels of the next layer's input for each unit of v; next_zero_point: the level of 0 there.
        top: The highest level there: 255, or 2^b - 1 for b bits.

    Returns:
        v, float32, and levels, uint8, both [N, K, P, Q] and channels_last where x or weight is. What is not wanted has
        no elements.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    epilogue = Epilogue(scale, shift, residual, relu, wide, inverse_step, next_zero_point, top, narrow)
    _check(x, weight, zero_point, geometry)
    _check_epilogue(epilogue, geometry.output_shape(x, weight))
    v, levels = _resolve(impl, x).forward_fused(x, weight, zero_point, epilogue, geometry)
    order = memory_format(x, weight)
    return (
        x.new_empty(0, dtype=torch.float32) if v is None else v.contiguous(memory_format=order),
        x.new_empty(0, dtype=torch.uint8) if levels is None else levels.contiguous(memory_format=order),
    )


def _fake_levels(x, inverse_step, zero_point, top, impl="auto"):
    return torch.empty_like(x, dtype=torch.uint8)


@operator(_fake_levels)
def int8_levels(x: Tensor, inverse_step: float, zero_point: int, top: int, impl: str = "auto") -> Tensor:
    """``clamp(round(x·inverse_step) + zero_point, 0, top)``: a float image as the bytes that ``adder2d_int8`` takes.

    Args:
        x: float32, any shape.
        inverse_step: Levels for each unit of x.
        zero_point: The level of 0. top: the highest level, at most 255.
        impl: As in ``adder2d_int8``.

    Returns:
        uint8, in x's shape and memory format. Halves are rounded to even; a NaN becomes 0.

    Raises:
        TypeError: x is not float32.
        ValueError: not 0 <= zero_point <= top <= 255.
        RuntimeError: ``impl`` cannot run here.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"int8_levels: x must be float32, got {x.dtype}")
    if not 0 <= zero_point <= top <= 255:
        raise ValueError(f"int8_levels: needs 0 <= zero_point <= top <= 255, got {zero_point} and {top}")
    return _resolve(impl, x).levels(x, inverse_step, zero_point, top)


def _resolve(impl: str, x: Tensor) -> Backend:
    """What computes for ``impl``; "auto" chooses by device.

    Raises:
        RuntimeError: the implementation asked for by name cannot run on this input or on this machine.
    """
    if impl not in ("auto", *BACKENDS):
        raise ValueError(f"adder2d_int8: impl must be one of {('auto', *BACKENDS)}, got {impl!r}")
    device = x.device.type
    if impl == "auto":
        found = {"cpu": CPU, "cuda": TRITON}.get(device)
        return BACKENDS[found.name if found is not None and found.probe().available else "reference"]
    if impl != "reference":
        found = {"cpu": CPU, "triton": TRITON}[impl]
        probed = found.probe()
        if not probed.available:
            raise RuntimeError(f"adder2d_int8: impl={impl!r} cannot run on {x.device}: {probed.detail}")
        if device != "cpu" and not (impl == "triton" and device == "cuda"):
            kind = "a CPU" if impl == "cpu" else "a GPU"
            raise RuntimeError(f"adder2d_int8: impl={impl!r} cannot run on {x.device}: its tensors must be on {kind}")
        if impl == "triton" and device == "cpu" and not triton.interpreting():
            raise RuntimeError(f"adder2d_int8: impl='triton' cannot run on {x.device}: its tensors must be on a GPU")
    return BACKENDS[impl]


def _check(x: Tensor, weight: Tensor, zero_point: int, geometry: Geometry) -> None:
    """The kernels believe what they are told; what does not fit would be read beyond its end."""
    for name, t in (("x", x), ("weight", weight)):
        if t.dtype != torch.uint8:
            raise TypeError(f"adder2d_int8: {name} must be uint8, got {t.dtype}")
    if not 0 <= zero_point <= 255:
        raise ValueError(f"adder2d_int8: zero_point must lie between 0 and 255, got {zero_point}")
    _check_shapes(x.shape, weight.shape, geometry)


@functools.lru_cache(4096)  # a network asks the same again with each batch
def _check_shapes(x: torch.Size, weight: torch.Size, geometry: Geometry) -> None:
    stride, padding, dilation, groups = geometry.arguments
    if len(x) != 4 or len(weight) != 4 or groups < 1 or 0 in weight or 0 in x[1:]:
        raise ValueError(f"adder2d_int8: expected 4 dimensions and groups, got {x}, {weight}, {groups}")
    geometry.check_shapes(x, weight)
    lengths = len(stride), len(padding), len(dilation)
    if lengths != (2, 4, 2) or min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            "adder2d_int8: needs stride and dilation as pairs of at least 1 and four paddings of at least 0, got "
            f"{stride}, {dilation}, {padding}"
        )
    if min(geometry.output_size(x[2:], weight[2:])) < 1:
        raise ValueError(f"adder2d_int8: the kernel {list(weight[2:])} is larger than the padded input")
    if math.prod(weight[1:]) > reference.MOST_TAPS:
        raise ValueError(
            f"adder2d_int8: a filter has {math.prod(weight[1:])} taps, and more than {reference.MOST_TAPS} could "
            "overflow the sum, a 32-bit integer"
        )


def _check_epilogue(epilogue: Epilogue, shape: list[int]) -> None:
    wanted_shapes = (
        ("scale", epilogue.scale, shape[1:2]),
        ("shift", epilogue.shift, shape[1:2]),
        ("residual", epilogue.residual, shape),
    )
    for name, t, wanted in wanted_shapes:
        if t is None:
            continue
        if list(t.shape) != wanted or t.dtype != torch.float32:
            raise ValueError(
                f"adder2d_int8_fused: {name} must be float32 of shape {wanted}, got {t.dtype} of {list(t.shape)}"
            )
    if not 0 <= epilogue.next_zero_point <= epilogue.top <= 255:
        raise ValueError(
            f"adder2d_int8_fused: needs 0 <= next_zero_point <= top <= 255, got {epilogue.next_zero_point} and "
            f"{epilogue.top}"
        )
    if not (epilogue.wide or epilogue.narrow):
        raise ValueError("adder2d_int8_fused: nothing is wanted: set wide or narrow")
