"""A run that was stopped, by whatever, ends with the weights of one that was not, bit by bit."""

import os
import random
import re
import signal
import time

import mnist
import pytest
from accelerate.state import AcceleratorState
from recipe_runs import FEW, PATIENCE, assert_same_run, at_batch, killed_at, run, start
from safetensors.torch import load_file

OPTIONS = {
    "plain": [],
    "everything": [
        "--mixup", "0.2", "--cutmix", "1", "--smoothing", "0.1", "--model-ema", "--opt", "sgd", "--clip-grad", "1",
        "--warmup-epochs", "1", "--sched", "poly", "--gradient-accumulation-steps", "2",
    ],
    "few bits": ["--pretrained", "--bits", "3", "--distillation", "float", "--lr", "0.001", "--model-ema"],
    "transfer": ["--distillation", "pkkd", "--l2-to-l1", "2"],
    "taught": ["--distillation", "trained", "--teacher", "adder_lenet5_bn.fashion_mnist", "--kd-temperature", "4"],
}  # fmt: skip


@pytest.mark.long
def test_killed_run_goes_on_to_the_same_weights(finished, tmp_path):
    process = start(tmp_path, "--epochs", "3")
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / "checkpoints").glob("update-*[0-9]")):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "checkpoints" / ".update-00000099.host-1-0.part").mkdir()  # what was cut off must not count
    code, out, err = run(tmp_path, "--epochs", "3")
    assert code == 0, err[-3000:]
    assert "going on after epoch" in out
    assert_same_run(finished[0], tmp_path)


@pytest.mark.parametrize("options", OPTIONS)
def test_run_stopped_within_an_epoch_goes_on_to_the_same_weights(alone, whole, tmp_path, monkeypatch, options):
    argv = [*FEW, *OPTIONS[options], "--checkpointing-steps", "1"]
    stopped = tmp_path / "stopped"
    if OPTIONS[options]:
        whole = tmp_path / "whole"
        mnist.main([*argv, "--output-dir", str(whole)])
    for batch in (3, 4):  # the fourth of the first epoch, then, counted from where that went on, one of the second
        AcceleratorState._reset_state(True)
        killed_at(monkeypatch, batch, mnist.main, [*argv, "--output-dir", str(stopped)])
    AcceleratorState._reset_state(True)
    mnist.main([*argv, "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_after_a_checkpoint(alone, whole, tmp_path, monkeypatch, capsys, number):
    stopped, before = tmp_path / "stopped", signal.getsignal(number)  # whoever starts the tests may ignore Ctrl-C
    with monkeypatch.context() as patch:
        at_batch(patch, 2, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stop:
            mnist.main([*FEW, "--output-dir", str(stopped)])
    assert stop.value.code == 128 + number
    assert "stopped at update 3; the same command goes on from there" in capsys.readouterr().out
    assert [p.name for p in (stopped / "checkpoints").glob("update-*")] == ["update-00000003"]
    assert signal.getsignal(number) == before
    AcceleratorState._reset_state(True)
    mnist.main([*FEW, "--output-dir", str(stopped)])
    assert "going on after epoch 0, update 3" in capsys.readouterr().out
    assert_same_run(whole, stopped)


@pytest.mark.slow
def test_five_kills_at_random_moments(finished, tmp_path):
    """In each of five parts of the run: at a random update, and then some moment later."""
    moments = random.Random(0)
    flags = ("--epochs", "3", "--checkpointing-steps", "1")
    for part in range(5):
        process = start(tmp_path, *flags)
        update = moments.randrange(11 * part, 11 * part + 10)  # of 60
        while not any(int(p.name[7:]) >= update for p in (tmp_path / "checkpoints").glob("update-*")):
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
