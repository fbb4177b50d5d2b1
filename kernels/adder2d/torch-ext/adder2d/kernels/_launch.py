"""What kernels and launchers share: the geometry of a call, a launch as data, packed filters, and the two tricks.

The tricks are plain Triton that makes the compiler lay registers out as a hand-written kernel would:

*anchor*   A matrix product that is never computed spreads a tile over threads in patches of 4x4, so that a thread uses
           each value that it reads for four sums and more. Left alone, Triton would lay the lanes along a row.
*columns*  A step loads a whole tile [columns, pixels] and takes it apart with ``tl.split``, which costs nothing: the
           change of layout becomes part of reading the tile from shared memory. Loads of single columns would each
           cost an asynchronous copy, a commit, an address and a mask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._power import signed_power

INT32_MAX = 2**31 - 1
HIP = torch.version.hip is not None
RECENT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)  # they lay 16-bit tiles out differently
AUTOTUNE = os.environ.get("ADDER2D_AUTOTUNE", "0") in ("1", "true", "on", "yes")  # Triton's tuner chooses, and keeps it


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
            "H": self.H, "W": self.W, "P": self.P, "Q": self.Q, "Kg": self.Kg, "Cg": self.Cg, "R": self.R, "S": self.S,
            "stride_h": self.stride[0], "stride_w": self.stride[1], "pad_top": self.padding[0],
            "pad_left": self.padding[2], "dilation_h": self.dilation[0], "dilation_w": self.dilation[1],
        }  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments and configuration.

    Attributes:
        kernel: The ``triton.jit`` function. None of its numbers is specialised: a network needs few compilations.
        tiles: Programs by configuration: what ``constants`` say, to the size of the one-dimensional grid.
        arguments: Tensors, integers and floats by name, in the kernel's order.
        constants: ``tl.constexpr`` arguments by name.
        registers: Limit for a thread, on NVIDIA, so that as many blocks as planned share a multiprocessor.
        contract: Whether a product and a sum may become one operation with one rounding. It is said at each launch:
            Triton 3.10 turns its default around.
        tuned: ``kernel`` with Triton's autotuner around it, which then chooses what its configurations hold.
    """

    kernel: Any
    tiles: Callable[[dict[str, Any]], int]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    registers: int | None = None
    tuned: Any = None
    contract: bool = True

    @property
    def programs(self) -> int:
        return self.tiles(self.constants)

    @property
    def options(self) -> dict[str, Any]:
        """What Triton's compiler takes besides the arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.contract}
        return {**options, "maxnreg": self.registers} if self.registers else options

    def run(self) -> None:
        if self.programs == 0:
            return
        device = next(v.device for v in self.arguments.values() if isinstance(v, Tensor))
        kernel, constants, options = self.kernel, self.constants, self.options
        if AUTOTUNE and self.tuned is not None and device.type == "cuda":
            chosen = {name for config in self.tuned.configs for name in config.kwargs}
            kernel, options = self.tuned, {"enable_fp_fusion": self.contract}
            constants = {name: value for name, value in constants.items() if name not in chosen}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[lambda meta: (self.tiles(meta),)](**self.arguments, **constants, **options)

    def source(self, hip: bool = False) -> tuple[Any, dict[str, str], dict[str, Any], dict[tuple[int, ...], list]]:
        """Function, signature, constants and attributes, as ``triton.compiler.ASTSource`` takes them.

        As in a launch with aligned tensors, as the allocator gives them. Tensors may be on "meta".
        """
        signature: dict[str, str] = {}
        attributes: dict[tuple[int, ...], list] = {}
        for i, (name, value) in enumerate(self.arguments.items()):
            if isinstance(value, Tensor):
                signature[name] = "*" + _POINTERS[value.dtype]
                # On AMD a tensor below 2 GiB is read by instructions that check bounds themselves.
                small = hip and value.untyped_storage().nbytes() <= INT32_MAX
                attributes[(i,)] = [["tt.divisibility", 16], *([["tt.pointer_range", 32]] if small else [])]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) <= INT32_MAX else "i64"
        signature.update(dict.fromkeys(self.constants, "constexpr"))
        signature = {name: signature[name] for name in self.kernel.arg_names}
        return self.kernel, signature, self.constants, attributes

    @property
    def compilation(self) -> tuple:
        """What distinguishes one compilation of a kernel from another."""
        kernel, signature, constants, attributes = self.source()
        parts = (signature, constants, self.options)
        return (kernel.fn.__name__, str(attributes), *(tuple(sorted(part.items())) for part in parts))


_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_POINTERS = {**_TYPES, torch.uint8: "u8", torch.int32: "i32"}


def strides(prefix: str, names: str, t: Tensor) -> dict[str, int]:
    """``t``'s strides as the kernels' arguments: strides("x", "nchw", x) gives stride_xn, ..."""
    return {f"stride_{prefix}{name}": stride for name, stride in zip(names, t.stride())}


def wide(*tensors: Tensor) -> bool:
    """Whether an offset in one of the tensors needs 64 bits; a tile may reach a little past its last element."""
    margin = 1 << 20
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride())) + margin > INT32_MAX
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


@dataclass(frozen=True)
class Epilogue:
    """What follows the distance in a network at inference: act(scale[k]·y + shift[k] + residual).

    Attributes:
        scale, shift: [K], contiguous, float32.
        residual: [N, K, P, Q], any strides, float32, float16 or bfloat16; or None.
        relu: Whether act is a ReLU; otherwise there is none.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    relu: bool

    @staticmethod
    def arguments(epilogue: Epilogue | None, y: Tensor) -> dict[str, Any]:
        """The kernels' arguments; without an epilogue they point to ``y`` and are not read."""
        if epilogue is None:
            return {"scale_ptr": y, "shift_ptr": y, "residual_ptr": y, **dict.fromkeys(_RESIDUAL_STRIDES, 0)}
        residual = y if epilogue.residual is None else epilogue.residual
        names = dict(zip(_RESIDUAL_STRIDES, residual.stride()))
        return {"scale_ptr": epilogue.scale, "shift_ptr": epilogue.shift, "residual_ptr": residual, **names}

    @staticmethod
    def constants(epilogue: Epilogue | None) -> dict[str, bool]:
        return {
            "FUSED": epilogue is not None,
            "RESIDUAL": epilogue is not None and epilogue.residual is not None,
            "RELU": epilogue is not None and epilogue.relu,
        }

    def apply(self, y: Tensor) -> Tensor:
        """The same in eager torch, where a reduction was cut into parts; ``y`` [N, K, P, Q]."""
        y = y * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)
        if self.residual is not None:
            y = y + self.residual
        return y.relu() if self.relu else y


