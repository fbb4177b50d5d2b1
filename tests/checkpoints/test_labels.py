"""Which class is which: names decide, numbers only where there are no names."""

import pytest
import timm

from adder_zoo.datasets.profiles import NAMES, profile
from adder_zoo.labels import LabelError, Labels, labels_of, read_names

ANIMALS = Labels(3, ("zebra", "Ant / red", "cat"))


def test_names_of_folders_decide():
    assert ANIMALS.positions(["ant_red", "cat", "zebra"]) == ({"ant_red": 1, "cat": 2, "zebra": 0}, None)
    assert ANIMALS.positions(["cat"]) == ({"cat": 2}, None)
    for found in (["cat", "dog", "zebra"], ["a", "b", "c"]):
        with pytest.raises(LabelError, match=r"none of them: .*Its classes are zebra, Ant / red, cat"):
            ANIMALS.positions(found)
    with pytest.raises(LabelError, match="Cat, cat mean the same class"):
        ANIMALS.positions(["Cat", "cat"])


def test_numbers_are_classes():
    index, note = ANIMALS.positions(["2", "0"])
    assert index == {"2": 2, "0": 0}
    assert "zebra" in note
    assert Labels(20).positions([str(i) for i in range(20)]) == ({str(i): i for i in range(20)}, None)
    assert Labels(20).positions(["3", "10"]) == ({"3": 3, "10": 10}, None)
    with pytest.raises(LabelError, match="none of them: 0, 1"):  # a class map means what it says
        Labels(3, ANIMALS.names, given=True).positions(["0", "1"])


def test_as_many_folders_as_classes_are_in_timms_order():
    """That in which the recipes train, by numbers in names; and the user hears of it."""
    index, note = Labels(3).positions(["class10", "class9", "Class1"])
    assert index == {"Class1": 0, "class9": 1, "class10": 2}
    assert "names no classes" in note
    with pytest.raises(LabelError, match="2 folders and the network has 3 classes"):
        Labels(3).positions(["a", "b"])


def test_synsets():
    imagenet = labels_of({"tag": "a1_in1k"}, 1000)
    assert imagenet.positions(["n01443537", "n01440764"])[0] == {"n01443537": 1, "n01440764": 0}
    assert imagenet.positions(["tench, Tinca tinca"])[0] == {"tench, Tinca tinca": 0}
    assert imagenet.shown()[0] == "tench, Tinca tinca"
    assert Labels(1000).positions(["n01443537"])[0] == {"n01443537": 1}
    with pytest.raises(LabelError):  # two classes have this description
        imagenet.positions(["crane"])


def test_a_thousand_classes_are_not_imagenets_without_a_reason():
    assert labels_of({"tag": ""}, 1000).names is None
    assert labels_of({"tag": "in1k", "notes": ("assumed: mean",)}, 1000).names is None
    assert labels_of({"tag": "in1k"}, 10).names is None
    assert labels_of({"label_names": ["a", "b"]}, 2).names == ("a", "b")
    assert labels_of({"label_names": ["a", "b"]}, 3).names is None
    numbered = {str(i): f"class {i}" for i in range(12)}  # as JSON has it: 10 is not before 2
    assert labels_of({"label_names": numbered}, 12).names == tuple(numbered.values())


def test_class_map(tmp_path):
    file = tmp_path / "map.txt"
    file.write_bytes("\ufeffgrün\r\n blau \r\n\r\n".encode())
    assert read_names(file) == ["grün", "blau"]
    assert labels_of({"label_names": ["a", "b"]}, 2, file) == Labels(2, ("grün", "blau"), given=True)
    with pytest.raises(LabelError, match="names 2 classes, and the network has 3"):
        labels_of({}, 3, file)
    for content, message in [
        ("grün\n".encode("latin-1"), "not text in UTF-8"),
        ("a\nb\n".encode("utf-16"), "not text in UTF-8"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a\n\nb\n", "line 2 of .* is empty"),
        (b"a\nb\na\n", "'a' twice"),
    ]:
        file.write_bytes(content)
        with pytest.raises(LabelError, match=message):
            read_names(file)
    with pytest.raises(LabelError, match="cannot be read"):
        read_names(tmp_path)


def test_profiles_are_those_of_the_data_sets():
    from torchvision.datasets import FashionMNIST

    counts = {name: len(set(profile(name).classes)) for name in NAMES}
    assert counts == {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}
    assert profile("fashion_mnist").classes == tuple(FashionMNIST.classes)
    for name in ("cifar10", "cifar100"):  # both are in the order of the alphabet
        assert profile(name).classes == tuple(sorted(profile(name).classes))
    assert timm.get_pretrained_cfg("adder_resnet20.cifar10").label_names == profile("cifar10").classes
