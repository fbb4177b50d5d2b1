"""Runs of a recipe, in this process and in one of their own, and how two of them are compared."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import mnist
import preloaded
import pytest
import torch
from safetensors.torch import load_file

from adder_zoo.training import loop

RECIPE = Path(mnist.__file__)
SUPPORT = Path(__file__).parent
PATIENCE = 300  # seconds: what starts in two may take a hundred beside other work
SMALL = ["--dataset", "fashion_mnist", "--data-dir", "sample", "--cpu", "--threads", "1"]
FEW = [
    *SMALL, "--limit-batches", "5", "--batch-size", "32", "--bn-batches", "2", "--epochs", "2", "--report-to", "none"
]  # fmt: skip


class Killed(BaseException):
    """As sudden as a signal that nobody can catch, for what lies on the disk."""


def start(folder, *flags, launcher=(), environment=None, python=(sys.executable,)):
    command = [*python, *launcher, str(RECIPE), *SMALL, "--output-dir", str(folder), *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def run(folder, *flags, **options):
    if "launcher" not in options:
        options["python"] = preloaded.python()
    process = start(folder, *flags, **options)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_for(path, process):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_batch(monkeypatch, number, action):
    """Does something when the training of this process comes to its batch ``number``, counted from 0."""
    batches = iter(range(10**6))
    seed = loop.seed_everything

    def counted(*key):
        if next(batches) == number:
            action()
        seed(*key)

    monkeypatch.setattr(loop, "seed_everything", counted)


def killed_at(monkeypatch, batch, main, argv):
    def fail():
        raise Killed

    with monkeypatch.context() as patch:
        at_batch(patch, batch, fail)
        with pytest.raises(Killed):
            main(argv)


def weights_of(folder):
    return {str(f.relative_to(folder)): load_file(f) for f in sorted(folder.rglob("*.safetensors"))}


def assert_same_run(one, other):
    want, got = weights_of(one), weights_of(other)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[f][k], got[f][k]) for f in want for k in want[f])
    logs = [list(csv.DictReader((folder / "log.csv").open())) for folder in (one, other)]
    for row in (*logs[0], *logs[1]):
        del row["seconds"]
    assert logs[0] == logs[1]
