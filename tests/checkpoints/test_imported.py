"""What a checkpoint does not say (how images are prepared, what classes are called) is stated, or named as assumed."""

import argparse
import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from adder_zoo.checkpoints import AssumptionWarning, CheckpointError, import_checkpoint, load_checkpoint
from adder_zoo.cli import main
from adder_zoo.hub import save_pretrained
from adder_zoo.labels import assumption
from adder_zoo.models import WEIGHTS


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def saved(tmp_path, name="adder_resnet20", **options):
    network = timm.create_model(name, **options).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    return network


# ---- preprocessing and names


def test_shapes_prove_no_data_set(tmp_path):
    """Ten classes and one channel: digits, which were answered by "ship" and prepared like photographs."""
    saved(tmp_path, num_classes=10, in_chans=1)
    result = run("import", tmp_path / "x.pth", "--model", "adder_resnet20", "-o", tmp_path / "out", "--json")
    told = json.loads(result.stdout)
    assert told["label_names"] is None
    assert told["input_size"] == [1, 32, 32]
    assert told["assumed"].startswith("images 1 x 32 x 32; mean 0.4734; std ")
    assert result.stderr.count("\n") == 1
    assert re.search(r"note: assumed, .*mean 0\.4734.*--dataset, or with --mean, --std and --input-size", result.stderr)
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    told = run("predict", tmp_path / "out", tmp_path / "a.png", "--json")
    assert [p["label"] for p in json.loads(told.stdout)[0]["predictions"]] == [
        str(p["class"]) for p in json.loads(told.stdout)[0]["predictions"]
    ]
    assert "was assumed when it was imported" in told.stderr
    assert "Assumed when it was imported" in run("info", tmp_path / "out").stdout

    told = run(
        "import", tmp_path / "x.pth", "--model", "adder_resnet20", "--dataset", "mnist", "--input-size", 28, "--force",
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert told.stderr == ""
    cfg = timm.create_model(f"local-dir:{tmp_path / 'out'}").pretrained_cfg
    assert (list(cfg["mean"]), list(cfg["std"]), list(cfg["input_size"])) == ([0.1307], [0.3081], [1, 28, 28])
    assert list(cfg["label_names"]) == list("0123456789")
    assert cfg["tag"] == "mnist"
    told = run("predict", tmp_path / "out", tmp_path / "a.png", "--json")
    assert told.stderr == ""


@pytest.mark.parametrize(
    ("options", "cfg"),
    [
        ({"dataset": "cifar10"}, {"tag": "cifar10", "mean": (0.4914, 0.4822, 0.4465), "label": "airplane"}),
        ({"dataset": "fashion_mnist", "input_size": [32]}, {"mean": (0.286,) * 3, "label": "T-shirt/top"}),
        ({"mean": 0.5, "std": (0.1, 0.2, 0.3), "input_size": (3, 24, 40)},
         {"mean": (0.5,) * 3, "std": (0.1, 0.2, 0.3), "input_size": (3, 24, 40), "label": None}),
        ({"mean": 0.5, "std": 0.5, "input_size": (48, 40), "labels": list("abcdefghij")},
         {"input_size": (3, 48, 40), "label": "a"}),
    ],
)  # fmt: skip
def test_what_is_stated_is_in_the_folder(tmp_path, recwarn, options, cfg):
    saved(tmp_path)
    network = import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out", **options)
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    for found in (network.pretrained_cfg, again.pretrained_cfg):
        assert assumption(found) is None
        for key, value in cfg.items():
            names = found.get("label_names")
            assert ((names[0] if names else None) if key == "label" else found[key]) == pytest.approx(value)
    assert not [w for w in recwarn if issubclass(w.category, AssumptionWarning)]
    assert not network.pretrained_cfg.get("file")  # not that of the tag's weights


def test_a_tag_is_a_statement(tmp_path, recwarn):
    weights = timm.create_model("adder_lenet5_bn.mnist", pretrained=True)
    torch.save(weights.state_dict(), tmp_path / "x.pth")
    network = load_checkpoint(tmp_path / "x.pth", "adder_lenet5_bn.mnist")
    assert network.pretrained_cfg["label_names"] == tuple("0123456789")
    assert network.pretrained_cfg["mean"] == (0.1307,)
    assert not [w for w in recwarn if issubclass(w.category, AssumptionWarning)]
    with pytest.warns(AssumptionWarning, match="assumed, since a checkpoint does not say it: mean"):
        network = load_checkpoint(tmp_path / "x.pth", "adder_lenet5_bn", input_size=(1, 32, 32))
    assert not network.pretrained_cfg.get("label_names")
    with pytest.warns(AssumptionWarning, match="images 1 x 32 x 32; mean"):
        load_checkpoint(tmp_path / "x.pth", "adder_lenet5_bn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "cifar100"}, r"CIFAR-100 has 100 classes, and the network 10\. .*--mean"),
        ({"dataset": "svhn"}, "must be one of mnist, fashion_mnist"),
        ({"mean": (0.1, 0.2)}, r"mean has 2 values, and the network takes 3 channel\(s\)"),
        ({"std": 0.0}, "std must be positive"),
        ({"input_size": (1, 32, 32)}, r"images of 1 channel\(s\) were stated, and the network takes 3"),
        ({"input_size": (0,)}, "input_size must be"),
        ({"labels": ["a", "b"]}, "2 labels were stated, and the network has 10 classes"),
        ({"labels": ["a"] * 10}, "'a' twice"),
    ],
)
def test_what_contradicts_the_network_is_refused(tmp_path, options, message):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_grey_network_on_a_data_set_in_colour(tmp_path):
    saved(tmp_path, in_chans=1)
    with pytest.raises(CheckpointError, match=r"CIFAR-10 have 3 channels, and the network takes 1: give --mean and"):
        load_checkpoint(tmp_path / "x.pth", "adder_resnet20", dataset="cifar10")
    network = load_checkpoint(
        tmp_path / "x.pth", "adder_resnet20", dataset="cifar10", mean=0.48, std=0.2, input_size=[32]
    )
    assert (network.pretrained_cfg["mean"], network.pretrained_cfg["label_names"][8]) == ((0.48,), "ship")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--mean", "a", "write it like 0.5, or one for each channel"),
        ("--mean", "nan", "write it like"),
        ("--std", "", "write it like"),
        ("--input-size", "3x32x32x32", "write it like 32, 32x32 or 3x32x32"),
        ("--input-size", "-1", "write it like"),
        ("--labels", "missing.txt", "cannot be read"),
        ("--labels", "a,a", "'a' twice"),
        ("--dataset", "svhn", "is not one of"),
    ],
)
def test_options_that_are_not_understood(tmp_path, option, value, message):
    saved(tmp_path)
    args = ("--model", "adder_resnet20", "-o", tmp_path / "o", option, value)
    refused = run("import", tmp_path / "x.pth", *args, code=2)
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "o").exists()


