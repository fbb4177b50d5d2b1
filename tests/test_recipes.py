"""The recipes as a user runs them: they train, leave what they promise, go on where they were stopped, and refuse."""

import csv
import hashlib
import io
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import _objectives
import _run
import _settings
import _training
import cifar
import imagenet
import mnist
import numpy as np
import psutil
import pytest
import timm
import torch
import torchvision
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import adder_zoo
from adder_zoo.datasets import DataError

SCENARIOS = Path(__file__).parent / "recipe_scenarios.py"
RECIPE = Path(mnist.__file__)
PATIENCE = 300  # seconds: what starts in two may take a hundred beside other work
SMALL = ["--dataset", "fashion_mnist", "--data-dir", "sample", "--cpu", "--threads", "1"]


class Killed(BaseException):
    """As sudden as a signal that nobody can catch, for what lies on the disk."""


FEW = [
    *SMALL,
    "--limit-batches",
    "5",
    "--batch-size",
    "32",
    "--bn-batches",
    "2",
    "--epochs",
    "2",
    "--report-to",
    "none",
]


def start(folder, *flags, launcher=(), environment=None):
    command = [sys.executable, *launcher, str(RECIPE), *SMALL, "--output-dir", str(folder), *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def run(folder, *flags, **options):
    process = start(folder, *flags, **options)
    out, err = process.communicate(timeout=PATIENCE)
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
    deadline = time.monotonic() + PATIENCE
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
    assert_same_run(finished[0], tmp_path)


def test_other_settings_do_not_go_on_with_a_run(tmp_path, alone):
    mnist.main([*FEW, "--output-dir", str(tmp_path)])
    (tmp_path / "results.json").unlink()
    with pytest.raises(_settings.RecipeError, match=r"lr was 0\.1 and is 0\.3"):
        mnist.main([*FEW, "--lr", "0.3", "--output-dir", str(tmp_path)])


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
def test_accumulation_is_one_update(tmp_path, alone, similarity):
    flags = ["--limit-batches", "8", "--gradient-accumulation-steps", "3", "--similarity", similarity, "--epochs", "1"]
    results = mnist.main([*FEW, *flags, "--output-dir", str(tmp_path)])
    assert results["updates"] == 3  # of 3, 3 and 2 batches
    assert results["similarity"] == similarity


def test_divergence_stops_with_a_message(tmp_path, alone):
    with pytest.raises(_settings.RecipeError, match="diverged"):
        mnist.main([*FEW, "--similarity", "conv", "--lr", "1e30", "--output-dir", str(tmp_path)])
    assert not (tmp_path / "results.json").exists()
    assert not list((tmp_path / "checkpoints").glob("update-*"))  # of nothing that went wrong


def test_weights_that_are_not_finite_are_not_kept(alone, tmp_path, monkeypatch):
    """The last update of an epoch can spoil the weights without a loss that shows it."""
    step = adder_zoo.AdderSGD.step

    def spoiled(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(updates) == 9:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    updates = iter(range(10**6))
    monkeypatch.setattr(adder_zoo.AdderSGD, "step", spoiled)
    argv = [*FEW, "--epochs", "3", "--output-dir", str(tmp_path)]
    with pytest.raises(_settings.RecipeError, match="update-00000005 is the last checkpoint before it"):
        mnist.main(argv)
    assert [p.name for p in (tmp_path / "checkpoints").glob("update-*")] == ["update-00000005"]


@pytest.mark.parametrize(("flags", "rates"), [([], [0.1, 0.05]), (["--poly-power", "2"], [0.1, 0.025])])
def test_polynomial_schedule(alone, tmp_path, flags, rates):
    mnist.main([*FEW, "--sched", "poly", *flags, "--output-dir", str(tmp_path)])
    assert [float(row["lr"]) for row in csv.DictReader((tmp_path / "log.csv").open())] == pytest.approx(rates)


def test_second_run_in_a_folder_is_refused(tmp_path):
    first = start(tmp_path, "--epochs", "100", "--report-to", "none")
    try:
        wait_for(tmp_path / "checkpoints" / "lock", first)
        code, _, err = run(tmp_path, "--epochs", "100", "--report-to", "none")
        assert code == 1
        assert f"process {first.pid} on" in err
        assert "trains in" in err
    finally:
        first.kill()
        first.communicate()


def test_end_of_the_launcher_stops_the_run(tmp_path):
    """`accelerate launch` ends at a SIGTERM and leaves its process behind."""
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1")
    process = start(tmp_path, "--epochs", "100", "--report-to", "none", launcher=launcher)
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

    monkeypatch.setattr(_run.psutil, "Process", Parent)
    assert _run.asked_processes() == asked


def test_precision_is_recorded_and_kept(alone, tmp_path, monkeypatch):
    killed_at(monkeypatch, 6, mnist.main, [*FEW, "--output-dir", str(tmp_path)])
    AcceleratorState._reset_state(True)
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as the launcher tells it
        with pytest.raises(_settings.RecipeError, match="mixed precision 'no', and here it would be 'bf16'"):
            mnist.main([*FEW, "--output-dir", str(tmp_path)])
    AcceleratorState._reset_state(True)
    assert mnist.main([*FEW, "--output-dir", str(tmp_path)])["environment"]["mixed_precision"] == "no"


@pytest.mark.parametrize(
    "flags",
    [
        ["--mixed-precision", "bf16"],
        ["--opt", "adamw", "--lr", "0.001"],
        ["--deterministic"],
        ["--pretrained"],
        ["--sched", "poly", "--adder-lr", "increased", "--weight-grad", "sign"],
    ],
    ids=lambda flags: flags[0],
)
def test_option_trains(alone, tmp_path, flags):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        results = mnist.main([*FEW, *flags, "--epochs", "1", "--output-dir", str(tmp_path)])
    finally:
        torch.use_deterministic_algorithms(before)
    assert results["train_loss"] < 3
    if flags == ["--pretrained"]:
        assert results["test_accuracy"] > 80


def test_compiled_network_trains_alike(alone, tmp_path):
    """Under --compile the same losses within rounding, and saved weights that bear no names of the compiler's."""
    plain = mnist.main([*FEW, "--epochs", "1", "--output-dir", str(tmp_path / "plain")])
    AcceleratorState._reset_state(True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = mnist.main([*FEW, "--epochs", "1", "--compile", "--output-dir", str(tmp_path / "compiled")])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    weights = [load_file(tmp_path / which / "model.safetensors") for which in ("plain", "compiled")]
    assert weights[0].keys() == weights[1].keys()


def test_config_file_and_flags(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7.0\nlr: 5e-2\nbatch-size: 64\n")
    config = _settings.parse(mnist.Config, "", ["--config", str(file), "--epochs", "9"])
    assert (config.epochs, config.lr, config.batch_size, config.eta) == (9, 0.05, 64, 0.2)
    for text, words in (
        ("speed: 3", "unknown settings speed"),
        ("epochs: many", "must be a int"),
        ("- 1", "by name"),
        ("similarity: xor", "must be one of 'adder', 'conv', 'xnor', got 'xor'"),
    ):
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


def wait_for(path, process):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_paper_settings_are_the_defaults():
    c = mnist.Config()
    assert (c.epochs, c.batch_size, c.lr, c.momentum, c.weight_decay, c.eta) == (50, 256, 0.1, 0.9, 5e-4, 0.2)


# ---- on a few batches


OPTIONS = {
    "plain": [],
    "everything": [
        "--mixup", "0.2", "--cutmix", "1", "--smoothing", "0.1", "--model-ema", "--opt", "sgd", "--clip-grad", "1",
        "--warmup-epochs", "1", "--sched", "poly", "--gradient-accumulation-steps", "2",
    ],
    "transfer": ["--distillation", "pkkd", "--l2-to-l1", "2"],
}  # fmt: skip


def at_batch(monkeypatch, number, action):
    """Does something when the training of this process comes to its batch ``number``, counted from 0."""
    batches = iter(range(10**6))
    seed = _training.seed_everything

    def counted(*key):
        if next(batches) == number:
            action()
        seed(*key)

    monkeypatch.setattr(_training, "seed_everything", counted)


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


def killed_at(monkeypatch, batch, main, argv):
    def fail():
        raise Killed

    with monkeypatch.context() as patch:
        at_batch(patch, batch, fail)
        with pytest.raises(Killed):
            main(argv)


@pytest.mark.parametrize("options", OPTIONS)
def test_run_stopped_within_an_epoch_goes_on_to_the_same_weights(alone, tmp_path, monkeypatch, options):
    argv = [*FEW, *OPTIONS[options], "--checkpointing-steps", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    mnist.main([*argv, "--output-dir", str(whole)])
    for batch in (3, 4):  # the fourth of the first epoch, then, counted from where that went on, one of the second
        AcceleratorState._reset_state(True)
        killed_at(monkeypatch, batch, mnist.main, [*argv, "--output-dir", str(stopped)])
    AcceleratorState._reset_state(True)
    mnist.main([*argv, "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_after_a_checkpoint(alone, tmp_path, monkeypatch, capsys, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    mnist.main([*FEW, "--output-dir", str(whole)])
    AcceleratorState._reset_state(True)
    with monkeypatch.context() as patch:
        at_batch(patch, 2, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stop:
            mnist.main([*FEW, "--output-dir", str(stopped)])
    assert stop.value.code == 128 + number
    assert "stopped at update 3; the same command goes on from there" in capsys.readouterr().out
    assert [p.name for p in (stopped / "checkpoints").glob("update-*")] == ["update-00000003"]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    AcceleratorState._reset_state(True)
    mnist.main([*FEW, "--output-dir", str(stopped)])
    assert "going on after epoch 0, update 3" in capsys.readouterr().out
    assert_same_run(whole, stopped)


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


def test_other_number_of_processes_does_not_go_on_with_a_run(alone, tmp_path, monkeypatch):
    killed_at(monkeypatch, 6, mnist.main, [*FEW, "--output-dir", str(tmp_path)])
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(_run.Progress, "load_state_dict", lambda self, state: vars(self).update(state, processes=4))
    with pytest.raises(_settings.RecipeError, match="has 4 processes, and here are 1"):
        mnist.main([*FEW, "--output-dir", str(tmp_path)])


def test_average_of_the_weights_is_measured_and_saved(alone, tmp_path):
    results = mnist.main([*FEW, "--model-ema", "--model-ema-decay", "0.5", "--output-dir", str(tmp_path)])
    ema, last = (load_file(tmp_path / f / "model.safetensors") for f in ("ema", "."))
    assert any(not torch.equal(ema[k], last[k]) for k in ema)
    assert 0 <= results["ema_test_accuracy"] <= 100
    model = timm.create_model(f"local-dir:{tmp_path / 'ema'}", pretrained=True).eval()
    images, labels = mnist.load("fashion_mnist", mnist.SAMPLE)[0]["test"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: 5 * 32]
    with torch.no_grad():
        hits = model(mnist.preprocessed(images[order], model)).argmax(1) == labels[order]
    assert 100 * hits.float().mean() == pytest.approx(results["ema_test_accuracy"], abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opt", "sdg"], "--opt sdg"),
        (["--model", "adder_lenet7"], "--model adder_lenet7"),
        (["--sync-bn"], "GPUs only"),
        (["--report-to", "tensorbored"], "Accelerate knows"),
        (["--smoothing", "2"], "between 0 and 1"),
        (["--distillation", "pkkd", "--similarity", "conv"], "leave --similarity at adder"),
        (["--drop-path", "0.1"], "drop_path_rate"),
        (["--l2-to-l1", "3"], "ends after 2 epochs, before the exponent is 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--mixed-precision", "fp16"], "fp16 is for GPUs"),
        (["--model", "resnet50"], "there are adder_lenet5_bn"),
        (["--similarity", "conv", "--pretrained"], "--model adder_lenet5_bn"),
    ],
)
def test_what_cannot_be_met_is_refused(alone, tmp_path, flags, words):
    with pytest.raises(_settings.RecipeError, match=words):
        mnist.main([*FEW, "--output-dir", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


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


# ---- equal batches, however they are cut


def frozen(folder, *flags, launcher=()):
    """The weights of ResNet-20 after 20 updates of 16 images, with frozen statistics, in float64."""
    command = [sys.executable, *launcher, str(SCENARIOS), "frozen", "--synthetic", "--max-steps", "20", "--lr", "0.01",
               "--cpu", "--threads", "1", "--report-to", "none", "--bn-batches", "1",
               "--output-dir", str(folder), *flags]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    return frozen(tmp_path_factory.mktemp("uncut"), "--batch-size", "16", "--limit-batches", "20")


def assert_equal_but_for_rounding(one, other):
    """Rounding is 1e-16 in float64, grown by 20 updates; a factor missed anywhere would show as 1e-2."""
    for key in one:
        if one[key].is_floating_point():
            assert (one[key] - other[key]).norm() <= 1e-11 * one[key].norm()


def test_two_processes_do_what_one_does(uncut, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    flags = ("--batch-size", "8", "--limit-batches", "20")
    assert_equal_but_for_rounding(uncut, frozen(tmp_path, *flags, launcher=launcher))


def test_accumulated_batches_do_what_a_large_one_does(uncut, tmp_path):
    flags = ("--batch-size", "4", "--gradient-accumulation-steps", "4", "--limit-batches", "80")
    assert_equal_but_for_rounding(uncut, frozen(tmp_path, *flags))


def test_launcher_that_starts_fewer_processes_is_found_out(tmp_path):
    launcher = ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")
    code, _, err = run(tmp_path / "run", "--epochs", "1", launcher=launcher)
    assert code != 0
    assert "the launcher was told 2 processes, but this one knows of 1" in err
    assert not (tmp_path / "run").exists()


# ---- the CIFAR and ImageNet recipes


def test_cifar(alone, tmp_path):
    flags = ["--synthetic", "--limit-batches", "2", "--batch-size", "16", "--bn-batches", "1", "--epochs", "1", "--cpu"]
    results = cifar.main([*flags, "--dataset", "cifar100", "--output-dir", str(tmp_path)])
    assert (results["model"], results["dataset"], results["updates"]) == ("adder_resnet20.cifar100", "cifar100", 2)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 100


def test_cifar_with_knowledge_transfer(alone, tmp_path, monkeypatch):
    """PKKD's twin and maps take part in training and loss, and are not in what is saved; p goes from 2 to 1."""
    exponents = []
    monkeypatch.setattr(
        _training, "set_exponent", lambda network, p: (exponents.append(p), _objectives.set_exponent(network, p))
    )
    flags = ["--synthetic", "--limit-batches", "1", "--batch-size", "8", "--bn-batches", "1", "--epochs", "2", "--cpu"]
    transfer = ["--distillation", "pkkd", "--l2-to-l1", "2"]
    results = cifar.main([*flags, *transfer, "--output-dir", str(tmp_path / "pkkd")])
    assert exponents == [2.0, 1.0]
    AcceleratorState._reset_state(True)
    plain = cifar.main([*flags, "--output-dir", str(tmp_path / "plain")])
    assert results["updates"] == plain["updates"] == 2
    # two more cross-entropies, of which one has half the weight that the labels lose, and the layers' distances
    assert results["train_loss"] > 1.5 * plain["train_loss"]
    saved = [load_file(tmp_path / run / "model.safetensors") for run in ("pkkd", "plain")]
    assert saved[0].keys() == saved[1].keys()
    network = timm.create_model(f"local-dir:{tmp_path / 'pkkd'}", pretrained=True)
    assert {m.p for m in network.modules() if isinstance(m, adder_zoo.Adder2d)} == {1.0}


def test_cifar100_from_torchvision_files(alone, tmp_path, monkeypatch):
    """The path from CIFAR-100 as torchvision has it, on a few images that were made up."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for name, count in (("train", 200), ("test", 100)):
        images = rng.integers(256, size=(count, 3072), dtype=np.uint8)
        content = {b"data": images, b"fine_labels": [i % 100 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    sums["meta"] = hashlib.md5((folder / "meta").read_bytes()).hexdigest()
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    flags = ["--dataset", "cifar100", "--data-dir", str(tmp_path), "--model", "adder_resnet20", "--batch-size", "50"]
    results = cifar.main([*flags, "--cpu", "--bn-batches", "1", "--epochs", "1", "--output-dir", str(tmp_path / "run")])
    assert (results["updates"], results["train_images"], results["test_images"]) == (4, 200, 100)


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


IMAGENET = [
    "--model", "adder_resnet18", "--img-size", "32", "--num-classes", "3", "--batch-size", "6", "--bn-batches", "1",
    "--epochs", "2", "--cpu", "--threads", "1", "--report-to", "none", "--checkpointing-steps", "1", "--aa", "rand-m5",
    "--reprob", "0.5", "--color-jitter", "0.2",
]  # fmt: skip


def test_imagenet_goes_on_to_the_same_weights_whoever_loads_the_images(alone, tmp_path, monkeypatch, photographs):
    argv = [*IMAGENET, "--data-dir", str(photographs)]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = imagenet.main([*argv, "--workers", "0", "--output-dir", str(whole)])
    assert (results["model"], results["train_images"], results["test_images"]) == ("adder_resnet18.in1k", 18, 6)
    assert results["test_top5_accuracy"] == 100  # of three classes
    AcceleratorState._reset_state(True)
    killed_at(monkeypatch, 4, imagenet.main, [*argv, "--workers", "0", "--output-dir", str(stopped)])
    AcceleratorState._reset_state(True)
    imagenet.main([*argv, "--workers", "2", "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_damaged_photograph_is_named(alone, tmp_path, photographs, workers):
    file = photographs / "train" / "dog" / "3.jpeg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train/dog/3\.jpeg cannot be read"):
        imagenet.main(
            [*IMAGENET, "--data-dir", str(photographs), "--workers", workers, "--output-dir", str(tmp_path / "r")]
        )


def test_photographs_that_do_not_fit_are_refused(alone, tmp_path, photographs, monkeypatch):
    monkeypatch.delenv("ADDER_ZOO_DATA", raising=False)
    for flags, words in (
        (["--data-dir", str(photographs), "--num-classes", "2"], "give --num-classes 3"),
        (["--data-dir", str(tmp_path / "nowhere")], "no train images in"),
        ([], "no --data-dir"),
        (["--data-dir", str(photographs / "train")], r"has no folder train/.*--train-split=''"),
        (["--data-dir", str(photographs), "--val-split", "test"], "has no folder test/"),
    ):
        AcceleratorState._reset_state(True)
        with pytest.raises(DataError, match=words):
            imagenet.main([*IMAGENET, "--output-dir", str(tmp_path / "run"), *flags])
        assert not (tmp_path / "run").exists()


def test_classes_that_differ_are_refused(alone, tmp_path, photographs):
    (photographs / "val" / "bird").rename(photographs / "val" / "tiger")
    with pytest.raises(DataError, match="would shift the labels: only one has bird, tiger"):
        imagenet.main([*IMAGENET, "--data-dir", str(photographs), "--output-dir", str(tmp_path / "run")])


def test_flat_folder_is_taken_where_it_is_asked_for(alone, tmp_path, photographs):
    """One folder of classes as both, to try the pipeline; the network says which size its images had."""
    flags = ["--data-dir", str(photographs / "train"), "--train-split", "", "--val-split", "", "--epochs", "1"]
    results = imagenet.main([*IMAGENET, *flags, "--workers", "0", "--output-dir", str(tmp_path / "run")])
    assert (results["train_images"], results["test_images"]) == (18, 18)
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 32, 32)


@pytest.mark.slow
def test_hundred_photographs(alone, tmp_path, data_dir):
    """As docs/imagenet.md has it: real images, at another size each."""
    if not (data_dir / "imagenet_sample").is_dir():
        pytest.skip("no imagenet_sample in ADDER_ZOO_DATA")
    config = RECIPE.parent / "configs" / "imagenet_smoke.yaml"
    flags = ["--config", str(config), "--model", "adder_resnet18", "--data-dir", str(data_dir / "imagenet_sample")]
    results = imagenet.main([*flags, "--cpu", "--report-to", "none", "--output-dir", str(tmp_path / "run")])
    assert (results["updates"], results["test_images"]) == (10, 100)


def test_photographs_are_not_looked_for_among_other_data(alone, tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("ADDER_ZOO_DATA", str(photographs))
    with pytest.raises(DataError, match=r"no train images in .*imagenet"):
        imagenet.main([*IMAGENET, "--output-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("flags", [["--similarity", "conv"], ["--distillation", "pkkd"]])
def test_networks_of_timm_have_no_similarity(alone, tmp_path, flags):
    with pytest.raises(_settings.RecipeError, match="--model adder_resnet18"):
        imagenet.main([*IMAGENET, "--model", "resnet18", *flags, "--output-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("file", sorted((RECIPE.parent / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_its_files(file):
    config = load_config_from_file(str(file))
    assert config.num_processes >= 1
    assert f"recipes/accelerate/{file.name}" in file.read_text()  # the command that it is for


def test_stream_of_shards(alone, tmp_path, monkeypatch):
    """WebDataset's shards, which can only be read from their beginning: the stopped run reads up to where it was."""
    pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    sizes = {}
    for split, count in (("train", 24), ("validation", 7)):
        for shard in range(2):
            name = f"images-{split}-{shard:04d}.tar"
            with tarfile.open(tmp_path / name, "w") as tar:
                for i in range(shard, count, 2):
                    buffer = io.BytesIO()
                    Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(buffer, "png")
                    for suffix, content in (("png", buffer.getvalue()), ("cls", str(i % 3).encode())):
                        info = tarfile.TarInfo(f"{i:05d}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            sizes.setdefault(split, {"name": split, "filenames": [], "shard_lengths": [], "num_samples": count})
            sizes[split]["filenames"].append(name)
            sizes[split]["shard_lengths"].append(len(range(shard, count, 2)))
    (tmp_path / "_info.json").write_text(json.dumps({"splits": sizes}))
    argv = [*IMAGENET, "--dataset", "wds/", "--data-dir", str(tmp_path), "--workers", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = imagenet.main([*argv, "--output-dir", str(whole)])
    assert (results["updates"], results["test_images"]) == (8, 7)
    AcceleratorState._reset_state(True)
    killed_at(monkeypatch, 6, imagenet.main, [*argv, "--output-dir", str(stopped)])
    AcceleratorState._reset_state(True)
    imagenet.main([*argv, "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)

    shard = tmp_path / "images-train-0000.tar"
    content = shard.read_bytes()
    at = content.index(b"IDAT") + 10  # in the first image's pixels
    shard.write_bytes(content[:at] + bytes(200) + content[at + 200 :])
    AcceleratorState._reset_state(True)
    with pytest.raises(DataError, match=r"image 00000 of .*images-train-0000\.tar cannot be read"):
        imagenet.main([*argv, "--output-dir", str(tmp_path / "damaged")])


@pytest.mark.slow
def test_five_kills_at_random_moments(finished, tmp_path):
    """In each of five parts of the run: at a random update, and then some moment later."""
    moments = random.Random(0)
    flags = ("--epochs", "3", "--checkpointing-steps", "1")
    for part in range(5):
        process = start(tmp_path, *flags)
        update = moments.randrange(11 * part, 11 * part + 10)  # of 60
        while not any(
            int(p.name[7:15]) >= update and ".part" not in p.name for p in (tmp_path / "checkpoints").glob("update-*")
        ):
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.2))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for file in tmp_path.rglob("*.safetensors"):
            if ".part" not in str(file):
                load_file(file)
    assert run(tmp_path, *flags)[0] == 0
    assert_same_run(finished[0], tmp_path)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    flags = ("--epochs", "3", "--batch-size", "64", "--report-to", "none")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, *flags, launcher=launcher)[0] == 0
    process = start(stopped, *flags, launcher=launcher)
    while not list((stopped / "checkpoints").glob("update-*[0-9]")):  # after the first epoch
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # the launcher passes it on
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    updates = int(re.search(r"stopped at update (\d+); the same command goes on", out)[1])
    assert updates % 10 == 0
    assert (stopped / "checkpoints" / f"update-{updates:08d}").is_dir()
    code, out, err = run(stopped, *flags, launcher=launcher)
    assert code == 0, err[-3000:]
    assert f"update {updates}" in out
    assert_same_run(whole, stopped)
