"""Our native kernels in ONNX Runtime, as the operators in Python of onnxruntime-extensions.

A runtime that knows a node's operator runs that, and not the function that the file has for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime_extensions import PyOp, get_library_path, onnx_op

from ..ops.cpu import NativeShape, check_status, library
from ..ops.cpu import _Epilogue as FloatEpilogue
from ..ops.int8.cpu import _Epilogue as Int8Epilogue
from ..ops.int8.cpu import int8_library
from ._functions import DOMAIN, FLOAT_NODES, INT8_NODES, geometry_of

GEOMETRY = (
    "stride_h", "stride_w", "pad_top", "pad_bottom", "pad_left", "pad_right", "dilation_h", "dilation_w", "group",
)  # fmt: skip


def session(path: Path, options: Any = None, **kwargs: Any) -> onnxruntime.InferenceSession:
    """See ``onnx_session``."""
    model = onnx.load(path, load_external_data=False)
    if not any(node.domain == DOMAIN and node.op_type in (*FLOAT_NODES, *INT8_NODES) for node in model.graph.node):
        raise ValueError(
            f"onnx_session: {path} has no adder layer that the native kernels take. They take files of "
            "adder_zoo.export_onnx, p = 1, float32 or bytes."
        )
    library()
    _register()
    _exact_steps(model)
    options = options if options is not None else onnxruntime.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    arguments = {"providers": ["CPUExecutionProvider"], **kwargs}
    return onnxruntime.InferenceSession(model.SerializeToString(), options, **arguments)


def _exact_steps(model: onnx.ModelProto) -> None:
    """Gives each step between levels as its bits: the extensions hand over a float with six digits."""
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type != "Adder2dInt8Fused":
            continue
        attribute = next(a for a in node.attribute if a.name == "inverse_step")
        bits = int(np.float32(attribute.f).view(np.int32))
        node.attribute.remove(attribute)
        node.attribute.append(onnx.helper.make_attribute("inverse_step_bits", bits))
    others = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, "Adder2dInt8Fused")]
    del model.functions[:]
    model.functions.extend(others)


@functools.cache
def _register() -> None:
    whole = PyOp.dt_int64
    geometry = dict.fromkeys(GEOMETRY, whole)
    x_and_w, behind = [PyOp.dt_float] * 2, [PyOp.dt_float] * 3
    bytes_ = [PyOp.dt_uint8] * 2
    after = dict.fromkeys(("relu", "wide", "narrow", "next_zero_point", "top", "zero_point"), whole)

    def add(name: str, function: Callable[..., Any], inputs: list, outputs: list, attributes: dict) -> None:
        onnx_op(op_type=f"{DOMAIN}::{name}", inputs=inputs, outputs=outputs, attrs={**geometry, **attributes})(function)

    add("Adder2d", _adder2d, x_and_w, [PyOp.dt_float], {})
    add("Adder2dFused", _adder2d_fused, x_and_w + behind, [PyOp.dt_float], {"relu": whole})
    add("Adder2dInt8", _adder2d_int8, bytes_, [PyOp.dt_int32], {"zero_point": whole})
    add("Adder2dInt8Fused", _adder2d_int8_fused, bytes_ + behind, [PyOp.dt_float, PyOp.dt_uint8],
        {**after, "inverse_step_bits": whole})  # fmt: skip


def _adder2d(x: np.ndarray, w: np.ndarray, **attributes: int) -> np.ndarray:
    shape, y = _prepared(x, w, attributes)
    check_status(library().forward(shape, x.ctypes.data, w.ctypes.data, None, None, y.ctypes.data, False))
    return y


def _adder2d_fused(
    x: np.ndarray,
    w: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: np.ndarray,
    *,
    relu: int,
    **attributes: int,
) -> np.ndarray:
    shape, y = _prepared(x, w, attributes)
    epilogue = FloatEpilogue(
        scale.ctypes.data, shift.ctypes.data, residual.ctypes.data if residual.size else None, relu
    )
    check_status(library().forward(shape, x.ctypes.data, w.ctypes.data, None, epilogue, y.ctypes.data, False))
    return y


def _adder2d_int8(x: np.ndarray, w: np.ndarray, *, zero_point: int, **attributes: int) -> np.ndarray:
    shape, y = _prepared(x, w, attributes, np.int32)
    check_status(int8_library().forward(shape, x.ctypes.data, w.ctypes.data, None, zero_point, None, y.ctypes.data))
    return y


def _adder2d_int8_fused(
    x: np.ndarray,
    w: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: np.ndarray,
    *,
    zero_point: int,
    relu: int,
    wide: int,
    narrow: int,
    inverse_step_bits: int,
    next_zero_point: int,
    top: int,
    **attributes: int,
) -> tuple[np.ndarray, np.ndarray]:
    shape, v = _prepared(x, w, attributes)
    levels = np.empty(v.shape if narrow else 0, np.uint8)
    inverse_step = float(np.int32(inverse_step_bits).view(np.float32))
    v = v if wide else np.empty(0, np.float32)
    epilogue = Int8Epilogue(
        scale.ctypes.data, shift.ctypes.data, residual.ctypes.data if residual.size else None, relu, inverse_step,
        next_zero_point, top, v.ctypes.data if wide else None, levels.ctypes.data if narrow else None,
    )  # fmt: skip
    check_status(int8_library().forward(shape, x.ctypes.data, w.ctypes.data, None, zero_point, epilogue, None))
    return v, levels


def _prepared(
    x: np.ndarray, w: np.ndarray, attributes: dict[str, int], dtype: Any = np.float32
) -> tuple[NativeShape, np.ndarray]:
    """The shape of a call on x [N, H, W, C] and w [K, R, S, C/group], and memory for y [N, P, Q, K]."""
    geometry = geometry_of(attributes)
    (N, H, W, C), (K, R, S, Cg) = x.shape, w.shape
    if Cg * geometry.groups != C or K % geometry.groups:  # the kernels believe what they are told
        raise ValueError(f"adder_zoo: filters {w.shape} in {geometry.groups} group(s) do not fit {C} channels of x")
    P, Q = geometry.output_size((H, W), (R, S))
    top, _, left, _ = geometry.padding
    shape = NativeShape(N, C, H, W, K, R, S, P, Q, geometry.groups, *geometry.stride, top, left, *geometry.dilation)
    return shape, np.empty((N, P, Q, K), dtype)
