"""The binary layers against the equations of DoReFa-Net at one bit, written out here in NumPy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adder_zoo.binary import BinaryConv2d, BinaryLinear, binary_input, binary_weight

# Around every threshold: 0, 1/2 and 1 are where something changes, and -0.0 is not negative.
EDGES = [-2.0, -1e-30, -0.0, 0.0, 1e-30, 0.25, 0.5, 0.5000001, 0.75, 1.0, 1.0000001, 3.0, np.inf, -np.inf]


def test_input_is_rounded_to_a_bit():
    bits = binary_input(torch.tensor(EDGES))
    # round() goes to the even neighbour, so one half is 0.
    assert bits.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0]


def test_gradient_of_the_input_passes_between_zero_and_one():
    x = torch.tensor(EDGES, requires_grad=True)
    dy = torch.arange(1.0, len(EDGES) + 1)
    binary_input(x).backward(dy)
    passes = [0.0 <= v <= 1.0 for v in torch.tensor(EDGES).tolist()]
    assert passes.count(True) == 8
    assert x.grad.tolist() == [d if p else 0.0 for d, p in zip(dy.tolist(), passes, strict=True)]


def test_weight_is_its_sign_at_one_scale():
    weight = torch.tensor([[-2.0, 0.5], [-0.0, 0.0], [3.0, -0.5]])
    assert binary_weight(weight).tolist() == [[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]]  # E|w| = 6/6
    assert torch.equal(binary_weight(4 * weight), 4 * binary_weight(weight))
    with torch.no_grad():
        values = binary_weight(torch.randn(5, 4, 3, 3)).abs().unique()
    assert len(values) == 1


def test_gradient_of_the_weight_passes_unchanged():
    weight = torch.randn(5, 4, requires_grad=True)
    dy = torch.randn(5, 4)
    binary_weight(weight).backward(dy)
    assert torch.equal(weight.grad, dy)


def test_nan_stays_one():
    x = torch.tensor([0.3, float("nan"), 2.0], requires_grad=True)
    bits = binary_input(x)
    assert bits.isnan().tolist() == [False, True, False]
    bits.sum().backward()
    assert x.grad.isfinite().all()
    assert binary_weight(torch.tensor([1.0, float("nan")])).isnan().all()  # it is in the scale


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2, "padding": "same"}],
    ids=["plain", "strided", "grouped", "dilated"],
)
def test_convolution_counts_bits(geometry, bias):
    """The answer is the scale times a whole number, and exactly the one that counting gives."""
    layer = BinaryConv2d(4, 6, 3, bias=bias, **geometry)
    with torch.no_grad():
        # E|w| is a power of two, so nothing is rounded anywhere.
        layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.5, -0.25, 0.25))
        if bias:
            layer.bias.copy_(torch.arange(6.0))
    x = torch.rand(2, 4, 9, 9) * 2 - 0.5
    signs = torch.where(layer.weight < 0, -1, 1).to(torch.int64).numpy()
    bits = ((x > 0.5).to(torch.int64)).numpy()
    conv = nn.Conv2d(4, 6, 3, bias=False, **geometry)
    top, left = (1, 1) if geometry.get("padding") == 1 else (2, 2) if geometry.get("padding") == "same" else (0, 0)
    bits = np.pad(bits, ((0, 0), (0, 0), (top, top), (left, left)))
    (step, _), (apart, _) = conv.stride, conv.dilation
    groups = geometry.get("groups", 1)
    size = (bits.shape[2] - 2 * apart - 1) // step + 1
    counted = np.zeros((2, 6, size, size), dtype=np.int64)
    for k in range(6):
        channels = range(4 // groups * (k * groups // 6), 4 // groups * (k * groups // 6 + 1))
        for i, c in enumerate(channels):
            for r in range(3):
                for s in range(3):
                    rows = slice(r * apart, r * apart + step * (size - 1) + 1, step)
                    columns = slice(s * apart, s * apart + step * (size - 1) + 1, step)
                    counted[:, k] += signs[k, i, r, s] * bits[:, c, rows, columns]
    want = 0.25 * counted + (np.arange(6.0)[:, None, None] if bias else 0)
    assert np.array_equal(layer(x).detach().numpy(), want.astype(np.float32))


def test_linear_counts_bits():
    layer = BinaryLinear(8, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.5, -0.5, 0.5))
        layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.rand(5, 8) * 2 - 0.5
    counted = (x > 0.5).numpy().astype(int) @ np.sign(layer.weight.detach().numpy()).astype(int).T
    assert np.array_equal(layer(x).detach().numpy(), 0.5 * counted + [1, 2, 3])


@pytest.mark.parametrize("kind", [BinaryConv2d, BinaryLinear])
def test_gradients_of_a_layer_are_the_straight_through_ones(kind):
    layer = BinaryConv2d(4, 6, 3, padding=1) if kind is BinaryConv2d else BinaryLinear(4, 6)
    x = (torch.rand(2, 4, 5, 5) if kind is BinaryConv2d else torch.rand(7, 4)) * 2 - 0.5
    x.requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    # The same sum of leaves that are binary already: its gradients are what the estimator hands on.
    with torch.no_grad():
        scale = layer.weight.abs().mean()
        leaves = [torch.where(x > 0.5, 1.0, 0.0), torch.where(layer.weight < 0, -scale, scale), layer.bias.clone()]
    x_b, w_b, bias = (leaf.requires_grad_() for leaf in leaves)
    again = F.conv2d(x_b, w_b, bias, padding=1) if kind is BinaryConv2d else F.linear(x_b, w_b, bias)
    assert torch.equal(y, again)
    again.backward(dy)
    assert torch.equal(layer.weight.grad, w_b.grad)
    assert torch.equal(layer.bias.grad, bias.grad)
    assert torch.equal(x.grad, torch.where((x >= 0) & (x <= 1), x_b.grad, 0.0))
    assert 0 < (x.grad == 0).sum() < x.numel()


@pytest.mark.parametrize("layer", [BinaryConv2d(4, 6, 3), BinaryLinear(9, 6)], ids=lambda m: type(m).__name__)
def test_compiles_whole(layer):
    layer = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for network in (layer, compiled):
        torch.manual_seed(1)
        x = torch.randn(2, 4, 9, 9, requires_grad=True)
        layer.zero_grad()
        y = network(x)
        y.square().sum().backward()
        results.append((y, x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_training_step_moves_the_real_weights():
    layer = BinaryConv2d(4, 6, 3)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0**-13)  # a power of two: nothing is rounded twice
    layer(torch.rand(2, 4, 5, 5)).square().sum().backward()
    optimizer.step()
    assert len(layer.weight.detach().unique()) > 2
    assert torch.equal(layer.weight.detach(), before - 2.0**-13 * layer.weight.grad)
