"""The figures in the documentation agree with the files that they come from."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch
from figures import (
    RESULTS,
    WEIGHTS,
    benchmark,
    int8_layers,
    int8_rows,
    machine_code_rows,
    power_rows,
    speed_rows,
    triton_rows,
    versions_of_triton,
    whole_measurements,
)
from pages import ROOT, SITE

import adder_zoo
from adder_zoo.report import PICOJOULES


def words(page: str) -> str:
    return " ".join((SITE / page).read_text().split())


def record(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def report_of(name: str) -> dict:
    return json.loads((SITE / "paper" / f"{name}.json").read_text())


# ---- results.md


@pytest.mark.parametrize(
    "model", ["adder_lenet5_bn.mnist", "adder_lenet5_bn.fashion_mnist", "adder_lenetpp.mnist", "adder_resnet20.cifar10"]
)
def test_accuracies(model):
    row = next(line for line in (SITE / "results.md").read_text().splitlines() if f"(`{model}`)" in line)
    records = [record(WEIGHTS / model), record(SITE / f"results/{model.removeprefix('adder_')}-conv")]
    assert row.split("|")[2:4] == [f" {r['test_accuracy']:.2f} " for r in records]


def test_settings_of_the_trainings():
    text = words("results.md")
    assert f"**LeNet-5-BN** trained for {record(WEIGHTS / 'adder_lenet5_bn.mnist')['epochs']} epochs" in text
    lenetpp = record(WEIGHTS / "adder_lenetpp.mnist")
    assert f"**LeNet++** trained for {lenetpp['epochs']} epochs with η {lenetpp['config']['eta']}." in text
    resnet = record(WEIGHTS / "adder_resnet20.cifar10")
    assert f"**ResNet-20** trained for {resnet['epochs']} epochs at batch {resnet['config']['batch_size']}." in text
    convolutional = record(SITE / "results/resnet20.cifar10-conv")
    behind = convolutional["test_accuracy"] - resnet["test_accuracy"]
    assert f"with {resnet['epochs']} epochs the adder network is {behind:.1f} points behind" in text
    binary = record(SITE / "results/resnet20.cifar10-xnor")
    assert f"Its binary network, trained in the same way, has {binary['test_accuracy']:.2f} %" in text


def test_seeds():
    text = words("results.md")
    for dataset in ("mnist", "fashion_mnist"):
        table = (SITE / f"paper/seeds_{dataset}.md").read_text()
        for mean, deviation in re.findall(r"\| ([\d.]+) ± ([\d.]+) \(3 seeds", table):
            assert f"{mean} ± {deviation} %" in text


def test_speeds():
    text = (SITE / "results.md").read_text()
    for row in speed_rows(ranges=True):
        assert f"\n{row}\n" in text
    eager = [r["lenet5_bn_step"]["vs_eager"] for r in whole_measurements()]
    assert f"{min(eager):.0f} to {max(eager):.0f} times as fast as in plain PyTorch" in words("results.md")
    measured = [r for r in whole_measurements() if "mobilenetv2_100_step" in r]
    fused = [r["inference"]["mobilenet_v2"]["vs_conv"] for r in measured]
    steps = [r["mobilenetv2_100_step"]["vs_conv"] for r in measured]
    assert (
        f"at {min(fused):.2f} to {max(fused):.2f} of the convolutional network's speed in inference and "
        f"{min(steps):.2f} to {max(steps):.2f} in training" in words("results.md")
    )


# ---- the method


def test_running_statistics_after_the_first_epoch():
    first = next(csv.DictReader((WEIGHTS / "adder_lenet5_bn.mnist/log.csv").open()))
    running, estimated = first["test_accuracy_running_statistics"], first["test_accuracy"]
    assert f"{running} % with the running averages and {estimated} % with statistics" in words("method/training.md")
    assert f"{running} %" in adder_zoo.batchnorm.__doc__
    assert f"{estimated} %" in adder_zoo.batchnorm.__doc__


def test_sizes_of_gradients():
    row = next(
        line for line in (SITE / "paper/gradient_norms.md").read_text().splitlines() if "over adder, here" in line
    )
    ratios = [float(cell) for cell in row.split("|")[2:-1]]
    for page in ("method/training.md", "results.md"):
        assert f"{min(ratios):.0f} to {max(ratios):,.0f} times" in words(page)


def test_ablation():
    table = (SITE / "paper/ablation.md").read_text()
    here, paper = re.search(r"\| full \| no change \| ([\d.]+) .*?\| ([\d.]+) \| [\d.]+ % \|", table).groups()
    best = re.search(r"\| full \| ALR \| .*?\| ([\d.]+) \| [\d.]+ % \|", table)[1]
    text = words("method/training.md")
    assert f"from {best} % to {paper} %" in text
    assert f"falls to {here} %" in text


def test_outputs_are_large():
    torch.manual_seed(0)  # as the figure
    y = adder_zoo.adder2d(torch.randn(8, 512, 10, 10).relu(), torch.randn(64, 512, 3, 3))
    around = re.search(r"they lie around (-\d+) here", words("numerics.md"))[1]
    assert abs(y.mean() - int(around)) < 10
    steps = [torch.finfo(t).eps * 4096 for t in (torch.bfloat16, torch.float16)]
    assert steps == [32, 4]


def test_second_core_in_bytes():
    gains = json.loads((ROOT / "benchmarks/results/second-core-zen4.json").read_text())["second core"]
    spans = [(min(v), max(v)) for v in ([g[what] for g in gains.values()] for what in ("adder int8", "conv"))]
    (a, A), (c, C) = spans
    assert f"in bytes gain {a:.2f} to {A:.2f}, their twins {c:.2f} to {C:.2f}" in words("design/cpu-kernels.md")


def test_few_taps_in_bytes():
    layers = json.loads((ROOT / "benchmarks/results/int8-zen4-avx2.json").read_text())["layers"]
    few, some, more = (
        layers[f"1x1 {name}, batch 8"]["over conv int8"] for name in ("24->144 @56", "64->256 @56", "96->576 @14")
    )
    text = words("results.md")
    assert f"of 24 channels are slower than int8 convolutions ({few:.1f})" in text
    assert f"those of 64 and 96 channels {some:.1f} and {more:.1f} times as fast" in text


def test_layers_in_bytes():
    page = (SITE / "design/cpu-kernels.md").read_text()
    assert "\n".join(int8_layers()) in page


def test_speed_in_bytes():
    text = (SITE / "results.md").read_text()
    rows = int8_rows()
    assert len(rows) >= 2
    assert [row for row in rows if row not in text] == []


def test_words_on_speed_in_bytes():
    measured = [json.loads(file.read_text()) for file in sorted(ROOT.glob("benchmarks/results/int8-*.json"))]
    single = "adder_resnet20, batch 1"

    def ratios(what, runs):
        return [n[what] for run in runs for name, n in run["networks"].items() if name != single]

    def span(found):
        return f"{min(found):.1f} to {max(found):.1f} times as fast as"

    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{span(ratios('over conv', measured))} in float32" in readme
    one = [run["networks"][single]["over conv"] for run in measured]
    assert f"a single image through ResNet-20 gains {min(one):.1f} to {max(one):.1f}." in readme
    held = [run for run in measured if run["isa"] == "avx2"]
    assert f"Held to AVX2, they are {span(ratios('over conv int8', held))} torch's convolutions in 8 bits" in readme
    rival = [round(1 / run["networks"][single]["over conv int8 (onnxruntime)"]) for run in measured]
    text = words("results.md")
    times = " to ".join(str(n) for n in sorted({min(rival), max(rival)}))
    assert f"ONNX Runtime's int8 network is {times} times as fast there" in text
    (in_runtime,) = (
        row["milliseconds"]
        for row in json.loads((ROOT / "benchmarks/results/onnx-zen4.json").read_text())["rows"]
        if (row["network"], row["form"], row["batch"]) == ("adder_resnet20.cifar10", "int8", 1)
    )
    ours, theirs = in_runtime["native"], in_runtime["conv"]
    assert f"takes {ours:.2f} ms and the convolutional one, with VNNI, {theirs:.2f}." in text


def test_speed_of_distances():
    files = [json.loads((ROOT / f"benchmarks/results/cdist-{name}.json").read_text()) for name in ("zen4", "zen4-avx2")]
    text = words("results.md")
    square = [[size for name, size in file["sizes"].items() if name.startswith("N 512, M 512")] for file in files]
    spans = [
        (min(v), max(v)) for sizes in square for v in ([s["forward"] for s in sizes], [s["backward"] for s in sizes])
    ]
    (f, F), (b, B), (g, G), (c, C) = spans
    assert f"pass is {f:.0f} to {F:.0f} times as fast and the backward pass {b:.1f} to {B:.1f} times" in text
    assert f"{g:.0f} to {G:.0f} and {c:.1f} to {C:.1f} times" in text
    other = [s["backward"] for file in files for name, s in file["sizes"].items() if not name.startswith("N 512")]
    assert f"the backward pass is {min(other):.1f} to {max(other):.1f} times as fast" in text
    memory = next(figures for name, figures in files[0].items() if name.startswith("MiB"))
    assert (
        f"take {memory['ours']:.0f} MiB of memory, of which the distances are 64; torch takes {memory['torch']:.0f}."
        in text
    )


def test_speed_of_powers():
    text = (SITE / "design/cpu-kernels.md").read_text()
    for name, file in (("AVX-512", "power-zen4"), ("AVX2", "power-zen4-avx2")):
        sizes = json.loads((ROOT / f"benchmarks/results/{file}.json").read_text())["sizes"].values()
        cells = []
        for key in ("forward", "forward of signed x", "backward", "step", "dx", "dw", "eager forward"):
            digits = 0 if key in ("dw", "eager forward") else 1
            values = [size[key] for size in sizes]
            cells.append(f"{min(values):.{digits}f} to {max(values):.{digits}f}")
        assert f"| {name} | {' | '.join(cells)} |" in text


def test_speed_in_onnx_runtime():
    pytest.importorskip("onnxruntime")
    assert (SITE / "deploy/onnx_speed.md").read_text() == benchmark("onnx_speed").page()


def test_fewer_bits():
    figures = report_of("quantization")["adder_resnet20, the authors' weights"]
    said = rf"keeps {figures['8']}( %)? of( its)? {figures['float']} % at 8 bits and {figures['4']} % at 4"
    for text in (words("results.md"), " ".join((ROOT / "README.md").read_text().split())):
        assert re.search(said, text), said


# ---- the guides


def test_screened_settings():
    accuracy = {name: run["test_accuracy"] for name, run in report_of("screening").items()}
    gain = {name: value - accuracy["baseline"] for name, value in accuracy.items()}
    text = words("results.md")
    assert f"Batches of 64 images gain {gain['batch 64']:.1f} points over 128 in ten epochs." in text
    assert f"A smaller η loses {-gain['eta 0.1']:.1f}, a larger one changes nothing that can be told." in text
    assert abs(gain["eta 0.4"]) < 0.4  # what two runs on the same 5,000 images may differ by


def test_energy_of_operations():
    rows = {"float32": "fp32", "float16": "fp16", "int32": "int32", "int8": "int8"}
    for label, key in rows.items():
        multiplication, addition = PICOJOULES[key]
        assert f"| {label} | {addition} | {multiplication} |" in (SITE / "guides/build.md").read_text()


# ---- GPUs, from counted machine code


def test_predicted_times():
    """The table of docs/imagenet.md and that of docs/design/gpu-kernels.md, from benchmarks/results/model.json."""
    imagenet, design = (SITE / "imagenet.md").read_text(), (SITE / "design/gpu-kernels.md").read_text()
    for card in json.loads((RESULTS / "model.json").read_text()):
        hours = {name: network["hours_per_epoch"] for name, network in card["networks"].items()}
        small, large = (hours[name]["all"] for name in ("resnet18", "resnet50"))
        row = f"| {card['card']} | {small:.3f} | {150 * small:.0f} | {large:.3f} | {150 * large:.0f} |"
        assert row in imagenet
        for name, part in hours.items():
            cells = " | ".join(f"{part[key]:.3f}" for key in ("forward", "dx", "dw", "all"))
            assert re.search(rf"\| {card['card']} \| {name} \|[^|]*\|[^|]*\| {re.escape(cells)} \|", design), (
                card["card"],
                name,
            )


def test_machine_code():
    text = (SITE / "design/gpu-kernels.md").read_text()
    for row in machine_code_rows() + power_rows():
        assert f"\n{row}\n" in text


def test_versions_of_triton():
    """Those that were compiled: all within the limits, and the oldest is what pyproject.toml asks for."""
    text = (SITE / "design/gpu-kernels.md").read_text()
    for row in triton_rows():
        assert f"\n{row}\n" in text
    versions = versions_of_triton()
    oldest = ".".join(next(iter(versions)).split(".")[:2])
    assert f"triton>={oldest};" in (ROOT / "pyproject.toml").read_text()
    for version in ("3.8.0", "3.9.0"):
        for count in versions[version]["kernels"]:
            if count["arch"] in ("sm_80", "sm_90") and "x16x" not in count["configuration"]:
                name = f"{count['kernel']}.{count['configuration']} on {count['arch']}, Triton {version}"
                assert count["spills_in_loop"] == 0, name
                if count["kernel"].startswith("power-"):  # logarithms decide, not the share of additions
                    continue
                if count["kernel"] == "dx":
                    assert count["slots"] <= 2.3, name
                elif count["configuration"].endswith("float32"):
                    assert count["share"] >= 0.9, name
                elif count["configuration"].endswith("bfloat16"):
                    assert count["share"] >= 0.88, name
    assert not versions["3.9.0"]["fp_fusion_by_default"], "counted as Triton 3.10 will compile"


def test_recipes_beside_a_bare_step():
    text = words("design/cpu-kernels.md")
    for file in ("recipe.json", "recipe-imagenet.json"):
        measured = json.loads((RESULTS / file).read_text())
        assert f"`recipes/{measured['recipe']}.py` takes {measured['recipe_over_bare']:.2f} times as long" in text


def test_folders_of_measurements_are_described():
    table = (ROOT / "benchmarks/README.md").read_text()
    for path in RESULTS.glob("cpu-*.json"):
        assert f"`{path.name}`" in table
