"""What the native library takes for granted of ONNX Runtime, held against ONNX Runtime's own header."""

import os
from pathlib import Path

import pytest
from native_build import DRIVERS, FLAGS, run, tool

FOLDERS = [os.environ.get("ORT_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]


def test_places_in_its_table(tmp_path):
    """``apt-get install libonnxruntime-dev`` (Debian 13) has the header; ORT_INCLUDE names a folder that has it."""
    folder = next((f for f in FOLDERS if f and Path(f, "onnxruntime_c_api.h").is_file()), None)
    if folder is None:
        pytest.skip("needs ONNX Runtime's C header")
    run(tool("g++"), *FLAGS, f"-I{folder}", "-c", DRIVERS / "onnx_runtime.cpp", "-o", tmp_path / "x.o")
