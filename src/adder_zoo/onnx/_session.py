"""Our native kernels in ONNX Runtime: the package's native library is also a library of its operators.

A runtime that knows a node's operator runs that, and not the function that the file has for it. What ONNX Runtime
calls is in ``kernels/cpu/onnx_operators.cpp``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from ..ops.cpu import library
from ._functions import DOMAIN, FLOAT_NODES, INT8_NODES


def session(path: Path, options: Any = None, **kwargs: Any) -> onnxruntime.InferenceSession:
    """See ``onnx_session``."""
    model = onnx.load(path, load_external_data=False)
    if not any(node.domain == DOMAIN and node.op_type in (*FLOAT_NODES, *INT8_NODES) for node in model.graph.node):
        raise ValueError(
            f"onnx_session: {path} has no adder layer that the native kernels take. They take files of "
            "adder_zoo.export_onnx, p = 1, float32 or bytes."
        )
    options = options if options is not None else onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library().path))
    return onnxruntime.InferenceSession(str(path), options, **{"providers": ["CPUExecutionProvider"], **kwargs})
