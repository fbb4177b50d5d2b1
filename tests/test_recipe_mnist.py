"""The MNIST recipe as a user runs it: trains, leaves what it promises, goes on where it was stopped, and refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import _run
import _settings
import mnist
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

RECIPE = Path(mnist.__file__)
SMALL = ["--dataset", "fashion_mnist", "--data-dir", "sample", "--cpu", "--threads", "1"]


def start(folder, *flags, launcher=(), environment=None):
    command = [sys.executable, *launcher, str(RECIPE), *SMALL, "--output-dir", str(folder), *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def run(folder, *flags, **options):
    process = start(folder, *flags, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    code, out, err = run(folder, "--epochs", "3")
    assert code == 0, err[-3000:]
    return folder, out, err


def test_run_leaves_what_it_promises(finished):
    folder, out, err = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "args.yaml", "best", "config.json", "curves.png", "log.csv", "logs", "model.safetensors", "results.json",
    ]  # fmt: skip
    assert "timm loads them again and gives the same logits" in out
    assert "img/s" in err
    assert "acc=" in err
    results = json.loads((folder / "results.json").read_text())
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    assert [float(r["lr"]) for r in rows] == [0.1, 0.075, 0.025]  # cosine to zero
    losses = [float(r["train_loss"]) for r in rows]
    assert losses[0] > losses[1] > losses[2]
    assert float(rows[-1]["test_accuracy"]) == results["test_accuracy"] > 65
    # Mid-training the running statistics lag behind; the record shows both.
    assert float(rows[0]["test_accuracy_running_statistics"]) < float(rows[0]["test_accuracy"]) - 20
    assert (results["data"], results["updates"], results["epochs"]) == ("sample", 60, 3)
    assert results["config"] == yaml.safe_load((folder / "args.yaml").read_text())
    assert results["environment"]["torch"] == torch.__version__
    assert not any(str(folder) in p.read_text() for p in folder.glob("*.json"))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["label_names"][9] == "Ankle boot"


def test_finished_run_is_left_alone(finished):
    folder = finished[0]
    before = (folder / "model.safetensors").read_bytes()
    code, _, err = run(folder, "--epochs", "3")
    assert code == 1
    assert "is finished" in err
    assert "Traceback" not in err
    assert (folder / "model.safetensors").read_bytes() == before


def test_killed_run_goes_on_to_the_same_weights(finished, tmp_path):
    process = start(tmp_path, "--epochs", "3")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "checkpoints").glob("update-*[0-9]")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "checkpoints" / "update-00000099.part").mkdir()  # a checkpoint that was cut off must not count
    code, out, err = run(tmp_path, "--epochs", "3")
    assert code == 0, err[-3000:]
    assert "going on after epoch" in out
    want, got = load_file(finished[0] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(want[k], got[k]) for k in want)
    logs = [list(csv.DictReader((f / "log.csv").open())) for f in (finished[0], tmp_path)]
    for row in (*logs[0], *logs[1]):
        del row["seconds"]
    assert logs[0] == logs[1]


def test_other_settings_do_not_go_on_with_a_run(tmp_path):
    assert run(tmp_path, "--max-steps", "2")[0] == 0
    (tmp_path / "results.json").unlink()
    code, _, err = run(tmp_path, "--max-steps", "2", "--lr", "0.3")
    assert code == 1
    assert "lr was 0.1 and is 0.3" in err


def test_two_processes_share_the_work(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    code, _, err = run(tmp_path, "--max-steps", "20", "--batch-size", "128", launcher=launcher)
    assert code == 0, err[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["environment"]["processes"] == 2
    assert results["test_images"] == 1000
    assert results["test_accuracy"] > 50
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    class Alone:
        num_processes = 1

    monkeypatch.setattr(_run, "Accelerator", lambda **options: Alone())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(_settings.RecipeError, match="the launcher was told 2 processes"):
        _run.start(mnist.Config(cpu=True))


@pytest.mark.parametrize("similarity", ["adder", "conv"])
def test_accumulation_is_one_update(tmp_path, similarity):
    flags = ("--max-steps", "3", "--batch-size", "64", "--gradient-accumulation-steps", "4", "--similarity", similarity)
    assert run(tmp_path, *flags)[0] == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["updates"] == 3
    assert results["similarity"] == similarity


def test_divergence_stops_with_a_message(tmp_path):
    code, _, err = run(tmp_path, "--similarity", "conv", "--epochs", "1", "--lr", "1e30")
    assert code == 1
    assert "diverged" in err
    assert not (tmp_path / "results.json").exists()


def test_config_file_and_flags(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nlr: 5e-2\nbatch-size: 64\n")
    config = _settings.parse(mnist.Config, "", ["--config", str(file), "--epochs", "9"])
    assert (config.epochs, config.lr, config.batch_size, config.eta) == (9, 0.05, 64, 0.2)
    for text, words in (("speed: 3", "unknown settings speed"), ("epochs: many", "must be a int"), ("- 1", "by name")):
        file.write_text(text)
        with pytest.raises(SystemExit):
            _settings.parse(mnist.Config, "", ["--config", str(file)])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        _settings.parse(mnist.Config, "", ["--similarity", "xor"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--epochs", "0"], "--epochs must be at least 1"), (["--data-dir", "/nowhere"], "no fashion_mnist found")],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, flags, words):
    with pytest.raises((_settings.RecipeError, mnist.DataError), match=words):
        mnist.main([*SMALL, "--output-dir", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


def test_paper_settings_are_the_defaults():
    c = mnist.Config()
    assert (c.epochs, c.batch_size, c.lr, c.momentum, c.weight_decay, c.eta) == (50, 256, 0.1, 0.9, 5e-4, 0.2)
