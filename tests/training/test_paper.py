"""The paper's experiments, each from its command, on very little of the data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
import timm
import torch
from torch import nn

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
DOCS = Path(__file__).parents[2] / "docs" / "paper"
SHORT = ["--epochs", "1", "--limit-batches", "2", "--batch-size", "32", "--bn-batches", "1", "--cpu", "--threads", "1",
         "--report-to", "none"]  # fmt: skip


def run(name, *flags):
    command = [*preloaded.python(), str(PAPER / f"{name}.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def test_variance_is_the_predicted_one(tmp_path):
    run("variance", "--report-dir", str(tmp_path))
    for row in json.loads((tmp_path / "variance.json").read_text()):
        for kind in ("adder", "conv"):
            # The deviation of a variance that was measured over 64 filters, which share their images, is some percents.
            assert row[f"{kind}_measured"] == pytest.approx(row[f"{kind}_predicted"], rel=0.2)


def test_gradient_norms(tmp_path, data_dir):
    run("gradient_norms", "--report-dir", str(tmp_path), "--data-dir", str(data_dir))
    median = json.loads((tmp_path / "gradient_norms.json").read_text())["median"]
    for layer in (0, 1):
        assert median["conv"][layer] > 10 * median["adder"][layer]


def test_settings_of_gradient_norms(monkeypatch):
    """The zoo's own settings are one point of the grid, and the grid is whole."""
    monkeypatch.syspath_prepend(str(PAPER))
    import gradient_norm_settings as settings

    images, labels = torch.rand(16, 1, 32, 32), torch.arange(16) % 10
    for similarity, drawn in (("adder", "N(0, 1)"), ("conv", "torch's default")):
        got = settings.gradients(similarity, images, labels, drawn, "1", "yes", "max", "ReLU")
        torch.manual_seed(0)
        model = timm.create_model("adder_lenet5_bn", similarity=similarity).train()
        wanted = [p for p in model.parameters() if p.dim() > 1][:3]
        for p in wanted:
            settings.FILTERS[drawn](p.data)
        assert [g.shape for g in got] == [p.shape for p in wanted]
        assert all(g.norm() > 0 for g in got)
    other = settings.changed(model, "N(0, 0.01)", "U(0, 1)", "no", "mean", "none")
    kinds = [type(module) for module in other.modules()]
    assert not {nn.MaxPool2d, nn.ReLU} & set(kinds)
    assert kinds.count(nn.AvgPool2d) == 2
    assert settings.distance([0.009, 0.012, 0.146], settings.PAPER["adder"]) == pytest.approx(1)
    assert settings.distance([0.0, 1.0, 1.0], settings.PAPER["adder"]) == float("inf")


@pytest.mark.slow
def test_training_for_some_minutes(tmp_path, data_dir):
    """As `make gpu-train` does it, on a CPU: the time is over before the first run is, and the next call goes on."""
    flags = ["--minutes", "1.3", "--cpu", "--output-dir", str(tmp_path), "--data-dir", str(data_dir), "--threads", "1"]
    command = [sys.executable, str(PAPER.parent / "gpu_train.py"), *flags]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "lenet5_bn.mnist is stopped; the same command goes on with it" in done.stdout
    assert re.search(r"going on after epoch \d+, update [1-9]", done.stdout)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["environment"]["torch"]
    assert summary["lenet5_bn.mnist"]["finished"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "reports"),
    [
        ("ablation", [], ["ablation.png", "ablation.md"]),
        ("seeds", ["--seeds", "2", "--dataset", "mnist"], ["seeds_mnist.md"]),
        ("weights", [], ["weights.png", "weights.md"]),
        ("features", [], ["features.png", "features.md"]),
        ("table2", ["--synthetic", "--model", "adder_resnet20"], ["table2_adder_resnet20_cifar10.png"]),
        ("table2", ["--synthetic", "--dataset", "cifar100", "--model", "adder_vgg_small"],
         ["table2_adder_vgg_small_cifar100.md"]),
    ],
)  # fmt: skip
def test_experiment(tmp_path, data_dir, name, flags, reports):
    places = [
        "--report-dir",
        str(tmp_path / "docs"),
        "--output-dir",
        str(tmp_path / "runs"),
        "--data-dir",
        str(data_dir),
    ]
    run(name, *places, *SHORT, *flags)
    for report in reports:
        assert (tmp_path / "docs" / report).stat().st_size > 0
    run(name, *places, *SHORT, *flags)  # finished runs are read, not run again


def test_finished_run_with_other_settings_is_not_reported(tmp_path, monkeypatch):
    """What stands in the report must be what ran."""
    monkeypatch.syspath_prepend(str(PAPER))
    import _runs
    import mnist

    record = {**mnist.Config().record(), "epochs": 7}
    del record["poly_power"]  # which the run's version did not know
    (tmp_path / "results.json").write_text(json.dumps({"config": record}))
    assert _runs.run("mnist.py", tmp_path, ["--epochs", "7"])["config"]["epochs"] == 7
    assert _runs.flags_of("mnist.py", {"config": record}) == " --epochs 7"
    with pytest.raises(SystemExit, match="other settings: epochs 7 and not 50"):
        _runs.run("mnist.py", tmp_path, [])


def test_reports_name_their_command():
    """Each report names the command that makes it; its picture is there."""
    for report in DOCS.glob("*.md"):
        text = report.read_text()
        (command,) = re.findall(r"`python (recipes/paper/\w+\.py)", text)
        assert (DOCS.parents[1] / command).is_file()
        for picture in re.findall(r"\]\((\S+\.png)\)", text):
            assert (DOCS / picture).is_file()


@pytest.mark.slow
def test_fewer_bits_cost_little(tmp_path, data_dir):
    flags = ["--model", "adder_lenet5_bn.mnist", "--dataset", "mnist", "--bits", "8"]
    run("quantization", *flags, "--report-dir", str(tmp_path), "--data-dir", str(data_dir))
    figures = json.loads((tmp_path / "quantization.json").read_text())["adder_lenet5_bn.mnist"]
    shipped = json.loads((DOCS / "quantization.json").read_text())["adder_lenet5_bn.mnist"]
    assert figures["float"] == pytest.approx(shipped["float"], abs=0.02)  # an image whose answer rounding decides
    assert figures["8"] == pytest.approx(shipped["float"], abs=0.15)
