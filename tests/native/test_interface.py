"""A library is taken only if it was built from the interface that the Python code is written for."""

import hashlib
import shutil
import subprocess
import sys

import pytest
from native_build import KERNELS, run, tool

from adder_zoo.ops import cpu
from adder_zoo.paths import PACKAGE


def test_the_version_is_that_of_the_headers():
    """If this fails: see that ops/cpu.py and ops/int8/cpu.py fit the headers, and then take this version."""
    headers = b"".join((KERNELS / name).read_bytes().replace(b"\r\n", b"\n") for name in ("adder.h", "adder_int8.h"))
    assert hashlib.sha256(headers).hexdigest()[:16] == cpu.INTERFACE


@pytest.mark.parametrize("body", ['const char *adder_interface(void) { return "0123456789abcdef"; }', "int other;"])
def test_another_library_is_refused(body, tmp_path):
    (tmp_path / "x.c").write_text(body)
    run(tool("gcc"), "-shared", "-fPIC", tmp_path / "x.c", "-o", tmp_path / "_native.so")
    with pytest.raises(OSError, match=r"_native\.so was built from other sources .* pip install --editable \."):
        cpu.Library(tmp_path / "_native.so")


def test_a_package_with_another_library_says_so_and_answers(tmp_path):
    """As without a library: in eager torch, with a warning that names the reason."""
    shutil.copytree(
        PACKAGE, tmp_path / "adder_zoo", ignore=shutil.ignore_patterns("weights", "_native*", "__pycache__")
    )
    (tmp_path / "x.c").write_text("int other;")
    run(tool("gcc"), "-shared", "-fPIC", tmp_path / "x.c", "-o", tmp_path / "adder_zoo/_native.so")
    code = (
        f"import torch, adder_zoo; assert adder_zoo.__file__.startswith({str(tmp_path)!r}), adder_zoo.__file__\n"
        "print(adder_zoo.adder2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), p=1.5).item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )  # fmt: skip
    assert done.stdout == "-1.0\n", done.stderr
    assert "was built from other sources" in done.stderr
