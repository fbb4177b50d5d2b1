"""The Triton kernels on a GPU, against the truth in float64; `make gpu` runs them. Needs no network and no data.

ADDER_ZOO_REHEARSE_GPU=1 and TRITON_INTERPRET=1 run them on a CPU with few and small shapes, so that a GPU's time is not
spent on finding faults of the tests.
"""

import dataclasses

import numpy as np
import pytest
import torch
import truth
from checks import assert_within, bound
from interpreted import REHEARSING
from operator_checks import MODES, SPECIAL_SHAPES, check, extras, run, saturated_bound
from power_checks import check_powers
from shapes import NAMED, case, random_cases, tensors
from torch import nn

from adder_zoo import Adder2d, AdderSGD, adder2d
from adder_zoo.ops.fused import adder2d_fused
from adder_zoo.ops.int8.library import adder2d_int8, adder2d_int8_fused

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cpu" if REHEARSING else "cuda")
on_a_card = pytest.mark.skipif(REHEARSING, reason="the interpreter has no streams, graphs or memory of that size")
RANDOM = random_cases(12, seed=11, work=1_000) if REHEARSING else random_cases(240, seed=11)
if REHEARSING:
    NAMED, SPECIAL_SHAPES = NAMED[:4:2], SPECIAL_SHAPES[:1]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """dw is the library's convolution; TF32, torch's default, has a test of its own."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("shape", NAMED, ids=lambda c: c.id)
def test_named_shapes(shape, impl):
    check(shape, impl, torch.float32, device=DEVICE)


@pytest.mark.parametrize("part", range(12))
def test_random_shapes(part):
    for i, shape in enumerate(RANDOM[part::12]):
        check(shape, "triton", torch.float32, modes=[MODES[i % 3]], device=DEVICE)


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_precisions(x_dtype, weight_dtype):
    for i, shape in enumerate(NAMED[::3] + RANDOM[::20]):
        check(shape, "triton", x_dtype, weight_dtype, modes=[MODES[i % 3]], device=DEVICE)


LARGE = [
    case("resnet_3x3", "whole tiles", (4, 128, 28, 28), (128, 128, 3, 3), 1, 1),
    case("resnet_3x3_64", "few filters", (2, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    case("resnet_stride2", "phases", (2, 128, 28, 28), (256, 128, 3, 3), 2, 1),
    case("resnet_1x1", "a matrix product", (2, 256, 14, 14), (1024, 256, 1, 1)),
    case("resnet_shortcut", "a matrix product with stride", (2, 256, 28, 28), (512, 256, 1, 1), 2),
    case("resnet_few_tiles", "the reduction is cut into parts", (1, 512, 7, 7), (512, 512, 3, 3), 1, 1),
    case("ragged", "no size fits a tile", (3, 133, 15, 17), (201, 133, 3, 3), 2, 1),
    case("mobilenet_depthwise", "a filter for each channel", (4, 96, 56, 56), (96, 1, 3, 3), 2, 1, groups=96),
]


def rehearsed(shape):
    """A sixteenth of the channels, and at most 4x4 pixels."""
    (N, C, H, W), (K, Cg, R, S) = shape.x, shape.weight
    C, Cg = (C // 16, Cg // 16) if shape.groups == 1 else (C // 16, Cg)
    groups = 1 if shape.groups == 1 else C
    return dataclasses.replace(shape, x=(N, C, min(H, 4), min(W, 4)), weight=(K // 16, Cg, R, S), groups=groups)


if REHEARSING:
    LARGE = [rehearsed(shape) for shape in LARGE[2::5]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE, ids=lambda c: c.id)
def test_layers_of_networks(shape, dtype, layout):
    check(dataclasses.replace(shape, layout=layout), "triton", dtype, modes=MODES[:2], device=DEVICE)


@pytest.mark.parametrize("where", ["x", "weight", "dy"])
@pytest.mark.parametrize("special", [("nan", "nan"), ("inf", "-inf")], ids=lambda v: v[0])
@pytest.mark.parametrize("shape", SPECIAL_SHAPES, ids=lambda c: c.id)
def test_special_values(shape, special, where):
    named = dict(zip(("x", "weight", "dy"), tensors(shape), strict=True))
    t = named[where]
    for place, value in zip(torch.randperm(t.numel())[:2], special, strict=True):
        t.view(-1)[place] = float(value)
    x, weight, dy = named.values()
    numbers = [v.double().numpy() for v in (x, weight, dy)]
    x, weight, dy = x.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_(), dy.to(DEVICE)
    for weight_grad, input_grad in [("full", "clipped"), ("sign", "full"), ("full", "sign")]:
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


@pytest.mark.parametrize("p", [1.001, 1.5, 1.999])
@pytest.mark.parametrize("dtype", DTYPES)
def test_powers(dtype, p):
    """Within the error that lg2.approx and ex2.approx are documented with: see ``_power.py`` of the kernels."""
    for shape in LARGE[:1] if REHEARSING else LARGE + NAMED[::4]:
        check_powers(shape, p, dtype, device=DEVICE)
    layout = "contiguous" if dtype == torch.float32 else "channels_last"
    check_powers(dataclasses.replace(LARGE[0], layout=layout), p, dtype, device=DEVICE)


@pytest.mark.parametrize("exponent", [-60, -30, 30, 60])
def test_powers_of_any_size(exponent):
    for p in (1.001, 1.5, 1.999):
        if abs(exponent * p) < 110:
            check_powers(NAMED[0], p, scale=2.0**exponent, device=DEVICE)


@pytest.mark.parametrize("where", ["x", "weight", "dy"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_powers_of_special_values(value, where):
    for shape in SPECIAL_SHAPES:
        check_powers(shape, 1.5, special=(where, value), device=DEVICE)
    nothing = torch.tensor([0.0, -0.0, 3.0]).view(1, 3, 1, 1).to(DEVICE).requires_grad_()
    y = adder2d(nothing, nothing.detach(), p=1.001, impl="triton")
    assert y.item() == 0
    assert torch.autograd.grad(y.sum(), nothing)[0].count_nonzero() == 0


def test_tf32_in_dw_is_torchs_switch(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    shape = LARGE[0]
    x, weight, dy = tensors(shape, device=DEVICE)
    (dw,) = torch.autograd.grad(run(shape, x, weight.requires_grad_(), impl="triton"), weight, dy)
    true = truth.grad_weight(*(t.detach().cpu().double().numpy() for t in (dy, x, weight)), *shape.geometry)
    # Products of operands rounded to 11 bits, against the magnitude of Σ dy·x and w·Σ dy, taken apart.
    numbers = [t.detach().abs().cpu().double().numpy() for t in (dy, x, weight)]
    apart = truth.grad_weight(numbers[0], numbers[1], -numbers[2], *shape.geometry)[1]
    assert_within(dw, true, 3 * 2.0**-11 * apart, "dw in TF32")


@on_a_card
@pytest.mark.parametrize("shape", LARGE[::5], ids=lambda c: c.id)
def test_repeated_runs_and_two_streams_give_the_same_bits(shape):
    x, w, dy = tensors(shape, device=DEVICE)
    x, w = x.requires_grad_(), w.requires_grad_()

    def answer():
        y = run(shape, x, w, impl="triton")
        return [y.detach(), *torch.autograd.grad(y, x, dy)]

    first = answer()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    answers = []
    for _ in range(4):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                answers.append(answer())
    torch.cuda.synchronize()
    for again in answers:
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_fused(relu, residual_dtype):
    for shape in NAMED + LARGE[::5]:
        x, w, _ = tensors(shape, device=DEVICE)
        scale, shift, residual = (t.to(DEVICE) for t in extras(shape))
        residual = None if residual_dtype is None else residual.to(residual_dtype)
        y = adder2d_fused(x, w, scale, shift, residual, *shape.geometry, relu, "triton")
        numbers = [t.cpu().double().numpy() for t in (x, w)]
        value, magnitude, terms = truth.forward(*numbers, *shape.geometry)
        a, b = (t.cpu().double().numpy().reshape(-1, 1, 1) for t in (scale, shift))
        c = 0 if residual is None else residual.cpu().double().numpy()
        true = np.maximum(a * value + b + c, 0) if relu else a * value + b + c
        error = np.abs(a) * bound((value, magnitude, terms)) + 2.0**-22 * (np.abs(a * value) + np.abs(b) + np.abs(c))
        assert_within(y, (true,), error, f"{shape}, {residual_dtype}, {relu}")


def network():
    torch.manual_seed(0)
    layers = []
    for C, K in ((3, 16), (16, 32)):
        layers += [Adder2d(C, K, 3, stride=2, padding=1, bias=False, impl="triton"), nn.BatchNorm2d(K), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).to(DEVICE)


SIZE = 6 if REHEARSING else 16


def losses(model, steps=12, dtype=None, forward=None):
    optimizer = AdderSGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)
    g = torch.Generator().manual_seed(1)
    x, labels = torch.randn(32, 3, SIZE, SIZE, generator=g).to(DEVICE), torch.randint(4, (32,), generator=g).to(DEVICE)
    found = []
    for _ in range(steps):
        with torch.autocast(DEVICE.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = nn.functional.cross_entropy((forward or model)(x), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_training_under_autocast(dtype):
    found = losses(network(), 2 if REHEARSING else 30, dtype)
    assert np.isfinite(found).all()
    assert found[-1] < (1 if REHEARSING else 0.8) * found[0]
    plain = losses(network(), 1)
    assert found[0] == pytest.approx(plain[0], rel=0.02)


def test_compile():
    model = network()
    compiled = torch.compile(network(), fullgraph=True, backend="aot_eager" if REHEARSING else "inductor")
    steps = 2 if REHEARSING else 4
    assert losses(model, steps) == pytest.approx(losses(compiled, steps), rel=1e-3)


@on_a_card
def test_cuda_graph():
    x, w = (t.requires_grad_() for t in tensors(LARGE[0], device=DEVICE)[:2])
    dy = torch.randn(LARGE[0].output, device=DEVICE)

    def answer():
        y = run(LARGE[0], x, w, impl="triton")
        return [y, *torch.autograd.grad(y, (x, w), dy)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        answer()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = answer()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    replayed = [t.clone() for t in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed[:2], answer()[:2], strict=True))


def test_channels_last_is_kept():
    x = torch.randn(4, 32, 9, 9, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(24, 32, 3, 3, device=DEVICE)
    y = adder2d(x, w, padding=1, impl="triton")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@on_a_card
@pytest.mark.parametrize("groups", [1, 16])
def test_more_than_2_31_elements(groups):
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of GPU memory")
    H = W = 11600
    x = torch.zeros(1, 16, H, W, device=DEVICE)
    assert x.numel() > 2**31
    x[0, 15, H - 2 :, W - 2 :] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = torch.full((16, 16 // groups, 2, 2), 0.25, device=DEVICE)
    x.requires_grad_()
    y = adder2d(x, weight, None, (H - 2, W - 2), groups=groups, input_grad="full")
    n = 16 // groups
    far = -(n - 1) - (0.75 + 1.75 + 2.75 + 3.75)
    assert y[0, 15].tolist() == [[-n, -n], [-n, far]]
    dy = torch.arange(64.0, device=DEVICE).view(1, 16, 2, 2)
    (dx,) = torch.autograd.grad(y, x, dy)
    taps = dy[0, 15] if groups == 16 else dy[0].sum(0)
    want = [[(0.25 - v) * taps[1, 1].item() for v in row] for row in ((1, 2), (3, 4))]
    assert dx[0, 15, H - 2 :, W - 2 :].tolist() == want
    assert dx[0, 15, H - 2 :, :2].tolist() == [[0.25 * taps[1, 0].item()] * 2] * 2


def test_tuner(monkeypatch):
    """Triton's own tuner instead of the default configurations: the same sums."""
    import sys

    from adder_zoo.ops.triton import kernels

    monkeypatch.setattr(sys.modules[f"{kernels().__name__}._launch"], "AUTOTUNE", True)
    check(LARGE[0], "triton", torch.float32, modes=MODES[:1], device=DEVICE)


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_bytes(groups, stride):
    """Sums and what follows them, to the last bit of the definition."""
    torch.manual_seed(0)
    x = torch.randint(256, (1, 16, 4, 3) if REHEARSING else (3, 16, 17, 19), dtype=torch.uint8)
    w = torch.randint(256, (80, 16 // groups, 3, 3), dtype=torch.uint8)
    geometry = [stride, stride], [1, 1, 1, 1], [1, 1], groups
    sums = adder2d_int8(x, w, 100, *geometry, "reference")
    assert torch.equal(adder2d_int8(x.to(DEVICE), w.to(DEVICE), 100, *geometry, "triton").cpu(), sums)
    scale, residual = torch.randn(80) / 300, torch.randn(sums.shape)
    shift = -scale * sums.float().mean((0, 2, 3))
    after = scale, shift, residual, True, True, 37.3, 5, 200, True
    wanted = adder2d_int8_fused(x, w, 100, *after, *geometry, "reference")
    on_gpu = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in (x, w, 100, *after)]
    for one, other in zip(adder2d_int8_fused(*on_gpu, *geometry, "triton"), wanted, strict=True):
        assert torch.equal(one.cpu(), other)
