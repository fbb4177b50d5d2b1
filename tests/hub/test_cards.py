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
from hub_process import scenario
from hub_server import WRITE_TOKEN, HubServer, card_errors
from mnist import SAMPLE
from PIL import Image
from safetensors.torch import load_file, save_file

from adder_zoo import convert_to_adder
from adder_zoo.datasets.idx import load
from adder_zoo.hub import cards
from adder_zoo.hub.index import ORGANISATION, render_shipped
from adder_zoo.hub.measured import DATASETS
from adder_zoo.hub.merge import merge, merge_metadata
from adder_zoo.hub.records import find_twin, trained_alike
from adder_zoo.hub.save import save_pretrained
from adder_zoo.paths import WEIGHTS
from adder_zoo.report import report
from adder_zoo.training import parse_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "hub_cards"
SHIPPED = sorted(path.parent.name for path in WEIGHTS.glob("*/results.json"))
IN_BYTES = [name for name in SHIPPED if name.endswith("_int8")]
TRAINED = [name for name in SHIPPED if name not in IN_BYTES]
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


@pytest.mark.parametrize("name", TRAINED)
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
    counts = [report(network).without_norm for network in networks]
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


@pytest.mark.parametrize("name", IN_BYTES)
def test_figures_of_networks_in_bytes(name):
    card = (FOLDER / f"{name}.md").read_text()
    results, base = record(name), name.removesuffix("_int8")
    data = front(card)
    assert card_errors(data) == []
    assert (data["base_model"], data["base_model_relation"]) == (f"adder-zoo/{base}", "quantized")
    assert "int8" in data["tags"]
    (metric,) = data["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == results["test_accuracy"]
    origin = results["quantized_from"]
    assert origin["results"] == record(base), "make the network in bytes again: the float one is another"
    assert abs(origin["measured_accuracy"] - record(base)["test_accuracy"]) <= 0.02
    assert results["test_accuracy"] >= origin["measured_accuracy"] - 0.15
    twin = find_twin(WEIGHTS / name, results)
    table = rows(card)
    accuracies = [results["test_accuracy"], origin["measured_accuracy"], *([twin["test_accuracy"]] if twin else [])]
    assert table["top-1 accuracy"][: len(accuracies)] == [f"{accuracy:.2f} %" for accuracy in accuracies]
    sizes = [(WEIGHTS / folder / "model.safetensors").stat().st_size for folder in (name, base)]
    assert table["file, bytes"][:2] == [f"{size:,}" for size in sizes]
    assert sizes[0] <= 0.27 * sizes[1]
    network = timm.create_model(base)
    assert table["additions"][0] == f"{report(network).without_norm.additions:,}"
    assert f"adder-zoo quantize {base} " in card
    measured = [path.stem for path in (ROOT / "benchmarks/results").glob("int8-*.json")]
    assert ("## How fast" in card) == (base.startswith("adder_resnet20") and bool(measured))


@pytest.mark.parametrize("name", TRAINED)
def test_command_is_the_one_that_trained_it(name, monkeypatch):
    card = (FOLDER / f"{name}.md").read_text()
    (recipe, flags) = re.search(r"accelerate launch (recipes/\w+\.py) (.*)", card).groups()
    assert (ROOT / recipe).is_file()
    argv = flags.replace("args.yaml", str(WEIGHTS / name / "args.yaml")).split()
    settings = parse_settings(RECIPES[recipe].Config, "", argv).record()
    assert record(name)["config"].items() <= settings.items()


def test_code_runs(tmp_path):
    """As in card and notebook, against the repositories of `adder-zoo push --all`, on an image of the sample."""
    (images, _) = load("fashion_mnist", SAMPLE)[0]["test"]
    Image.fromarray(images[3].squeeze().numpy()).save(tmp_path / "image.png")
    files = [str(FOLDER / f"{name}.md") for name in SHIPPED]
    with HubServer(tmp_path / "hub") as server:
        scenario(server, tmp_path / "one", "push_shipped", ORGANISATION, HF_TOKEN=WRITE_TOKEN)
        for name in SHIPPED:
            notebook = server.repository(f"{ORGANISATION}/{name}").files()["notebook.ipynb"]
            files.append(str(tmp_path / f"{name}.ipynb"))
            Path(files[-1]).write_bytes(notebook)
        printed = scenario(server, tmp_path / "two", "use_cards", *files, cwd=tmp_path)
    for name, card, notebook in zip(SHIPPED, printed[: len(SHIPPED)], printed[len(SHIPPED) :], strict=True):
        whole = name not in IN_BYTES  # no feature maps, and no embedding
        assert len(card) == (3 if whole else 1)
        assert [code for code, _ in notebook][2 : 2 + len(card)] == [code.rstrip("\n") for code, _ in card]
        assert [out for _, out in notebook][2 : 2 + len(card)] == [out for _, out in card]
        assert len(notebook) == 2 + len(card) + whole
        assert not whole or "adder_zoo.report" in notebook[-1][0]
        model = timm.create_model(name, pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
        mode = "L" if model.pretrained_cfg["input_size"][0] == 1 else "RGB"
        image = transform(Image.open(tmp_path / "image.png").convert(mode))
        with torch.no_grad():
            label = model.pretrained_cfg["label_names"][model(image.unsqueeze(0)).argmax()]
        assert card[0][1] == f"{label}\n"
        for code, out in card[1:]:  # what the comment says is what is printed
            assert ", ".join(out.splitlines()) == re.search(r"print\(.*\)  # (.*)", code)[1]


def test_every_recipe_of_the_table_exists():
    for title, dataset, recipe in DATASETS.values():
        assert title
        assert dataset is None or "/" in dataset
        assert recipe is None or (ROOT / recipe).is_file()


def test_results_on_the_hub_are_held_against_the_weights_there(monkeypatch):
    """By the checksum that the Hub names; a mirror's own tag says nothing."""
    from types import SimpleNamespace

    from adder_zoo.hub import push

    info = SimpleNamespace(id="org/name", sha="0" * 40)
    for etag, said, expected in (
        ("a" * 64, {"weights_sha256": "a" * 64}, True),
        ("b" * 64, {"weights_sha256": "a" * 64}, False),
        ("b" * 64, {}, False),
        ("mirror", {"weights_sha256": "a" * 64}, True),
    ):
        monkeypatch.setattr(push, "get_hf_file_metadata", lambda *_, etag=etag, **__: SimpleNamespace(etag=etag))
        assert push._of_its_weights(said, info, None) == expected


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


# ---- other trainings: a card must say nothing that is not so

IMAGENET = {
    **json.loads((ROOT / "docs/results/resnet18.hundred-images/results.json").read_text()),
    "dataset": "imagenet", "train_images": 1_281_167, "test_images": 50_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    return save_pretrained(timm.create_model("adder_resnet18"), tmp_path_factory.mktemp("resnet18"))


def changed(**changes):
    return {**IMAGENET, **changes, "config": {**IMAGENET["config"], **changes.get("config", {})}}


def sentence(card):
    """What stands in bold: the accuracy, and of what it is."""
    return " ".join(card.partition("\n**")[2].partition("\n\n")[0].split())


def test_full_imagenet_run(resnet18):
    card = cards.render(resnet18, "org/x", IMAGENET)
    assert "sample" not in card
    assert sentence(card) == (
        "89.00 %** of the 50000 validation images of ImageNet-1k are classified right, 99.00 % are right within five "
        "guesses."
    )
    assert rows(card)["top-5 accuracy"] == ["99.00 %", "not trained yet"]
    (result,) = front(card)["model-index"][0]["results"]
    assert result["dataset"] == {"name": "ImageNet-1k", "type": "ILSVRC/imagenet-1k", "split": "validation"}
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("accuracy", 89.0), ("top_5_accuracy", 99.0)]
    assert card_errors(front(card)) == []
    assert front(card)["datasets"] == ["ILSVRC/imagenet-1k"]
    merged = merge(card, cards.render(resnet18, "org/x", changed(test_accuracy=90.0, test_top5_accuracy=98.0)))
    (result,) = front(merged)["model-index"][0]["results"]
    assert [m["value"] for m in result["metrics"]] == [90.0, 98.0]


@pytest.mark.parametrize(
    ("changes", "said", "split"),
    [
        ({"test_images": 100}, "of the 100 validation images of ImageNet-1k (a sample of the data set)", "validation"),
        ({"train_images": 640}, "validation images of ImageNet-1k (a sample of the data set)", "validation"),
        ({"config": {"limit_batches": 2}}, "ImageNet-1k (a sample of the data set)", "validation"),
        ({"dataset": "images"}, "of the 50000 test images of a folder of images are", "test"),
        ({"dataset": "cifar10", "data": "full"}, "of the 50000 test images of CIFAR-10 are", "test"),
        ({"dataset": "cifar10", "data": "part"}, "test images of CIFAR-10 (a sample of the data set)", "test"),
        (
            {"dataset": "cifar10", "data": "5000 training images held out", "test_images": 5000},
            "of the 5000 training images of CIFAR-10 that were held out (to choose settings by; not the test set)",
            "train",
        ),
        ({"dataset": "flowers"}, "of the 50000 test images of flowers (a sample of the data set)", "test"),
    ],
)
def test_which_images_the_accuracy_is_of(resnet18, changes, said, split):
    card = cards.render(resnet18, "org/x", changed(**changes))
    assert said in sentence(card)
    dataset = front(card)["model-index"][0]["results"][0]["dataset"]
    assert dataset["split"] == split
    assert ("sample of" in dataset["name"]) == ("(" in said)
    listed = {"imagenet": "ILSVRC/imagenet-1k", "cifar10": "uoft-cs/cifar10"}.get(changes.get("dataset", "imagenet"))
    assert front(card).get("datasets") == (listed and [listed])  # and no name that the Hub does not have


@pytest.mark.parametrize("changes", [{"dataset": "synthetic"}, {"data": "synthetic"}, {"config": {"synthetic": True}}])
def test_training_on_noise_has_no_accuracy_on_a_data_set(resnet18, changes):
    card = cards.render(resnet18, "org/x", changed(**changes))
    assert "of the 50000 images of noise (for timing: it says nothing else)" in sentence(card)
    assert not {"model-index", "datasets", "metrics"} & front(card).keys()
    assert "ImageNet" not in card


def test_how_it_was_trained(resnet18, tmp_path):
    plain = cards.render(resnet18, "org/x", IMAGENET)
    assert "trained before" not in plain
    assert "taught" not in plain
    assert "args.yaml" not in plain  # there is none
    assert "log.csv" not in plain
    assert "trained before" in cards.render(resnet18, "org/x", changed(config={"pretrained": True}))
    card = cards.render(resnet18, "org/x", changed(config={"distillation": "pkkd"}))
    assert "A convolutional network taught it" in card
    card = cards.render(resnet18, "org/x", changed(config={"distillation": "trained", "teacher": "resnet50.a1_in1k"}))
    assert "A trained network, `resnet50.a1_in1k`, taught it by its answers" in " ".join(card.split())
    card = cards.render(resnet18, "org/x", changed(config={"distillation": "float"}))
    assert "The float network that it began with taught it" in card
    assert "onvolutional network taught" not in card
    assert "one seed (7)" in cards.render(resnet18, "org/x", changed(config={"seed": 7}))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((resnet18 / name).read_bytes())
    (tmp_path / "args.yaml").write_text("")
    card = cards.render(tmp_path, "org/x", IMAGENET)
    assert "accelerate launch recipes/imagenet.py --config args.yaml" in card
    assert "`args.yaml` the settings." in card


def test_network_of_unknown_origin(resnet18):
    """Imported weights, say: nothing tells how they were trained, nor under which licence they are."""
    card = cards.render(resnet18, "org/x")
    assert "trained with" not in card
    assert "How it was trained, and on which images, is not recorded." in card
    assert "license" not in front(card)
    assert "Apache" not in card


def test_networks_that_are_not_of_the_zoo(tmp_path, monkeypatch):
    save_pretrained(timm.create_model("resnet18"), tmp_path / "timm")
    card = cards.render(tmp_path / "timm", "org/x", IMAGENET)
    assert "A convolutional image classifier. Built and trained with" in card
    assert "twin" not in card
    assert "registers it" not in card

    def adder_resnet10t(pretrained=False, **kwargs):
        return convert_to_adder(timm.create_model("resnet10t", **kwargs))

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "adder_resnet10t", adder_resnet10t)
    save_pretrained(timm.create_model("adder_resnet10t"), tmp_path / "own")
    config = json.loads((tmp_path / "own/config.json").read_text())
    config["model_args"].pop("similarity", None)  # which a network of one's own need not know
    (tmp_path / "own/config.json").write_text(json.dumps(config))
    card = cards.render(tmp_path / "own", "org/x")
    assert "without multiplications" in card
    assert "the import of the module that registers `adder_resnet10t`" in card
    assert "similarity-conv" not in front(card)["tags"]
    assert "convolutional twin |" not in card


def test_half_precision_is_told(tmp_path):
    save_pretrained(timm.create_model("adder_lenet5_bn"), tmp_path)
    assert "stored in" not in cards.render(tmp_path, "org/x")
    path = tmp_path / "model.safetensors"
    state = {k: v.bfloat16() if k.endswith("conv.weight") else v for k, v in load_file(path).items()}
    save_file(state, path)
    assert "Some or all weights are stored in bfloat16." in cards.render(tmp_path, "org/x")


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
