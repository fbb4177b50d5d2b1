"""What the launchers share: the geometry of a call, and a launch as data, to be run or compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INT32_MAX = 2**31 - 1
HIP = torch.version.hip is not None
SMALL_GROUP = 8  # channels of a group up to which a tile spans several groups


def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 had the kernels interpreted when this package was imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@dataclass(frozen=True)
class Geometry:
    """Sizes of one call.

    N, C, H, W: input; K, R, S: filters; P, Q: output; G: groups; Cg = C / G and Kg = K / G.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    G: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]

    @property
    def Cg(self) -> int:
        return self.C // self.G

    @property
    def Kg(self) -> int:
        return self.K // self.G

    @staticmethod
    def of(
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Geometry:
        (N, C, H, W), (K, _, R, S) = x.shape, weight.shape
        top, bottom, left, right = padding
        P = (H + top + bottom - dilation[0] * (R - 1) - 1) // stride[0] + 1
        Q = (W + left + right - dilation[1] * (S - 1) - 1) // stride[1] + 1
        return Geometry(
            N, C, H, W, K, R, S, P, Q, groups, (stride[0], stride[1]), (top, bottom, left, right),
            (dilation[0], dilation[1]),
        )  # fmt: skip

    def scalars(self) -> dict[str, int]:
        """The kernels' size arguments."""
        return {
            "H": self.H, "W": self.W, "P": self.P, "Q": self.Q, "K": self.K, "C": self.C, "Kg": self.Kg, "Cg": self.Cg,
            "R": self.R, "S": self.S, "stride_h": self.stride[0], "stride_w": self.stride[1],
            "pad_top": self.padding[0], "pad_left": self.padding[2],
            "dilation_h": self.dilation[0], "dilation_w": self.dilation[1],
        }  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments and configuration.

    Attributes:
        kernel: The ``triton.jit`` function.
        programs: Size of the one-dimensional grid.
        arguments: Tensors and integers by name, in the kernel's order.
        constants: ``tl.constexpr`` arguments by name.
    """

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        if self.programs == 0:
            return
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        device = next(v.device for v in self.arguments.values() if isinstance(v, Tensor))
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.kernel[(self.programs,)](**self.arguments, **self.constants, **options)
        else:
            self.kernel[(self.programs,)](**self.arguments, **self.constants, **options)

    def source(self) -> tuple[Any, dict[str, str], dict[str, Any]]:
        """Function, signature and constants, as ``triton.compiler.ASTSource`` takes them. Tensors may be on "meta".

        Integers that are 1 become constants, as Triton's own launcher makes them.
        """
        signature: dict[str, str] = {}
        constants: dict[str, Any] = dict(self.constants)
        for name, value in self.arguments.items():
            if isinstance(value, Tensor):
                signature[name] = "*" + _TYPES[value.dtype]
            elif value == 1 and name != "never":
                signature[name], constants[name] = "constexpr", 1
            else:
                signature[name] = "i32" if abs(value) <= INT32_MAX else "i64"
        signature.update(dict.fromkeys(self.constants, "constexpr"))
        return self.kernel, signature, constants


_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def strides(prefix: str, names: str, t: Tensor) -> dict[str, int]:
    """``t``'s strides as the kernels' arguments: strides("x", "nchw", x) gives stride_xn, ..."""
    return {f"stride_{prefix}{name}": stride for name, stride in zip(names, t.stride(), strict=True)}


def wide(*tensors: Tensor) -> bool:
    """Whether an offset in one of the tensors needs 64 bits; a tile may reach a little past its last element."""
    margin = 1 << 20
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + margin > INT32_MAX
        for t in tensors
        if t.numel()
    )


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is that and nothing else."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def power_of_2(n: int, least: int, most: int) -> int:
    """The smallest power of 2 that is at least ``n``, between ``least`` and ``most``."""
    return min(most, max(least, triton.next_power_of_2(max(1, n))))


def check(x: Tensor, weight: Tensor, *others: Tensor) -> None:
    """Raises where a kernel would read what is not there."""
    for t in (x, weight, *others):
        if t.dtype not in _TYPES:
            raise TypeError(f"the Triton kernels take float32, float16 and bfloat16, got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"tensors are on {x.device} and {t.device}; move one of them")
    if x.device.type != "cuda" and not interpreting():
        raise RuntimeError(
            f"the Triton kernels cannot run on {x.device}; move the tensors to a GPU, or set TRITON_INTERPRET=1 before "
            "Python starts"
        )


@triton.jit
def transfer(z, MODE: tl.constexpr):
    """What the input gradient makes of z = w - x, and the weight gradient of z = x - w; a NaN stays one."""
    if MODE == "clipped":
        return tl.clamp(z, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    elif MODE == "sign":
        sign = tl.where(z > 0, 1.0, 0.0) - tl.where(z < 0, 1.0, 0.0)
        return tl.where(z != z, z, sign)
    else:
        return z


@triton.jit
def anchor(acc, never, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """``acc`` as it is, laid out as a matrix product's result.

    Left alone, Triton spreads the lanes of a warp along a row, and an outer difference would load 16 values of a column
    for 4 of the other. A product wants patches of 4x4, and hands its layout on to all that the sum meets. It is never
    computed: ``never`` is 0, which only the caller knows.
    """
    if never != 0:
        a = tl.full((BLOCK_M, 16), 1.0, tl.float32) * never
        b = tl.full((16, BLOCK_N), 1.0, tl.float32) * never
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc
