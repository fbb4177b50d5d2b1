"""What was built, loaded as users load it: by its name on the Hub, or from the folder that LOCAL_KERNELS names."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.library import opcheck

import kernels

adder2d = kernels.get_kernel("adder-zoo/adder2d", version=1, trust_remote_code=True)


def reference(x, w, dy, stride, p=1.0):
    """y, dx and dw by their definitions, in float64, for padding 1; for p > 1 dx and dw are the derivative."""
    x, w, dy = x.detach().double(), w.detach().double(), dy.double()
    patches = F.unfold(x, 3, padding=1, stride=stride).transpose(1, 2)  # [N, PQ, CRS]
    difference = patches.unsqueeze(2) - w.flatten(1)  # [N, PQ, K, CRS]
    y = -difference.abs().pow(p).sum(-1).transpose(1, 2).reshape(dy.shape)
    slope = p * difference.abs().pow(p - 1) * difference.sign()
    d = dy.flatten(2).transpose(1, 2).unsqueeze(-1)  # [N, PQ, K, 1]
    dw = (d * (difference if p == 1 else slope)).sum((0, 1)).view_as(w)
    taps = (d * ((-difference).clamp(-1, 1) if p == 1 else -slope)).sum(2).transpose(1, 2)  # [N, CRS, PQ]
    return y, F.fold(taps, x.shape[2:], 3, padding=1, stride=stride), dw


def operands(device, dtype=torch.float32, stride=1, sizes=(2, 6, 9, 8, 5)):
    N, C, H, W, K = sizes
    torch.manual_seed(0)
    x = torch.randn(N, C, H, W, device=device).to(dtype)
    w = torch.randn(K, C, 3, 3, device=device).to(dtype)
    dy = torch.randn(N, K, H, W, device=device)[:, :, ::stride, ::stride].contiguous()
    return x, w, dy


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_forward_and_gradients(device, stride, dtype):
    x, w, dy = operands(device, dtype, stride)
    want = reference(x, w, dy, stride)
    y = adder2d.adder2d(x.requires_grad_(), w.requires_grad_(), None, (stride, stride), (1, 1, 1, 1))
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    # Rounding: y is added up in float32, or in float16 chains; the gradients are stored in the type of x and w.
    added = {torch.float16: 1e-2}.get(dtype, 1e-5)
    stored = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(y.double(), want[0], rtol=added, atol=added)
    torch.testing.assert_close(dx.double(), want[1], rtol=stored, atol=5 * stored)
    torch.testing.assert_close(dw.double(), want[2], rtol=stored, atol=5 * stored)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("p", [1.1, 1.5, 1.9])
def test_powers(device, p):
    x, w, dy = operands(device)
    want = reference(x, w, dy, 1, p)
    y = adder2d.adder2d(x.requires_grad_(), w.requires_grad_(), None, (1, 1), (1, 1, 1, 1), p=p)
    for got, true in zip((y, *torch.autograd.grad(y, (x, w), dy)), want):
        torch.testing.assert_close(got.double(), true, rtol=2e-5, atol=1e-4)
    for wrong in (0.5, 2.0, float("nan"), "1.5", None):
        with pytest.raises(ValueError, match="p must be a number from 1 to below 2"):
            adder2d.adder2d(x, w, p=wrong)
    for wrong in ({"weight_grad": "clipped"}, {"input_grad": "none"}):
        with pytest.raises(ValueError, match="weight_grad must be one of"):
            adder2d.adder2d(x, w, **wrong)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_operators(device, last):
    """What torch asks of an operator: its schema, its gradient, and that it says beforehand what it returns."""
    x, w, dy = operands(device, sizes=(2, 3, 4, 3, 2))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
    both = x.requires_grad_(), w.requires_grad_()
    opcheck(adder2d.ops.adder2d, (*both, *geometry, "full", "clipped", 1.0))
    opcheck(adder2d.ops.adder2d_grad_input, (dy, x.detach(), w.detach(), *geometry, "clipped", 1.0))
    opcheck(adder2d.ops.adder2d_grad_weight, (dy, x.detach(), w.detach(), *geometry, "full", 1.0))


@pytest.mark.kernels_ci
def test_compiles_without_a_break(device):
    x, w, dy = operands(device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # the interpreter runs as it is

    def network(x, w):
        return adder2d.adder2d(x.relu(), w, None, (1, 1), (1, 1, 1, 1)).relu()

    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x, w = x.requires_grad_(), w.requires_grad_()
    for a, b in zip(
        (compiled(x, w), *torch.autograd.grad(compiled(x, w), (x, w), dy)),
        (network(x, w), *torch.autograd.grad(network(x, w), (x, w), dy)),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.kernels_ci
def test_autocast_changes_nothing(device):
    x, w, dy = operands(device)
    x, w = x.requires_grad_(), w.requires_grad_()
    plain = adder2d.adder2d(x, w, None, (1, 1), (1, 1, 1, 1))
    want = torch.autograd.grad(plain, (x, w), dy)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = adder2d.adder2d(x, w, None, (1, 1), (1, 1, 1, 1))
        found = torch.autograd.grad(y, (x, w), dy)
    assert torch.equal(y, plain)
    assert all(torch.equal(a, b) for a, b in zip(found, want))


@pytest.mark.kernels_ci
def test_derivatives_that_there_are_not(device):
    x, w, dy = operands(device, sizes=(2, 3, 4, 3, 2))

    def f(x, w):
        return adder2d.adder2d(x, w, None, (1, 1), (1, 1, 1, 1))

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: f(x, w), (x,), (x,))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda w: f(x, w), (w,), (w,))
    y, tangent = torch.func.jvp(lambda dy: f(x, w) + dy, (dy,), (dy,))  # those of others go on
    assert torch.equal(tangent, dy)
    for t in (x.requires_grad_(), w.requires_grad_()):
        (g,) = torch.autograd.grad(f(x, w).sum(), t, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            g.sum().backward()
    rows = torch.func.vmap(f, (0, None))(x.detach()[:, None], w.detach())
    torch.testing.assert_close(rows[:, 0], f(x, w).detach())


@pytest.mark.kernels_ci
def test_layer(device):
    x, _, _ = operands(device)
    conv = nn.Conv2d(6, 5, 3, padding=1, bias=False, device=device)
    y = adder2d.layers.Adder2d.forward(conv, x)
    want = reference(x, conv.weight, torch.zeros_like(y), 1)[0]
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-4)
    conv.p = 1.5
    y = adder2d.layers.Adder2d.forward(conv, x)
    torch.testing.assert_close(y.double(), reference(x, conv.weight, y.detach(), 1, 1.5)[0], rtol=1e-5, atol=1e-4)
    assert adder2d.layers.Adder2d.can_torch_compile
    assert adder2d.layers.Adder2d.has_backward
