"""Progress: a bar on a terminal, lines in a log."""

import sys

import pytest
from tqdm import tqdm

from adder_zoo.training import display


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_30_seconds_and_one_at_the_end(clock, capsys):
    shown = display.epoch_display("epoch 1/2", 1000, 200, True)
    for second in range(1, 71):
        clock[0] = second
        shown.update(10)
        shown.set_postfix(loss=f"{1 / second:.3f}", acc="50.00%")
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2: 500/1000 img, 10 img/s, loss=0.034, acc=50.00%",
        "epoch 1/2: 800/1000 img, 10 img/s, loss=0.017, acc=50.00%",
        "epoch 1/2: 900/1000 img, 10 img/s, loss=0.014, acc=50.00%",
    ]


def test_other_processes_show_nothing(capsys):
    shown = display.epoch_display("epoch 1/2", 1000, 0, False)
    shown.update(10)
    shown.set_postfix(loss="1")
    shown.close()
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = display.epoch_display("epoch 1/2", 1000, 0, True)
    assert isinstance(shown, tqdm)
    shown.close()
    assert "epoch 1/2" in capsys.readouterr().err
