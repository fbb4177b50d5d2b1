"""ReLU and ReLU6 behind layers in bytes: part of the layer where they alone read it, and never another answer."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import adder_zoo
from adder_zoo.fuse import FusedAdder2d
from adder_zoo.int8.layers import QuantizedAdder2d, Range

X = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two layers with batch norm, whose values are spread beyond 6, and the code under test between them."""

    def __init__(self, between, images=X):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = adder_zoo.Adder2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None)
        self.c, self.d = adder_zoo.Adder2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None)
        self.relu, self.relu6, self.pool = nn.ReLU(), nn.ReLU6(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.between = between
        nn.init.constant_(self.b.weight, 5.0)
        with torch.no_grad():
            self.train()(images)
        self.eval()

    def forward(self, x):
        return self.d(self.c(self.between(self, self.b(self.a(x)))))


def apart(model, network):
    """The same layers in bytes, each of which hands on float32, and activations in float32 between them."""
    fused = adder_zoo.fuse(model)
    for name, module in list(fused.named_modules()):
        if isinstance(module, FusedAdder2d):
            alone = copy.deepcopy(network.get_submodule(name))
            alone.emit(True, None)
            alone.relu, alone.ceiling = module.relu, math.inf
            parent, _, child = name.rpartition(".")
            setattr(fused.get_submodule(parent), child, alone)
    return fused


def operations(network):
    return sum(node.op in ("call_function", "call_method") for node in network.graph.nodes)


ALONE = {
    "relu6": lambda m, y: m.relu6(y),
    "functional relu6": lambda m, y: F.relu6(y),
    "relu behind max pooling": lambda m, y: F.relu(m.pool(y)),
    "relu6 behind max pooling": lambda m, y: m.relu6(m.pool(y)),
    "relu6 and relu": lambda m, y: m.relu(F.relu6(y)),
    "relu and relu6": lambda m, y: m.relu6(m.relu(y)),
    "relu behind a new shape": lambda m, y: y.flatten(2).relu().unflatten(2, (8, 8)),
}
SHARED = {
    "relu6 that is read twice": lambda m, y: (lambda z: z + F.avg_pool2d(z, 3, 1, 1))(m.relu6(y)),
    "relu6 of one of two readers": lambda m, y: F.relu6(y) + y,
    "relu of one of two readers": lambda m, y: F.relu(m.pool(y)) + F.avg_pool2d(y, 3, 2, 1),
    "relu6 before average pooling": lambda m, y: F.avg_pool2d(F.relu6(y), 3, 1, 1),
}


@pytest.mark.parametrize("between", [*ALONE, *SHARED])
def test_it_answers_as_with_the_activation_by_itself(between):
    model = Two({**ALONE, **SHARED}[between])
    with torch.no_grad():
        network = adder_zoo.quantize(model, X)
        assert torch.equal(network(X), apart(model, network)(X))
        got, wanted = network(X), model(X)
        assert (got - wanted).square().mean() < 0.01 * wanted.var()
        seen = model.b(model.a(X))
        assert seen.max() > 7, "the 6 of ReLU6 cuts nothing off"
    if between in ALONE and "shape" not in between:
        assert not any(isinstance(m, (nn.ReLU, nn.ReLU6)) for m in network.modules())
        assert operations(network) == 0
        first = next(m for m in network.modules() if isinstance(m, QuantizedAdder2d))
        assert first.relu
        assert first.ceiling == (6.0 if "relu6" in between else math.inf)


@pytest.mark.parametrize("between", ["relu6", "relu6 behind max pooling", "relu behind max pooling"])
def test_other_ranges_can_be_loaded(between):
    """The level of 6, and that of 0, are those of the ranges that were loaded, not of those that were there before."""
    model = Two(ALONE[between])
    network, other = adder_zoo.quantize(model, X), adder_zoo.quantize(model, X * 0.7)
    with torch.no_grad():
        assert not torch.equal(other(X), network(X))
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(X), network(X))
        assert torch.equal(copy.deepcopy(network)(X), network(X))


def test_the_level_of_six_is_known_beforehand():
    """An exported program does not compute it, and no default device has a say in it."""
    model = Two(ALONE["relu6"])
    network = adder_zoo.quantize(model, X)
    first = next(m for m in network.modules() if isinstance(m, QuantizedAdder2d))
    near = first.next_range
    first.emit(False, Range(near.step * 1.001, near.zero_point, near.top))  # a level that nothing has asked for yet
    with torch.no_grad():
        called = [node.target for node in torch.export.export(network, (X,)).graph.nodes if node.op == "call_function"]
        assert not any("clamp" in str(target) or "round" in str(target) for target in called)
        wanted = network(X)
        with torch.device("meta"):
            assert torch.equal(network(X), wanted)


