"""Batch norm behind a float convolution goes into it, in a network in bytes and in the twin that it is timed beside."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import adder_zoo
from adder_zoo import norms
from adder_zoo.cli.bench import _networks
from adder_zoo.int8.folding import folded

X = torch.randn(16, 4, 9, 9, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self, stem, norm, between=None):
        super().__init__()
        self.stem, self.norm, self.between = stem, norm, between or nn.Identity()
        self.layer, self.norm2 = adder_zoo.Adder2d(6, 5, 1, bias=False), nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm2(self.layer(self.between(self.norm(self.stem(x)))))


class Twice(Network):
    """The convolution has two readers."""

    def forward(self, x):
        y = self.stem(x)
        return self.norm2(self.layer(self.norm(y) + y))


class NormTwice(Network):
    def forward(self, x):
        return self.norm2(self.layer(self.norm(self.norm(self.stem(x)))))


def settled(make, seed=0):
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with adder_zoo.reestimated_batch_norm(model, [X]):
        return copy.deepcopy(model).eval()


FOLDED = {
    "plain": lambda: Network(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "bias": lambda: Network(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
    "no affine": lambda: Network(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
    "groups": lambda: Network(nn.Conv2d(4, 6, (1, 3), groups=2, padding_mode="reflect"), norms.BatchNorm2d(6)),
    "activation": lambda: Network(nn.Conv2d(4, 6, 3), BatchNormAct2d(6)),
    "other activation": lambda: Network(nn.Conv2d(4, 6, 3), BatchNormAct2d(6, act_layer=nn.SiLU)),
    "channels_last": lambda: Network(nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(6)),
}
STAYS = {
    "two readers": lambda: Twice(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)),
    "norm twice": lambda: NormTwice(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)),
    "between": lambda: Network(nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU()), nn.BatchNorm2d(6)),
    "transposed": lambda: Network(nn.ConvTranspose2d(4, 6, 1), nn.BatchNorm2d(6)),
    "without statistics": lambda: Network(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)),
}


def stem_in_float64(model):
    with torch.no_grad():
        model = copy.deepcopy(model).double()
        return model.norm(model.stem(X.double()))


@pytest.mark.parametrize("what", FOLDED)
def test_batch_norm_goes_into_the_convolution(what):
    model = settled(FOLDED[what])
    before = copy.deepcopy(model.state_dict())
    network = adder_zoo.quantize(model, X)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(key.startswith("norm") for key in network.state_dict())
    stem = network.get_submodule("stem")
    size = copy.deepcopy(stem).double()
    for tensor in size.parameters():
        tensor.abs_()
    with torch.no_grad():
        got, wanted = stem(X), stem_in_float64(model)
        if "activation" in what:
            got = network.get_submodule("norm")(got)
        # The folded filters, and the products and sums of at most 36 taps and a bias, each rounded once.
        bound = 40 * 2**-24 * size(X.double().abs())
    assert torch.all((got - wanted).abs() <= 1.1 * bound)  # the slope of SiLU is at most 1.1
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("what", STAYS)
def test_what_stays_as_it_is(what):
    model = settled(STAYS[what])
    network = adder_zoo.quantize(model, X)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        wanted = model(X)
        assert (network(X) - wanted).square().mean() < 0.01 * (wanted - wanted.mean(0)).square().mean()


def test_half_precision_and_copies():
    model = settled(FOLDED["bias"])
    network = adder_zoo.quantize(model, X)
    with torch.no_grad():
        wanted = network(X)
        assert torch.equal(copy.deepcopy(network)(X), wanted)
        half = copy.deepcopy(network).bfloat16()
        assert half.get_submodule("stem").bias.dtype == torch.bfloat16
        error = half(X.bfloat16()).float() - wanted
        assert error.square().mean() < 0.01 * wanted.var()


def test_the_twin_that_bench_times_has_it_folded_too():
    twin = _networks("adder_resnet20.cifar10_int8", train=False)["conv"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in twin.modules()) == 22
    assert all(module.bias is not None for module in twin.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("name", ["adder_resnet20", "adder_vgg_small", "adder_tf_efficientnet_b0"])
def test_a_folded_twin_answers_as_before(name):
    torch.manual_seed(0)
    model, x = timm.create_model(name, similarity="conv").eval(), torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
        before = model(x)
        network = folded(model)
        got = network(x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    # Each layer rounds a few times less; which way the rest falls is chance.
    assert (got - wanted).abs().max() <= 4 * (before - wanted).abs().max()
