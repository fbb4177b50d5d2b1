"""Our native kernels in ONNX Runtime: the package's native library is also a library of its operators.

A runtime that knows a node's operator runs that, and not the function that the file has for it. What ONNX Runtime
calls is in ``kernels/cpu/onnx_operators.cpp``.
"""

from __future__ import annotations

import struct
import threading
import weakref
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from ..ops.cpu import library
from ._functions import DOMAIN, FLOAT_NODES, INT8_NODES

# ONNX Runtime refuses options that were given one library twice, and nothing takes a library back.
_prepared: weakref.WeakSet[Any] = weakref.WeakSet()
_preparing = threading.Lock()


def session(file: Path | bytes, options: Any = None, **kwargs: Any) -> onnxruntime.InferenceSession:
    """See ``onnx_session``."""
    _check(file)
    options = options if options is not None else onnxruntime.SessionOptions()
    if not isinstance(options, onnxruntime.SessionOptions):
        raise TypeError(f"onnx_session: options must be onnxruntime.SessionOptions, got {type(options).__name__}")
    with _preparing:
        if options not in _prepared:
            options.register_custom_ops_library(str(library().path))
            _prepared.add(options)
    kwargs = {"providers": ["CPUExecutionProvider"], **kwargs}
    try:
        return onnxruntime.InferenceSession(file if isinstance(file, bytes) else str(file), options, **kwargs)
    except Exception as error:  # ONNX Runtime has a class for each of its codes
        if "Domain already set in registry" not in str(error):
            raise
        raise ValueError(
            "onnx_session: these options had the library from register_custom_ops_library before, and ONNX Runtime "
            "takes it once. Make new SessionOptions, and leave that call out."
        ) from error


def _check(file: Path | bytes) -> None:
    """Raises ValueError for a file without layers that the kernels take."""
    what = "the file" if isinstance(file, bytes) else file
    data = file if isinstance(file, bytes) else file.read_bytes()
    names = (*FLOAT_NODES, *INT8_NODES)
    if data[4:8] == b"ORTM":  # ONNX Runtime's own format, as a session saves it
        found = any(_flat_string(name) in data for name in names)
    else:
        try:
            model = onnx.load_from_string(data)
        except DecodeError as error:
            raise ValueError(f"onnx_session: {what} is not a model in ONNX: {error}") from error
        found = any(node.domain == DOMAIN and node.op_type in names for node in model.graph.node)
    if not found:
        raise ValueError(
            f"onnx_session: {what} has no adder layer that the native kernels take. They take files of "
            "adder_zoo.export_onnx, p = 1, float32 or bytes, in which no optimiser has put functions in their nodes' "
            "place."
        )


def _flat_string(text: str) -> bytes:
    """``text`` as FlatBuffers write it, which ONNX Runtime's own format is made of: its length, itself and a 0."""
    return struct.pack("<I", len(text)) + text.encode() + b"\0"