def test_a_level_is_what_rounding_gives():
    generator = torch.Generator().manual_seed(0)
    for bits in (2, 4, 8):
        for low, high, value in (torch.rand(200, 3, generator=generator) * torch.tensor([-4.0, 9.0, 9.0])).tolist():
            covered = Range.covering(low, high, bits)
            assert covered.level(value) == int(covered.levels(torch.tensor([value])))
            half = (covered.top - covered.zero_point - 0.5) * covered.step  # between two levels
            assert covered.level(half) == int(covered.levels(torch.tensor([half])))
    assert Range(1e-45, 0, 255).level(6.0) == 255


class Bare(nn.Module):
    """Two layers without batch norm, and a module of each kind that could be left out between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = adder_zoo.Adder2d(4, 4, 3, padding=1), adder_zoo.Adder2d(4, 4, 3, padding=1)
        nn.init.constant_(self.a.bias, 45.0)
        self.relu, self.relu6, self.pool = nn.ReLU(), nn.ReLU6(), nn.MaxPool2d(2)
        self.flatten, self.dropout, self.identity = nn.Flatten(), nn.Dropout(), nn.Identity()
        self.between = between
        self.eval()

    def forward(self, x):
        return self.c(self.between(self, self.a(x)))


FOUR = X[:, :4]
SEEN = {
    "relu": lambda m, y: m.relu(y),
    "relu6": lambda m, y: m.relu6(y),
    "pool": lambda m, y: m.relu(m.pool(y)),
    "flatten": lambda m, y: m.flatten(m.relu(y)).reshape(-1, 4, 8, 8),
    "dropout": lambda m, y: m.dropout(m.relu(y)),
    "identity": lambda m, y: m.relu(m.identity(y)),
}


def float_between(model, network):
    """The same layers in bytes, in the network's own code."""
    alone = copy.deepcopy(model)
    for name in ("a", "c"):
        layer = copy.deepcopy(network.get_submodule(name))
        layer.emit(True, None)
        layer.relu, layer.ceiling = False, math.inf
        setattr(alone, name, layer)
    return alone


@pytest.mark.parametrize("change", ["hook", "pre-hook", "forward", "bounds"])
@pytest.mark.parametrize("name", SEEN)
def test_a_module_that_does_more_than_its_class_stays(name, change):
    model = Bare(SEEN[name])
    module = getattr(model, name)
    if change == "hook":
        module.register_forward_hook(lambda module, images, y: y * 0.5)
    elif change == "pre-hook":
        module.register_forward_pre_hook(lambda module, images: (images[0] - 2,))
    elif change == "forward":
        module.forward = lambda x: type(module).forward(module, x) * 0.5
    elif name == "relu6":
        module.min_val = -1.0
    with torch.no_grad():
        network = adder_zoo.quantize(model, FOUR)
        assert torch.equal(network(FOUR), float_between(model, network)(FOUR))


def test_windows_of_padding_alone():
    """What max pooling with dilation makes of them is below 0, and a ReLU behind it makes 0 of that."""
    model = nn.Sequential(adder_zoo.Adder2d(4, 4, 3, padding=1), nn.MaxPool2d(2, 1, 1, dilation=9), nn.ReLU()).eval()
    with torch.no_grad():
        assert model[:2](FOUR).max() == -math.inf
        assert adder_zoo.quantize(model, FOUR)(FOUR).abs().max() == 0


def test_a_view_as_another_dtype_is_of_floats():
    model = Bare(lambda m, y: F.relu(y.contiguous().view(torch.int32)).view(dtype=torch.float32))
    with torch.no_grad():
        network = adder_zoo.quantize(model, FOUR)
        assert torch.equal(network(FOUR), float_between(model, network)(FOUR))


def test_a_network_with_relu6_hands_on_bytes():
    """MobileNetV2: float32 is made where a shortcut needs it and nowhere else."""
    torch.manual_seed(0)
    model = timm.create_model("adder_mobilenetv2_100").eval()
    images = torch.randn(4, 3, 64, 64)
    with adder_zoo.reestimated_batch_norm(model, [images]), torch.no_grad():
        with pytest.warns(UserWarning, match="spread"):
            network = adder_zoo.quantize(model, images)
        assert torch.equal(network(images), apart(model, network)(images))
    layers = [m for m in network.modules() if isinstance(m, QuantizedAdder2d)]
    assert sum(layer.ceiling == 6.0 for layer in layers) >= 33  # the last is averaged
    assert not any(layer.wide for layer in layers if layer.ceiling == 6.0)


def test_whole_numbers_know_the_six():
    pixels = torch.randint(256, (64, 8, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    model = nn.Sequential(Two(ALONE["relu6"], images), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        network = adder_zoo.quantize(model, images)
        integers = adder_zoo.to_integers(network, pixels, mean=[0.5] * 8, std=[0.25] * 8)
        assert [getattr(step, "most", None) is not None for step in integers.steps].count(True) == 1
        wanted, got = network(images), integers(pixels) * integers.logit_step
    assert (got - wanted).abs().max() < 0.1 * wanted.std()