def test_convert_keeps_how_images_are_prepared(tmp_path):
    """Of the network that is converted, and not of the zoo's own of this name."""
    source = timm.create_model(
        "resnet18", num_classes=2, in_chans=1, act_layer="silu",
        pretrained_cfg_overlay={
            "mean": (0.3,), "std": (0.4,), "input_size": (1, 64, 64), "crop_pct": 1.0, "label_names": ("cat", "dog"),
            "notes": ("assumed: mean 0.3",), "num_classes": 2,
        },
    )  # fmt: skip
    save_pretrained(source, tmp_path / "cnn")
    run("convert", tmp_path / "cnn", "-o", tmp_path / "out", "--keep-weights")
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    cfg = network.pretrained_cfg
    assert isinstance(network.act1, nn.SiLU)
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == ([0.3], [0.4], 1.0)
    assert (list(cfg["input_size"]), list(cfg["label_names"])) == ([1, 64, 64], ["cat", "dog"])
    assert assumption(cfg) == "mean 0.3"
    run("convert", tmp_path / "cnn", "-o", tmp_path / "out", "--force", "--mean", "0.5", "--labels", "hen,cow")
    cfg = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).pretrained_cfg
    assert (cfg["mean"], cfg["std"], list(cfg["label_names"])) == ([0.5], [0.4], ["hen", "cow"])
    assert assumption(cfg) is None
    refused = run("convert", tmp_path / "cnn", "-o", tmp_path / "x", "--dataset", "cifar100", code=1)
    assert "100 classes" in refused.stderr


# ---- old results beside new weights


