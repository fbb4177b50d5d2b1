"""Runs and images that several files look at."""

import mnist
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from recipe_runs import FEW, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    code, out, err = run(folder, "--epochs", "3")
    assert code == 0, err[-3000:]
    return folder, out, err


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a short run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(True)
    mnist.main([*FEW, "--output-dir", str(folder)])
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label in ("bird", "dog", "tree"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(256, size=(40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{i}.jpeg")
    return tmp_path / "data"
