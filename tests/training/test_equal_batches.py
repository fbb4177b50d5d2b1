"""Equal batches give equal weights, whether processes or accumulation steps share them."""

import os
import subprocess
import sys

import preloaded
import pytest
from recipe_runs import PATIENCE, SUPPORT
from safetensors.torch import load_file

SCENARIOS = SUPPORT / "recipe_scenarios.py"


def frozen(folder, *flags, launcher=()):
    """The weights of ResNet-20 after 6 updates of 16 images, with frozen statistics, in float64."""
    python = [sys.executable] if launcher else preloaded.python()
    command = [*python, *launcher, str(SCENARIOS), "frozen", "--synthetic", "--max-steps", "6", "--lr", "1",
               "--cpu", "--threads", "1", "--report-to", "none", "--bn-batches", "1",
               "--output-dir", str(folder), *flags]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    return frozen(tmp_path_factory.mktemp("uncut"), "--batch-size", "16", "--limit-batches", "6")


def assert_equal_but_for_rounding(one, other):
    """Rounding is 1e-16 in float64, grown by 6 updates; gradients not averaged change most tensors by 1e-5 or more.

    At a small learning rate six updates reach the last layer only.
    """
    for key in one:
        if one[key].is_floating_point():
            assert (one[key] - other[key]).norm() <= 1e-11 * one[key].norm()


@pytest.mark.slow  # test_launch.py has two processes that share the work
def test_two_processes_do_what_one_does(uncut, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    flags = ("--batch-size", "8", "--limit-batches", "6")
    assert_equal_but_for_rounding(uncut, frozen(tmp_path, *flags, launcher=launcher))


@pytest.mark.long
def test_accumulated_batches_do_what_a_large_one_does(uncut, tmp_path):
    flags = ("--batch-size", "4", "--gradient-accumulation-steps", "4", "--limit-batches", "24")
    assert_equal_but_for_rounding(uncut, frozen(tmp_path, *flags))
