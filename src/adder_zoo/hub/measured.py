"""What ``results.json`` says of the images that a network was trained and measured on, in words for a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a data set is called, its name on the Hub, and the recipe that trains on it.
DATASETS: dict[str, tuple[str, str | None, str | None]] = {
    "mnist": ("MNIST", "ylecun/mnist", "recipes/mnist.py"),
    "fashion_mnist": ("Fashion-MNIST", "zalando-datasets/fashion_mnist", "recipes/mnist.py"),
    "cifar10": ("CIFAR-10", "uoft-cs/cifar10", "recipes/cifar.py"),
    "cifar100": ("CIFAR-100", "uoft-cs/cifar100", "recipes/cifar.py"),
    "imagenet": ("ImageNet-1k", "ILSVRC/imagenet-1k", "recipes/imagenet.py"),
    "images": ("a folder of images", None, "recipes/imagenet.py"),
}
IMAGENET = (1_281_167, 50_000)  # images for training and for validation


@dataclass(frozen=True)
class Measured:
    """The images of a training.

    Attributes:
        title: Of the data set.
        hub_id: Its name on the Hub, if it is there.
        recipe: The script that trains on it, if one does.
        split: Of the images that the accuracy is of: "test", "validation" or "train".
        images: Which these are, with their number.
        remark: Why the accuracy is not the accuracy on the data set; "" where nothing does.
        noise: Whether there was no data set at all.
    """

    title: str
    hub_id: str | None
    recipe: str | None
    split: str
    images: str
    remark: str
    noise: bool


def measured(results: Mapping[str, Any]) -> Measured:
    name, part = str(results["dataset"]), results.get("data")
    title, hub_id, recipe = DATASETS.get(name, (name, None, None))
    config = results.get("config", {})
    count = results["test_images"]
    if name == "synthetic" or part == "synthetic" or config.get("synthetic"):
        images = f"{count} images of noise"
        return Measured("generated noise", None, recipe, "test", images, "for timing: it says nothing else", True)
    if part is not None and "held out" in part:
        images = f"{count} training images of {title} that were held out"
        return Measured(title, hub_id, recipe, "train", images, "to choose settings by; not the test set", False)
    if name == "imagenet":
        split = "validation"
        full = part in (None, "full") and count == IMAGENET[1] and results.get("train_images") in (None, IMAGENET[0])
    else:
        split = "test"
        full = part == "full" or name == "images"  # of a folder nothing tells of what it is a part
    full = full and not config.get("limit_batches")
    remark = "" if full else "a sample of the data set"
    return Measured(title, hub_id, recipe, split, f"{count} {split} images of {title}", remark, False)
