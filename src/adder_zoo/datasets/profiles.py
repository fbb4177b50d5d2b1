"""What is known of the data sets that the zoo's networks are trained on: their classes, and how images are prepared."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo


@dataclass(frozen=True)
class Profile:
    """A data set.

    Attributes:
        title: Its name for people.
        classes: The name of each class, in the order of the labels: for ImageNet the synsets.
        mean, std: For each channel, on the scale from 0 to 1.
        tag: What follows the dot in the names of networks that were trained on it.
        descriptions: A longer name by class, where there is one.
        resizing: Interpolation and crop, by timm's names, where they are not left to the network.
    """

    title: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tag: str
    descriptions: dict[str, str] = field(default_factory=dict)
    resizing: dict[str, object] = field(default_factory=dict)


DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)  # this and the next are from the paper's authors' code
CIFAR_STD = (0.2023, 0.1994, 0.2010)
_BILINEAR = {"interpolation": "bilinear", "crop_pct": 1.0}
_BICUBIC = {"interpolation": "bicubic", "crop_pct": 1.0}

NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet")


@functools.cache
def profile(dataset: str) -> Profile:
    """What is known of ``dataset``, one of ``NAMES``."""
    if dataset == "mnist":
        return Profile("MNIST", DIGITS, (0.1307,), (0.3081,), dataset, resizing=_BILINEAR)
    if dataset == "fashion_mnist":
        return Profile("Fashion-MNIST", CLOTHES, (0.2860,), (0.3530,), dataset, resizing=_BILINEAR)
    if dataset == "cifar10":
        return Profile("CIFAR-10", CIFAR10, CIFAR_MEAN, CIFAR_STD, dataset, resizing=_BICUBIC)
    if dataset == "cifar100":
        return Profile("CIFAR-100", CIFAR100, CIFAR_MEAN, CIFAR_STD, dataset, resizing=_BICUBIC)
    if dataset == "imagenet":
        info = ImageNetInfo()
        descriptions = info.label_descriptions(as_dict=True)
        assert isinstance(descriptions, dict)
        return Profile(
            "ImageNet", tuple(info.label_names()), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "in1k", descriptions
        )
    raise KeyError(dataset)
