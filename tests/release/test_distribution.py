"""What `make dist` builds installs into empty environments and computes there, the wheel without a compiler."""

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRY = """
import sys, torch, adder_zoo, adder_zoo.training
from pathlib import Path
assert Path(adder_zoo.__file__).is_relative_to(sys.prefix), adder_zoo.__file__
x, w = torch.randn(2, 5, 7, 6), torch.randn(4, 5, 3, 3)
y = adder_zoo.adder2d(x, w, padding=1, impl="cpu")
torch.testing.assert_close(y, adder_zoo.adder2d(x, w, padding=1, impl="reference"), rtol=1e-5, atol=1e-4)
import timm
timm.create_model("adder_lenet5_bn.mnist", pretrained=True)
print(adder_zoo.__version__)
"""


def command(*words, **options):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=1800, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def distribution(tmp_path):
    """The folder that holds the sources and the wheel, built from the tracked files alone."""
    for tool in ("auditwheel", "build"):
        pytest.importorskip(tool)
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: its tracked files are what a release is built from")
    folder = tmp_path / "distribution"
    names = command("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "tree" / name)
    tools = f"BIN={Path(sys.executable).parent}"  # nothing is left to install
    command("make", "-C", folder / "tree", "-o", "install", "dist", tools)
    return folder / "tree/dist"


def empty(folder):
    """Python in an environment without adder_zoo. What it depends on is this environment's: nothing is downloaded."""
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    return folder / "bin/python"


def check_wheel(wheel, folder):
    assert re.search(r"-py3-none-.*manylinux_2_\d+_", wheel.name), wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"adder_zoo/_native.so", "adder_zoo/py.typed", "adder_zoo/hub/card.md"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "recipes/", "build/"))]
    python = empty(folder)
    no_compiler = {"PATH": str(python.parent), "CC": "false", "CXX": "false", "HOME": str(folder)}
    command(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, env=no_compiler)
    assert command(python, "-c", TRY, env=no_compiler, cwd=folder).strip() in wheel.name
    assert "adder_lenet5_bn" in command(python.parent / "adder-zoo", "list", env=no_compiler, cwd=folder)


def check_sources(sources, folder):
    python = empty(folder)
    command(python, "-m", "pip", "install", "--no-deps", sources)
    assert command(python, "-c", TRY, cwd=folder).strip() in sources.name


@pytest.mark.slow
def test_both_files_install_and_compute(distribution, tmp_path):
    (wheel,) = distribution.glob("*.whl")
    check_wheel(wheel, tmp_path / "wheel")
    (sources,) = distribution.glob("*.tar.gz")
    check_sources(sources, tmp_path / "sources")
