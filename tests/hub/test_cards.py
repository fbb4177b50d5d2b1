"""Model cards: what hub_cards/ holds is what results.json says, its code runs, and merging loses nobody's words."""

import copy
import json
import re
from pathlib import Path

import cifar
import mnist
import pytest
import timm
import torch
import yaml
from hub_server import WRITE_TOKEN, HubServer, card_errors
from mnist import SAMPLE
from PIL import Image
from test_hub import scenario

from adder_zoo.datasets.idx import load
from adder_zoo.hub import cards
from adder_zoo.hub.index import ORGANISATION, render_shipped
from adder_zoo.hub.merge import merge, merge_metadata
from adder_zoo.hub.records import find_twin, trained_alike
from adder_zoo.hub.save import save_pretrained
from adder_zoo.paths import WEIGHTS
from adder_zoo.report import report
from adder_zoo.training import parse_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hub_cards"
SHIPPED = sorted(path.parent.name for path in WEIGHTS.glob("*/results.json"))
RECIPES = {"recipes/mnist.py": mnist, "recipes/cifar.py": cifar}


def record(name):
    return json.loads((WEIGHTS / name / "results.json").read_text())


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def rows(card):
    """The cells of the table that compares with the twin, by the name in the first."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


# ---- the rendered ones


def test_none_is_stale():
    """`make cards` renders them."""
    there = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    rendered = render_shipped()
    assert sorted(there) == sorted([*(f"{name}.md" for name in SHIPPED), "README.md"])
    for name, text in rendered.items():
        assert there[name] == text, f"hub_cards/{name} is stale: run `make cards`"


def test_another_result_gives_another_card():
    name = SHIPPED[0]
    results = record(name)
    twin = find_twin(WEIGHTS / name, results)
    card = cards.render(WEIGHTS / name, f"org/{name}", results, twin)
    assert card != cards.render(WEIGHTS / name, f"org/{name}", {**results, "test_accuracy": 12.34}, twin)
    assert card != cards.render(WEIGHTS / name, f"org/{name}", results, {**twin, "test_accuracy": 12.34})
    assert card != cards.render(WEIGHTS / name, f"other/{name}", results, twin)


@pytest.mark.parametrize("name", SHIPPED)
def test_figures_are_those_of_the_records(name):
    card = (FOLDER / f"{name}.md").read_text()
    results = record(name)
    twin = find_twin(WEIGHTS / name, results)
    accuracies = [f"{results['test_accuracy']:.2f} %", f"{twin['test_accuracy']:.2f} %" if twin else ""]
    data = front(card)
    assert card_errors(data) == []
    (model,) = data["model-index"]
    assert model["name"] == name
    (result,) = model["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"]["type"] == data["datasets"][0]
    assert result["dataset"]["split"] == "test"
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", results["test_accuracy"])
    assert result["source"]["url"] == f"https://huggingface.co/adder-zoo/{name}/blob/main/results.json"
    assert data["library_name"] == "timm"
    assert data["license"] == "apache-2.0"

    table = rows(card)
    assert table["top-1 accuracy"] == [accuracies[0], accuracies[1] or "not trained yet"]
    networks = [timm.create_model(name, similarity=s) for s in ("adder", "conv")]
    counts = [report(network).weighted for network in networks]
    assert table["parameters"] == [f"{results['parameters']:,}"] * 2
    assert table["multiplications"] == [f"{count.multiplications:,}" for count in counts]
    assert table["additions"] == [f"{count.additions:,}" for count in counts]
    assert table["energy, fp32"] == [f"{count.energy('fp32'):,.2f} µJ" for count in counts]
    assert table["energy, int8 with int32 sums"] == [f"{count.energy('int8', 'int32'):,.2f} µJ" for count in counts]
    assert counts[0].energy("fp32") < counts[1].energy("fp32")
    for key, value in results["config"].items():
        assert table[key] == [str(value)], key
    assert results["environment"]["commit"] in card

    index = (FOLDER / "README.md").read_text()
    (line,) = (line for line in index.splitlines() if f"[{name}]" in line)
    assert f"| {accuracies[0]} | {accuracies[1]} | {results['parameters']:,} |" in line


@pytest.mark.parametrize("name", SHIPPED)
def test_command_is_the_one_that_trained_it(name, monkeypatch):
    card = (FOLDER / f"{name}.md").read_text()
    (recipe, flags) = re.search(r"accelerate launch (recipes/\w+\.py) (.*)", card).groups()
    assert (ROOT / recipe).is_file()
    argv = flags.replace("args.yaml", str(WEIGHTS / name / "args.yaml")).split()
    settings = parse_settings(RECIPES[recipe].Config, "", argv).record()
    assert record(name)["config"].items() <= settings.items()


def test_code_runs(tmp_path):
    """As in the card, against the repositories that `adder-zoo push --all` makes, on an image of the sample."""
    (images, _) = load("fashion_mnist", SAMPLE)[0]["test"]
    Image.fromarray(images[3].squeeze().numpy()).save(tmp_path / "image.png")
    files = [str(FOLDER / f"{name}.md") for name in SHIPPED]
    with HubServer(tmp_path / "hub") as server:
        push = json.dumps(["push", "--all", ORGANISATION])
        scenario(server, tmp_path / "one", "commands", push, HF_TOKEN=WRITE_TOKEN)
        printed = scenario(server, tmp_path / "two", "use_cards", *files, cwd=tmp_path)
    for name, (code, out) in zip(SHIPPED, printed, strict=True):
        assert len(code.strip().splitlines()) == 5
        model = timm.create_model(name, pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
        mode = "L" if model.pretrained_cfg["input_size"][0] == 1 else "RGB"
        image = transform(Image.open(tmp_path / "image.png").convert(mode))
        with torch.no_grad():
            assert out == model.pretrained_cfg["label_names"][model(image.unsqueeze(0)).argmax()] + "\n"


def test_every_recipe_of_the_table_exists():
    for title, dataset, recipe in cards.DATASETS.values():
        assert title
        assert "/" in dataset
        assert recipe is None or (ROOT / recipe).is_file()


# ---- other networks


def test_network_without_results(tmp_path):
    save_pretrained(timm.create_model("adder_resnet20.cifar100"), tmp_path)
    card = cards.render(tmp_path, "org/new")
    data = front(card)
    assert card_errors(data) == []
    assert "model-index" not in data
    assert "top-1" not in card
    assert 'print("class"' in card
    assert '.convert("RGB")' in card
    assert cards.headline(tmp_path, None) == "Add adder_resnet20.cifar100"


@pytest.mark.parametrize("similarity", ["conv", "xnor"])
def test_twins_have_cards_of_their_own(tmp_path, similarity):
    save_pretrained(timm.create_model("adder_resnet20", similarity=similarity), tmp_path)
    results = {**record(SHIPPED[0]), "similarity": similarity, "dataset": "cifar10", "data": "sample"}
    card = cards.render(tmp_path, "org/twin", results)
    assert "without multiplications" not in card
    assert "AdderSGD" not in card
    assert "convolutional twin |" not in card
    assert ("XNORs" in rows(card)) == (similarity == "xnor")
    assert "(a sample of the data set)" in card
    assert f"similarity-{similarity}" in front(card)["tags"]
    assert "sample of 10000 images" in front(card)["model-index"][0]["results"][0]["dataset"]["name"]


def test_twin_must_be_trained_alike(tmp_path):
    name = SHIPPED[0]
    results = record(name)
    twin = find_twin(WEIGHTS / name, results)
    assert trained_alike(results, twin)
    other_lr = {"config": {**twin["config"], "lr": 1}}
    for change in ({"similarity": "adder"}, {"dataset": "mnist_"}, {"epochs": 3}, other_lr):
        assert not trained_alike(results, {**twin, **change})
        with pytest.raises(ValueError, match="trained alike"):
            cards.render(WEIGHTS / name, "org/x", results, {**twin, **change})
    # A run finds its twin beside itself.
    for folder, text in (("run", results), ("run-conv", {**twin, "test_accuracy": 1.0})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps(text))
    assert find_twin(tmp_path / "run", results)["test_accuracy"] == 1.0


# ---- merging

NEW = """---
license: apache-2.0
tags:
- timm
- addernet
model-index:
- name: net
  results:
  - task: {type: image-classification}
    dataset: {name: MNIST, type: mnist, split: test}
    metrics:
    - {type: accuracy, value: 99.5}
