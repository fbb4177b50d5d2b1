"""Binary layers: values of one bit and one scale, straight-through gradients."""

import pytest
import torch
import torch.nn.functional as F

from adder_zoo.binary import BinaryConv2d, BinaryLinear, binary_input, binary_weight


def test_weights():
    w = torch.tensor([[-3.0, -0.0, 1.0], [0.5, -0.5, 4.0]], requires_grad=True)
    binary = binary_weight(w)
    scale = (3 + 0 + 1 + 0.5 + 0.5 + 4) / 6
    assert torch.equal(binary, scale * torch.tensor([[-1.0, 1, 1], [1, -1, 1]]))
    grad = torch.randn(2, 3)
    binary.backward(grad)
    assert torch.equal(w.grad, grad)


def test_inputs():
    x = torch.tensor([-2.0, -0.0, 0.4, 0.6, 1.0, 1.1, torch.nan], requires_grad=True)
    binary = binary_input(x)
    assert torch.equal(binary[:-1], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert binary[-1].isnan()
    binary.backward(torch.arange(1.0, 8))
    assert torch.equal(x.grad, torch.tensor([0.0, 2, 3, 4, 5, 0, 0]))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride):
    layer = BinaryConv2d(3, 4, 3, stride=stride, padding=1)
    x = torch.rand(2, 3, 5, 5, requires_grad=True)
    y = layer(x)
    wb, xb = binary_weight(layer.weight), binary_input(x)
    assert set(xb.detach().unique().tolist()) == {0.0, 1.0}
    assert len(wb.detach().unique()) == 2
    torch.testing.assert_close(y, F.conv2d(xb, wb, layer.bias, stride, 1))
    dy = torch.randn_like(y)
    y.backward(dy)
    a, b = xb.detach().requires_grad_(), wb.detach().requires_grad_()
    F.conv2d(a, b, layer.bias, stride, 1).backward(dy)
    torch.testing.assert_close(x.grad, a.grad)
    torch.testing.assert_close(layer.weight.grad, b.grad)


def test_linear_compiles_whole():
    layer = BinaryLinear(6, 4)
    x = torch.rand(5, 6)
    torch.testing.assert_close(layer(x), F.linear(x.round(), binary_weight(layer.weight), layer.bias))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
