"""What `make gpu` runs, without a GPU: its stages and their time limits, and figures and tables of recorded times."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from figures import benchmark
from pages import ROOT

pytest.importorskip("triton")

# Milliseconds of an H100 that never was: with 132·128 additions a clock at 1000 MHz, 2 each tap, 8.448 T taps/s.
LAYER = {
    "forward / adder float32": 10.0, "dx / adder float32": 20.0, "dw / adder float32": 5.0,
    "forward / adder bfloat16": 12.5, "dx / adder bfloat16": 25.0, "forward / adder int8": 2.0,
    "forward / conv float32": 4.0, "dx / conv float32": 6.0, "dw / conv float32": 5.0, "forward / conv bfloat16": 1.0,
    "dx / conv bfloat16": 1.0, "dw / conv bfloat16": 1.0,
    "forward / power float32": 40.0, "dx / power float32": 50.0, "dw / power float32": 50.0,
}  # fmt: skip
STEPS = {"adder float32": 200.0, "conv TF32": 50.0}
DISTANCES = {"forward / adder_zoo": 1.0, "both / adder_zoo": 4.0, "forward / torch": 7.0, "both / torch": 40.0}
RIVALS = {
    "forward / adder float32": 10.0, "forward / cdist": 250.0, "forward / compiled broadcast": 35.0,
    "forward / power float32": 40.0, "forward / power in plain PyTorch": 4000.0,
}  # fmt: skip


class Recorded:
    """A machine whose times are written down."""

    device = "cpu"

    def __init__(self, times):
        self.times, self.named = times, []

    def about(self):
        return {"device": "recorded"}

    def milliseconds(self, name, call):
        self.named.append(name)
        return self.times[name]

    def clock(self):
        return 1000.0

    def additions(self):
        return 132 * 128

    def peak_memory(self):
        return 100.0

    def begin_memory(self):
        pass

    forget = begin_memory


@pytest.fixture
def gpu(monkeypatch):
    """``benchmarks/gpu.py`` with calls that do nothing and sizes of one layer, one network and one distance."""
    module = benchmark("gpu")
    calls = {name: lambda: None for name in LAYER}
    monkeypatch.setattr(module.candidates, "layer", lambda *_: calls)
    monkeypatch.setattr(module.candidates, "rivals", lambda *_: {name: lambda: None for name in RIVALS})
    monkeypatch.setattr(module.candidates, "distances", lambda *_: {name: lambda: None for name in DISTANCES})
    monkeypatch.setattr(module.candidates, "steps", lambda *_: [(who, lambda: None) for who in STEPS])
    monkeypatch.setattr(module, "SIZES", [(4096, 256, 64)])
    return module


def options(module, file, *flags):
    """What ``main`` would hand to ``measure``."""
    found = []
    module.measure, measure = lambda machine, parsed: found.append(parsed) or {"failed": {}}, module.measure
    module.Rehearsal, rehearsal = lambda: None, module.Rehearsal
    with pytest.raises(SystemExit, match="0"):
        module.main(["--rehearse", "--network", "resnet18", "--json", str(file), *flags])
    module.measure, module.Rehearsal = measure, rehearsal
    found[0].rehearse = False
    found[0].layers = 1
    return found[0]


def test_figures_and_tables_of_recorded_times(gpu, tmp_path, capsys):
    machine = Recorded({**LAYER, **STEPS, **DISTANCES, **RIVALS})
    file = tmp_path / "gpu.json"
    gpu.measure(machine, options(gpu, file))
    record = json.loads(file.read_text())
    taps = 64 * 56 * 56 * 64 * 64 * 9  # of the layer that has most
    row = next(row for row in record["layers"] if row["what"] == "forward / adder float32")
    assert (row["network"], row["layer"], row["count"], row["ms"]) == ("resnet18", "3x3 64->64 @56", 4, 10.0)
    assert row["taps_per_s"] == pytest.approx(taps / 0.010)
    assert row["share_of_fadd"] == pytest.approx(taps / 0.010 / 8.448e12)
    assert record["steps"] == {"resnet18": {who: {"ms": ms, "MiB": 100.0} for who, ms in STEPS.items()}}
    assert record["left_out"] == []
    assert record["failed"] == {}
    gpu.main(["--table", str(file)])
    table = capsys.readouterr().out
    for line in (
        "| resnet18, 4 x 3x3 64->64 @56 | forward | 0.74 | 9 % | 0.59 | 3.70 | 0.40 | 0.10 |",
        "| resnet18, 4 x 3x3 64->64 @56 | dx | 0.37 | 4 % | 0.30 |  | 0.30 | 0.05 |",
        "| resnet18, 4 x 3x3 64->64 @56 | dw | 1.48 |  |  |  | 1.00 | 0.20 |",
        "| resnet18 | adder float32 | 200.0 | 100 |",
        "| 4096, 256, 64 | 7.0 | 10.0 | 100 / 100 |",
        "| resnet18, 3x3 64->64 @56 | 25.00 | 3.50 |",
        "| resnet18, 3x3 64->64 @56 | forward | 0.18 | 0.25 | 100.00 |",
        "| resnet18, 3x3 64->64 @56 | dx | 0.15 | 0.40 |  |",
    ):
        assert line in table.splitlines()


def test_candidates_take_turns(gpu, tmp_path):
    machine = Recorded(LAYER)
    gpu.measure(machine, options(gpu, tmp_path / "gpu.json", "--parts", "layers", "--repeats", "3"))
    assert machine.named == 3 * list(LAYER)


def test_what_the_time_did_not_suffice_for_is_named(gpu, tmp_path):
    seconds = iter([0.0, 1.0, 70.0, 80.0, 90.0])
    chosen = options(gpu, tmp_path / "gpu.json", "--minutes", "1")
    gpu.measure(Recorded({**LAYER, **STEPS}), chosen, lambda: next(seconds))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert len(record["layers"]) == len(LAYER)
    assert record["left_out"] == ["steps: resnet18", "cdist: N 4096, M 256, D 64", "rivals: resnet18 3x3 64->64 @56"]


def test_a_failure_leaves_the_other_measurements(gpu, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu.candidates, "layer", fail)
    gpu.measure(Recorded({**STEPS, **DISTANCES, **RIVALS}), options(gpu, tmp_path / "gpu.json"))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["failed"] == {"layers: resnet18 3x3 64->64 @56": "RuntimeError: an illegal memory access"}
    assert record["steps"]
    assert len(record["rivals"]) == len(RIVALS)


def test_time_limits_of_the_stages(tmp_path):
    """A stage that hangs is ended with its children, a failed one is named, and those after them run."""
    session = benchmark("gpu_session")
    child = tmp_path / "child"
    hang = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);\
open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    commands = {"hangs": hang, "fails": "raise SystemExit(3)", "works": "print('what it found')"}
    stages = [session.Stage(name, 1 / 3, [sys.executable, "-c", code]) for name, code in commands.items()]
    begin = time.monotonic()
    session.run(stages, 0.2, tmp_path)  # 4 seconds each
    assert time.monotonic() - begin < 60
    ends = {stage["stage"]: stage["end"] for stage in json.loads((tmp_path / "gpu-session.json").read_text())}
    assert ends == {"hangs": "time over", "fails": "failed (3)", "works": "done"}
    assert (tmp_path / "gpu-works.log").read_text() == "what it found\n"
    status = Path("/proc", child.read_text(), "status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_stages_cover_every_test_and_part_once():
    session = benchmark("gpu_session")
    stages = session.stages(Path("results"), 13, 8, False, list(session.SHARES))
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    parts = [p for s in stages for p in s.command if p in benchmark("gpu").PARTS]
    assert sorted(parts) == sorted(benchmark("gpu").PARTS)
    selections = [s.command[s.command.index("-k") + 1] for s in stages if "-k" in s.command]
    assert selections == [session.FIRST, f"not ({session.FIRST})"]
    tests = set(re.findall(r"^def (test_\w+)", (ROOT / "tests/ops/test_gpu.py").read_text(), re.M))
    for word in session.FIRST.split(" or "):
        assert any(word in name for name in tests), f"no test is named {word}"
    (only,) = session.stages(Path("results"), 5, 8, False, ["rivals"])
    assert only.share == 1


def test_make_runs_the_session():
    text = subprocess.run(
        ["make", "-n", "gpu", "GPU_MINUTES=7", "STAGES=tests"], capture_output=True, text=True, cwd=ROOT
    )
    assert "benchmarks/gpu_session.py --minutes 7" in text.stdout
    assert "--stages tests" in text.stdout


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Every test and every part on tiny shapes under Triton's interpreter."""
    command = [sys.executable, "benchmarks/gpu_session.py", "--rehearse", "--results", str(tmp_path), "--minutes", "60"]
    environment = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    logs = {file.name: file.read_text()[-2000:] for file in tmp_path.glob("*.log")}
    assert done.returncode == 0, f"{done.stdout}\n{logs}"
    assert "passed" in logs["gpu-tests.log"]
    assert "passed" in logs["gpu-more-tests.log"]
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["what"] for row in record["layers"]} >= set(LAYER)
    assert len(record["steps"]) == 2
    assert record["cdist"]
    rivals = json.loads((tmp_path / "gpu-rivals.json").read_text())["rivals"]
    assert {row["what"] for row in rivals} >= set(RIVALS)
    benchmark("gpu").tables.all_of(record)
