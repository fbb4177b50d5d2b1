"""``pt2.export_program``: what the file says of itself."""

import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from adder_zoo import Adder2d
from adder_zoo.pt2 import NEEDS, export_program


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.pt2"
    assert export_program(nn.Sequential(Adder2d(1, 2, 3)).eval(), path, (1, 8, 8)) == 0
    return path


def test_file_says_what_it_needs(file):
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert any(name.endswith("needs.txt") and data.decode() == NEEDS for name, data in contents.items())
    (program,) = (data for name, data in contents.items() if name.endswith("models/model.json"))
    assert NEEDS.encode() in program
    assert b".py" not in program  # no path of the machine that wrote it
    extra = {"needs.txt": ""}
    torch.export.load(file, extra_files=extra)
    assert extra["needs.txt"] == NEEDS


@pytest.mark.slow
def test_loading_without_the_package_says_what_to_do(file):
    code = f"import torch; torch.export.load({str(file)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert NEEDS in done.stderr
