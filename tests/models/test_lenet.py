"""``adder_lenet5_bn`` as a citizen of timm: create, features, head, save, load, and the weights in the package."""

import json
import shutil

import mnist
import pytest
import timm
import torch
from mnist import SAMPLE
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from torch import nn

from adder_zoo import Adder2d, AdderLinear
from adder_zoo.datasets.idx import DataError, find, load
from adder_zoo.hub import save_pretrained
from adder_zoo.models import WEIGHTS

NAMES = ("adder_lenet5_bn.mnist", "adder_lenet5_bn.fashion_mnist")


@pytest.fixture
def images():
    return torch.randn(4, 1, 32, 32)


def test_every_layer_is_an_adder_layer_or_none_is():
    adder, conv = (timm.create_model("adder_lenet5_bn", similarity=s) for s in ("adder", "conv"))
    assert sum(isinstance(m, (Adder2d, AdderLinear)) for m in adder.modules()) == 5
    assert not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in adder.modules())
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in conv.modules()) == 5
    assert not any(isinstance(m, (Adder2d, AdderLinear)) for m in conv.modules())
    assert [(k, v.shape) for k, v in adder.state_dict().items()] == [(k, v.shape) for k, v in conv.state_dict().items()]


def test_registered():
    assert set(NAMES) <= set(timm.list_pretrained("adder_*"))
    assert "adder_lenet5_bn" in timm.list_models(module="lenet")


def test_shapes_of_everything(images):
    model = timm.create_model("adder_lenet5_bn", num_classes=7).eval()
    features = model.forward_features(images)
    assert features.shape == (4, 120, 1, 1)
    assert model.forward_head(features, pre_logits=True).shape == (4, model.head_hidden_size)
    assert model.forward_head(features).shape == (4, 7)
    model.reset_classifier(3)
    assert model(images).shape == (4, 3)
    model.reset_classifier(0)
    assert model(images).shape == (4, 84)
    model.reset_classifier(0, "")
    assert model(images).shape == (4, 120, 1, 1)
    assert timm.create_model("adder_lenet5_bn", in_chans=3)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_features_only(images):
    model = timm.create_model("adder_lenet5_bn", features_only=True)
    assert [f.shape[1:] for f in model(images)] == [(6, 28, 28), (16, 10, 10), (120, 1, 1)]
    assert model.feature_info.channels() == [6, 16, 120]
    model = timm.create_model("adder_lenet5_bn", features_only=True, out_indices=(1,))
    assert [f.shape[1] for f in model(images)] == [16]
    whole = timm.create_model("adder_lenet5_bn").eval()
    last, features = whole.forward_intermediates(images)
    assert torch.equal(last, features[-1])
    assert whole.prune_intermediate_layers([1]) == [1]
    assert whole(images).shape == (4, 16, 10, 10)


