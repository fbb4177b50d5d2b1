"""Launchers and processes."""

import json
import os
import subprocess

import mnist
import preloaded
import psutil
import pytest
import timm
import torch
from accelerate.commands.config.config_args import load_config_from_file
from recipe_runs import PATIENCE, RECIPE, SUPPORT, run, start, wait_for

from adder_zoo.training import RecipeError, launch


@pytest.mark.long
def test_two_processes_share_the_work(tmp_path):
    python = preloaded.python()
    torchrun = ("-c", "from torch.distributed.run import main; main()")
    launcher = (*torchrun, "--standalone", "--nproc-per-node", "2", "--no-python", *python)
    code, _, err = run(tmp_path, "--max-steps", "20", "--batch-size", "128", launcher=launcher, python=python)
    assert code == 0, err[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["environment"]["processes"] == 2
    assert results["test_images"] == 1000
    assert results["test_accuracy"] > 50
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    class Alone:
        num_processes = 1

    monkeypatch.setattr(launch, "Accelerator", lambda **options: Alone())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="the launcher was to start 2 processes"):
        launch.make_accelerator(mnist.Config(cpu=True))


@pytest.mark.long
def test_end_of_the_launcher_stops_the_run(tmp_path):
    """`accelerate launch` ends at a SIGTERM and leaves its process behind."""
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1")
    flags = ("--epochs", "10000", "--limit-batches", "5", "--report-to", "none")
    process = start(tmp_path, *flags, launcher=launcher)
    wait_for(tmp_path / "checkpoints" / "lock", process)
    (child,) = [c for c in psutil.Process(process.pid).children() if "mnist.py" in " ".join(c.cmdline())]
    wait_for(tmp_path / "log.csv", process)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert child.wait(PATIENCE) is None or not child.is_running()
    assert list((tmp_path / "checkpoints").glob("update-*[0-9]"))
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["python", "/x/bin/accelerate", "launch", "--num_processes", "3"], 3),
        (["/x/bin/python", "/x/bin/accelerate-launch", "--cpu", "--num_processes", "2"], 2),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "4"], 4),
        (["python", "/x/accelerate/commands/launch.py", "--num_processes", "5"], 5),
        (["bash", "launch", "--num_processes", "6"], 1),
    ],
)
def test_launcher_is_known_by_all_its_names(monkeypatch, command, asked):
    class Parent:
        def parent(self):
            return self

        def cmdline(self):
            return [*command, "recipes/mnist.py", "--epochs", "1"]

    monkeypatch.setattr(launch.psutil, "Process", Parent)
    assert launch.requested_processes() == asked


@pytest.mark.slow  # the two tests above look at the two parts of it
def test_launcher_that_starts_fewer_processes_is_found_out(tmp_path):
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")
    code, _, err = run(tmp_path / "run", "--epochs", "1", launcher=launcher)
    assert code != 0
    assert "the launcher was to start 2 processes, but this one knows of 1" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", sorted((RECIPE.parent / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_its_files(file):
    config = load_config_from_file(str(file))
    assert config.num_processes >= 1
    assert f"recipes/accelerate/{file.name}" in file.read_text()  # the command that it is for


ONE_MACHINE = ("--num_machines", "1", "--machine_rank", "0", "--num_processes", "2")


@pytest.mark.parametrize(
    ("file", "flags", "kind", "precision"),
    [
        pytest.param("one_gpu", (), "NO", "bf16", marks=pytest.mark.slow),  # a part of what fsdp goes through
        # As two processes of torchrun above.
        pytest.param("two_cpus", ("--multi_gpu",), "MULTI_CPU", "no", marks=pytest.mark.slow),
        # The same as each other where there is no GPU, and all but the same as two_cpus.
        pytest.param("eight_gpus", ONE_MACHINE, "MULTI_CPU", "bf16", marks=pytest.mark.slow),
        pytest.param("nodes", ONE_MACHINE, "MULTI_CPU", "bf16", marks=pytest.mark.slow),
        ("fsdp", ONE_MACHINE, "FSDP", "bf16"),
    ],
    ids=["one_gpu", "two_cpus", "eight_gpus", "nodes", "fsdp"],
)
@pytest.mark.long
def test_accelerate_launches_its_files(file, flags, kind, precision):
    """On CPUs, two processes instead of eight and sixty-four; everything else is as in the file, FSDP included."""
    accelerate = ("-c", "from accelerate.commands.accelerate_cli import main; main()")
    launcher = (*accelerate, "launch", "--main_process_port", "0", "--no_python")
    python = preloaded.python()
    config = ("--config_file", str(RECIPE.parent / "accelerate" / f"{file}.yaml"))
    script = str(SUPPORT / "launched.py")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*python, *launcher, *config, *flags, *python, script],
        env=environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    assert json.loads(line.removeprefix("told ")) == {
        "processes": 1 if kind == "NO" else 2,
        "type": kind,
        "precision": precision,
        "inputs": ["torch.bfloat16" if precision == "bf16" else "torch.float32"],  # of adder layers
        "statistics": "torch.float32",
        "weights": ["torch.float32"],
        "finite": True,
        "still": [],
    }


@pytest.mark.parametrize("time", ["first", "again"])
def test_threads_that_a_recipe_takes_do_not_stay(time):
    """Or every later test in this process has them, and waits for them beside the other workers."""
    assert torch.get_num_threads() != 3
    torch.set_num_threads(3)


def test_every_file_is_launched():
    files = {file.stem for file in (RECIPE.parent / "accelerate").glob("*.yaml")}
    (cases,) = [mark for mark in test_accelerate_launches_its_files.pytestmark if mark.name == "parametrize"]
    assert files == {getattr(case, "values", case)[0] for case in cases.args[1]}
