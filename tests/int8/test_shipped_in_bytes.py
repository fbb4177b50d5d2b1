"""The networks in bytes that the package ships, by their tags."""

import json

import pytest
import timm
import torch

import adder_zoo
from adder_zoo.int8.layers import QuantizedAdder2d
from adder_zoo.paths import WEIGHTS

NAMES = sorted(path.name for path in WEIGHTS.glob("*_int8"))


def test_every_shipped_network_has_one():
    assert sorted(f"{path.name}_int8" for path in WEIGHTS.iterdir() if not path.name.endswith("_int8")) == NAMES
    listed = timm.list_models("adder_*", pretrained=True)
    assert set(NAMES) <= set(listed)
    for name in NAMES:
        assert timm.get_pretrained_cfg(name.partition(".")[0]).tag != name.partition(".")[2], "float is the default"


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_answers_as_the_float_network_does(name):
    network = timm.create_model(name, pretrained=True)
    model = timm.create_model(name.removesuffix("_int8"), pretrained=True).eval()
    x = torch.rand(8, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        wanted, got = model(x), network(x)
    assert torch.linalg.vector_norm(got - wanted) < 0.3 * torch.linalg.vector_norm(wanted - wanted.mean(0)) + 1
    for key in ("input_size", "mean", "std", "label_names", "crop_pct"):
        assert network.pretrained_cfg[key] == model.pretrained_cfg[key]
    layers = {n for n, module in network.named_modules() if isinstance(module, QuantizedAdder2d)}
    assert layers == {n for n, m in model.named_modules() if isinstance(m, (adder_zoo.Adder2d, adder_zoo.AdderLinear))}
    assert timm.create_model(name)(x).shape == got.shape, "without weights"


def test_other_inputs():
    network = timm.create_model("adder_resnet20.cifar10_int8", pretrained=True)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), network(x))
        assert network(x[:0]).shape == (0, 10)
        assert network(torch.rand(1, 3, 48, 40)).shape == (1, 10)
        # The first convolution rounds otherwise in other batches, and now and then another byte follows from it.
        assert (torch.cat([network(x[:1]), network(x[1:])]) - network(x)).abs().max() < 0.5
        with pytest.raises((ValueError, RuntimeError), match="channel"):
            network(torch.rand(1, 1, 32, 32))
        lenet = timm.create_model("adder_lenet5_bn.mnist_int8", pretrained=True)
        assert lenet(torch.rand(0, 1, 32, 32)).shape == (0, 10)
        digits = torch.rand(3, 1, 32, 32)
        assert torch.equal(torch.cat([lenet(digits[:1]), lenet(digits[1:])]), lenet(digits))
        with pytest.raises(ValueError, match="takes images of 32 x 32 pixels"):
            lenet(torch.rand(1, 1, 28, 28))


def test_a_float_file_under_the_tag():
    overlay = {"file": str(WEIGHTS / "adder_resnet20.cifar10" / "model.safetensors")}
    with pytest.raises((RuntimeError, ValueError), match="of a network in float32, not of one in bytes"):
        timm.create_model("adder_resnet20.cifar10_int8", pretrained=True, pretrained_cfg_overlay=overlay)
    overlay = {"state_dict": timm.create_model("adder_resnet20.cifar10", pretrained=True).state_dict()}
    with pytest.raises(RuntimeError, match="what is loaded are float filters"):
        timm.create_model("adder_resnet20.cifar10_int8", pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(ValueError, match="num_classes of a network in bytes stays what it is"):
        timm.create_model("adder_resnet20.cifar10_int8", pretrained=True, num_classes=100)


@pytest.mark.parametrize("name", NAMES)
def test_their_results_are_within_a_sixth_of_a_point(name):
    results = json.loads((WEIGHTS / name / "results.json").read_text())
    assert results["test_images"] == 10_000
    assert results["test_accuracy"] >= results["quantized_from"]["results"]["test_accuracy"] - 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_command_makes_again(name, data_dir):
    """Needs the whole data sets: the ranges come from training images."""
    from adder_zoo import datasets
    from adder_zoo.cli._images import transform_of
    from adder_zoo.cli.quantize import InMemory, _drawn

    dataset = json.loads((WEIGHTS / name / "results.json").read_text())["dataset"]
    try:
        splits = datasets.load(dataset, datasets.find(dataset, str(data_dir / dataset)), True)
    except datasets.DataError as error:
        pytest.skip(str(error))
    model = timm.create_model(name.removesuffix("_int8"), pretrained=True).eval()
    images = _drawn(InMemory(*splits["train"], *transform_of(model)), 512)
    state = adder_zoo.quantize(model, images).state_dict()
    shipped = timm.create_model(name, pretrained=True).state_dict()
    same = sum(torch.equal(state[key], shipped[key]) for key in shipped if key.endswith(".ranges"))
    assert same >= 0.9 * sum(key.endswith(".ranges") for key in shipped), "another CPU may round another way"