def test_gradient_checkpointing_changes_nothing(images):
    model = timm.create_model("adder_lenet5_bn")
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compile_and_export(images):
    model = timm.create_model("adder_lenet5_bn").eval()
    want = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), want)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    more = torch.cat([images, images])
    torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.parametrize("similarity", ["adder", "conv"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_saved_network_comes_back_with_the_same_logits(tmp_path, images, similarity, memory_format):
    model = timm.create_model("adder_lenet5_bn.mnist", num_classes=6, similarity=similarity)
    model(images)  # moves batch norm's statistics
    model = model.eval().to(memory_format=memory_format)
    save_pretrained(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval().to(memory_format=memory_format)
    assert torch.equal(again(images), model(images))
    assert again.similarity == similarity
    assert list(resolve_data_config(model=again)["mean"]) == [0.1307]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"]["similarity"] == similarity
    fine_tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert torch.equal(fine_tuned.stages[0].conv.weight, again.stages[0].conv.weight)
    assert fine_tuned(images).shape == (4, 3)


@pytest.mark.parametrize("name", NAMES)
def test_bundled_weights_load(name, images):
    model = timm.create_model(name, pretrained=True).eval()
    stored = load_file(WEIGHTS / name / "model.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in model.state_dict().items())
    results = json.loads((WEIGHTS / name / "results.json").read_text())
    assert results["model"] == name
    assert len(model.pretrained_cfg["label_names"]) == 10
    assert timm.create_model(name, pretrained=True, num_classes=4)(images).shape == (4, 4)


def test_the_default_weights_are_the_papers():
    model = timm.create_model("adder_lenet5_bn", pretrained=True)
    assert model.pretrained_cfg["tag"] == "mnist"
    assert model.pretrained_cfg["label_names"] == tuple("0123456789")
    stored = load_file(WEIGHTS / "adder_lenet5_bn.mnist" / "model.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in model.state_dict().items())
    data = timm.data.resolve_model_data_config(model)
    assert (data["mean"], data["std"]) == ((0.1307,), (0.3081,))


@pytest.mark.parametrize("name", NAMES)
def test_bundled_weights_score_what_their_results_say(name, request):
    """On the whole test set, where it is at hand."""
    dataset = name.partition(".")[2]
    try:
        images, labels = load(dataset, find(dataset, None))[0]["test"]
    except DataError as error:
        pytest.skip(f"needs the whole of {dataset}: {str(error).splitlines()[0]}")
    model = timm.create_model(name, pretrained=True).eval()
    x = mnist.preprocessed(images, model)
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), labels.split(500), strict=True))
    said = json.loads((WEIGHTS / name / "results.json").read_text())["test_accuracy"]
    # Rounding that differs between instruction sets may turn an image that is undecided.
    assert abs(100 * right / len(labels) - said) <= 0.03
    assert said >= {"mnist": 99.3, "fashion_mnist": 90.0}[dataset]


def test_bundled_fashion_network_on_the_bundled_images():
    images, labels = load("fashion_mnist", SAMPLE)[0]["test"]
    model = timm.create_model("adder_lenet5_bn.fashion_mnist", pretrained=True).eval()
    x = mnist.preprocessed(images, model)
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == labels).float().mean()
    assert accuracy > 0.87


def test_errors_say_what_to_do(tmp_path, images):
    with pytest.raises(ValueError, match="similarity must be one of"):
        timm.create_model("adder_lenet5_bn", similarity="xor")
    with pytest.raises(ValueError, match="mean nothing to"):
        timm.create_model("adder_lenet5_bn", pretrained=True, similarity="conv")
    with pytest.raises(ValueError, match="input channel"):
        timm.create_model("adder_lenet5_bn", pretrained=True, in_chans=3)
    with pytest.raises(ValueError, match="32 x 32"):
        timm.create_model("adder_lenet5_bn")(torch.randn(1, 1, 28, 28))
    with pytest.raises(ValueError, match="32 x 32"):
        timm.create_model("adder_lenet5_bn", img_size=64)
    with pytest.raises(ValueError, match="global_pool"):
        timm.create_model("adder_lenet5_bn", global_pool="max")
    with pytest.raises(ValueError, match="was not built by timm"):
        save_pretrained(nn.Linear(1, 1), tmp_path)


@pytest.mark.parametrize("damage", ["cut off", "foreign", "other shapes", "missing"])
def test_damaged_or_foreign_checkpoint_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    shutil.copy(WEIGHTS / NAMES[0] / "model.safetensors", file)
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "foreign":
        save_file({"layer.weight": torch.zeros(3)}, file)
    elif damage == "other shapes":
        tensors = load_file(file)
        tensors["stages.1.conv.weight"] = torch.zeros(16, 6, 3, 3)
        save_file(tensors, file)
    else:
        file.unlink()
    words = {"cut off": "damaged", "foreign": "another model", "other shapes": "another model", "missing": "no weights"}
    with pytest.raises((RuntimeError, FileNotFoundError), match=words[damage]) as caught:
        timm.create_model("adder_lenet5_bn", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert str(file) in str(caught.value)
