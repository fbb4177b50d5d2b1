"""``adder-zoo quantize``, and what the other commands make of the folder that it writes."""

import json

import pytest
import timm
import torch
from click.testing import CliRunner
from mnist import SAMPLE
from PIL import Image

import adder_zoo
from adder_zoo.cli import main
from adder_zoo.datasets.idx import load

FASHION = "adder_lenet5_bn.fashion_mnist"


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised") / "fashion"
    data = ("--dataset", "fashion_mnist", "--data-dir", SAMPLE)
    answer = json.loads(run("quantize", FASHION, *data, "--images", 100, "-o", folder, "--json").stdout)
    assert (answer["layers"], answer["bits"]) == (5, 8)
    assert answer["bytes"] == (folder / "model.safetensors").stat().st_size
    return folder


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """Images in folders: 40 in train/, 20 in test/."""
    root = tmp_path_factory.mktemp("clothes")
    splits = load("fashion_mnist", SAMPLE)[0]
    for split, count in (("train", 40), ("test", 20)):
        images, labels = splits[split]
        for i in range(count):
            (root / split / f"{labels[i]}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i].numpy()).save(root / split / f"{labels[i]}" / f"{i:02}.png")
    return root


def test_results_are_of_both_networks(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results["model"] == f"{FASHION}_int8"
    assert (results["dataset"], results["data"]) == ("fashion_mnist", "sample")
    assert results["calibration"] == {"images": 100, "seed": 0, "of": "training images"}
    origin = results["quantized_from"]
    assert origin["model"] == FASHION
    assert origin["results"]["test_accuracy"] == 90.08
    data = ("--dataset", "fashion_mnist", "--data-dir", SAMPLE, "--json")
    for model, accuracy in ((folder, results["test_accuracy"]), (FASHION, origin["measured_accuracy"])):
        measured = json.loads(run("validate", model, *data).stdout)
        assert measured["top1"] == accuracy
        assert measured["images"] == results["test_images"]


def test_it_is_what_quantize_makes(folder):
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert network.quantized_from == FASHION
    assert network.pretrained_cfg["tag"] == "fashion_mnist_int8"
    assert network.pretrained_cfg["label_names"][0] == "T-shirt/top"


def test_the_other_commands_take_it(folder, clothes, tmp_path):
    for model in (folder, f"{FASHION}_int8"):
        info = json.loads(run("info", model, "--json").stdout)
        assert info["results"]["quantized_from"]["model"] == FASHION
        assert run("info", model).stdout.count("adder") >= 5
    answers = json.loads(run("predict", folder, clothes / "test", "--json").stdout)
    assert len(answers) == 20
    same = json.loads(run("predict", folder, clothes / "test", "--json", "--impl", "reference").stdout)
    assert same == answers
    assert "computes no bytes" in run("predict", folder, clothes, "--impl", "exact", code=1).output
    timed = json.loads(run("bench", folder, "--batch-size", 2, "--repeat", 1, "--json").stdout)
    assert list(timed["images_per_second"]) == ["int8", "adder", "conv"]
    assert "cannot be trained" in run("bench", f"{FASHION}_int8", "--train", code=1).output
    run("export", folder, "-o", tmp_path / "network.pt2")
    x = torch.rand(3, 1, 32, 32)
    program = torch.export.load(tmp_path / "network.pt2").module()
    with torch.no_grad():
        assert torch.equal(program(x), timm.create_model(f"local-dir:{folder}", pretrained=True)(x))
    card = run("push", folder, f"my-org/{FASHION}_int8", "--dry-run").stdout
    assert f"base_model: my-org/{FASHION}\n" in card
    assert "base_model_relation: quantized" in card
    assert "a sample of the data set" in card


def test_folders_of_images(clothes, tmp_path):
    run("quantize", FASHION, "--data-dir", clothes, "--bits", 4, "-o", tmp_path / "four")
    results = json.loads((tmp_path / "four" / "results.json").read_text())
    assert (results["bits"], results["test_images"], results["dataset"]) == (4, 20, "images")
    assert results["model"] == f"{FASHION}_int4"
    run("quantize", FASHION, "--data-dir", clothes / "train" / "0", "--no-test", "-o", tmp_path / "alone")
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["config.json", "model.safetensors"]
    run("push", tmp_path / "alone", "org/name", "--dry-run", code=1)


def test_bad_input(folder, clothes, tmp_path):
    data = ("--data-dir", clothes)
    assert "is quantised already" in run("quantize", folder, *data, "-o", tmp_path / "a", code=1).output
    assert "has no weights" in run("quantize", "adder_resnet50", *data, "-o", tmp_path / "a", code=1).output
    assert "give another folder, or --force" in run("quantize", FASHION, *data, "-o", folder, code=1).output
    assert "give --data-dir" in run("quantize", FASHION, "-o", tmp_path / "a", code=2).output
    assert (
        "there is no image in" in run("quantize", FASHION, "--data-dir", tmp_path, "-o", tmp_path / "a", code=1).output
    )
    for options in (("--bits", 9), ("--bits", 1), ("--images", 0)):
        run("quantize", FASHION, *data, *options, "-o", tmp_path / "a", code=2)
    (tmp_path / "black").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "black" / "0.png")
    said = run("quantize", FASHION, "--data-dir", tmp_path / "black", "--no-test", "-o", tmp_path / "a", code=1).output
    assert "differ from each other" in said
    convolutional = timm.create_model("adder_lenet5_bn", similarity="conv")
    adder_zoo.save_pretrained(convolutional, tmp_path / "conv")
    said = run("quantize", tmp_path / "conv", *data, "--no-test", "-o", tmp_path / "a", code=1).output
    assert "has no adder layer" in said
    assert not (tmp_path / "a").exists()
