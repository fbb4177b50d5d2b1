"""A fused network refuses training as a whole: a part left in training mode would answer otherwise."""

import copy
import pickle

import pytest
import torch
from torch import nn

import adder_zoo
from adder_zoo.fuse import Tracer


class Untraced(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.isfinite().all() else x * 0)


def graph_of(model):
    return torch.fx.GraphModule(model, Tracer().trace(model))


def pickled(network):
    return pickle.loads(pickle.dumps(network))


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.layer, self.norm = nn.BatchNorm2d(3), adder_zoo.Adder2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.before(x)
        return (x + self.norm(self.layer(x))).relu()


@pytest.mark.parametrize(
    "how", [lambda n: n, copy.copy, copy.deepcopy, pickled], ids=["itself", "copy", "deepcopy", "pickle"]
)
@pytest.mark.parametrize(
    "make",
    [
        Shortcut,
        lambda: graph_of(nn.Sequential(nn.BatchNorm2d(3), adder_zoo.Adder2d(3, 4, 1), nn.BatchNorm2d(4))),
        lambda: Untraced(nn.BatchNorm2d(3), nn.Sequential(adder_zoo.Adder2d(3, 4, 1), nn.BatchNorm2d(4))),
    ],
    ids=["a graph", "a graph of one's own", "not traced"],
)
@torch.no_grad()
def test_refused_training_leaves_no_part_in_training_mode(make, how):
    x = torch.randn(4, 3, 5, 5)
    torch.manual_seed(0)
    network = how(adder_zoo.fuse(make().eval()))
    wanted = network(x)
    for outer in (network, nn.DataParallel(network)):
        with pytest.raises(RuntimeError, match="was fused for inference and cannot be trained"):
            outer.train()
        assert not any(module.training for module in network.modules())
    assert torch.equal(network.eval()(x), wanted)