def test_old_results_go_with_their_weights(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(WEIGHTS / "adder_resnet20.cifar10", out)
    assert "90.03 %" in run("info", out).stdout
    saved(tmp_path)
    run("import", tmp_path / "x.pth", "--model", "adder_resnet20", "-o", out, "--force")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert "90.03" not in run("info", out).output
    assert json.loads(run("info", out, "--json").stdout)["results"] is None
    shutil.copy(WEIGHTS / "adder_resnet20.cifar10/results.json", out)
    told = run("info", out)
    assert "90.03" not in told.stdout
    assert "is not of the weights beside it" in told.stderr
    refused = run("push", out, "org/name", "--dry-run", code=1)
    assert "is not of the weights beside it" in refused.stderr
    save_pretrained(timm.create_model("resnet18", num_classes=2), tmp_path / "cnn")
    run("convert", tmp_path / "cnn", "-o", out, "--force")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]


def test_a_twin_has_none_of_the_adder_networks_results():
    told = run("info", "adder_resnet20", "--similarity", "conv").stdout
    assert "90.03" not in told
    assert "model.safetensors" not in told


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    saved(tmp_path)
    for name in ("notes.txt", "best", "checkpoints"):
        out = tmp_path / f"with-{name}"
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"mine")
        (out / name).mkdir() if "." not in name else (out / name).write_text("mine")
        for force in ([], ["--force"]):
            refused = run("import", tmp_path / "x.pth", "--model", "adder_resnet20", "-o", out, *force, code=1)
            assert f"holds other things than a network ({name})" in refused.stderr
        assert (out / "model.safetensors").read_bytes() == b"mine"
    (tmp_path / "file").write_text("mine")
    refused = run("import", tmp_path / "x.pth", "--model", "adder_resnet20", "-o", tmp_path / "file", code=1)
    assert "is a file; give a folder" in refused.stderr


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 kB: what is longer fails in the middle, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def network_and_file(tmp_path):
    """A network in a folder, and a file of another one."""
    saved(tmp_path)
    args = ("import", tmp_path / "x.pth", "--model", "adder_resnet20", "--dataset", "cifar10", "-o", tmp_path / "out")
    run(*args)
    saved(tmp_path)
    return [*args, "--force"]


@pytest.mark.parametrize("command", ["import", "convert", "export"])
def test_a_full_disk_leaves_the_old_network(tmp_path, network_and_file, request, command):
    args = network_and_file
    if command == "convert":
        save_pretrained(timm.create_model("resnet18", num_classes=2), tmp_path / "cnn")
        args = ["convert", tmp_path / "cnn", "-o", tmp_path / "out", "--force"]
    elif command == "export":
        (tmp_path / "x.pt2").write_bytes(b"old")
        args = ["export", tmp_path / "out", "-o", tmp_path / "x.pt2", "--force"]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    request.getfixturevalue("full_disk")
    refused = run(*args, code=1)
    assert re.search(r"Error: .*(File too large|os error 27|unexpected pos)", refused.stderr), refused.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# ---- forms of files


