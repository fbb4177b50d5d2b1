"""What all tests share: memory that shows when nobody wrote to it, fixed seeds, and what a machine must have."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted import REHEARSING

INSTRUCTION_SETS = ("avx512", "avx2", "generic")


def pytest_configure():
    # torch.empty and its kin hand out NaN, so an element that a kernel forgets to write is seen in every comparison.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def missing_here() -> dict[str, str]:
    """What this machine lacks, by the words that a test asks for it with, and how to say so."""
    from adder_zoo.ops import cpu

    missing = {} if torch.cuda.is_available() or REHEARSING else {"gpu": "a GPU (`make gpu` runs its tests)"}
    try:
        here = cpu.library().isas
    except OSError:
        return missing  # every test of the native library skips and says why
    return missing | {isa: f"the processor's {isa} instructions" for isa in INSTRUCTION_SETS if isa not in here}


def pytest_collection_modifyitems(config, items):
    """Long tests first; what cannot run on this machine at all is taken out, and one line at the end says what.

    A worker that has no tests left takes from the end of another's list, where the short ones are then.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    missing = missing_here()

    def can_run(item):
        parameters = getattr(item, "callspec", None)
        words = {str(value).removeprefix("cpu-") for value in parameters.params.values()} if parameters else set()
        needs_isa = {"native", "impl"} & set(getattr(item, "fixturenames", ()))
        return not ("gpu" in missing and "gpu" in item.keywords) and not (needs_isa and words & missing.keys())

    left_out = [item for item in items if not can_run(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if can_run(item)]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    missing = missing_here()
    if missing:
        terminalreporter.write_line("not tested, because this machine lacks it: " + "; ".join(missing.values()))


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_as_before():
    """A test that leaves torch with more threads, as a recipe does, makes those after it many times slower."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
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
    from adder_zoo.ops import cpu

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


@pytest.fixture(params=["reference", *(f"cpu-{isa}" for isa in INSTRUCTION_SETS)])
def impl(request):
    """Each implementation that a CPU runs, the native one once for each instruction set."""
    name, _, isa = request.param.partition("-")
    if isa:
        request.getfixturevalue("native")(isa)
    return name


@pytest.fixture
def threads():
    """One thread: for shapes as small as these, more would wait for each other most of the time."""
    torch.set_num_threads(1)
    return torch.set_num_threads


@pytest.fixture
def alone():
    """Accelerate keeps the state of a process in one place; a recipe that runs here must find it as it was."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
