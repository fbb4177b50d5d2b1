"""What the Hub shows beside a card: results as files, the notebook, the collection; metadata and licences."""

import json

import nbformat
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from hub_process import RUN, scenario
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import EvalResultEntry
from huggingface_hub._eval_results import parse_eval_result_entries

import adder_zoo
from adder_zoo.checkpoints import converted, import_checkpoint
from adder_zoo.cli import main as command_line
from adder_zoo.hub import cards, notebook
from adder_zoo.hub.evaluation import eval_results
from adder_zoo.hub.merge import merge
from adder_zoo.hub.save import save_pretrained
from adder_zoo.hub.snippets import snippets
from adder_zoo.paths import WEIGHTS

RESULTS = json.loads((RUN / "results.json").read_text())
CONFIG = json.loads((RUN / "config.json").read_text())


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


# ---- results as files


def test_results_as_a_file():
    ((path, text),) = eval_results("org/x", RESULTS).items()
    assert path == ".eval_results/adder_zoo-mnist.yaml"
    assert parse_eval_result_entries(yaml.safe_load(text)) == [
        EvalResultEntry(
            dataset_id="ylecun/mnist",
            task_id="default",
            value=RESULTS["test_accuracy"],
            date=RESULTS["environment"]["date"],
            source_url="https://huggingface.co/org/x/blob/main/results.json",
            source_name="results.json of the training",
            notes="top-1 accuracy in %, test images",
        )
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "part"},
        {"data": "synthetic"},
        {"data": "5000 training images held out", "test_images": 5000},
        {"dataset": "flowers"},
        {"config": {**RESULTS["config"], "limit_batches": 2}},
    ],
    ids=lambda changes: str(next(iter(changes))),
)
def test_no_file_for_what_nobody_can_compare_with(changes):
    assert eval_results("org/x", {**RESULTS, **changes}) == {}
    assert eval_results("org/x", None) == {}


# ---- the notebook


def test_notebook_is_one():
    data = notebook.render("org/x", snippets(RUN, "org/x", CONFIG), False)
    read = nbformat.reads(data.decode(), as_version=4)
    nbformat.validate(read)
    assert notebook.is_ours(data)
    for other in (b"", b"[]", b"{}", b'{"metadata": {}}', b"\xff"):
        assert not notebook.is_ours(other)


@pytest.mark.slow
def test_notebook_runs_in_jupyter(tmp_path):
    """From top to bottom in a kernel of its own, with no image beside it."""
    from nbclient import NotebookClient

    with HubServer(tmp_path / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        scenario(hub, tmp_path / "one", "commands", json.dumps(["push", str(RUN), "org/x"]), HF_TOKEN=WRITE_TOKEN)
        read = nbformat.reads(hub.repository("org/x").files()["notebook.ipynb"].decode(), as_version=4)
        for key, value in (("HF_ENDPOINT", hub.url), ("HF_HOME", str(tmp_path / "two")), ("HF_HUB_DISABLE_XET", "1")):
            patch.setenv(key, value)
        client = NotebookClient(read, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
    printed = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in read.cells]
    assert "(1, 84)\n" in printed
    assert (tmp_path / "image.png").is_file()


# ---- metadata


def dry(**options):
    return adder_zoo.push_to_hub(RUN, "org/x", dry_run=True, **options)


def test_stated_metadata():
    card = dry(base_model="them/base", new_version="org/y").card
    assert front(card)["base_model"] == "them/base"
    assert front(card)["base_model_relation"] == "finetune"
    assert front(card)["new_version"] == "org/y"
    for option in ("base_model", "new_version"):
        assert option not in front(dry().card)
        with pytest.raises(ValueError, match="not the name of a repository"):
            dry(**{option: "no-organisation"})
    # What people wrote stays, but for what this push states.
    old = card.replace("new_version: org/y", "new_version: org/old").replace("them/base", "us/base")
    merged = front(merge(old, dry(new_version="org/z").card, {"new_version": "org/z"}))
    assert (merged["new_version"], merged["base_model"]) == ("org/z", "us/base")
    done = CliRunner().invoke(command_line, ["push", str(RUN), "org/x", "--dry-run", "--new-version", "org/y"])
    assert "new_version: org/y" in done.output
    done = CliRunner().invoke(command_line, ["push", "--all", "org", "--new-version", "org/y"])
    assert done.exit_code == 2
    assert "for a single run" in done.output


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({"init": "adder_lenet5_bn.fashion_mnist"}, "org/adder_lenet5_bn.fashion_mnist"),
        ({"init": "hf-hub:them/base@v2"}, "them/base"),
        ({"pretrained": True, "model": "adder_lenet5_bn.mnist"}, "org/adder_lenet5_bn.mnist"),
        ({"init": "runs/mine"}, None),
        ({"init": "mine.safetensors"}, None),
        ({}, None),
    ],
    ids=["name", "repository", "pretrained", "folder", "file", "from scratch"],
)
def test_what_a_training_began_with(settings, base):
    results = {**RESULTS, "config": {**RESULTS["config"], "init": "", **settings}}
    data = front(cards.render(RUN, "org/x", results))
    assert data.get("base_model") == base
    assert data.get("base_model_relation") == ("finetune" if base else None)