def authors_resnet50(network):
    """The state of a network of the zoo as the authors' ImageNet code has it: a 1x1 classifier with batch norm."""
    state = {}
    for key, value in network.state_dict().items():
        adder = type(network.get_submodule(key.rpartition(".")[0])).__name__ == "Adder2d"
        state[f"module.{key.replace('.weight', '.adder')}" if adder else f"module.{key}"] = value.clone()
    classes, features = state["module.fc.weight"].shape
    state["module.fc.weight"] = torch.randn(classes, features, 1, 1) / features**0.5
    del state["module.fc.bias"]
    norm = nn.BatchNorm2d(classes).eval()
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    for tensor in (norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    return {**state, **{f"module.bn2.{k}": v.detach() for k, v in norm.state_dict().items()}}, norm


@torch.no_grad()
def test_the_authors_imagenet_form(tmp_path):
    """The classifier's batch norm becomes part of its weights: the same logits, within float32's rounding."""
    network = timm.create_model("adder_resnet18", num_classes=7).eval()
    state, norm = authors_resnet50(network)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    again = load_checkpoint(tmp_path / "x.pth", "adder_resnet18.in1k")
    x = torch.randn(2, 3, 64, 64)
    features = network.forward_head(network.forward_features(x), pre_logits=True).double()
    weight = state["module.fc.weight"].double()
    y = torch.nn.functional.conv2d(features[:, :, None, None], weight)
    expected = norm.double()(y).flatten(1)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs()
    magnitude = (features.abs() @ weight.flatten(1).abs().T + norm.running_mean.abs()) * scale + norm.bias.abs()
    error = (again(x).double() - expected).abs()
    assert (error <= (features.shape[1] + 4) * 2.0**-24 * magnitude).all()
    torch.save({k: v for k, v in state.items() if not k.endswith("bn2.running_var")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"not in the model \(\d\): bn2"):  # and not where it is only half there
        load_checkpoint(tmp_path / "x.pth", "adder_resnet18.in1k")


def test_the_authors_keys_by_plain_load_state_dict():
    """``adder2d`` of the authors' code names its filters ``adder`` and its bias ``b``."""
    from adder_zoo import Adder2d, AdderLinear

    for layer in (Adder2d(2, 3, 3), AdderLinear(4, 5)):
        theirs = {"adder": torch.randn_like(layer.weight), "b": torch.randn_like(layer.bias)}
        layer.load_state_dict(theirs)
        assert torch.equal(layer.weight, theirs["adder"])
        assert torch.equal(layer.bias, theirs["b"])
        assert list(theirs) == ["adder", "b"]
    network = nn.Sequential(Adder2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))
    state = {k.replace("0.weight", "0.adder"): torch.ones_like(v) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    assert network[0].weight.eq(1).all()
    with pytest.raises(RuntimeError, match=r"0\.adder"):  # both names at once: nobody knows which is meant
        network.load_state_dict({**state, "0.weight": state["0.adder"]})


def test_timms_training_checkpoints(tmp_path):
    """last.pth.tar has the options as a Namespace, and the metric as a scalar of numpy."""
    network = timm.create_model("adder_resnet20").eval()
    content = {
        "epoch": 3,
        "arch": "adder_resnet20",
        "state_dict": network.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
        "version": 2,
        "args": argparse.Namespace(model="adder_resnet20", lr=0.1, mean=None, betas=(0.9, 0.99)),
        "metric": np.float64(91.0),
        "others": [np.float32(1), np.int64(2), np.bool_(True)],
    }
    for name, options in (("last.pth.tar", {}), ("old.pth.tar", {"_use_new_zipfile_serialization": False})):
        torch.save(content, tmp_path / name, **options)
        again = load_checkpoint(tmp_path / name, "adder_resnet20.cifar10")
        assert torch.equal(again.conv1.weight, network.conv1.weight)
    # As numpy 1 wrote it.
    data = (tmp_path / "old.pth.tar").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "older.pth.tar").write_bytes(data)
    load_checkpoint(tmp_path / "older.pth.tar", "adder_resnet20.cifar10")


class Foreign:
    """An object that a file should not hold."""


@pytest.mark.parametrize("form", ["module", "dictionary", "module in a dictionary", "nested", "flat"])
def test_the_advice_for_unreadable_files_works(tmp_path, monkeypatch, form):
    """Followed to the letter, it makes a file that is read."""
    network = nn.Sequential(nn.Linear(2, 2))
    state = network.state_dict()
    content = {
        "module": network,
        "dictionary": {"state_dict": state, "x": Foreign()},
        "module in a dictionary": {"epoch": 1, "model": network},
        "nested": {"model": {"state_dict": state, "x": Foreign()}},
        "flat": {**state, "x": Foreign()},
    }[form]
    file = tmp_path / 'it\'s "here".pth'
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="more than tensors") as raised:
        load_checkpoint(file, "adder_resnet20")
    python, flag, code = shlex.split(str(raised.value).partition("that file: ")[2])
    assert (python, flag) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert {k: v.tolist() for k, v in torch.load("tensors.pth").items()} == {k: v.tolist() for k, v in state.items()}


# ---- which folder is which class


@pytest.fixture
def named(tmp_path):
    """A network that answers by brightness, its classes named out of order, and a folder of images for each."""
    names = ("white", "black", "grey")
    network = timm.create_model("adder_lenet5_bn", num_classes=3).eval()
    network.pretrained_cfg.update(num_classes=3, label_names=names, mean=(0.0,), std=(1.0,))

    class Brightness(nn.Module):
        def forward(self, x):
            return -(x.mean((1, 2, 3))[:, None] - torch.tensor([1.0, 0.0, 0.5])).abs()

    for name, value in zip(names, (255, 0, 128), strict=True):
        for i in range(2):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), value).save(tmp_path / "images" / name / f"{i}.png")
    save_pretrained(network, tmp_path / "net")
    return tmp_path, Brightness()


