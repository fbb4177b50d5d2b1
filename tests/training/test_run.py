"""A run's folder: what it holds, who may go on in it."""

import csv
import json
import shutil

import mnist
import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from recipe_runs import FEW, SMALL, killed_at, run, start, wait_for

from adder_zoo.training import RecipeError
from adder_zoo.training.run import Progress


def test_run_leaves_what_it_promises(finished):
    folder, out, err = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "args.yaml", "best", "config.json", "curves.png", "log.csv", "logs", "model.safetensors", "results.json",
    ]  # fmt: skip
    assert "timm loads them again and gives the same logits" in out
    assert "img/s" in err
    assert "\r" not in err  # stderr is not a terminal here
    assert len(err.splitlines()) < 20
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


def test_finished_run_that_is_started_again_says_so(alone, whole, capsys):
    """Schedulers start jobs again: this is not an error, and nothing in the folder changes."""
    argv = [*FEW, "--output-dir", str(whole)]
    first = json.loads((whole / "results.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert mnist.main([*argv, "--checkpoint-hist", "7"]) == first  # this setting may change on the way
    said = capsys.readouterr().out
    assert f"the run in {whole} is finished: {first['test_accuracy']:.2f} % of 160 test images" in said
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    AcceleratorState._reset_state(True)
    with pytest.raises(RecipeError, match=r"holds a finished run with other settings \(lr was 0\.1 and is 0\.3\)"):
        mnist.main([*argv, "--lr", "0.3"])


def test_results_of_other_weights_are_not_a_finished_run(alone, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(RecipeError, match=r"is not of the weights beside it.*another --output-dir"):
        mnist.main([*FEW, "--output-dir", str(tmp_path / "run")])


def test_finished_run_exits_without_an_error(finished):
    code, out, err = run(finished[0], "--epochs", "3")
    assert (code, "Traceback" in err) == (0, False)
    assert "is finished" in out


def test_other_settings_do_not_go_on_with_a_run(alone, whole, tmp_path):
    shutil.copy(whole / "args.yaml", tmp_path)
    with pytest.raises(RecipeError, match=r"lr was 0\.1 and is 0\.3"):
        mnist.main([*FEW, "--lr", "0.3", "--output-dir", str(tmp_path)])


def test_second_run_in_a_folder_is_refused(alone, tmp_path):
    flags = ["--epochs", "100", "--report-to", "none"]
    first = start(tmp_path, *flags)
    try:
        wait_for(tmp_path / "args.yaml", first)
        with pytest.raises(RecipeError, match=f"process {first.pid} on .* trains in"):
            mnist.main([*SMALL, *flags, "--output-dir", str(tmp_path)])
    finally:
        first.kill()
        first.communicate()


def test_precision_is_recorded_and_kept(alone, tmp_path, monkeypatch):
    killed_at(monkeypatch, 6, mnist.main, [*FEW, "--output-dir", str(tmp_path)])
    AcceleratorState._reset_state(True)
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as the launcher tells it
        with pytest.raises(RecipeError, match="mixed precision 'no', and here it would be 'bf16'"):
            mnist.main([*FEW, "--output-dir", str(tmp_path)])
    AcceleratorState._reset_state(True)
    assert mnist.main([*FEW, "--output-dir", str(tmp_path)])["environment"]["mixed_precision"] == "no"


def test_other_number_of_processes_does_not_go_on_with_a_run(alone, tmp_path, monkeypatch):
    killed_at(monkeypatch, 6, mnist.main, [*FEW, "--output-dir", str(tmp_path)])
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(Progress, "load_state_dict", lambda self, state: vars(self).update(state, processes=4))
    with pytest.raises(RecipeError, match="has 4 processes, and here are 1"):
        mnist.main([*FEW, "--output-dir", str(tmp_path)])


def test_checkpoints_are_few_and_the_best_is_kept(alone, tmp_path, monkeypatch):
    killed_at(
        monkeypatch,
        9,
        mnist.main,
        [*FEW, "--checkpointing-steps", "1", "--checkpoint-hist", "3", "--output-dir", str(tmp_path)],
    )
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("update-*"))
    assert names == ["update-00000007", "update-00000008", "update-00000009"]
    assert timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)


def test_trackers_and_curves(alone, tmp_path):
    pytest.importorskip("tensorboard")
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mnist.main([*FEW, "--report-to", "tensorboard", "--output-dir", str(tmp_path)])
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs")).Reload()
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [e.value for e in events.Scalars("test_accuracy")] == pytest.approx(
        [float(r["test_accuracy"]) for r in rows]
    )
    assert [e.step for e in events.Scalars("train/loss")] == [10]
    assert Image.open(tmp_path / "curves.png").size == (1000, 400)
