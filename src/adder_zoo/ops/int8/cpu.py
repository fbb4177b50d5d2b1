"""The int8 operator on a CPU: the native kernels in ``kernels/cpu/int8_*``, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint8, c_void_p

import torch
from torch import Tensor

from ..cpu import Library, NativeShape, check_status, library, native_shape
from ..geometry import Geometry
from .reference import Epilogue


class _Epilogue(ctypes.Structure):
    """adder_int8_epilogue in adder_int8.h."""

    _fields_ = (
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("residual", c_void_p),
        ("relu", c_int32),
        ("inverse_step", c_float),
        ("zero_point", c_int32),
        ("top", c_int32),
        ("wide", c_void_p),
        ("narrow", c_void_p),
    )


class Int8Library:
    """The int8 functions of the native library, and the instruction set that they run with."""

    def __init__(self, loaded: Library) -> None:
        native = loaded.native
        shape, pointer = POINTER(NativeShape), c_void_p
        self.packed_size = native.adder_int8_packed_size
        self.packed_size.argtypes, self.packed_size.restype = [shape], c_int64
        self.pack = native.adder_int8_pack
        self.pack.argtypes, self.pack.restype = [shape, pointer, pointer], None
        self.forward = native.adder_int8_forward
        self.forward.argtypes = [shape, pointer, pointer, c_uint8, POINTER(_Epilogue), pointer]
        self._isa, self._use = native.adder_int8_isa, native.adder_int8_use
        self._isa.restype = native.adder_int8_isas.restype = c_char_p
        self._use.argtypes = [c_char_p]
        self.isas = tuple(native.adder_int8_isas().decode().split())

    @property
    def isa(self) -> str:
        """The instruction set in use: the best one, unless ``use`` chose another."""
        return self._isa().decode()

    def use(self, isa: str) -> None:
        """Takes the kernels for another instruction set (for tests and measurements).

        Raises:
            ValueError: this CPU or this build does not have it.
        """
        if not self._use(isa.encode()):
            raise ValueError(f"adder_zoo: this CPU library and CPU have {', '.join(self.isas)}, not {isa}")


@functools.cache
def int8_library() -> Int8Library:
    """The loaded library.

    Raises:
        OSError: it was not built, or cannot be loaded.
    """
    return Int8Library(library())


def forward(x: Tensor, weight: Tensor, zero_point: int, geometry: Geometry) -> Tensor:
    """y of ``reference.forward``, channels_last."""
    x, shape, packed = _prepared(x, weight, geometry)
    y = torch.empty((shape.N, shape.K, shape.P, shape.Q), dtype=torch.int32, memory_format=torch.channels_last)
    check_status(int8_library().forward(shape, x.data_ptr(), packed.data_ptr(), zero_point, None, y.data_ptr()))
    return y


def forward_fused(
    x: Tensor, weight: Tensor, zero_point: int, after: Epilogue, geometry: Geometry
) -> tuple[Tensor | None, Tensor | None]:
    """``reference.forward_fused`` in one pass, channels_last."""
    x, shape, packed = _prepared(x, weight, geometry)
    size = (shape.N, shape.K, shape.P, shape.Q)
    v = torch.empty(size, dtype=torch.float32, memory_format=torch.channels_last) if after.wide else None
    out = torch.empty(size, dtype=torch.uint8, memory_format=torch.channels_last) if after.narrow else None
    scale, shift = after.scale.contiguous(), after.shift.contiguous()
    residual = None if after.residual is None else after.residual.contiguous(memory_format=torch.channels_last)
    pointers = [None if t is None else t.data_ptr() for t in (scale, shift, residual, v, out)]
    quantised = after.inverse_step, after.next_zero_point, after.top
    epilogue = _Epilogue(*pointers[:3], after.relu, *quantised, *pointers[3:])
    check_status(int8_library().forward(shape, x.data_ptr(), packed.data_ptr(), zero_point, epilogue, None))
    return v, out


def _prepared(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, NativeShape, Tensor]:
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    shape = native_shape(x, weight, geometry)
    packed = torch.empty(int8_library().packed_size(shape), dtype=torch.uint8)
    int8_library().pack(shape, weight.data_ptr(), packed.data_ptr())
    return x, shape, packed
