"""Which layers go into bytes, and what bytes pass on their way; each is held against the same network in floats."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import adder_zoo
from adder_zoo.int8.connect import MaxPoolOfBytes
from adder_zoo.int8.layers import QuantizedAdder2d
from adder_zoo.int8.saved import fused_for_bytes

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def settled(model, x=X):
    with adder_zoo.reestimated_batch_norm(model, [x]):
        return copy.deepcopy(model).eval()


def in_bytes(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantizedAdder2d)}


@torch.no_grad()
def same_as_apart(model, network, x=X):
    """Whether the network answers as the float one does with the same layers, each of which answers in float32."""
    apart = fused_for_bytes(model)
    for name, layer in in_bytes(network).items():
        alone = copy.deepcopy(layer)
        alone.emit(True, None)
        parent, _, child = name.rpartition(".")
        setattr(apart.get_submodule(parent), child, alone)
    return torch.equal(apart(x), network(x))


def adder(*args, **kwargs):
    return adder_zoo.Adder2d(*args, bias=False, **kwargs)


class Functional(nn.Module):
    """Two adder layers with ``between`` between them, and ``beside``, which reads the same value, added to the end."""

    def __init__(self, between, beside=None):
        super().__init__()
        self.first, self.norm = adder(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.norm2 = adder(6, 6, 1), nn.BatchNorm2d(6)
        self.between, self.beside = between, beside

    def forward(self, x):
        x = self.norm(self.first(x))
        y = self.norm2(self.second(self.between(x)))
        return y if self.beside is None else (y.flatten(1).mean(1) + self.beside(x).flatten(1).mean(1))


PASSES = {
    "max pooling": lambda: nn.MaxPool2d(2),
    "overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "dilated": lambda: nn.MaxPool2d((2, 3), (1, 2), (0, 1), (2, 1)),
    "relu": nn.ReLU,
    "relu and pooling": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    "nothing": lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.5)),
    "function": lambda: F.relu,
    "method": lambda: lambda x: x.relu(),
    "view": lambda: lambda x: x.view(x.size(0), 6, -1, 4),
    "reshape": lambda: lambda x: x.flatten(2).reshape(x.shape[0], 6, 4, 16),
}


@pytest.mark.parametrize("what", PASSES)
def test_bytes_pass_as_bytes(what):
    model = settled(Functional(PASSES[what]()))
    network = adder_zoo.quantize(model, X)
    first, second = in_bytes(network).values()
    assert not first.wide
    assert second.takes_bytes
    assert same_as_apart(model, network)


STOPS = {
    "average pooling": lambda: nn.AvgPool2d(2),
    "rounded up": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "another activation": nn.Hardswish,
    "scaled": lambda: lambda x: x * 2,
}


@pytest.mark.parametrize("what", STOPS)
def test_what_bytes_do_not_pass(what):
    model = settled(Functional(STOPS[what]()))
    network = adder_zoo.quantize(model, X)
    first, second = in_bytes(network).values()
    assert first.wide
    assert not second.takes_bytes
    assert same_as_apart(model, network)


@pytest.mark.parametrize(
    "beside", [nn.AvgPool2d(2), nn.MaxPool2d(2), lambda x: x, nn.Sigmoid()], ids=["average", "max", "itself", "other"]
)
def test_a_value_that_is_also_read_in_floats(beside):
    model = settled(Functional(nn.MaxPool2d(2), beside))
    network = adder_zoo.quantize(model, X)
    first, second = in_bytes(network).values()
    assert first.wide
    assert second.takes_bytes
    assert same_as_apart(model, network)


def test_a_pooling_that_is_called_twice():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = adder(3, 6, 3), nn.BatchNorm2d(6)
            self.second, self.norm2 = adder(6, 6, 1), nn.BatchNorm2d(6)
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return self.pool(self.norm2(self.second(self.pool(self.norm(self.first(x))))))

    model = settled(Network())
    network = adder_zoo.quantize(model, X)
    assert not in_bytes(network)["first"].wide
    assert same_as_apart(model, network)


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_value_that_is_written_over(through_a_view):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = adder(3, 6, 3), nn.BatchNorm2d(6)
            self.second, self.norm2 = adder(6, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            x = self.norm(self.first(x))
            F.relu_(x.view(x.shape)) if through_a_view else F.relu_(x)
            return self.norm2(self.second(x))

    model = settled(Network())
    assert same_as_apart(model, adder_zoo.quantize(model, X))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0), (2, 1)), (3, 1, 1)])
def test_max_pooling_of_bytes(options, order):
    x = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8).contiguous(memory_format=order)
    pool = MaxPoolOfBytes(*options)
    assert torch.equal(pool(x), F.max_pool2d(x.float(), *options).to(torch.uint8))
    assert torch.equal(pool(x.float()), F.max_pool2d(x.float(), *options))


# ---- layers without batch norm, and fully connected ones


def error(network, model, x):
    with torch.no_grad():
        wanted, got = model(x), network(x)
    return float((got - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


@pytest.mark.parametrize("bias", [False, True])
def test_without_batch_norm(bias):
    model = nn.Sequential(adder_zoo.Adder2d(3, 8, 3, bias=bias), nn.Flatten(), adder_zoo.AdderLinear(288, 5, bias))
    for layer in (model[0], model[2]):
        if bias:
            nn.init.normal_(layer.bias, std=10)
    model.eval()
    network = adder_zoo.quantize(model, X)
    assert len(in_bytes(network)) == 2
    assert not in_bytes(network)["0"].wide
    assert error(network, model, X) < 0.01
    assert same_as_apart(model, network)
    assert network.half()(X.half()).dtype == torch.float32, "as the float layer answers"


@pytest.mark.parametrize("shape", [(16, 7), (4, 5, 7), (7,), (2, 3, 4, 7)])
def test_fully_connected_layers_take_any_leading_dimensions(shape):
    model = nn.Sequential(adder_zoo.AdderLinear(7, 6), nn.ReLU(), adder_zoo.AdderLinear(6, 5)).eval()
    nn.init.constant_(model[0].bias, 9.0)

    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            return self.layers(x.flatten(1))

    x = torch.randn(shape)
    network = adder_zoo.quantize(Vectors().eval(), torch.randn(500, 7, 1, 1))
    alone = network.layers
    with torch.no_grad():
        hidden = alone.get_submodule("0")(x)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        got = alone.get_submodule("2")(hidden)
    assert got.shape == model(x).shape
    assert in_bytes(network)["layers.2"].takes_bytes
    assert error(network, Vectors().eval(), torch.randn(500, 7, 1, 1)) < 0.01


def test_a_layer_alone():
    layer = adder_zoo.Adder2d(3, 4, 3).eval()
    network = adder_zoo.quantize(layer, X)
    assert error(network, layer, X) < 0.01


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_fuse_takes_fully_connected_layers(affine, bias):
    model = nn.Sequential(adder_zoo.AdderLinear(9, 6, bias), nn.BatchNorm1d(6, affine=affine), nn.ReLU())
    x = torch.randn(50, 9)
    if bias:
        nn.init.normal_(model[0].bias)
    if affine:
        nn.init.normal_(model[1].weight)
        nn.init.normal_(model[1].bias)
    model = settled(model, x)
    fused = adder_zoo.fuse(model)
    assert len(list(fused.parameters())) == 1
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:fuse. nothing was fused")
@pytest.mark.parametrize("length", [4, 6])
def test_batch_norm_over_the_middle_of_a_sequence(length):
    """Of [N, L, C] batch norm takes L for the features: never one pass, and never a wrong answer."""
    x = torch.randn(50, length, 3, 3)

    class Images(nn.Sequential):
        def forward(self, x):
            return super().forward(x.flatten(2))

    model = settled(Images(adder_zoo.AdderLinear(9, 6), nn.BatchNorm1d(length), nn.ReLU()), x)
    nn.init.normal_(model[0].bias)
    fused = adder_zoo.fuse(model)
    if length == 6:
        with pytest.raises(ValueError, match=r"takes \[N, C\], got \[50, 6, 9\].*before adder_zoo.fuse"):
            fused(x)
        with pytest.raises(ValueError, match=r"quantize: 0 is given \[50, 6, 9\]"):
            adder_zoo.quantize(model, x)
    else:
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
        assert error(adder_zoo.quantize(model, x), model, x) < 0.01


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.norm2 = nn.BatchNorm2d(3), adder(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm2(self.layer(self.norm(x) if x.mean() < 1e9 else x))


@pytest.mark.parametrize("copied", [lambda n: n, copy.deepcopy], ids=["itself", "copy"])
def test_refused_training_leaves_no_part_in_training_mode(copied):
    for model in (settled(Branching()), settled(Functional(nn.ReLU()))):
        network = copied(adder_zoo.quantize(model, X))
        with torch.no_grad():
            wanted = network(X)
            with pytest.raises(RuntimeError, match="was quantised for inference"):
                network.train()
            assert not any(module.training for module in network.modules())
            assert torch.equal(network.eval()(X), wanted)
            assert torch.equal(pickle.loads(pickle.dumps(network))(X), wanted)