---

<!-- adder_zoo:begin. -->
new words
<!-- adder_zoo:end -->
"""


def test_first_push_and_the_same_again():
    assert merge(None, NEW) == NEW
    assert merge("", NEW) == NEW
    assert merge(NEW, NEW) == NEW


def test_words_around_the_comments_stay():
    old = NEW.replace("new words", "old words").replace("<!-- adder_zoo:begin", "# Mine\n\n<!-- adder_zoo:begin")
    merged = merge(old + "\nAnd this.\n", NEW)
    assert merged == NEW.replace("<!-- adder_zoo:begin", "# Mine\n\n<!-- adder_zoo:begin") + "\nAnd this.\n"


def test_card_of_somebody_else_is_kept_whole():
    old = "---\nlanguage: en  # a comment\n---\n# By hand\n\nWords.\n"
    merged = merge(old, NEW)
    assert "# By hand\n\nWords.\n" in merged
    assert merged.endswith("\n<!-- adder_zoo:begin. -->\nnew words\n<!-- adder_zoo:end -->\n")
    assert front(merged) == {"language": "en", **front(NEW)}
    assert merge(merged, NEW) == merged
    assert merge("Just words.\n", NEW).count("Just words.") == 1


def test_metadata_that_people_added_stays_to_the_letter():
    old = NEW.replace("license: apache-2.0", "license: mit  # ours\nextra: [1, 2]")
    old = old.replace("- timm\n", "- mine\n- timm\n")
    assert merge(old, NEW) == old
    data = front(old.replace("- addernet\n", ""))
    merged = merge_metadata(data, front(NEW))
    assert merged["license"] == "mit"
    assert merged["extra"] == [1, 2]
    assert merged["tags"] == ["mine", "timm", "addernet"]


def test_results_of_other_data_and_metrics_stay():
    data, new = front(NEW), front(NEW)
    result = data["model-index"][0]["results"][0]
    result["metrics"] = [{"type": "accuracy", "value": 1.0}, {"type": "f1", "value": 0.5}]
    other = copy.deepcopy(result)
    other["dataset"]["type"] = "other"
    data["model-index"][0]["results"].append(other)
    data["model-index"].append({"name": "another", "results": [copy.deepcopy(result)]})
    merged = merge_metadata(data, new)
    net, another = merged["model-index"]
    assert another == data["model-index"][1]
    values = [(r["dataset"]["type"], [(m["type"], m["value"]) for m in r["metrics"]]) for r in net["results"]]
    assert ("mnist", [("accuracy", 99.5)]) in values
    assert ("mnist", [("f1", 0.5)]) in values
    assert ("other", [("accuracy", 1.0), ("f1", 0.5)]) in values
    assert len(values) == 3
    assert merge_metadata(merged, new) == merged


@pytest.mark.parametrize(
    "old",
    [
        NEW.replace("<!-- adder_zoo:end -->", ""),
        NEW + "<!-- adder_zoo:begin -->\n<!-- adder_zoo:end -->",
        "---\nlicense: [\n---\nwords",
        "---\njust a text\n---\nwords",
        NEW.replace("- name: net\n  results:", "- name: net\n  result:"),
    ],
    ids=["no end", "two", "no YAML", "no mapping", "damaged index"],
)
def test_what_cannot_be_read_is_not_overwritten(old):
    with pytest.raises(ValueError, match="by hand"):
        merge(old, NEW)


def test_stand_in_knows_a_bad_card():
    data = front(NEW)
    assert card_errors(data) == []
    result = ("results", 0)
    for path in (("name",), (*result, "task", "type"), (*result, "dataset", "name"), (*result, "metrics")):
        bad = copy.deepcopy(data)
        *steps, last = path
        at = bad["model-index"][0]
        for step in steps:
            at = at[step]
        del at[last]
        assert card_errors(bad), path
    assert card_errors({"tags": [1]})
    assert card_errors([])
