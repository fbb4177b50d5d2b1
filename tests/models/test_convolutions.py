"""Layers that stay convolutions by their name: in the zoo's networks, in converted ones, saved and loaded again."""

import fnmatch
import json

import pytest
import timm
import torch
from torch import nn

import adder_zoo
from adder_zoo import Adder2d, convert_to_adder
from adder_zoo.hub import save_pretrained
from adder_zoo.training import RecipeError, Settings, create_networks

V1, CIFAR = "adder_mobilenetv1_cifar", "adder_mobilenetv2_cifar"


def adders(model):
    return {name for name, module in model.named_modules() if isinstance(module, Adder2d)}


def all_convolutions(model):
    return {name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, Adder2d))}


@pytest.mark.parametrize("name", [CIFAR, "adder_mobilenetv2_050", "adder_mobilenetv3_small_050"])
def test_named_layers_stay_and_no_others(name):
    everything = timm.create_model(name, convolutions="")
    network = timm.create_model(name, convolutions="*.conv_dw, blocks.1.0.conv_pw")
    stay = {n for n in adders(everything) if fnmatch.fnmatch(n, "*.conv_dw")} | {"blocks.1.0.conv_pw"}
    assert adders(network) == adders(everything) - stay
    assert len(stay) > 5
    network(torch.randn(2, *network.pretrained_cfg["input_size"])).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(("name", "layers", "features"), [(V1, 10, 256), (CIFAR, 17, 640)])
def test_mobilenets_for_cifar(name, layers, features):
    network, twin = (timm.create_model(name, similarity=similarity) for similarity in ("adder", "conv"))
    assert not adders(twin)
    kept = all_convolutions(network) - adders(network)
    depthwise = {n for n, m in twin.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert kept == depthwise | {"conv_stem"}
    assert len(depthwise) == layers
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}
    assert network.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, features, 4, 4)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert timm.create_model(f"{name}.cifar100").num_classes == 100


@pytest.mark.parametrize("name", [V1, CIFAR])
def test_their_features_have_the_strides_that_they_name(name):
    features = timm.create_model(name, features_only=True, in_chans=1)
    maps = features(torch.randn(2, 1, 32, 32))
    assert [m.shape[2:] for m in maps] == [(32 // r, 32 // r) for r in features.feature_info.reduction()]
    assert [m.shape[1] for m in maps] == features.feature_info.channels()


@pytest.mark.parametrize("name", [CIFAR, "adder_mobilenetv2_050"])
@pytest.mark.parametrize("similarity", ["adder", "conv"])
def test_a_pattern_that_fits_nothing(name, similarity):
    with pytest.raises(
        ValueError, match=r"no convolution has a name like 'conv_dw'; there are conv_stem, blocks\.\*\.\*\.conv_dw, "
    ):
        timm.create_model(name, convolutions="*.conv_pw,conv_dw", similarity=similarity)


@pytest.mark.parametrize(
    ("name", "convolutions"), [(V1, None), (V1, ""), (CIFAR, None), (CIFAR, ""), (CIFAR, "*.conv_pwl")]
)
def test_saved_and_loaded_again(tmp_path, name, convolutions):
    options = {} if convolutions is None else {"convolutions": convolutions}
    network = timm.create_model(name, **options).eval()
    save_pretrained(network, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert adders(again) == adders(network)
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(("trained", "asked"), [("", "*.conv_dw"), (None, ""), ("*.conv_pwl", "*.conv_dw")])
def test_weights_of_other_layers_are_refused(tmp_path, trained, asked):
    save_pretrained(timm.create_model(CIFAR, **({} if trained is None else {"convolutions": trained})), tmp_path)
    with pytest.raises(ValueError, match=r"were trained with convolutions=.* and mean nothing with"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, convolutions=asked)


def test_in_bytes_and_back(tmp_path):
    network = timm.create_model(CIFAR)
    network(torch.randn(64, 3, 32, 32))  # gives batch norm its statistics
    in_bytes = adder_zoo.quantize(network.eval(), [torch.randn(8, 3, 32, 32)])
    save_pretrained(in_bytes, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), in_bytes(x))


def test_convert_to_adder(tmp_path):
    model = convert_to_adder(timm.create_model("mobilenetv2_050", num_classes=7), convolutions="*.conv_dw").eval()
    by_name = timm.create_model("adder_mobilenetv2_050", convolutions="*.conv_dw")
    assert adders(model) == adders(by_name)
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["convolutions"] == "*.conv_dw"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))


def test_convert_to_adder_with_both_ways_to_choose():
    chosen = []

    def choose(name, module):
        chosen.append(name)
        return name != "conv_stem"

    model = convert_to_adder(timm.create_model("mobilenetv2_050"), choose, convolutions="*.conv_dw,*.conv_pwl")
    assert {n.rpartition(".")[2] for n in adders(model)} == {"conv_pw", "conv_head"}
    assert not any(fnmatch.fnmatch(name, "*.conv_dw") for name in chosen)  # it is asked about the others only


def test_convert_to_adder_leaves_the_network_where_a_pattern_is_wrong():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"no convolution has a name like 'x'; there are 0, 2$"):
        convert_to_adder(model, convolutions="x")
    assert not adders(model)
    assert adders(convert_to_adder(model, convolutions="2", filter_fn=lambda name, module: True)) == {"0"}


def test_a_recipe_names_them():
    def network(**settings):
        return create_networks(Settings(model=CIFAR, **settings), f"{CIFAR}.cifar10", num_classes=10)[0]

    assert adders(network()) == adders(timm.create_model(CIFAR))
    assert adders(network(convolutions="none")) == adders(timm.create_model(CIFAR, convolutions=""))
    assert adders(network(convolutions="*.conv_pw")) == adders(timm.create_model(CIFAR, convolutions="*.conv_pw"))
    with pytest.raises(RecipeError, match="no convolution has a name like"):
        network(convolutions="nothing")
    with pytest.raises(RecipeError, match="convolutions"):  # a network that leaves no choice
        create_networks(Settings(model="adder_resnet20", convolutions="layer1*"), "adder_resnet20.cifar10")
