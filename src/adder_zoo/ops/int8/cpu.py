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
        self.forward = native.adder_int8_forward
        self.forward.argtypes = [shape, pointer, pointer, c_uint8, POINTER(_Epilogue), pointer]
        self.levels = native.adder_int8_levels
        self.levels.argtypes = [c_int64, pointer, c_float, c_int32, c_int32, pointer]
        self.levels.restype = None
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
        OSError: it was not built, cannot be loaded, or is of another version.
    """
    try:
        return Int8Library(library())
    except AttributeError as error:  # a function that this version calls
        raise OSError(
            f"the native library was built from other sources, build it again (make install): {error}"
        ) from error


def forward(x: Tensor, weight: Tensor, zero_point: int, geometry: Geometry) -> Tensor:
    """y of ``reference.forward``, channels_last."""
    x, weight = _dense(x), _dense(weight)
    shape = _shape(x.shape, weight.shape, geometry)
    y = torch.empty((shape.N, shape.K, shape.P, shape.Q), dtype=torch.int32, memory_format=torch.channels_last)
    run = int8_library().forward
    check_status(run(shape, x.data_ptr(), weight.data_ptr(), zero_point, None, y.data_ptr()))
    return y


def forward_fused(
    x: Tensor, weight: Tensor, zero_point: int, after: Epilogue, geometry: Geometry
) -> tuple[Tensor | None, Tensor | None]:
    """``reference.forward_fused`` in one pass, channels_last."""
    x, weight = _dense(x), _dense(weight)
    shape = _shape(x.shape, weight.shape, geometry)
    size = (shape.N, shape.K, shape.P, shape.Q)
    v = torch.empty(size, dtype=torch.float32, memory_format=torch.channels_last) if after.wide else None
    out = torch.empty(size, dtype=torch.uint8, memory_format=torch.channels_last) if after.narrow else None
    scale, shift = after.scale.contiguous(), after.shift.contiguous()
    residual = None if after.residual is None else _dense(after.residual)
    pointers = [None if t is None else t.data_ptr() for t in (scale, shift, residual, v, out)]
    quantised = after.inverse_step, after.next_zero_point, after.top
    epilogue = _Epilogue(*pointers[:3], after.relu, *quantised, *pointers[3:])
    run = int8_library().forward
    check_status(run(shape, x.data_ptr(), weight.data_ptr(), zero_point, epilogue, None))
    return v, out


def levels(v: Tensor, inverse_step: float, zero_point: int, top: int) -> Tensor:
    """``reference.levels`` in one pass, in v's memory format."""
    out = torch.empty_like(v, dtype=torch.uint8)
    if out.stride() != v.stride():  # v has gaps, or overlaps itself
        v = torch.empty_like(v).copy_(v)
    int8_library().levels(v.numel(), v.data_ptr(), inverse_step, zero_point, top, out.data_ptr())
    return out


def _dense(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


@functools.lru_cache(4096)  # a network asks the same again with each batch
def _shape(x: torch.Size, weight: torch.Size, geometry: Geometry) -> NativeShape:
    return native_shape(x, weight, geometry)
