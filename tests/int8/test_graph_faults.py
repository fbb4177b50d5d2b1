"""Networks whose code is not a plain chain: a network in bytes answers as the float one does, and so does ``fuse``."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import adder_zoo
from adder_zoo.int8.layers import QuantizedAdder2d

X = torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(0)).relu()


class Two(nn.Module):
    """Two adder layers with batch norm; ``forward`` is the function under test, given the module and an image."""

    def __init__(self, code):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = adder_zoo.Adder2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.d = adder_zoo.Adder2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.code = code

    def forward(self, x):
        return self.code(self, x)


def written(write):
    """A network in which ``write`` changes the value between the layers in place."""

    def code(m, x):
        y = m.b(m.a(x))
        write(y)
        return m.d(m.c(y))

    return code


def relu_then_write(m, x):
    y = F.relu(m.b(m.a(x)))
    y[:, :4].zero_()
    return m.d(m.c(y))


def between(change):
    return lambda m, x: m.d(m.c(change(m, m.b(m.a(x)))))


WRITES = {
    "slice": lambda y: y[:, :4].zero_(),
    "add": lambda y: y[:, :4].add_(5),
    "select": lambda y: y.select(1, 0).fill_(3.0),
    "unbind": lambda y: y.unbind(1)[0].zero_(),
    "permute": lambda y: y.permute(0, 2, 3, 1).mul_(-1),
    "chunk": lambda y: y.chunk(2, 1)[0].zero_(),
    "narrow": lambda y: y.narrow(1, 0, 4).fill_(1.0),
    "out": lambda y: torch.neg(y, out=y),
    "out of a view": lambda y: torch.mul(y, -1, out=y[:, :]),
    "init": lambda y: nn.init.zeros_(y[:, :4]),
}
CODES = {
    **{f"write by {name}": written(write) for name, write in WRITES.items()},
    "write behind relu": relu_then_write,
    "doubled at the end": lambda m, x: (lambda z: z + z)(m.d(m.c(m.b(m.a(x))))),
    "doubled and relu": lambda m, x: (lambda z: torch.relu(z + z))(m.d(m.c(m.b(m.a(x))))),
    "doubled between": between(lambda m, y: y + y),
    "norm by keyword": lambda m, x: m.d(m.c(m.b(input=m.a(x)))),
    "dropout by keyword": between(lambda m, y: m.drop(input=y)),
    "larger shortcut": lambda m, x: (lambda y: m.d(m.c(y.mean((2, 3), keepdim=True))) + y)(m.b(m.a(x))),
}


@torch.no_grad()
def settled(code):
    model = Two(code)
    with adder_zoo.reestimated_batch_norm(model, [X]):
        return copy.deepcopy(model).eval()


@torch.no_grad()
@pytest.mark.parametrize("what", CODES)
def test_answers_are_those_of_the_float_network(what):
    model = settled(CODES[what])
    true = model(X)
    spread = (true - true.mean()).square().mean().sqrt()
    assert (adder_zoo.fuse(model)(X) - true).abs().max() < 1e-3 * spread
    network = adder_zoo.quantize(model, X)
    assert any(isinstance(module, QuantizedAdder2d) for module in network.modules())
    error = (network(X) - true).square().mean().sqrt()
    assert error < 0.1 * spread, f"{float(error / spread):.3f} of the spread"


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.two = Two(None)

    def forward(self, x, mask=None):
        y = self.two.b(self.two.a(x))
        if mask is not None:
            y = y * mask
        return self.two.d(self.two.c(y))


@torch.no_grad()
def test_an_option_that_was_not_given():
    model = Optional().eval()
    with adder_zoo.reestimated_batch_norm(model, [X]):
        model = copy.deepcopy(model).eval()
    network = adder_zoo.quantize(model, X)
    mask = torch.rand(8, 1, 1).round()
    for options in ({}, {"mask": mask}):
        true = model(X, **options)
        spread = (true - true.mean()).square().mean().sqrt()
        assert (network(X, **options) - true).square().mean().sqrt() < 0.1 * spread


def test_a_network_with_a_preprocessing_but_no_name():
    model = nn.Sequential(adder_zoo.Adder2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (8, 6, 6)}
    with torch.no_grad():
        assert adder_zoo.quantize(model.eval(), X)(X).shape == (16, 8, 6, 6)