# ---- licences


def without_license(folder):
    return "license" not in json.loads((folder / "config.json").read_text())["pretrained_cfg"]


def test_no_licence_is_claimed_for_weights_of_others(tmp_path):
    """An import, what is made of it in bytes, a network with its weights loaded by hand, a training from a file."""
    network = timm.create_model("adder_lenet5_bn.mnist", pretrained=True)
    assert network.pretrained_cfg["license"] == "apache-2.0"
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    imported = import_checkpoint(tmp_path / "theirs.pth", "adder_lenet5_bn.mnist", tmp_path / "imported")
    assert without_license(tmp_path / "imported")
    save_pretrained(adder_zoo.quantize(imported, torch.randn(8, 1, 32, 32)), tmp_path / "bytes")
    assert without_license(tmp_path / "bytes")
    byhand = timm.create_model("adder_lenet5_bn.mnist")
    byhand.load_state_dict(network.state_dict())
    save_pretrained(byhand, tmp_path / "byhand")
    assert without_license(tmp_path / "byhand")

    config = json.loads((tmp_path / "imported" / "config.json").read_text())
    of_bytes = {**RESULTS, "quantized_from": {"measured_accuracy": 99.0}}
    began = {**RESULTS, "config": {**RESULTS["config"], "init": "theirs.pth"}}
    for results in (None, of_bytes, began):
        assert cards.licence(config, results) is None
    assert cards.licence(config, RESULTS) == "apache-2.0"  # trained from scratch
    card = cards.render(tmp_path / "imported", "org/x", began)
    assert "license" not in front(card)
    assert "under the licence of those who trained them" in card


def test_a_known_licence_stays(tmp_path):
    for name in ("adder_lenet5_bn.mnist", "adder_lenet5_bn.mnist_int8"):
        save_pretrained(timm.create_model(name, pretrained=True), tmp_path / name)
        assert not without_license(tmp_path / name)
        assert json.loads((WEIGHTS / name / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"
    source = timm.create_model("resnet18", num_classes=3)
    source.pretrained_cfg["license"] = "cc-by-nc-4.0"
    assert converted(source, "adder_resnet18").pretrained_cfg["license"] == "cc-by-nc-4.0"


# ---- the collection, and networks in bytes


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    with HubServer(folder / "hub") as hub:
        for name in ("a", "b"):
            hub.add(f"org/{name}", {})
        answers = scenario(hub, folder / "home", "hub_forms", RUN, HF_TOKEN=WRITE_TOKEN, cwd=folder)
        ((slug, collection),) = hub.collections.by_slug.items()
        yield {**answers, "slug": slug, "items": collection["items"], "notebook": hub.repository("org/own").files()}


def test_collection(said):
    assert said["first"][1:] == [said["slug"], True]
    assert said["again"][1:] == [said["slug"], False]
    assert said["better"][1:] == [said["slug"], True]
    assert said["by hand"][1:] == [said["slug"], False]
    assert said["first"][0].endswith(f"/collections/{said['slug']}")
    notes = {item["id"]: (item["note"] or {}).get("text") for item in said["items"]}
    assert notes == {"org/a": "91.00 % on MNIST", "org/b": "our best", "org/theirs": None}
    assert said["dry"] == [None, "org: Networks without multiplications", None]
    assert "org" in said["read only"]["message"]
    assert "may not do that" in said["read only"]["message"]
    assert "check the name" in said["not there"]["message"]


def test_a_notebook_of_ones_own_stays(said):
    assert said["notebook"]["notebook.ipynb"] == b'{"cells": [], "metadata": {"mine": 1}}'
    assert "model.safetensors" in said["notebook"]


def test_pull_of_networks_in_bytes(said):
    """By timm and by the commands: bit by bit what was pushed, the package's own network and one of a user."""
    assert len(said["int8"]) == 2
    for repo_id, ways in said["int8"].items():
        assert ways == {"timm": True, "commands": True, "predict": 0, "bytes": True}, repo_id
    assert "features_only" in said["int8 refusals"]["features"]["message"]
    assert said["int8 refusals"]["classes"] is not None
