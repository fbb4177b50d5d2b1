"""``convert_to_adder``: what is converted, what stays, what is refused, and that nothing is lost."""

import copy
import warnings

import pytest
import timm
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from adder_zoo import Adder2d, convert_to_adder
from adder_zoo.layers import Adder2dSame


def kinds(model):
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, Adder2d))}


def test_first_convolution_and_classifier_stay():
    model = timm.create_model("resnet18")
    before = kinds(model)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert convert_to_adder(model) is model
    after = kinds(model)
    assert list(after) == list(before)
    assert [name for name, kind in after.items() if kind is not Adder2d] == ["conv1"]
    assert isinstance(model.fc, nn.Linear)
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    loss = model.train()(torch.randn(2, 3, 64, 64)).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gates_stay_and_same_padding_is_kept():
    model = convert_to_adder(timm.create_model("tf_efficientnet_b0"))
    for name, kind in kinds(model).items():
        if name == "conv_stem" or ".se." in name:
            assert not issubclass(kind, Adder2d), name
        else:
            assert issubclass(kind, Adder2d), name
    strided = model.blocks[1][0].conv_dw
    assert type(strided) is Adder2dSame
    assert strided.stride == (2, 2)
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 65, 65)).shape == (1, 1000)


def test_bare_network_keeps_its_first_convolution():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5))
    convert_to_adder(model)
    assert type(model[0]) is nn.Conv2d
    assert repr(model[2]) == "Adder2d(4, 5, kernel_size=(3, 3), stride=(1, 1), bias=False)"


def test_filter_and_options():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))
    asked = []
    convert_to_adder(
        model, lambda name, m: asked.append((name, m)) or name == "0", weight_grad="sign", input_grad="full", p=1.5
    )
    assert [name for name, _ in asked] == ["0", "2"]
    assert type(model[2]) is nn.Conv2d
    assert (model[0].weight_grad, model[0].input_grad, model[0].p) == ("sign", "full", 1.5)


def test_parameters_keep_their_identity_mode_dtype_and_values_on_request():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)).double().eval()
    weight, values, bias = model[2].weight, model[2].weight.detach().clone(), model[2].bias.detach().clone()
    convert_to_adder(model, reset_weights=False)
    assert model[2].weight is weight
    assert torch.equal(weight, values)
    assert torch.equal(model[2].bias, bias)
    assert not model[2].training
    assert model[2].weight.dtype == torch.float64
    convert_to_adder(again := nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3)))
    assert 0.9 < again[2].weight.std() < 1.1


def test_a_convolution_that_is_used_twice_stays_one():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "a": shared, "b": shared})
    convert_to_adder(model)
    assert isinstance(model["a"], Adder2d)
    assert model["a"] is model["b"]


def test_a_convolution_itself_gives_the_layer():
    layer = convert_to_adder(nn.Conv2d(3, 4, 3, stride=2), lambda name, m: True)
    assert isinstance(layer, Adder2d)
    assert layer.stride == (2, 2)


def test_on_the_meta_device():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    convert_to_adder(model)
    assert all(p.is_meta for p in model.parameters())


class Unusual(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "bad",
    [
        StdConv2d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv1d(4, 4, 3),
        nn.Conv3d(4, 4, 3),
        nn.LazyConv2d(4, 3),
        Unusual(4, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_has_no_adder_form_is_refused_by_name_and_nothing_changes(bad):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model.add_module("odd", bad)
    with pytest.raises(ValueError, match=r"odd \(\w+\): .*"):
        convert_to_adder(model)
    assert type(model[1]) is nn.Conv2d
    convert_to_adder(model, lambda name, m: name == "1")
    assert type(model[1]) is Adder2d
    assert model.odd is bad


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ValueError, match="holds no convolution"):
        convert_to_adder(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="left out"):
        convert_to_adder(nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_warns_where_no_normalisation_is():
    with pytest.warns(UserWarning, match="no normalisation"):
        convert_to_adder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))


def test_same_convolution_becomes_a_same_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Conv2dSame(4, 4, 3, 2, bias=False))
    convert_to_adder(model)
    assert type(model[2]) is Adder2dSame
    assert model(torch.randn(1, 3, 9, 9)).shape == (1, 4, 4, 4)


def test_refusals_are_grouped_and_leave_the_model_alone():
    model = timm.create_model("resnetv2_50x1_bit")
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=r"and 49 more \(StdConv2d\)"):
        convert_to_adder(model)
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(ValueError, match="mixed anew for each image"):
        convert_to_adder(timm.create_model("efficientnet_cc_b0_4e"))


def test_warns_layer_by_layer_where_no_norm_follows():
    with pytest.warns(UserWarning, match="no normalisation layer follows features"):
        convert_to_adder(timm.create_model("vgg11"))
    first, *convs = (nn.Conv2d(c, 8, 3) for c in (3, 8, 8))
    bare = nn.Sequential(first, nn.BatchNorm2d(8), *convs, nn.BatchNorm2d(8))
    with pytest.warns(UserWarning, match="follows 2 in Sequential"):
        convert_to_adder(bare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("resnet18", "res2net50_26w_4s", "densenet121"):
            convert_to_adder(timm.create_model(name))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_fusion_is_refused(name):
    """timm folds branches and batch norm into one convolution for inference; a distance does not allow it."""
    model = copy.deepcopy(convert_to_adder(timm.create_model(name))).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        with pytest.raises(RuntimeError, match="as only a convolution allows"):
            timm.utils.reparameterize_model(model)
        assert torch.equal(model(x), before)


def test_features_only_and_output_stride():
    model = convert_to_adder(timm.create_model("resnet18", features_only=True, output_stride=8))
    assert sum(isinstance(m, Adder2d) for m in model.modules()) == 19
    assert [m.shape[-1] for m in model(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 8, 8]
