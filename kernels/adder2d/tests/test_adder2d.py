"""Smoke test of the kernel repository by itself: on a GPU, or on a CPU with TRITON_INTERPRET=1."""

import os

import pytest
import torch

adder2d = pytest.importorskip("adder2d")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_forward_and_gradients(stride):
    x = torch.randn(2, 6, 9, 8, device=DEVICE, requires_grad=True)
    w = torch.randn(5, 6, 3, 3, device=DEVICE, requires_grad=True)
    y = adder2d.adder2d(x, w, None, (stride, stride), (1, 1, 1, 1))
    patches = torch.nn.functional.unfold(x.detach(), 3, padding=1, stride=stride).transpose(1, 2)  # [N, PQ, CRS]
    difference = patches.unsqueeze(2) - w.detach().flatten(1)  # [N, PQ, K, CRS]
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), -difference.abs().sum(-1), rtol=1e-5, atol=1e-4)
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    d = dy.flatten(2).transpose(1, 2).unsqueeze(-1)  # [N, PQ, K, 1]
    torch.testing.assert_close(dw.flatten(1), (d * difference).sum((0, 1)), rtol=1e-4, atol=1e-3)
    taps = (d * (-difference).clamp(-1, 1)).sum(2).transpose(1, 2)  # [N, CRS, PQ]
    want = torch.nn.functional.fold(taps, x.shape[2:], 3, padding=1, stride=stride)
    torch.testing.assert_close(dx, want, rtol=1e-4, atol=1e-4)
