"""Checkpoints hold data and no code, and what cannot be read is named."""

import math
import os
import pickle

import mnist
import pytest
import timm.optim
import torch
from accelerate.state import AcceleratorState
from ranks import run_in_two_processes
from recipe_runs import FEW, SUPPORT, assert_same_run, killed_at

from adder_zoo.training import RecipeError
from adder_zoo.training.checkpoint import load_optimizer, read_state, write_state

OLD_NAMES = ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin", "sampler.bin",
             "scaler.pt", "pytorch_model.bin", "pytorch_model_fsdp.bin", ".metadata"]  # fmt: skip


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_state_comes_back_as_it_was(tmp_path):
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {
        "state": {0: {"buffer": images, "step": torch.tensor(3.0)}, 7: {}},
        "groups": [{"betas": (0.9, 0.999), "lr": 0.1 + 0.2, "lazy": None, "on": True, "name": "η"}],
        "odd": [math.inf, -0.0, 2**70, torch.zeros(0, 3), torch.ones(2, dtype=torch.bfloat16), [], ()],
    }
    write_state(tmp_path, "state", state)
    again = read_state(tmp_path, "state")
    assert again["state"].keys() == {0, 7}
    buffer = again["state"][0]["buffer"]
    assert torch.equal(buffer, images)
    assert buffer.stride() == images.stride()
    assert again["groups"] == state["groups"]
    assert type(again["groups"][0]["betas"]) is tuple
    assert again["odd"][:3] == state["odd"][:3]
    assert math.copysign(1, again["odd"][1]) == -1
    for got, want in zip(again["odd"][3:5], state["odd"][3:5], strict=True):
        assert torch.equal(got, want)
        assert got.dtype == want.dtype
    assert again["odd"][5:] == [[], ()]


def test_nan_comes_back(tmp_path):
    write_state(tmp_path, "state", {"row": {"test_accuracy": math.nan}})
    assert math.isnan(read_state(tmp_path, "state")["row"]["test_accuracy"])


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(6.0)
    write_state(tmp_path, "state", {"a": whole[:3], "b": whole[1:4], "c": whole})
    assert read_state(tmp_path, "state")["b"].tolist() == [1, 2, 3]


def test_what_is_not_data_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a checkpoint cannot hold optimizer/rule, a function"):
        write_state(tmp_path, "state", {"optimizer": {"rule": lambda: 0}})


@pytest.mark.parametrize("make", [
    lambda ps: torch.optim.AdamW(ps, amsgrad=True, foreach=False),
    lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
    lambda ps: torch.optim.Adagrad(ps),
    lambda ps: timm.optim.Lamb(ps),
])  # fmt: skip
def test_optimizer_goes_on_alike(tmp_path, make):
    def step():
        optimizer.zero_grad()
        ((weight * 3 - 1).square().sum()).backward()
        return (weight * 3 - 1).square().sum()

    weight = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = make([weight])
    optimizer.step(step)
    optimizer.step(step)
    write_state(tmp_path, "state", optimizer.state_dict())
    before = weight.detach().clone()
    optimizer.step(step)
    want = weight.detach().clone()
    weight.data.copy_(before)
    optimizer = make([weight])
    load_optimizer(optimizer, read_state(tmp_path, "state"))
    optimizer.step(step)
    assert torch.equal(weight, want)


def test_resuming_runs_no_code_from_the_checkpoint(alone, whole, tmp_path, monkeypatch):
    stopped, mark = tmp_path / "stopped", tmp_path / "mark"
    killed_at(monkeypatch, 6, mnist.main, [*FEW, "--output-dir", str(stopped)])
    (checkpoint,) = (stopped / "checkpoints").glob("update-*")
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
    for name in OLD_NAMES:
        (checkpoint / name).write_bytes(pickle.dumps(Malicious(mark)))
    AcceleratorState._reset_state(True)
    mnist.main([*FEW, "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "progress.json", "progress.safetensors"])
@pytest.mark.parametrize("content", ["pickle", "torch", "cut", "missing", "other"])
def test_file_of_a_checkpoint_that_is_something_else(tmp_path, file, content):
    name, _, suffix = file.partition(".")
    write_state(tmp_path, name, {"rows": [{"loss": 0.5}], "weight": torch.ones(100)})
    path, mark = tmp_path / file, tmp_path / "mark"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Malicious(mark)))
    elif content == "torch":
        torch.save(Malicious(mark), path)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif content == "missing":
        path.unlink()
    elif suffix == "json":
        path.write_text('{"tensor": "nowhere"}')
    else:
        (tmp_path / "b").mkdir()
        write_state(tmp_path / "b", name, {"b": torch.ones(1)})
        (tmp_path / "b" / file).replace(path)
    with pytest.raises(RecipeError, match=r"the checkpoint .* cannot be read"):
        read_state(tmp_path, name)
    assert not mark.exists()


def test_network_in_parts_goes_on_from_a_checkpoint(tmp_path):
    """FSDP 2 on two processes, each of which writes and reads its part."""
    script = SUPPORT / "sharded_checkpoint.py"
    assert run_in_two_processes(script, tmp_path) == ["process 0: equal\n", "process 1: equal\n"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
