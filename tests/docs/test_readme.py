"""What README says and how: it stays short and plain, its figures agree with the files that they come from."""

from __future__ import annotations

import json
import re

import pytest
import timm
from figures import WEIGHTS, speed_rows, speeds, whole_measurements
from pages import ROOT, run

import adder_zoo
from adder_zoo.models.imagenet import parents
from adder_zoo.report import PICOJOULES

README = (ROOT / "README.md").read_text()
WORDS = " ".join(README.split())


# ---- how it is written


def sentences(markdown: str) -> list[str]:
    """The sentences of its paragraphs and lists; code, tables, headings, pictures and what links point to left out."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.S)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    lines = [line for line in text.splitlines() if not line.startswith(("#", "|"))]
    parts = re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", "\n".join(lines))
    found = []
    for part in parts:
        plain = re.sub(r"^[-*] ", "", " ".join(part.split())).replace("**", "")
        found += [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z`“\"])", plain) if s]
    return found


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_its_sentences_are_short():
    lengths = {sentence: len(sentence.split()) for sentence in sentences(README)}
    assert len(lengths) > 40
    assert sum(lengths.values()) / len(lengths) <= 14
    assert not [s for s, words in lengths.items() if words > 30]
    assert sum(words > 25 for words in lengths.values()) <= 0.05 * len(lengths)


def test_counting_of_sentences():
    """The two tests above can fail."""
    text = "# Head\n\nOne two. Three `a.b` four, see [five](six seven).\n\n| a | b |\n\n- Six\n  seven.\n- Eight\n\n"
    text += "```\nx y\n```\n"
    assert sentences(text) == ["One two.", "Three `a.b` four, see five.", "Six seven.", "Eight"]


def test_the_two_commands_come_first():
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.S)
    assert [line.split("#")[0].strip() for line in blocks[0].splitlines()] == ["make demo", "make test"]


# ---- what it says


def test_code_does_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = run(ROOT / "README.md")
    assert "tensor([" in capsys.readouterr().out
    assert len(list(adder_zoo.adder_parameters(names["model"]))) == 19
    assert type(names["optimizer"]) is adder_zoo.AdderSGD


@pytest.mark.parametrize(
    "model", ["adder_lenet5_bn.mnist", "adder_lenet5_bn.fashion_mnist", "adder_lenetpp.mnist", "adder_resnet20.cifar10"]
)
def test_accuracies(model):
    row = next(line for line in README.splitlines() if f"(`{model}`)" in line)
    folders = (WEIGHTS / model, ROOT / f"docs/results/{model.removeprefix('adder_')}-conv")
    records = [json.loads((f / "results.json").read_text()) for f in folders]
    assert [r["similarity"] for r in records] == ["adder", "conv"]
    assert row.split("|")[2:4] == [f" {r['test_accuracy']:.2f} % " for r in records]
    for record in records:
        assert (record["data"], record["test_images"]) == ("full", 10_000)
        assert not record["environment"]["commit"].endswith("+")
    settings = [{k: v for k, v in r["config"].items() if k != "similarity"} for r in records]
    assert settings[0] == settings[1]


def test_training_of_resnet20():
    record = json.loads((WEIGHTS / "adder_resnet20.cifar10/results.json").read_text())
    assert f"ResNet-20 trained for {record['epochs']} epochs here and for 400 in the paper" in WORDS


def test_energy():
    energies = [
        adder_zoo.report(timm.create_model("adder_resnet20", similarity=s)).without_norm.energy("fp32")
        for s in ("adder", "conv")
    ]
    assert f"{energies[0]:.1f} µJ for an image, where its convolutional form needs {energies[1]:.1f} µJ" in WORDS
    multiplication, addition = PICOJOULES["fp32"]
    assert f"one float32 addition takes {addition} pJ, one multiplication {multiplication} pJ" in WORDS


def test_speeds():
    """The rows are those that the benchmark makes of the committed measurements."""
    for row in speed_rows():
        assert f"\n{row}\n" in README
    against_cdist = [
        record["resnet20_layers"]["all of the network"]["forward_vs_cdist"] for record in whole_measurements()
    ]
    assert f"{min(against_cdist):.0f} to {max(against_cdist):.0f} times as fast as the usual way" in WORDS
    dx = [round(float(cells[2]), 2) for cells in speeds()]
    assert f"The input gradient takes {1 / max(dx):.1f} to {1 / min(dx):.1f} times as long" in WORDS


def test_numbers_of_networks():
    """For the version of timm that the table of docs/coverage.md was made with."""
    coverage = (ROOT / "docs/coverage.md").read_text()
    if f"timm {timm.__version__}," not in coverage:
        pytest.skip(f"timm {timm.__version__} has other networks than the version of docs/coverage.md")
    assert f"# {len(timm.list_models('adder_*', include_tags=True))} networks" in README
    assert f"{len(parents())} of timm's networks" in WORDS
    share = re.search(r"\((\d+\.\d) %\)", coverage)[1]
    assert f"`convert_to_adder` takes {share} % of timm's networks" in WORDS