def top1(result):
    return json.loads(result.stdout)["top1"]


def test_names_of_folders_are_believed(named, monkeypatch):
    """As many folders as classes: they were taken in sorted order, whatever they and the classes are called."""
    from adder_zoo.cli import _images

    folder, brightness = named
    create = _images.create

    def answering(*args, **kwargs):
        network = create(*args, **kwargs)
        network.forward = brightness.forward
        return network

    monkeypatch.setattr(_images, "create", answering)
    assert top1(run("validate", folder / "net", "--data-dir", folder / "images", "--json")) == 100
    (folder / "map.txt").write_text("grey\nwhite\nblack\n")  # a lie, which must be believed
    told = run("validate", folder / "net", "--data-dir", folder / "images", "--class-map", folder / "map.txt", "--json")
    assert top1(told) == 0
    (folder / "map.txt").write_text("weiß\nschwarz\ngrau\n")
    refused = run(
        "validate", folder / "net", "--data-dir", folder / "images", "--class-map", folder / "map.txt", code=1
    )
    assert "none of them: black, grey, white. Its classes are weiß, schwarz, grau." in refused.stderr
    for name in (".ipynb_checkpoints", "__MACOSX"):  # no classes
        (folder / "images" / name).mkdir()
    assert top1(run("validate", folder / "net", "--data-dir", folder / "images", "--json")) == 100
    for old, new in (("white", "2 white"), ("black", "10 black"), ("grey", "1 grey")):
        (folder / "images" / old).rename(folder / "images" / new)
    refused = run("validate", folder / "net", "--data-dir", folder / "images", code=1)
    assert "3 folders and the network has 3 classes; these names are none of them: 1 grey" in refused.stderr


def test_a_data_sets_classes_are_matched_by_name(named, monkeypatch):
    from adder_zoo import datasets
    from adder_zoo.datasets.profiles import profile

    folder, _ = named
    network = timm.create_model("adder_resnet20").eval()
    network.pretrained_cfg["label_names"] = tuple(reversed(profile("cifar10").classes))
    save_pretrained(network, folder / "reversed")
    images = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8)
    monkeypatch.setattr(datasets, "find", lambda *_: folder)
    files = []
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
        files.append(folder / f"{i:02}.png")
    told = run("predict", folder / "reversed", *files, "--top-k", 1, "--format", "csv")
    answers = csv.DictReader(io.StringIO(told.stdout))
    labels = torch.tensor([profile("cifar10").classes.index(answer["label"]) for answer in answers])
    monkeypatch.setattr(datasets, "load", lambda *_, **__: {"test": (images, labels)})
    assert top1(run("validate", folder / "reversed", "--dataset", "cifar10", "--json")) == 100
    (folder / "map.txt").write_text("\n".join(profile("cifar10").classes))
    told = run("validate", folder / "reversed", "--dataset", "cifar10", "--class-map", folder / "map.txt", "--json")
    assert top1(told) < 50
    refused = run("validate", folder / "net", "--dataset", "cifar10", code=1)
    assert "CIFAR-10 has 10 classes and the network has 3 classes; these names" in refused.stderr


def test_digits_score_what_they_should(data_dir, tmp_path):
    """Weights for MNIST, imported: with the data set stated they answer as where they are from."""
    if not (data_dir / "mnist").is_dir():
        pytest.skip("needs MNIST, mnist/ in ADDER_ZOO_DATA")
    torch.save(timm.create_model("adder_lenet5_bn.mnist", pretrained=True).state_dict(), tmp_path / "x.pth")
    run("import", tmp_path / "x.pth", "--model", "adder_lenet5_bn", "--dataset", "mnist", "-o", tmp_path / "out")
    told = run("validate", tmp_path / "out", "--dataset", "mnist", "--data-dir", data_dir / "mnist", "--json")
    assert top1(told) == 99.5
    assert Path(tmp_path / "out/config.json").is_file()
