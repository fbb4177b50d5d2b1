"""The Triton kernels under the interpreter: precisions, special values, tiles, layouts, errors."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import truth
from checks import assert_within, bound
from interpreted import INTERPRETING, QUICK_AND_ALL, run_again
from operator_checks import MODES, check, extras, run, saturated_bound
from shapes import case, tensors

import adder_zoo
from adder_zoo import adder2d
from adder_zoo.ops.fused import adder2d_fused
from adder_zoo.ops.triton import kernels as load_kernels

HALF = [
    case("half", "ragged", (2, 5, 7, 6), (7, 5, 3, 3), 2, 1),
    case("half_depthwise", "several groups in a tile", (2, 5, 6, 6), (5, 1, 3, 3), 1, 1, groups=5),
    case("half_even", "steps without a rest, channels_last", (1, 32, 4, 5), (18, 32, 1, 1), layout="channels_last"),
    case("half_deep", "more than one chain", (1, 40, 3, 3), (5, 40, 2, 2), 1, 1),
]
FUSED = [
    case("fused", "ragged, a NaN", (2, 5, 7, 6), (7, 5, 3, 3), 2, 1),
    case("fused_depthwise", "several groups in a tile", (2, 5, 6, 6), (5, 1, 3, 3), 1, 1, groups=5),
    case("fused_channels_last", "another order", (1, 16, 4, 5), (18, 16, 1, 1), layout="channels_last"),
]
SPECIAL = [
    case("plain", "a tile", (1, 5, 6, 6), (6, 5, 3, 3), 1, 1),
    case("stride2", "phases", (1, 4, 7, 8), (5, 4, 3, 3), 2, 1),
    case("gaps", "pixels that no output takes", (1, 3, 8, 8), (4, 3, 2, 2), 3),
    case("1x1", "a matrix product", (2, 7, 4, 4), (9, 7, 1, 1)),
    case("depthwise", "several groups in a tile", (1, 9, 6, 6), (9, 1, 3, 3), 2, 1, groups=9),
]

if not INTERPRETING:

    @QUICK_AND_ALL
    @pytest.mark.long
    def test_special_cases_under_the_interpreter(quick):
        pytest.importorskip("triton")
        run_again(Path(__file__), quick)

else:

    def half_precision():
        """Quick: each pair of dtypes with one of the shapes, two of float16 with more than one chain."""
        dtypes = (torch.float16, torch.bfloat16, torch.float32)
        for i, (x_dtype, weight_dtype) in enumerate(itertools.product(dtypes, dtypes)):
            for quick in (True, False):
                marks = () if quick else pytest.mark.slow
                shapes = [shape for j, shape in enumerate(HALF) if ((i + j) % 4 == 3) == quick]
                yield pytest.param(x_dtype, weight_dtype, shapes, marks=marks)

    @pytest.mark.parametrize(("x_dtype", "weight_dtype", "shapes"), list(half_precision()))
    def test_half_precision(x_dtype, weight_dtype, shapes):
        for shape in shapes:
            check(shape, "triton", x_dtype, weight_dtype, modes=[MODES[HALF.index(shape) % 3]])

    @pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("relu", [False, True])
    def test_fused(relu, residual_dtype):
        for i, shape in enumerate(FUSED):
            x, w, _ = tensors(shape)
            x[0, 0, 0, 0] = torch.nan if i == 0 else 1.0
            scale, shift, residual = extras(shape)
            residual = None if residual_dtype is None else residual.to(residual_dtype)
            y = adder2d_fused(x, w, scale, shift, residual, *shape.geometry, relu, "triton")
            value, magnitude, terms = truth.forward(x.double().numpy(), w.double().numpy(), *shape.geometry)
            a, b = (t.double().numpy().reshape(-1, 1, 1) for t in (scale, shift))
            c = 0 if residual is None else residual.double().numpy()
            true = np.maximum(a * value + b + c, 0) if relu else a * value + b + c
            error = np.abs(a) * bound((value, magnitude, terms))
            error = error + 2.0**-22 * (np.abs(a * value) + np.abs(b) + np.abs(c))
            assert_within(y, (true,), error, f"{shape}, {residual_dtype}, {relu}")

    def test_float16_chains_are_short():
        """512 terms of about 30: one chain in float16 would stand still where it steps by 16, and be 10 % off."""
        g = torch.Generator().manual_seed(0)
        x = (30 + torch.rand(1, 512, 2, 2, generator=g)).half()
        w = torch.rand(3, 512, 1, 1, generator=g).half()
        y = adder2d(x, w, impl="triton")
        true = truth.forward(x.double().numpy(), w.double().numpy())
        assert np.abs(y.double().numpy() / true[0] - 1).max() < 1e-3
        assert (y != adder2d(x.float(), w.float(), impl="triton")).any(), "nothing was computed in float16"

    def test_float16_of_great_values():
        """Up to 65504 a chain is finite, and what is beyond is infinite, not wrong."""
        x, w = torch.full((1, 16, 1, 1), 2000.0).half(), torch.full((1, 16, 1, 1), -2000.0).half()
        assert adder2d(x, w, impl="triton").item() == -64000
        assert adder2d(x, 2 * w, impl="triton").item() == -torch.inf
        assert adder2d(x, 2 * w.float(), impl="triton").item() == -96000

    def special_values():
        """Quick: each shape, and both kinds of values in each operand."""
        quick = {
            "plain-nan-x", "plain-inf-dy", "stride2-inf-weight", "gaps-nan-dy", "1x1-inf-x", "depthwise-nan-weight"
        }  # fmt: skip
        for shape, special in itertools.product(SPECIAL, (("nan", "nan"), ("inf", "-inf"))):
            for where in ("x", "weight", "dy"):
                name = f"{shape.id}-{special[0]}-{where}"
                marks = () if name in quick else pytest.mark.slow
                yield pytest.param(shape, special, where, id=name, marks=marks)

    @pytest.mark.parametrize(("shape", "special", "where"), list(special_values()))
    def test_special_values(shape, special, where):
        named = dict(zip(("x", "weight", "dy"), tensors(shape), strict=True))
        t = named[where]
        for place, value in zip(torch.randperm(t.numel())[:2], special, strict=True):
            t.view(-1)[place] = float(value)
        x, weight, dy = named.values()
        numbers = [v.double().numpy() for v in (x, weight, dy)]
        x, weight = x.requires_grad_(), weight.requires_grad_()
        others = [("sign", "full"), ("full", "sign")]
        for weight_grad, input_grad in [("full", "clipped"), others[(len(shape.id) + len(where)) % 2]]:
            y = run(shape, x, weight, weight_grad, input_grad, impl="triton")
            dx, dw = torch.autograd.grad(y, (x, weight), dy)
            what = f"{shape}, {special} in {where}"
            with np.errstate(invalid="ignore"):
                true = truth.forward(numbers[0], numbers[1], *shape.geometry)
                assert_within(y, true, bound(true), f"y of {what}")
                true = truth.grad_input(numbers[2], numbers[0], numbers[1], *shape.geometry, mode=input_grad)
                error = bound(true) + (saturated_bound(dy, x, weight, shape) if input_grad == "clipped" else 0)
                assert_within(dx, true, error, f"dx {input_grad} of {what}")
                true = truth.grad_weight(numbers[2], numbers[0], numbers[1], *shape.geometry, mode=weight_grad)
                assert_within(dw, true, bound(true), f"dw {weight_grad} of {what}")

    def test_several_programs_and_64_bit_offsets(monkeypatch):
        """Small tiles, as on a card, and the offsets for tensors beyond 2^31 elements."""
        kernels = load_kernels()
        sub = [sys.modules[f"{kernels.__name__}.{name}"] for name in ("forward", "grad_input", "grad_weight")]
        for module in sub:
            monkeypatch.setattr(module, "interpreting", lambda: False)
            monkeypatch.setattr(module, "wide", lambda *tensors: True)
        monkeypatch.setattr(sub[2], "_PIXELS", 16)
        depthwise = case("small", "several tiles", (2, 3, 17, 16), (3, 1, 3, 3), 2, 1, groups=3)
        check(depthwise, "triton", torch.float32, modes=MODES[:1])
        shape = case("tiles", "several tiles each way", (2, 20, 12, 13), (70, 20, 2, 2), 2, 1)
        check(shape, "triton", torch.float32, modes=MODES[:1])
        assert sub[2].splits_for(sub[2].Geometry.of(*tensors(shape)[:2], *shape.geometry)) > 1

    def test_reduction_in_parts(monkeypatch):
        """Few tiles: the reduction is cut, within taps too, and the parts are added up."""
        kernels = load_kernels()
        for name in ("forward", "grad_input"):
            monkeypatch.setattr(sys.modules[f"{kernels.__name__}.{name}"], "parts", lambda *sizes: 3)
        for i, shape in enumerate((FUSED[0], FUSED[2], case("parts", "phases", (1, 20, 5, 5), (18, 20, 3, 3), 2, 1))):
            check(shape, "triton", torch.float32, modes=[MODES[i % 3]])
        x, w, _ = tensors(FUSED[0])
        scale, shift, residual = extras(FUSED[0])
        fused = adder2d_fused(x, w, scale, shift, residual, *FUSED[0].geometry, True, "triton")
        y = adder2d(x, w, None, 2, 1, impl="triton")
        assert torch.equal(fused, (y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1) + residual).relu())

    def test_number_of_parts():
        parts = sys.modules[f"{load_kernels().__name__}._launch"].parts
        assert [parts(n, 64, 132) for n in (0, 1, 20, 60, 66, 67, 1000)] == [1, 8, 6, 2, 2, 1, 1]
        assert [parts(8, steps, 132) for steps in (1, 8, 16, 1000)] == [1, 1, 2, 16]
        assert parts(1, 64, 0) == 1, "a CPU"

    def test_memory_format():
        x, w = torch.randn(2, 6, 5, 5), torch.randn(4, 6, 3, 3)
        last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = adder2d(last, w, padding=1, impl="triton")
        assert y.is_contiguous(memory_format=torch.channels_last)
        (dx,) = torch.autograd.grad(y.sum(), last)
        assert dx.stride() == last.stride()
        assert torch.equal(y, adder2d(x, w, padding=1, impl="triton"))

    def test_repeated_runs_give_the_same_bits():
        shape = case("bits", "", (2, 20, 9, 9), (33, 20, 3, 3), 2, 1)
        x, w, dy = tensors(shape)
        x, w = x.requires_grad_(), w.requires_grad_()
        runs = []
        for _ in range(2):
            y = run(shape, x, w, "sign", impl="triton")
            runs.append((y, *torch.autograd.grad(y, (x, w), dy)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_errors():
        kernels = load_kernels()
        x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
        with pytest.raises(TypeError, match="float64"):
            kernels.adder2d_forward(x.double(), w, (1, 1), (0, 0, 0, 0), (1, 1), 1)
        with pytest.raises(RuntimeError, match="float64"):
            adder2d(x.double(), w.double(), impl="triton")
        assert adder_zoo.implementations()["triton"].available
