"""``Adder2d`` and ``AdderLinear`` against the conventions of ``nn.Conv2d`` and ``nn.Linear`` and the operator."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import truth
from torch import nn

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, adder2d, adder_parameters
from adder_zoo.layers import Adder2dSame, is_adder_weight

GEOMETRIES = [
    pytest.param({}, id="plain"),
    pytest.param({"stride": 2, "padding": 1}, id="stride 2"),
    pytest.param({"padding": "same", "dilation": 2}, id="same, dilated"),
    pytest.param({"padding": "valid", "groups": 2, "bias": False}, id="groups"),
    pytest.param({"padding": (1, 2), "padding_mode": "circular"}, id="circular"),
    pytest.param({"padding": 1, "padding_mode": "reflect", "stride": (2, 1)}, id="reflect"),
    pytest.param({"padding": "same", "padding_mode": "replicate"}, id="replicate, same"),
]


@pytest.mark.parametrize("options", GEOMETRIES)
def test_attributes_keys_repr_and_shape_are_those_of_conv2d(options):
    conv, adder = nn.Conv2d(4, 6, (3, 2), **options), Adder2d(4, 6, (3, 2), **options)
    for name in (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
        "transposed", "output_padding",
    ):  # fmt: skip
        assert getattr(adder, name) == getattr(conv, name), name
    assert repr(adder) == repr(conv).replace("Conv2d", "Adder2d")
    assert {k: v.shape for k, v in adder.state_dict().items()} == {k: v.shape for k, v in conv.state_dict().items()}
    x = torch.randn(2, 4, 9, 8)
    assert adder(x).shape == conv(x).shape
    assert adder(x[0]).shape == conv(x[0]).shape


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_pad_with_pixels(mode):
    layer = Adder2d(3, 5, 3, padding=(1, 2), padding_mode=mode, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    padded = F.pad(x, (2, 2, 1, 1), mode=mode)
    want = truth.forward(padded.numpy(), layer.weight.detach().numpy())[0]
    assert (layer(x).detach() - torch.from_numpy(want)).abs().max() < 1e-12


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (9, 5, 3), (6, 2, 1), (5, 1, 2)])
def test_same_layer_agrees_with_timms_same_convolution_about_where_taps_lie(size, kernel, stride):
    from timm.layers import Conv2dSame

    layer = Adder2dSame(2, 3, kernel, stride, bias=False)
    x = torch.randn(1, 2, size, size)
    # Σ(x - w)² = ‖x‖² + ‖w‖² - 2<x, w>: with p = 2 the layer must answer with timm's convolutions.
    layer.p = 2.0
    conv, ones = Conv2dSame(2, 3, kernel, stride, bias=False), Conv2dSame(2, 3, kernel, stride, bias=False)
    conv.weight, ones.weight = nn.Parameter(layer.weight.detach()), nn.Parameter(torch.ones_like(layer.weight))
    want = 2 * conv(x) - ones(x.square()) - layer.weight.square().sum((1, 2, 3)).view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


def test_weights_start_standard_normal_and_bias_zero():
    torch.manual_seed(0)
    for layer in (Adder2d(64, 64, 3), AdderLinear(512, 128)):
        n = layer.weight.numel()
        assert abs(layer.weight.mean()) < 5 / n**0.5
        assert abs(layer.weight.std() - 1) < 5 / (2 * n) ** 0.5
        assert not layer.bias.any()


def test_options_reach_the_operator():
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    layer = Adder2d(3, 4, 3, weight_grad="sign", input_grad="full", impl="reference")
    assert repr(layer).endswith("weight_grad='sign', input_grad='full', impl='reference')")
    layer(x).sum().backward()
    w = layer.weight.detach().clone().requires_grad_()
    x2 = x.detach().clone().requires_grad_()
    adder2d(x2, w, layer.bias.detach(), weight_grad="sign", input_grad="full", impl="reference").sum().backward()
    assert torch.equal(x.grad, x2.grad)
    assert torch.equal(layer.weight.grad, w.grad)
    assert torch.equal(layer.bias.grad, torch.full((4,), 2.0 * 4 * 4))


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7), (0, 7)])
def test_linear_is_the_distance_over_features(shape):
    layer = AdderLinear(7, 5, dtype=torch.float64)
    nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    want = layer.bias - (x.unsqueeze(-2) - layer.weight).abs().sum(-1)
    got = layer(x)
    assert got.shape == (*shape[:-1], 5)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(got)
    dx, dw, db = torch.autograd.grad(got, (x, layer.weight, layer.bias), dy)
    d = x.detach().unsqueeze(-2) - layer.weight.detach()  # [..., K, C]
    torch.testing.assert_close(dx, (dy.unsqueeze(-1) * (-d).clamp(-1, 1)).sum(-2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dw, (dy.unsqueeze(-1) * d).reshape(-1, 5, 7).sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(db, dy.reshape(-1, 5).sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_recognised_as_adder_layers(copied):
    model = copied(nn.Sequential(Adder2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), AdderLinear(2, 3)))
    assert is_adder_weight(model.parameters()) == [True, False, False, False, True, False]
    assert list(adder_parameters(model)) == [model[0].weight, model[3].weight]


def test_layer_that_is_gone_is_forgotten():
    layer = Adder2d(1, 1, 1)
    bias = layer.bias
    assert is_adder_weight([layer.weight, bias]) == [True, False]
    del layer
    assert is_adder_weight([bias]) == [False]


def fold_bn_after_the_example_of_torch(layer, bn):
    """Such functions are written by many; their names say what they do."""
    layer = copy.deepcopy(layer)
    layer.weight, layer.bias = torch.nn.utils.fuse_conv_bn_weights(
        layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_cannot_be_folded(bias):
    """It would give a wrong answer: a distance is not linear in its filters."""
    conv, same = Adder2d(3, 4, 3, bias=bias).eval(), Adder2dSame(3, 4, 3, bias=bias).eval()
    linear = AdderLinear(3, 4, bias=bias).eval()
    bn, bn1 = nn.BatchNorm2d(4).eval(), nn.BatchNorm1d(4).eval()
    for fold, layer, norm in (
        (torch.nn.utils.fuse_conv_bn_eval, conv, bn),
        (torch.nn.utils.fuse_conv_bn_eval, same, bn),
        (torch.nn.utils.fuse_linear_bn_eval, linear, bn1),
        (fold_bn_after_the_example_of_torch, conv, bn),
    ):
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(RuntimeError, match=r"cannot be folded into the filters.*adder_zoo\.fuse"):
            fold(layer, norm)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_parameters_can_be_copied_and_given_otherwise():
    layer, other = Adder2d(3, 4, 3), Adder2d(3, 4, 3)
    x = torch.randn(1, 3, 5, 5)
    other.weight, other.bias = layer.weight, layer.bias
    assert other.weight is layer.weight
    assert torch.equal(other(x), layer(x))
    other.weight = nn.Parameter(layer.weight.detach() * 2)
    assert torch.equal(copy.deepcopy(other).weight, 2 * layer.weight)
    other.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(other(x), layer(x))
    torch.nn.utils.parametrizations.weight_norm(other)
    torch.testing.assert_close(other(x), layer(x), rtol=1e-4, atol=1e-4)


def test_channels_last_is_kept_and_gives_the_same():
    layer = Adder2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 8, 8)
    y = layer(x)
    fast = copy.deepcopy(layer).to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, fast)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: Adder2d(3, 4, 3, groups=2), ValueError, "in_channels"),
        (lambda: Adder2d(4, 4, 3, padding="full"), ValueError, "padding"),
        (lambda: Adder2d(4, 4, 3, padding_mode="mirror"), ValueError, "padding_mode"),
        (lambda: Adder2d(4, 4, 3, stride=2, padding="same"), ValueError, "strided"),
        (lambda: Adder2d(4, 4, 3, weight_grad="clipped"), ValueError, "weight_grad"),
        (lambda: Adder2d(4, 4, 3, input_grad="none"), ValueError, "input_grad"),
        (lambda: Adder2d(4, 4, 3, p=3), ValueError, "p must be"),
        (lambda: Adder2d(4, 4, 3, impl="cuda"), ValueError, "impl"),
        (lambda: AdderLinear(0, 4), ValueError, "at least one feature"),
        (lambda: AdderLinear(3, 4)(torch.zeros(2, 5)), ValueError, "3 features"),
        (lambda: Adder2d(3, 4, 3)(torch.zeros(1, 2, 8, 8)), ValueError, "expects 3 input channels"),
    ],
)
def test_wrong_arguments_are_refused_by_name(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_public_names():
    for name in adder_zoo.__all__:
        assert getattr(adder_zoo, name) is not None
