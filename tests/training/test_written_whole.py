"""Weights and checkpoints are the old ones or the new ones, whatever happens while they are written."""

import contextlib
import resource
from pathlib import Path

import mnist
import pytest
import torch
from accelerate.state import AcceleratorState
from recipe_runs import FEW, Killed, assert_same_run
from safetensors.torch import load_file

from adder_zoo.training import RecipeError, evaluate
from adder_zoo.training import run as run_module


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond a kilobyte: writing fails in the middle, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def failing(monkeypatch, module, name, place, how):
    """``module.name`` is cut off by a kill or a full disk where it writes into a folder that ``place`` is true of."""
    write = getattr(module, name)

    def cut_off(*args):
        part = next(a for a in args if isinstance(a, Path))
        if not place(part):
            return write(*args)
        if how == "kill":
            (part / "model.safetensors").write_bytes(b"half of")
            raise Killed
        with full_disk():
            return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, cut_off)
        yield


def test_kill_and_full_disk(alone, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    argv = [*FEW, "--output-dir", str(folder)]
    best, last = folder / "best" / "model.safetensors", folder / "model.safetensors"

    def cut_off(error, message, *how):
        AcceleratorState._reset_state(True)
        with failing(monkeypatch, *how), pytest.raises(error, match=message):
            mnist.main(argv)
        assert not list(folder.rglob("*.part"))
        assert not (folder / "results.json").exists()
        return sorted(path.name for path in (folder / "checkpoints").glob("update-*"))

    in_best = evaluate, "save_pretrained", lambda part: part.is_relative_to(best.parent)
    in_last = evaluate, "save_pretrained", lambda part: not part.is_relative_to(best.parent)
    in_checkpoint = run_module, "write_state", lambda part: "update-00000005" in part.name

    assert cut_off(Killed, None, *in_best, "kill") == []
    assert not best.exists()
    message = r"the checkpoint .*update-00000005 could not be written: .*the last checkpoint"
    assert cut_off(RecipeError, message, *in_checkpoint, "disk") == []
    first = load_file(best)
    for error, message, how in ((Killed, None, "kill"), (RecipeError, r"the weights in .*best could not be", "disk")):
        assert cut_off(error, message, *in_best, how) == []  # in the first epoch again, as there was no checkpoint
        assert all(torch.equal(value, first[name]) for name, value in load_file(best).items())
    for error, message, how in ((RecipeError, r"the weights in .* could not be", "disk"), (Killed, None, "kill")):
        assert cut_off(error, message, *in_last, how) == ["update-00000005"]
        assert not last.exists()

    AcceleratorState._reset_state(True)
    mnist.main(argv)
    assert_same_run(whole, folder)
