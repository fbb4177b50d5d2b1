"""The operator on a CPU: the library of ``kernels/cpu/``, called through ctypes and threaded by torch's own pool.

The library sees float32 in channels-last order; half precision is widened here, and tensors in another order are
copied, so a network that keeps its activations in channels_last pays for neither. Shapes as in ``reference.py``.

The kernels read filters in an order of their own. The library packs them at each call, so that a call answers with the
weights of now, whoever wrote them and however: neither an address nor a version counter shows a write through
``.data``, a numpy array or another process. A checksum would, at about the price of packing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..paths import PACKAGE
from . import quadratic
from .geometry import Geometry
from .reference import compute_dtype

_MODES = {"clipped": 0, "full": 1, "sign": 2}  # enum in adder.h
UNSUITED, NOT_FINITE = 2, 3
# The version of adder.h and adder_int8.h that this file and int8/cpu.py are written for; setup.py says how it is made.
INTERFACE = "6985c41698714ee4"


class NativeShape(ctypes.Structure):
    """adder_shape in adder.h."""

    _fields_ = [
        (name, c_int64)
        for name in (
            *("N", "C", "H", "W", "K", "R", "S", "P", "Q", "groups", "stride_h", "stride_w", "pad_top", "pad_left"),
            *("dilation_h", "dilation_w"),
        )
    ]


class _Epilogue(ctypes.Structure):
    """adder_epilogue in adder.h."""

    _fields_ = (("scale", c_void_p), ("shift", c_void_p), ("residual", c_void_p), ("relu", c_int32))


class Library:
    """The loaded native library.

    Attributes:
        path: Its file.
        isas: The instruction sets that this build and this CPU have, best first.
        threading: What runs the kernels' loops.
    """

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.native = native = ctypes.CDLL(str(path))
        _check_interface(native, path)
        native.adder_isa.restype = native.adder_isas.restype = c_char_p
        native.adder_use.argtypes = [c_char_p]
        shape, pointer = POINTER(NativeShape), c_void_p
        self.forward = native.adder_forward
        self.forward.argtypes = [shape, pointer, pointer, POINTER(_Epilogue), pointer, c_int]
        self.grad_input = native.adder_grad_input
        self.grad_weight = native.adder_grad_weight
        self.grad_input.argtypes = [shape, pointer, pointer, pointer, pointer, c_int, c_int]
        self.grad_weight.argtypes = [shape, pointer, pointer, pointer, pointer, c_int]
        self.grad_weight_product = native.adder_grad_weight_product
        self.grad_weight_product.argtypes = [shape, pointer, pointer, pointer, pointer]
        self.grad_weight_from_convolution = native.adder_grad_weight_from_convolution
        self.grad_weight_from_convolution.argtypes = [shape, pointer, pointer, pointer]
        self.power_forward = native.adder_power_forward
        self.power_forward.argtypes = [shape, pointer, pointer, pointer, pointer]
        self.power_grad_input = native.adder_power_grad_input
        self.power_grad_weight = native.adder_power_grad_weight
        self.gradients = native.adder_gradients
        self.gradients.argtypes = [shape, pointer, pointer, pointer, pointer, pointer, pointer]
        for gradient in (self.power_grad_input, self.power_grad_weight):
            gradient.argtypes = [shape, pointer, pointer, pointer, pointer, pointer]
        self.kernel = native.adder_kernel
        self.kernel.argtypes, self.kernel.restype = [shape, c_int], c_char_p
        self.isas = tuple(native.adder_isas().decode().split())
        self.threading = self._use_torch_threads()

    @property
    def isa(self) -> str:
        """The instruction set in use: the best one, unless ``use`` chose another."""
        return self.native.adder_isa().decode()

    def use(self, isa: str) -> None:
        """Takes the kernels for another instruction set (for tests and measurements).

        Raises:
            ValueError: this CPU or this build does not have it.
        """
        if not self.native.adder_use(isa.encode()):
            raise ValueError(f"adder_zoo: this CPU library and CPU have {', '.join(self.isas)}, not {isa}")

    def _use_torch_threads(self) -> str:
        # The stable C interface of libtorch_cpu has the loop that torch's own operators use.
        folder = Path(torch.__file__).parent / "lib"
        for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
            if (folder / name).exists():
                parallel_for = getattr(ctypes.CDLL(str(folder / name)), "torch_parallel_for", None)
                if parallel_for is not None:
                    self.native.adder_set_parallel_for.argtypes = [c_void_p]
                    self.native.adder_set_parallel_for(ctypes.cast(parallel_for, c_void_p))
                    return "torch's threads"
        return "one thread (this torch has no torch_parallel_for)"


def _check_interface(native: ctypes.CDLL, path: Path) -> None:
    """Raises OSError for a library of other sources: it would be called wrongly, and answer."""
    of = getattr(native, "adder_interface", None)
    if of is not None:
        of.restype = c_char_p
    if of is None or of().decode() != INTERFACE:
        raise OSError(
            f"{path.name} was built from other sources than this version of adder_zoo; in a checkout build it again: "
            "pip install --editable ."
        )


@functools.cache
def library() -> Library:
    """Loads the native library.

    Raises:
        OSError: it was not built, or cannot be loaded.
    """
    paths = sorted(PACKAGE.glob("_native*.so"))
    if not paths:
        raise OSError("the native library was not built")
    return Library(paths[0])


def forward(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    *,
    exact: bool = False,
) -> Tensor:
    """y = -Σ|x - w| (Eq. 2), [N, K, P, Q], float32, channels_last.

    By default a tile of outputs is computed as Σx + Σw - 2·Σmax(x, w), and computed again from the differences where
    cancellation would cost more than two or three bits (bound: ``kernels/cpu/forward_tile.h``). ``exact=True``
    computes all of it from the differences, some 1.5 times as slow.
    """
    x, weight = dense(x), dense(weight)
    shape = native_shape(x.shape, weight.shape, geometry)
    y = empty((shape.N, shape.K, shape.P, shape.Q))
    check_status(library().forward(shape, x.data_ptr(), weight.data_ptr(), None, y.data_ptr(), exact))
    return y


def forward_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    geometry: Geometry,
    relu: bool,
) -> Tensor:
    """act(scale·y + shift + residual) of ``forward``'s y in one pass, [N, K, P, Q], float32, channels_last."""
    x, weight = dense(x), dense(weight)
    shape = native_shape(x.shape, weight.shape, geometry)
    scale, shift = (t.to(torch.float32).contiguous() for t in (scale, shift))
    residual = None if residual is None else dense(residual.to(torch.float32))
    y = empty((shape.N, shape.K, shape.P, shape.Q))
    epilogue = _Epilogue(scale.data_ptr(), shift.data_ptr(), None if residual is None else residual.data_ptr(), relu)
    check_status(library().forward(shape, x.data_ptr(), weight.data_ptr(), epilogue, y.data_ptr(), False))
    return y


def grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    input_grad: str,
    *,
    exact: bool = False,
) -> Tensor:
    """dx = Σ dy·HT(w - x) (Eq. 6 and 7, or its variants), [N, C, H, W], channels_last, in the dtype of x.

    The clipped one may be computed as Σ dy·median(w, x - 1, x + 1) - x·Σ dy where x lies in [-1, 8], after the same
    whole number c, at most 4, was added to x and w: not 0 if more than a few x are below -1. The error is as with terms
    up to |dy|·(2·|x + c| + 2) then. ``exact=True`` forms all differences.
    """
    dtype = x.dtype
    dy, x, weight = dense(dy), dense(x), dense(weight)
    shape = native_shape(x.shape, weight.shape, geometry)
    dx = empty(x.shape)
    status = library().grad_input(
        shape, dy.data_ptr(), x.data_ptr(), weight.data_ptr(), dx.data_ptr(), _MODES[input_grad], exact
    )
    check_status(status)
    return dx.to(dtype)


def grad_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    weight_grad: str,
    *,
    exact: bool = False,
) -> Tensor:
    """dw = Σ dy·(x - w) (Eq. 5) or Σ dy·sgn(x - w) (Eq. 4), [K, C/G, R, S], in the dtype of weight.

    Eq. 5 is computed as Σ dy·x - w·Σ dy for finite operands; ``exact=True`` forms all differences, many times slower.
    """
    dtype = weight.dtype
    dy, x, weight = dense(dy), dense(x), dense(weight)
    shape = native_shape(x.shape, weight.shape, geometry)
    dw = empty(weight.shape)
    if weight_grad == "full" and not exact:
        status = library().grad_weight_product(shape, dy.data_ptr(), x.data_ptr(), weight.data_ptr(), dw.data_ptr())
        if status == UNSUITED:
            dw = quadratic.grad_weight_product(dy, x, weight, geometry)
            dw = dw.contiguous(memory_format=torch.channels_last)
            status = library().grad_weight_from_convolution(shape, dy.data_ptr(), weight.data_ptr(), dw.data_ptr())
        if status != NOT_FINITE:
            check_status(status)
            return dw.to(dtype)
    status = library().grad_weight(
        shape, dy.data_ptr(), x.data_ptr(), weight.data_ptr(), dw.data_ptr(), _MODES[weight_grad]
    )
    check_status(status)
    return dw.to(dtype)


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, power: Any = None
) -> tuple[Tensor, Tensor] | None:
    """dx and dw in one pass, each in its operand's dtype: with signs, or of the ``power`` (adder_power in adder.h).

    None where the kernels for one of them have to do it: groups smaller than a vector, numbers that are not finite.
    """
    a, b, c = dense(dy), dense(x), dense(weight)
    shape = native_shape(x.shape, weight.shape, geometry)
    dx, dw = empty(x.shape), empty(weight.shape)
    pointers = (t.data_ptr() for t in (a, b, c))
    status = library().gradients(shape, *pointers, power, dx.data_ptr(), dw.data_ptr())
    if status in (UNSUITED, NOT_FINITE):
        return None
    check_status(status)
    return dx.to(x.dtype), dw.to(weight.dtype)


def kernels(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> dict[str, str]:
    """Which kernel of the native library ``forward``, clipped ``dx`` and full ``dw`` take for these shapes."""
    shape = native_shape(x.shape, weight.shape, geometry)
    return {name: library().kernel(shape, i).decode() for i, name in enumerate(("forward", "dx", "dw"))}


def dense(t: Tensor) -> Tensor:
    """As the library reads it: float32, channels_last."""
    if t.device.type != "cpu" or compute_dtype(t) != torch.float32:
        raise TypeError(
            f"adder_zoo's CPU kernels take float32, float16 or bfloat16 on a CPU, got {t.dtype} on {t.device}"
        )
    return t.resolve_neg().to(torch.float32).contiguous(memory_format=torch.channels_last)


def empty(shape: Sequence[int]) -> Tensor:
    """As the library writes it."""
    return torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)


def native_shape(x: Sequence[int], weight: Sequence[int], geometry: Geometry) -> NativeShape:
    """Of x and weight of these shapes."""
    top, _, left, _ = geometry.padding
    sizes = (*x, weight[0], *weight[2:], *geometry.output_size(x[2:], weight[2:]))
    return NativeShape(*sizes, geometry.groups, *geometry.stride, top, left, *geometry.dilation)


def check_status(status: int) -> None:
    if status:
        raise MemoryError("adder_zoo: the CPU library found no memory for its packed filters or image rows")
