"""recipes/cifar.py on images that are made up."""

import hashlib
import pickle

import cifar
import numpy as np
import timm
import torchvision
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import adder_zoo
from adder_zoo.training import loop, objectives

ON_CPU = ["--cpu", "--threads", "1", "--report-to", "none"]


def test_cifar(alone, tmp_path):
    flags = ["--synthetic", "--limit-batches", "2", "--batch-size", "16", "--bn-batches", "1", "--epochs", "1", *ON_CPU]
    results = cifar.main([*flags, "--dataset", "cifar100", "--output-dir", str(tmp_path)])
    assert (results["model"], results["dataset"], results["updates"]) == ("adder_resnet20.cifar100", "cifar100", 2)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 100


def test_cifar_with_knowledge_transfer(alone, tmp_path, monkeypatch):
    """PKKD's twin and maps take part in training and loss, and are not in what is saved; p goes from 2 to 1."""
    exponents = []
    monkeypatch.setattr(
        loop, "set_exponent", lambda network, p: (exponents.append(p), objectives.set_exponent(network, p))
    )
    flags = ["--synthetic", "--limit-batches", "1", "--batch-size", "8", "--bn-batches", "1", "--epochs", "2", *ON_CPU]
    transfer = ["--distillation", "pkkd", "--l2-to-l1", "2"]
    results = cifar.main([*flags, *transfer, "--output-dir", str(tmp_path / "pkkd")])
    assert exponents == [2.0, 1.0]
    AcceleratorState._reset_state(True)
    plain = cifar.main([*flags, "--output-dir", str(tmp_path / "plain")])
    assert results["updates"] == plain["updates"] == 2
    # two more cross-entropies, of which one has half the weight that the labels lose, and the layers' distances
    assert results["train_loss"] > 1.5 * plain["train_loss"]
    saved = [load_file(tmp_path / run / "model.safetensors") for run in ("pkkd", "plain")]
    assert saved[0].keys() == saved[1].keys()
    network = timm.create_model(f"local-dir:{tmp_path / 'pkkd'}", pretrained=True)
    assert {m.p for m in network.modules() if isinstance(m, adder_zoo.Adder2d)} == {1.0}


def test_cifar100_from_torchvision_files(alone, tmp_path, monkeypatch):
    """The path from CIFAR-100 as torchvision has it, on a few images that were made up."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for name, count in (("train", 200), ("test", 100)):
        images = rng.integers(256, size=(count, 3072), dtype=np.uint8)
        content = {b"data": images, b"fine_labels": [i % 100 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    sums["meta"] = hashlib.md5((folder / "meta").read_bytes()).hexdigest()
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    flags = ["--dataset", "cifar100", "--data-dir", str(tmp_path), "--model", "adder_resnet20", "--batch-size", "50"]
    results = cifar.main([*flags, *ON_CPU, "--bn-batches", "1", "--epochs", "1", "--output-dir", str(tmp_path / "run")])
    assert (results["updates"], results["train_images"], results["test_images"]) == (4, 200, 100)
