"""``Geometry``: stride, padding, dilation and groups of a call as one value, and what follows from them.

Schemas of ``torch.library`` have no type for such a value, so the operators take its four parts one by one:
``Geometry.of`` makes the value from them, and ``arguments`` gives them back.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Geometry:
    """How the filters move over an image.

    Attributes:
        stride: (height, width), at least 1.
        padding: (top, bottom, left, right), at least 0.
        dilation: (height, width), at least 1.
        groups: Divides the channels C of the image and the number K of filters.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> Geometry:
        """From what the operators take."""
        return cls(tuple(stride), tuple(padding), tuple(dilation), groups)  # type: ignore[arg-type]

    @classmethod
    def checked(
        cls,
        x: Tensor,
        weight: Tensor,
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        dtypes: Sequence[torch.dtype] = DTYPES,
    ) -> Geometry:
        """From what users hand to ``adder_zoo.adder2d``, which says what may be given.

        Raises:
            TypeError, ValueError: as ``adder_zoo.adder2d``.
        """
        check_tensor("x", x, dtypes)
        check_tensor("weight", weight, dtypes)
        if weight.dim() != 4:
            raise ValueError(
                f"adder2d: weight must have 4 dimensions [K, C/groups, R, S], got shape {shape_of(weight)}"
            )
        if x.dim() not in (3, 4):
            raise ValueError(f"adder2d: x must have shape [N, C, H, W] or [C, H, W], got shape {shape_of(x)}")
        stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        if isinstance(groups, bool) or not isinstance(groups, int):
            raise TypeError(f"adder2d: groups must be an int, got {groups!r}")
        if groups < 1:
            raise ValueError(f"adder2d: groups must be at least 1, got {groups}")
        if x.device != weight.device:
            raise ValueError(f"adder2d: x is on {x.device} and weight on {weight.device}; move one of them")
        if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
            raise TypeError(f"adder2d: x is {x.dtype} and weight {weight.dtype}; float64 goes with float64 only")
        geometry = cls.of(stride, _padding(padding, stride, dilation, numbers(weight.shape[2:])), dilation, groups)
        if not torch.jit.is_tracing():  # sizes are tensors there, and each comparison warns that it is not traced
            geometry._check_sizes(x, weight)
        return geometry

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], int]:
        """What the operators take: stride, padding, dilation, groups."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def times_groups(self, factor: int) -> Geometry:
        """The same with ``factor`` times as many groups."""
        return dataclasses.replace(self, groups=self.groups * factor)

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """(P, Q) of an image of ``size`` (H, W) and filters of size ``kernel`` (R, S)."""
        (top, bottom, left, right), dilation, stride = self.padding, self.dilation, self.stride
        P = (size[0] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
        Q = (size[1] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
        return P, Q

    def output_shape(self, x: Tensor, weight: Tensor) -> list[int]:
        """[N, K, P, Q] of x [N, C, H, W] and weight [K, C/groups, R, S]."""
        return [x.shape[0], weight.shape[0], *self.output_size(x.shape[2:], weight.shape[2:])]

    def check_operands(self, x: Tensor, weight: Tensor, dy: Tensor | None = None) -> None:
        """Raises ValueError for operands that do not fit: the kernels would read beyond the end of them."""
        self.check_shapes(x.shape, weight.shape)
        if dy is not None and list(dy.shape) != self.output_shape(x, weight):
            raise ValueError(f"adder_zoo: dy must have shape {self.output_shape(x, weight)}, got {list(dy.shape)}")

    def check_shapes(self, x: Sequence[int], weight: Sequence[int]) -> None:
        """Raises ValueError for shapes of x and weight that do not fit each other."""
        if len(x) != 4 or len(weight) != 4 or self.groups < 1:
            raise ValueError(f"adder_zoo: expected 4 dimensions and groups, got {x}, {weight}, {self.groups}")
        if weight[1] * self.groups != x[1] or weight[0] % self.groups:
            raise ValueError(
                f"adder_zoo: filters {list(weight)} in {self.groups} group(s) do not fit {x[1]} channels of x"
            )

    def _check_sizes(self, x: Tensor, weight: Tensor) -> None:
        K, Cg, R, S = weight.shape
        C, H, W = x.shape[-3:]
        if min(K, Cg, R, S) == 0:
            raise ValueError(f"adder2d: weight must not be empty, got shape {shape_of(weight)}")
        if K % self.groups:
            raise ValueError(f"adder2d: groups = {self.groups} does not divide weight's {K} output channels")
        if Cg * self.groups != C:
            raise ValueError(
                f"adder2d: weight of shape {shape_of(weight)} with groups = {self.groups} expects {Cg * self.groups} "
                f"input channels, but x has {C} (shape {shape_of(x)})"
            )
        if min(H, W) == 0:
            raise ValueError(
                f"adder2d: x must have at least one pixel (its batch may be empty), got shape {shape_of(x)}"
            )
        top, bottom, left, right = self.padding
        for name, padded, kernel in (
            ("height", H + top + bottom, self.dilation[0] * (R - 1) + 1),
            ("width", W + left + right, self.dilation[1] * (S - 1) + 1),
        ):
            if padded < kernel:
                raise ValueError(
                    f"adder2d: the kernel's {name} {kernel} (dilation included) is larger than the padded input's "
                    f"{padded}"
                )


def check_tensor(name: str, t: object, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Raises TypeError for what is not a dense tensor of one of ``dtypes``."""
    if not isinstance(t, Tensor):
        raise TypeError(f"adder2d: {name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in dtypes:
        *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"adder2d: {name} must be {wanted}, got {t.dtype}")
    if t.layout != torch.strided:
        raise TypeError(f"adder2d: {name} must be a dense tensor, got layout {t.layout}")


def shape_of(t: Tensor) -> tuple[int, ...]:
    """A tensor's shape as messages show it."""
    return tuple(t.shape)


def numbers(sizes: Sequence[Any]) -> list[Any]:
    """``sizes`` as numbers, where ``torch.jit.trace`` has tensors: for what may be the same in every run of a trace."""
    if not torch.jit.is_tracing():
        return list(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return [int(size) for size in sizes]


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    values: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(values) == 1:
        values = values * 2  # not "*=", which torch.compile of torch 2.10 does not take
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, (int, torch.SymInt)) for v in values):
        raise TypeError(f"adder2d: {name} must be an int or a pair of ints, got {value!r}")
    if min(values) < least:
        raise ValueError(f"adder2d: {name} must be at least {least}, got {value!r}")
    return values


def _padding(
    padding: int | Sequence[int] | str, stride: list[int], dilation: list[int], kernel: Sequence[int]
) -> list[int]:
    """``padding`` as (top, bottom, left, right)."""
    if isinstance(padding, str):
        if padding == "valid":
            return [0, 0, 0, 0]
        if padding != "same":
            raise ValueError(f"adder2d: padding must be an int, a pair, 'same' or 'valid', got {padding!r}")
        if stride != [1, 1]:
            raise ValueError("adder2d: padding='same' needs stride 1; give the padding as numbers")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2]
    top, left = _pair("padding", padding, 0)
    return [top, top, left, left]
