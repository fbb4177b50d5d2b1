"""What all tests share: memory that shows when nobody wrote to it, fixed seeds, and what a machine must have."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_configure():
    # torch.empty and its kin hand out NaN, so an element that a kernel forgets to write is seen in every comparison.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False"))


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    """The folder that holds mnist/, cifar10/, ... as downloaded."""
    folder = os.environ.get("ADDER_ZOO_DATA")
    if not folder:
        pytest.skip("needs data sets: set ADDER_ZOO_DATA to the folder that holds mnist/, cifar10/, ...")
    if not Path(folder).is_dir():
        pytest.skip(f"needs data sets: ADDER_ZOO_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture
def native():
    """A function that takes the native kernels of an instruction set, or skips where there are none."""
    from adder_zoo import cpu

    try:
        library = cpu.library()
    except OSError as error:
        pytest.skip(f"needs the native library: {error}")
    before = library.isa

    def use(isa):
        if isa not in library.isas:
            pytest.skip(f"this CPU or build has no {isa} kernels, only {', '.join(library.isas)}")
        library.use(isa)

    yield use
    library.use(before)


@pytest.fixture(params=["reference", "cpu-avx512", "cpu-avx2", "cpu-generic"])
def impl(request):
    """Each implementation that a CPU runs, the native one once for each instruction set."""
    name, _, isa = request.param.partition("-")
    if isa:
        request.getfixturevalue("native")(isa)
    return name


@pytest.fixture
def alone():
    """Accelerate keeps the state of a process in one place; a recipe that runs here must find it as it was."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    threads = torch.get_num_threads()
    yield
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)
