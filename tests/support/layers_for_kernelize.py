"""The layer that ``kernelize`` puts into a network, on layers of adder_zoo: ``kernels_from_elsewhere.py`` runs this."""

import kernels_to_test as kernels
import pytest
import torch

from adder_zoo import Adder2d
from adder_zoo.layers import Adder2dSame


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Adder2d, {"padding": 1, "stride": 2}),
        (Adder2d, {"padding": "same", "padding_mode": "circular"}),
        (Adder2dSame, {"stride": 2}),
        (Adder2dSame, {"dilation": 2}),
        (Adder2d, {"p": 1.5}),
    ],
)
def test_layer_for_kernelize(kind, options):
    layer = kind(4, 6, 3, **options, input_grad="sign")
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    y = kernels.layers.Adder2d.forward(layer, x)
    want = layer(x)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-4)
    dy = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, (x, layer.weight, layer.bias), dy),
        torch.autograd.grad(want, (x, layer.weight, layer.bias), dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    (g,) = torch.autograd.grad(kernels.layers.Adder2d.forward(layer, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.sum().backward()


def test_layer_for_kernelize_is_not_for_p_2():
    with pytest.raises(ValueError, match=r"a number from 1 to below 2, got 2\.0"):
        kernels.layers.Adder2d.forward(Adder2d(4, 6, 3, p=2.0), torch.randn(1, 4, 5, 5))
    plain = torch.nn.Conv2d(4, 6, 3, padding=1)  # which has no p, and no padded()
    y = kernels.layers.Adder2d.forward(plain, torch.zeros(1, 4, 3, 3))
    want = plain.bias - plain.weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(y[0, :, 1, 1], want, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        kernels.adder2d(torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3), groups=2)
