"""What the README says: its code runs, its figures are those of the files that it names."""

import csv
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


def test_accuracy_on_cifar10():
    row = next(line for line in README.splitlines() if "(`adder_resnet20.cifar10`)" in line)
    record = json.loads((WEIGHTS / "adder_resnet20.cifar10/results.json").read_text())
    assert row.split("|")[2] == f" {record['test_accuracy']:.2f} % "
    assert f"ResNet-20 for {record['epochs']}\nepochs at batch {record['config']['batch_size']}" in README
    assert (record["data"], record["test_images"]) == ("full", 10_000)


def test_running_statistics_after_the_first_epoch():
    first = next(csv.DictReader((WEIGHTS / "adder_lenet5_bn.mnist/log.csv").open()))
    assert f"{first['test_accuracy_running_statistics']} % against {first['test_accuracy']} % on MNIST" in README


def test_speeds():
    """The figures are those of the committed measurements."""

    def span(rows, key, digits):
        values = [row[key] for row in rows]
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    for isa, name in (("avx512", "AVX-512"), ("avx2", "AVX2")):
        record = json.loads((ROOT / f"benchmarks/results/cpu-{isa}.json").read_text())
        whole = record["resnet20_layers"]["all of the network"]
        figures = f"{whole['forward_vs_conv']:.2f} | {whole['forward_vs_cdist']:.0f} | {whole['dx_vs_conv']:.2f}"
        assert f"| {name}, all layers together | {figures} |" in README
        for kernel, label in (("3x3", "3x3 layers one by one"), ("1x1", "1x1 layers with stride 2")):
            rows = [row for layer, row in record["resnet20_layers"].items() if kernel in layer]
            keys = (("forward_vs_conv", 2), ("forward_vs_cdist", 0), ("dx_vs_conv", 2))
            figures = " | ".join(span(rows, key, digits) for key, digits in keys)
            assert f"| {name}, {label} | {figures} |" in README
        step = record["lenet5_bn_step"]
        assert re.search(rf"\b{step['vs_conv']:.2f} times", README)
        assert re.search(rf"\b{step['vs_eager']:.0f} (and|times)", README)
    text = " ".join(README.split())
    assert f"ResNet-20 (batch 128) takes {record['resnet20_step']['time']:.2f} times the twin's time" in text
    whole = [record["inference"][name]["vs_conv"] for name in ("resnet20", "resnet50")]
    assert f"run at {whole[0]:.2f} (ResNet-20) and {whole[1]:.2f} (ResNet-50, 224 x 224)" in text


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