_RESIDUAL_STRIDES = ("stride_en", "stride_ek", "stride_ep", "stride_eq")
EPILOGUE_INTEGERS = list(_RESIDUAL_STRIDES)


@triton.jit
def finish(
    y, k, k_inside, residual_offset, inside, scale_ptr, shift_ptr, residual_ptr,
    FUSED: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """act(scale[k]·y + shift[k] + residual) of a tile; a NaN stays one."""
    if FUSED:
        y = y * tl.load(scale_ptr + k, k_inside, 0.0) + tl.load(shift_ptr + k, k_inside, 0.0)
    if RESIDUAL:
        y += tl.load(residual_ptr + residual_offset, inside, 0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def transfer(z, exponent, MODE: tl.constexpr):
    """What the input gradient makes of z = w - x, and the weight gradient of z = x - w; a NaN stays one.

    ``exponent`` is for the powers alone: |z|^exponent·sgn(z).
    """
    if MODE == "power" or MODE == "approximate power":
        return signed_power(z, exponent, MODE)
    elif MODE == "clipped":
        return tl.clamp(z, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    elif MODE == "sign":
        sign = tl.where(z > 0, 1.0, 0.0) - tl.where(z < 0, 1.0, 0.0)
        return tl.where(z != z, z, sign)
    else:
        return z


def pack(filters: Tensor, block: int, columns: int) -> Tensor:
    """Filters as the kernels read them: one tile after the other, each a plain run through memory.

    Args:
        filters: [G, taps, columns of the reduction, outputs], any strides.
        block: Outputs in a tile.
        columns: Columns in a step; the reduction is padded with zeros to a multiple of it.

    Returns:
        [G, tiles, taps, padded columns, block], contiguous.
    """
    G, taps, depth, outputs = filters.shape
    tiles, steps = triton.cdiv(outputs, block), triton.cdiv(depth, columns)
    padded = F.pad(filters, (0, tiles * block - outputs, 0, steps * columns - depth))
    return padded.reshape(G, taps, steps * columns, tiles, block).permute(0, 3, 1, 2, 4).contiguous()


def channels_last(t: Tensor, C: int) -> bool:
    """Whether a pixel's channels are neighbours in memory."""
    return C > 1 and t.stride(1) == 1


def vector(t: Tensor, C: int) -> int:
    """How many neighbouring channels one copy may take, 16 bytes at most, by the alignment of every pixel."""
    widest = 16 // t.element_size()
    strides = (C, *(t.stride(i) for i in (0, 2, 3)))
    address = 0 if t.device.type == "meta" else t.data_ptr()
    while widest > 1 and (any(s % widest for s in strides) or address % (widest * t.element_size())):
        widest //= 2
    return widest


def processors(device: torch.device) -> int:
    """Multiprocessors of a card; 0 where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def parts(programs: int, steps: int, processors: int) -> int:
    """Into how many parts a reduction of ``steps`` steps is cut, so that few tiles keep a whole card busy.

    By sizes and card alone, and the parts are added up in one order: the same call gives the same bits.
    """
    if 2 * programs > processors or programs == 0:
        return 1
    return max(1, min(processors // programs, steps // 8, 16))


@triton.jit
def anchor(acc, never, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """``acc`` [ROWS, COLUMNS] as it is, laid out as a matrix product's result (the trick is explained above).

    The product is never computed: ``never`` is 0, which only the caller knows. ``DEPTH`` is 16, the least that Triton
    3.6 takes, or 1 on AMD, where a deeper one would become a matrix instruction with a layout of its own.
    """
    if never != 0:
        a = tl.full((ROWS, DEPTH), 1.0, tl.float32) * never
        b = tl.full((DEPTH, COLUMNS), 1.0, tl.float32) * never
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def _quarters(t, N: tl.constexpr, B: tl.constexpr):
    """[N, B] as four tiles [N / 4, B], or [B] for N = 4: every fourth row, from row 0, 1, 2 and 3 on."""
    even, odd = tl.split(tl.permute(tl.reshape(t, (N // 4, 2, 2, B)), (0, 3, 1, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    if N == 4:
        a, b, c, d = tl.reshape(a, (B,)), tl.reshape(b, (B,)), tl.reshape(c, (B,)), tl.reshape(d, (B,))
    return a, b, c, d


@triton.jit
def columns(t, N: tl.constexpr, B: tl.constexpr):
    """[N, B] as N tensors [B]; N is 1, 2, 4, ... 32.

    In their order: where four of a pixel come in one read of shared memory, they are used up one after the other and do
    not wait in registers for those of the next reads.
    """
    if N == 1:
        return (tl.reshape(t, (B,)),)
    elif N == 2:
        a, b = tl.split(tl.permute(tl.reshape(t, (2, B)), (1, 0)))
        return a, b
    elif N == 4:
        return _quarters(t, 4, B)
    elif N == 16:
        a, b, c, d = _quarters(t, 16, B)
        a, b, c, d = _quarters(a, 4, B), _quarters(b, 4, B), _quarters(c, 4, B), _quarters(d, 4, B)
        return (
            a[0], b[0], c[0], d[0], a[1], b[1], c[1], d[1], a[2], b[2], c[2], d[2], a[3], b[3], c[3], d[3],
        )  # fmt: skip
    else:
        tl.static_assert(N == 8 or N == 32)
        a, b = tl.split(tl.permute(tl.reshape(t, (N // 2, 2, B)), (0, 2, 1)))
        a, b = columns(a, N // 2, B), columns(b, N // 2, B)
        if N == 8:
            return a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]
        else:
            return (
                a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3], a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7],
                a[8], b[8], a[9], b[9], a[10], b[10], a[11], b[11], a[12], b[12], a[13], b[13], a[14], b[14],
                a[15], b[15],
            )  # fmt: skip
