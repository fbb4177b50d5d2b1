"""Weights in layers of another kind than they were trained in: whoever loads them is told, and never gets an answer."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from adder_zoo import Adder2d, convert_to_adder
from adder_zoo.checkpoints import CheckpointError, load_checkpoint
from adder_zoo.hub import save_pretrained
from adder_zoo.hub.records import trained_alike
from adder_zoo.misfits import misfits
from adder_zoo.models.mobilenet_cifar import adder_mobilenetv2_cifar
from adder_zoo.training import RecipeError, Settings, create_networks

CIFAR = "adder_mobilenetv2_cifar"
EVERY = "*.conv_dw,*.conv_pwl,*.conv_pw"  # but for the last, these are convolutions


def warmed(model, size=32):
    """``model`` with statistics of random images, as training would leave them."""
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(16, 3, size, size))
    return model.eval()


@pytest.fixture(scope="module", params=["", "*.conv_dw", EVERY])
def trained(request):
    torch.manual_seed(0)
    return request.param, warmed(timm.create_model(CIFAR, convolutions=request.param))


@pytest.fixture
def file(trained, tmp_path):
    save_file(trained[1].state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def same(one, other):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return torch.equal(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    "name",
    ["adder_resnet20.cifar10", "adder_lenet5_bn.mnist", "adder_lenet5_bn.fashion_mnist", "adder_lenetpp.mnist"],
)
def test_shipped_weights_fit(name):
    assert misfits(timm.create_model(name, pretrained=True)) is None


@pytest.mark.parametrize("similarity", ["adder", "conv"])
@pytest.mark.parametrize("name", ["adder_resnet18", "adder_densenet121", "adder_regnety_002", "adder_vgg11_bn"])
def test_networks_with_their_own_statistics_fit_and_their_twins_do_not(name, similarity):
    model = warmed(timm.create_model(name, similarity=similarity), 64)
    assert misfits(model) is None
    other = timm.create_model(name, similarity="conv" if similarity == "adder" else "adder")
    other.load_state_dict(model.state_dict())
    assert misfits(other)


def test_untrained_networks_fit_and_nothing_is_changed():
    model = timm.create_model(CIFAR).train()
    before = copy.deepcopy(model.state_dict())
    assert misfits(model) is None
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_layer_is_enough():
    model = warmed(timm.create_model(CIFAR))
    norm = model.blocks[1][0].bn2  # behind a convolution
    norm.running_mean.copy_(-2 * norm.running_var.sqrt())
    assert misfits(model) == "means behind blocks.1.0.conv_dw are those of adder layers, and here are convolutions"
    norm.running_mean.zero_()
    assert misfits(model) is None
    model.blocks[1][0].bn1.running_mean[3] = 1e-6  # behind an adder layer
    assert misfits(model) == "means behind blocks.1.0.conv_pw are positive, and what an adder layer answers never is"


@pytest.mark.parametrize("asked", [None, "", EVERY])
def test_a_checkpoint(trained, file, asked):
    convolutions, model = trained
    if (asked if asked is not None else "*.conv_dw") == convolutions:
        assert same(load_checkpoint(file, f"{CIFAR}.cifar10", convolutions=asked), model)
    else:
        with pytest.raises(CheckpointError, match=r"in the places of this network: means .* name layers .* by --conv"):
            load_checkpoint(file, f"{CIFAR}.cifar10", convolutions=asked)


def test_a_checkpoint_with_a_pattern_that_fits_nothing(file):
    with pytest.raises(CheckpointError, match="no convolution has a name like 'x'"):
        load_checkpoint(file, CIFAR, convolutions="x")
    with pytest.raises(CheckpointError, match="convolutions"):
        load_checkpoint(file, "adder_resnet20", convolutions="x")


@pytest.mark.parametrize("asked", ["", "none", EVERY])
def test_a_recipe_that_begins_with_a_file(trained, file, asked):
    convolutions, model = trained
    settings = Settings(model=CIFAR, init=str(file), convolutions=asked)
    if {"": "*.conv_dw", "none": ""}.get(asked, asked) == convolutions:
        assert same(create_networks(settings, f"{CIFAR}.cifar10")[0], model)
    else:
        with pytest.raises(RecipeError, match="in the places of this network"):
            create_networks(settings, f"{CIFAR}.cifar10")


@pytest.mark.parametrize("asked", [None, "", EVERY])
def test_a_file_by_timms_overlay(trained, file, asked):
    convolutions, model = trained
    options = {} if asked is None else {"convolutions": asked}
    overlay = {"file": str(file)}
    if options.get("convolutions", "*.conv_dw") == convolutions:
        assert same(timm.create_model(CIFAR, pretrained=True, pretrained_cfg_overlay=overlay, **options), model)
    else:
        with pytest.raises(ValueError, match=r"were trained with other layers: means"):
            timm.create_model(CIFAR, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def test_shipped_weights_in_another_similarity_of_one_file(tmp_path):
    save_file(warmed(timm.create_model("adder_resnet20", similarity="conv")).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="were trained with other layers"):
        timm.create_model(
            "adder_resnet20", pretrained=True, pretrained_cfg_overlay={"file": f"{tmp_path}/x.safetensors"}
        )


@pytest.mark.parametrize("options", [{}, {"convolutions": ""}, {"convolutions": EVERY}, {"similarity": "conv"}])
def test_a_network_from_its_own_function_is_saved_as_it_is(tmp_path, options):
    model = adder_mobilenetv2_cifar(**options).eval()
    save_pretrained(model, tmp_path / "ours")
    save_for_hf(model, tmp_path / "timms", safe_serialization=True)
    for folder in ("ours", "timms"):
        assert same(timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True), model)


def test_the_same_layers_by_other_patterns_are_accepted(tmp_path):
    model = timm.create_model(CIFAR, convolutions="*.conv_dw,*.conv_pwl")
    save_pretrained(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, convolutions=" *.conv_pwl, *.conv_dw,")
    assert same(again, model)


def test_the_refusal_says_what_to_give(tmp_path):
    save_pretrained(timm.create_model(CIFAR, convolutions=""), tmp_path)
    with pytest.raises(ValueError, match=r"Give convolutions='', or use pretrained=False"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, convolutions="*.conv_dw")


@pytest.mark.parametrize("given", [["*.conv_dw"], ("*.conv_dw",), True, 3])
def test_what_is_no_string(given):
    with pytest.raises(TypeError, match=r"one string of patterns with commas between them.*got"):
        timm.create_model(CIFAR, convolutions=given)
    with pytest.raises(TypeError, match=r"one string of patterns"):
        convert_to_adder(timm.create_model("mobilenetv2_050"), convolutions=given)


def steps(model):
    convert_to_adder(model, convolutions="*.conv_dw")
    return convert_to_adder(model)


@pytest.mark.parametrize(
    ("convert", "recorded"),
    [
        (steps, None),
        (lambda m: convert_to_adder(m, lambda name, _: name != "conv_stem"), None),
        (lambda m: convert_to_adder(m, lambda name, _: name not in ("conv_stem", "conv_head")), "conv_head"),
        (lambda m: convert_to_adder(m, convolutions="*.conv_dw"), "*.conv_dw"),
        (lambda m: convert_to_adder(m, lambda name, c: c.groups == 1 and name != "conv_stem"), "depthwise"),
    ],
)
def test_every_conversion_that_the_registry_has_is_saved(tmp_path, convert, recorded):
    model = convert(timm.create_model("mobilenetv2_035")).eval()
    save_pretrained(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(again, model)
    found = again._model_args.get("convolutions")
    if recorded == "depthwise":
        assert found.count("conv_dw") == found.count(",") + 1 == 17
    else:
        assert found == recorded


def test_a_twin_of_the_zoo_that_is_converted(tmp_path):
    model = convert_to_adder(timm.create_model(CIFAR, similarity="conv")).eval()
    assert sum(isinstance(m, Adder2d) for m in model.modules()) == 51
    save_pretrained(model, tmp_path)
    assert same(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), model)


def test_a_network_converted_inside_another():
    outer = nn.Sequential(timm.create_model("mobilenetv2_035", num_classes=4))
    convert_to_adder(outer, convolutions="0.*.conv_dw")
    assert outer[0]._model_args["convolutions"].count("conv_dw") == 17
    assert outer[0].pretrained_cfg["architecture"] == "adder_mobilenetv2_035"


def test_the_twin_of_a_run_with_other_layers():
    run = {"model": CIFAR, "similarity": "adder", "config": {"convolutions": "none", "similarity": "adder", "lr": 1}}
    twin = {"model": CIFAR, "similarity": "conv", "config": {"convolutions": "", "similarity": "conv", "lr": 1}}
    assert trained_alike(run, twin)
    assert not trained_alike(run, {**twin, "config": {**twin["config"], "lr": 2}})
