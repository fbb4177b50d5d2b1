"""Every implementation that a CPU runs: determinism, memory formats, memory, tensors of more than 2^31 elements."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import truth
from checks import assert_within, bound
from operator_checks import RANDOM, run
from shapes import NAMED, case, tensors

from adder_zoo import adder2d
from adder_zoo.ops import cpu, quadratic, reference
from adder_zoo.ops.geometry import Geometry

pytestmark = pytest.mark.usefixtures("threads")


# ---- determinism, memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        case("3x3", "tasks of rows", (4, 32, 28, 28), (64, 32, 3, 3), 1, 1),
        case("stride2", "tasks of rows", (4, 33, 27, 27), (40, 33, 3, 3), 2, 1),
        case("1x1", "tasks of flattened rows", (4, 100, 28, 28), (120, 100, 1, 1)),
        case("one_image_of_few_rows", "tasks of filters", (1, 512, 4, 4), (256, 512, 3, 3), 1, 1),
        case("depthwise", "in place", (4, 96, 40, 40), (96, 1, 3, 3), 1, 1, groups=96),
        case("images", "tasks of rows of eight images, and of three", (11, 40, 14, 14), (48, 40, 3, 3), 1, 1),
    ],
    ids=lambda c: c.id,
)
def test_same_bits_on_any_number_of_threads(shape, impl, threads):
    x, weight, dy = tensors(shape)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    first = None
    # In the reference, torch's own sums may be cut by threads.
    for count in (1, 2, 2, 5, 1) if impl == "cpu" else (1, 1):
        threads(count)
        y = run(shape, x, weight, impl=impl)
        (dx,) = torch.autograd.grad(y, x, dy)
        first = first or (y, dx)
        assert torch.equal(y, first[0]), f"y differs with {count} threads"
        assert torch.equal(dx, first[1]), f"dx differs with {count} threads"


@pytest.mark.parametrize(
    "shape",
    [
        case("few_parts", "parts of several stretches, blocks shared out", (6, 128, 28, 28), (90, 128, 3, 3), 1, 1),
        case("many_parts", "a block for each part, rows of many images", (300, 16, 16, 16), (12, 16, 3, 3), 2, 1),
        case("small_images", "several images a stretch", (70, 48, 5, 5), (37, 48, 3, 3), 1, 1),
        case("1x1", "few channels, with a stride", (9, 16, 30, 30), (50, 16, 1, 1), 2),
        case("depthwise", "units of rows, channels met twice", (9, 41, 50, 50), (41, 1, 3, 3), 1, 1, groups=41),
        case("depthwise_7x7", "runs by phases", (9, 40, 33, 33), (40, 1, 7, 7), 2, 3, groups=40),
    ],
    ids=lambda c: c.id,
)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "generic"])
def test_large_dw(shape, isa, native, threads):
    """Over more than a cache holds: right, and the same bits on any number of threads."""
    native(isa)
    x, weight, dy = tensors(shape)
    expected = "outer products" if shape.groups == 1 else "depthwise"
    assert cpu.kernels(x, weight, Geometry.of(*shape.geometry))["dw"] == expected
    # The truth by a convolution in float64: truth.py would take minutes.
    sums = quadratic.full_grad_weight(dy.double(), x.double(), weight.double(), Geometry.of(*shape.geometry))
    all_positive = (dy.double().abs(), x.double().abs(), -weight.double().abs())
    magnitude = quadratic.full_grad_weight(*all_positive, Geometry.of(*shape.geometry))
    true = (sums.numpy(), magnitude.numpy(), dy.numel() // dy.shape[1])
    first = None
    for count in (1, 2, 2, 5, 1):
        threads(count)
        dw = cpu.grad_weight(dy, x, weight, Geometry.of(*shape.geometry), "full")
        first = dw if first is None else first
        assert torch.equal(dw, first), f"dw differs with {count} threads"
    assert_within(first, true, bound(true), f"dw of {shape}")


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (3, 4), (2, 1)])
def test_memory_format_follows_conv2d(kernel, groups, x_format, weight_format, impl):
    x = torch.randn(2, 8, 6, 6).to(memory_format=x_format)
    weight = torch.randn(12, 8 // groups, kernel, kernel).to(memory_format=weight_format)
    answers = []
    for function, options in ((F.conv2d, {}), (adder2d, {"impl": impl})):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = function(x, weight, stride=2, padding=1, groups=groups, **options)
        y.sum().backward()
        answers.append((y.stride(), x.grad.stride()))
        assert weight.grad.stride() == weight.stride()
    assert answers[0][0] == answers[1][0]
    assert answers[1][1] == x.stride()


def test_inputs_are_left_alone(impl):
    for shape in NAMED[:8]:
        x, weight, dy = tensors(shape)
        copies = [t.clone() for t in (x, weight, dy)]
        x, weight = x.requires_grad_(), weight.requires_grad_()
        torch.autograd.grad(run(shape, x, weight, impl=impl), (x, weight), dy)
        assert all(torch.equal(a, b) for a, b in zip((x, weight, dy), copies, strict=True))


def test_negated_view(impl):
    z = torch.randn(1, 6, 5, 5, dtype=torch.complex64)
    x, weight = z.conj().imag, torch.randn(4, 6, 3, 3)
    assert x.is_neg()
    assert torch.equal(adder2d(x, weight, impl=impl), adder2d(x.resolve_neg(), weight, impl=impl))


def test_reference_holds_a_chunk_at_a_time(monkeypatch):
    """Chunks bound what it allocates, and their borders change nothing."""
    shape = case("chunks", "many rows", (3, 6, 17, 9), (8, 6, 3, 3), (2, 3), 1)
    whole = {}
    largest = 0
    differences = reference._differences

    def measured(windows, w):
        nonlocal largest
        t = differences(windows, w)
        largest = max(largest, t.numel())
        return t

    monkeypatch.setattr(reference, "_differences", measured)
    x, weight, dy = tensors(shape)
    row = shape.output[3] * weight.numel()
    for elements in (reference.CHUNK_ELEMENTS, 2 * row, 1):
        monkeypatch.setattr(reference, "CHUNK_ELEMENTS", elements)
        largest = 0
        got = (
            reference.forward(x, weight, Geometry.of(*shape.geometry)),
            reference.grad_input(dy, x, weight, Geometry.of(*shape.geometry), "clipped"),
            reference.grad_weight(dy, x, weight, Geometry.of(*shape.geometry), "full"),
        )
        assert largest <= max(elements, row)
        whole = whole or got
        for a, b in zip(got, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "shapes"),
    [
        pytest.param(1, NAMED + RANDOM, id="one thread"),
        pytest.param(2, NAMED, id="two threads"),
        pytest.param(2, RANDOM, id="two threads, random", marks=pytest.mark.slow),
    ],
)
def test_convolution_serves_every_full_gradient(count, shapes, threads):
    """What implementations share: dw by Eq. 5 and dx = Σ dy (w - x) from a convolution's own gradients.

    torch takes other kernels on one thread, and one of those misreads the strides of sizes of 1.
    """
    threads(count)
    for shape in shapes:
        x, weight, dy = tensors(shape)
        weight = weight.contiguous(memory_format=torch.channels_last)
        numbers = [t.double().numpy() for t in (dy, x, weight)]
        true = truth.grad_weight(*numbers, *shape.geometry)
        got = quadratic.full_grad_weight(dy, x, weight, Geometry.of(*shape.geometry))
        assert_within(got, true, bound(true), f"dw of {shape}")
        value, _, terms = truth.grad_input(*numbers, *shape.geometry, mode="full")
        numbers = [np.abs(numbers[0]), np.abs(numbers[1]), -np.abs(numbers[2])]
        sums = truth.grad_input(*numbers, *shape.geometry, mode="full")[1]
        got = quadratic.full_grad_input(dy, x, weight, Geometry.of(*shape.geometry))
        assert_within(got, (value, sums, terms), bound((value, sums, terms)), f"dx of {shape}")


# ---- beyond 2^31 elements ------------------------------------------------------------------------------------------


def zeros(*shape):
    """Zeros that take no memory until something is written to them."""
    return torch.from_numpy(np.zeros(shape, np.float32)).contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 16])
def test_more_than_2_31_elements(groups, native):
    """Offsets need 64 bits. The image is read at its end only, so most of it is never really there; dx is."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if available < 13:
        pytest.skip(f"needs 13 GiB of memory, {available:.0f} are free")
    native("avx2")
    H = W = 11600
    x = zeros(1, 1, H * W, 16).view(1, H, W, 16).permute(0, 3, 1, 2)
    assert x.numel() > 2**31
    x[0, 15, H - 2 :, W - 2 :] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = torch.full((16, 16 // groups, 2, 2), 0.25)
    geometry = Geometry((H - 2, W - 2), (0, 0, 0, 0), (1, 1), groups)
    y = cpu.forward(x, weight, geometry)
    assert y.shape == (1, 16, 2, 2)
    n = 16 // groups
    far = -(n - 1) - (0.75 + 1.75 + 2.75 + 3.75)
    assert y[0, 15].tolist() == [[-n, -n], [-n, far]]
    dy = torch.arange(64.0).view(1, 16, 2, 2)
    dx = cpu.grad_input(dy, x, weight, geometry, "full")
    taps = dy[0, 15] if groups == 16 else dy[0].sum(0)
    assert dx[0, 15, H - 2 :, W - 2 :].tolist() == [[(0.25 - v) * taps[1, 1] for v in row] for row in ((1, 2), (3, 4))]
    assert dx[0, 15, H - 2 :, :2].tolist() == [[0.25 * taps[1, 0]] * 2] * 2
    assert dx.count_nonzero() == 16 * 16 - (4 if groups == 16 else 0)
    del dx
    geometry = Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1)
    y = cpu.forward(zeros(1, 1, 1500, 1500), torch.arange(1000.0).view(1000, 1, 1, 1), geometry)
    assert y.numel() > 2**31
    assert y[0, :, 1499, 1499].equal(-torch.arange(1000.0))
