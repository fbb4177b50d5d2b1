"""What the README says: its code runs, its figures are those of the files that it names."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
import timm

from adder_zoo.models.imagenet import parents

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WEIGHTS = ROOT / "src/adder_zoo/weights"


def test_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "tensor([" in capsys.readouterr().out
    assert sum(g["adder"].count(True) for g in names["optimizer"].param_groups) == 19


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_accuracies(dataset):
    row = next(line for line in README.splitlines() if f"(`adder_lenet5_bn.{dataset}`)" in line)
    files = (WEIGHTS / f"adder_lenet5_bn.{dataset}", ROOT / f"docs/results/lenet5_bn.{dataset}-conv")
    records = [json.loads((f / "results.json").read_text()) for f in files]
    assert [r["similarity"] for r in records] == ["adder", "conv"]
    assert [float(v) for v in re.findall(r"\| ([\d.]+) %", row)] == [round(r["test_accuracy"], 2) for r in records]
    for record in records:
        assert record["epochs"] == 50
        assert record["data"] == "full"
        assert not record["environment"]["commit"].endswith("+")


def test_accuracy_of_lenetpp():
    row = next(line for line in README.splitlines() if "(`adder_lenetpp.mnist`)" in line)
    folders = (WEIGHTS / "adder_lenetpp.mnist", ROOT / "docs/results/lenetpp.mnist-conv")
    record, twin = (json.loads((f / "results.json").read_text()) for f in folders)
    assert [r["similarity"] for r in (record, twin)] == ["adder", "conv"]
    assert row.split("|")[2:4] == [f" {r['test_accuracy']:.2f} % " for r in (record, twin)]
    assert f"LeNet++ for {record['epochs']}, with η {record['config']['eta']}," in README
    assert (record["data"], record["test_images"]) == ("full", 10_000)


def test_accuracy_on_cifar10():
    row = next(line for line in README.splitlines() if "(`adder_resnet20.cifar10`)" in line)
    record = json.loads((WEIGHTS / "adder_resnet20.cifar10/results.json").read_text())
    twin = json.loads((ROOT / "docs/results/resnet20.cifar10-conv/results.json").read_text())
    assert row.split("|")[2:4] == [f" {r['test_accuracy']:.2f} % " for r in (record, twin)]
    assert f"ResNet-20 for {record['epochs']}\nepochs at batch {record['config']['batch_size']}" in README
    assert (record["data"], record["test_images"]) == ("full", 10_000)
    binary = json.loads((ROOT / "docs/results/resnet20.cifar10-xnor/results.json").read_text())
    assert f"its binary network, trained alike, has {binary['test_accuracy']:.2f} %" in README
    settings = [{k: v for k, v in r["config"].items() if k != "similarity"} for r in (record, twin, binary)]
    assert settings[0] == settings[1] == settings[2]


def test_running_statistics_after_the_first_epoch():
    first = next(csv.DictReader((WEIGHTS / "adder_lenet5_bn.mnist/log.csv").open()))
    assert f"{first['test_accuracy_running_statistics']} % against {first['test_accuracy']} % on MNIST" in README


def test_speeds(monkeypatch):
    """The rows are those that the benchmark makes of the committed measurements."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("cpu_benchmark", ROOT / "benchmarks/cpu.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/results").glob("cpu-*.json"))]
    whole = [record for record in records if "inference" in record]
    assert len(whole) >= 4
    for record in whole:
        assert f"\n{benchmark.summary(record)}\n" in README
    eager = [record["lenet5_bn_step"]["vs_eager"] for record in whole]
    text = " ".join(README.split())
    assert f"{min(eager):.0f} to {max(eager):.0f} times as fast as in eager torch" in text
    fused = [record["inference"]["mobilenet_v2"]["vs_conv"] for record in whole if "mobilenetv2_100_step" in record]
    steps = [record["mobilenetv2_100_step"]["vs_conv"] for record in whole if "mobilenetv2_100_step" in record]
    assert f"{min(fused):.2f} to {max(fused):.2f} of its twin's speed, and {min(steps):.2f} to {max(steps):.2f}" in text


def test_files_it_names_exist():
    for name in re.findall(r"`((?:src|tests|recipes|kernels|benchmarks|docs)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


def test_numbers_of_networks():
    """For the version of timm that the table of docs/coverage.md was made with."""
    coverage = (ROOT / "docs/coverage.md").read_text()
    if f"timm {timm.__version__}," not in coverage:
        pytest.skip(f"timm {timm.__version__} has other networks than the version of docs/coverage.md")
    assert f"# {len(timm.list_models('adder_*', include_tags=True))} networks" in README
    assert f"- {len(parents())} of timm's networks" in README
    share = re.search(r"\((\d+\.\d) %\)", coverage)[1]
    assert f"`convert_to_adder` takes {share} % of timm's networks" in README
