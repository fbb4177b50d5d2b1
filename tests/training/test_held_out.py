"""Training images kept out of training, to choose settings by."""

import json

import mnist
import pytest
import torch

from adder_zoo.datasets import DataError
from adder_zoo.training.data import hold_out


def numbered(count):
    labels = torch.arange(count)
    return labels.view(count, 1, 1, 1).to(torch.uint8), labels


def test_every_image_is_in_one_part_and_keeps_its_label():
    splits = hold_out(numbered(100), 10)
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    assert len(test_labels) == 10
    assert sorted(train_labels.tolist() + test_labels.tolist()) == list(range(100))
    for images, labels in splits.values():
        assert images.flatten().tolist() == labels.tolist()
    assert test.shape == (10, 1, 1, 1)
    assert train.shape == (90, 1, 1, 1)


def test_the_part_does_not_depend_on_the_runs_seed():
    first = hold_out(numbered(100), 10)["test"][1]
    torch.manual_seed(7)
    assert torch.equal(hold_out(numbered(100), 10)["test"][1], first)


@pytest.mark.parametrize("count", [-1, 0, 100, 101])
def test_an_empty_part_is_refused(count):
    with pytest.raises(DataError, match="--held-out must lie between 0 and the number of training images, 100"):
        hold_out(numbered(100), count)


def test_a_recipe_says_what_it_tested_on(alone, tmp_path):
    flags = ["--held-out", "16", "--limit-batches", "1", "--batch-size", "8", "--epochs", "1", "--bn-batches", "1"]
    flags += ["--cpu", "--report-to", "none", "--threads", "1", "--output-dir", str(tmp_path)]
    mnist.main([*flags, "--dataset", "fashion_mnist", "--data-dir", "sample"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["data"] == "16 training images held out"
    assert results["config"]["held_out"] == 16
