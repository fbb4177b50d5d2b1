"""Runs the tests of the Triton kernels, and a network, with kernels from a folder or the Hub."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adder_zoo import Adder2d

OPS = Path(__file__).parents[1] / "ops"


def load(where: str):
    """The kernels of "folder:PATH" or "hub:ORG", under a name of their own."""
    from kernels import get_kernel, get_local_kernel

    kind, _, name = where.partition(":")
    if kind == "folder":
        return get_local_kernel(Path(name))
    return get_kernel(f"{name}/adder2d", version=1, trust_remote_code=True)


def run_tests_with(where: str, expression: str) -> dict:
    """tests/ops/test_triton*.py with the kernels of ``where`` instead of the installed ones."""
    kernels = load(where)
    sys.modules["adder_zoo.kernels"] = kernels
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *(["-k", expression] if expression else [])]
    passed = []

    class Count:
        def pytest_runtest_logreport(self, report):
            passed.extend([report.nodeid] if report.when == "call" and report.passed else [])

    files = [str(OPS / name) for name in ("test_triton.py", "test_triton_special.py")]
    status = pytest.main([*options, *files], plugins=[Count()])
    return {"status": int(status), "passed": len(passed)}


def replace_layers(where: str) -> dict:
    """``kernelize`` on a network with adder layers: who computes then, and how much the answer and gradients differ."""
    import kernels
    from kernels import LayerRepository, LocalLayerRepository, Mode, kernelize, replace_kernel_forward_from_hub

    kind, _, name = where.partition(":")
    if kind == "folder":
        repository = LocalLayerRepository(Path(name), layer_name="Adder2d")
    else:
        repository = LayerRepository(f"{name}/adder2d", layer_name="Adder2d", version=1, trust_remote_code=True)
    replace_kernel_forward_from_hub(Adder2d, "Adder2d")
    torch.manual_seed(0)
    parts = [Adder2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    parts += [Adder2d(8, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)]
    model = nn.Sequential(*parts)
    x, dy = torch.randn(2, 3, 8, 9), torch.randn(2, 5, 4, 5)

    def answer():
        model.zero_grad()
        y = model(x)
        y.backward(dy)
        return y.detach(), [p.grad.clone() for p in model.parameters()]

    y, gradients = answer()
    layers = [m for m in model.modules() if isinstance(m, Adder2d)]
    before = [layer.forward.__func__.__module__ for layer in layers]
    with kernels.use_kernel_mapping({"Adder2d": {"cpu": repository}}):
        kernelize(model, mode=Mode.TRAINING, device="cpu", use_fallback=False)
    after = [layer.forward.__func__.__module__ for layer in layers]
    again, gradients_again = answer()
    differ = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(gradients_again, gradients, strict=True)]
    module = sys.modules[after[0].rpartition(".")[0]]
    where = {"file": module.__file__, "name": module.__name__, "before": before, "after": after}
    return {**where, "y": (again - y).abs().max().item(), "gradients": differ}


def main(built: str, organisation: str, expression: str) -> dict:
    assert os.environ["TRITON_INTERPRET"] == "1"
    said = {"folder": replace_layers(f"folder:{built}"), "hub": replace_layers(f"hub:{organisation}")}
    return {**said, "tests": run_tests_with(f"hub:{organisation}", expression)}
