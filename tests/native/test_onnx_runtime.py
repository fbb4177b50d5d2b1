"""ONNX Runtime's C interface: what the native library takes for granted of it, and a program in C with our kernels.

Both need ONNX Runtime's C header: ``apt-get install libonnxruntime-dev`` (Debian 13) has it, and ORT_INCLUDE names
another folder. The program is linked with the library of the Python package, so the header may be of an older version.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
from native_build import DRIVERS, FLAGS, run, tool

import adder_zoo

FOLDERS = [os.environ.get("ORT_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]


@pytest.fixture(scope="module")
def header():
    folder = next((f for f in FOLDERS if f and Path(f, "onnxruntime_c_api.h").is_file()), None)
    return folder or pytest.skip("needs ONNX Runtime's C header")


def test_places_in_its_table(header, tmp_path):
    run(tool("g++"), *FLAGS, f"-I{header}", "-c", DRIVERS / "onnx_runtime.cpp", "-o", tmp_path / "x.o")


def test_a_program_in_c(header, tmp_path):
    capi = Path(onnxruntime.__file__).parent / "capi"
    library = next(iter(capi.glob("libonnxruntime.so*")), None) or pytest.skip("needs libonnxruntime")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)  # the name that it gives itself
    run(tool("gcc"), "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{header}", DRIVERS / "onnx_session.c", library,
        f"-Wl,-rpath,{tmp_path}", "-o", tmp_path / "program")  # fmt: skip
    model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    adder_zoo.export_onnx(model, tmp_path / "net.onnx", check=False)
    images = np.random.default_rng(0).standard_normal((3, 1, 32, 32), np.float32)
    (wanted,) = adder_zoo.onnx_session(tmp_path / "net.onnx").run(None, {"images": images})
    command = [tmp_path / "program", tmp_path / "net.onnx", adder_zoo.onnx_library_path()]
    done = subprocess.run(command, input=images.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    got = np.array([[float(word) for word in line.split()] for line in lines], np.float32)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
