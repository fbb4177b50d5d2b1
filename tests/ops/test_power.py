"""1 < p < 2 on a CPU: the native kernels against the equations in float64, on every instruction set."""

import itertools

import numpy as np
import pytest
import torch
import truth
from checks import assert_within

from adder_zoo import adder2d
from adder_zoo.ops import power
from adder_zoo.ops.geometry import Geometry

# Relative roundings of a term besides those of the sum: 13.8 of t(d), see kernels/cpu/power.h, and 1 of d in t(d) * d.
ROUNDINGS = 13.8 + 1
EXPONENTS = (1.001, 1.25, 1.5, 1.75, 1.999)

# N, C, H, W, K, (R, S), stride, padding, dilation, groups
SHAPES = {
    "3x3": (2, 8, 7, 5, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "lanes that are not whole": (1, 5, 9, 9, 13, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "one channel, one filter": (1, 1, 6, 6, 1, (2, 3), (1, 2), (1, 0), (2, 1), 1),
    "depthwise": (2, 12, 6, 6, 12, (3, 3), (1, 1), (1, 1), (1, 1), 12),
    "groups that share a vector": (2, 12, 6, 6, 18, (3, 3), (1, 1), (0, 0), (2, 1), 6),
    "5x5, padding on all sides": (1, 4, 5, 5, 4, (5, 5), (1, 1), (2, 2), (1, 1), 2),
    "a matrix product": (3, 40, 1, 7, 70, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "chains of additions": (1, 70, 4, 4, 9, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "groups of more vectors than one": (2, 6, 6, 5, 150, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "pixels that no output takes": (1, 3, 7, 7, 4, (1, 1), (3, 3), (0, 0), (1, 1), 1),
}


def bound(expected):
    """How far float32 may be off: the terms' own roundings, then those of the sum."""
    _, magnitude, terms = expected
    return truth.gamma(terms + ROUNDINGS, truth.UNIT_ROUNDOFF["float32"]) * magnitude + (terms + 1) * 2.0**-149


def operands(name, scale=1.0):
    N, C, H, W, K, kernel, stride, padding, dilation, groups = SHAPES[name]
    torch.manual_seed(0)
    x, weight = scale * torch.randn(N, C, H, W).relu_(), scale * 0.7 * torch.randn(K, C // groups, *kernel)
    geometry = (stride, (padding[0], padding[0], padding[1], padding[1]), dilation, groups)
    dy = torch.randn(N, K, *Geometry.of(*geometry).output_size((H, W), kernel))
    return x, weight, dy, geometry


def check(x, weight, dy, geometry, p, what):
    numbers = [t.double().numpy() for t in (x, weight)]
    dy_numbers, where = dy.double().numpy(), Geometry.of(*geometry)
    true = truth.forward(*numbers, *geometry, p=p)
    assert_within(power.forward(x, weight, where, p=p), true, bound(true), f"y of {what}")
    both = power.gradients(dy, x, weight, where, p=p)
    true = truth.grad_input(dy_numbers, *numbers, *geometry, p=p)
    assert_within(power.grad_input(dy, x, weight, where, "full", p=p), true, bound(true), f"dx of {what}")
    if both is not None:
        assert_within(both[0], true, bound(true), f"dx of {what}, with dw")
    true = truth.grad_weight(dy_numbers, *numbers, *geometry, p=p)
    assert_within(power.grad_weight(dy, x, weight, where, "full", p=p), true, bound(true), f"dw of {what}")
    if both is not None:
        assert_within(both[1], true, bound(true), f"dw of {what}, with dx")
    assert both is not None or where.groups > 1 or max(x.abs().max(), weight.abs().max()) > 2.0**60


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_equations(name, isa, native):
    native(isa)
    x, weight, dy, geometry = operands(name)
    for p in EXPONENTS:
        check(x, weight, dy, geometry, p, f"{name}, p = {p}, {isa}")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_random_shapes(isa, native):
    native(isa)
    random = np.random.default_rng(1)
    for _ in range(40):
        groups, (R, S) = int(random.choice([1, 1, 2, 3])), random.integers(1, 4, 2)
        C, K = groups * random.integers(1, 12), groups * random.integers(1, 20)
        stride, padding, dilation = (tuple(map(int, random.integers(a, b, 2))) for a, b in ((1, 3), (0, 3), (1, 3)))
        H, W = (int(random.integers(0, 5)) + d * (int(k) - 1) + 1 for d, k in zip(dilation, (R, S), strict=True))
        x = torch.from_numpy(random.standard_normal((int(random.integers(1, 4)), C, H, W), np.float32))
        weight = torch.from_numpy(random.standard_normal((K, C // groups, R, S), np.float32))
        geometry = (stride, (padding[0], padding[0], padding[1], padding[1]), dilation, groups)
        size = Geometry.of(*geometry).output_size((H, W), (int(R), int(S)))
        dy = torch.from_numpy(random.standard_normal((x.shape[0], K, *size), np.float32))
        p = float(random.uniform(1.0005, 1.9995))
        check(x, weight, dy, geometry, p, f"{tuple(x.shape)}, {tuple(weight.shape)}, {geometry}, p = {p}")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("exponent", range(-40, 60, 7))
def test_any_size_of_numbers(isa, exponent, native):
    """Each entry of the tables of powers of two; sums and their p-th powers stay in float32's range."""
    native(isa)
    x, weight, dy, geometry = operands("3x3", 2.0**exponent)
    for p in (1.001, 1.5, 1.999):
        if abs(exponent * p) < 100:
            check(x, weight, dy, geometry, p, f"2^{exponent}, p = {p}")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("name", ["3x3", "groups of more vectors than one", "groups that share a vector"])
def test_zeros_of_x_change_nothing_else(name, isa, native):
    """Their terms are computed beforehand: the others' images get the same bits, and 0 is as good as nearly 0."""
    native(isa)
    x, weight, _, geometry = operands(name)
    where = Geometry.of(*geometry)
    y = power.forward(x, weight, where, p=1.5)
    dense = torch.where(x == 0, 1e-30, x)
    torch.testing.assert_close(power.forward(dense, weight, where, p=1.5), y, rtol=4e-6, atol=0)
    assert torch.equal(power.forward(torch.cat([dense[:1], x[1:]]), weight, where, p=1.5)[1:], y[1:])


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_an_image_alone_has_the_same_bits(isa, native):
    native(isa)
    x, weight = torch.randn(20, 70, 1, 1).relu_(), torch.randn(17, 70, 1, 1)
    alone = torch.cat([adder2d(image[None], weight, p=1.5) for image in x])
    assert torch.equal(alone, adder2d(x, weight, p=1.5))


@pytest.mark.parametrize("p", EXPONENTS)
def test_no_difference_is_exactly_zero(p):
    """|0|^p and its derivative, and the sign beside it."""
    x = torch.tensor([0.0, -0.0, 3.0, -1e-30]).view(1, 4, 1, 1)
    weight = x.view(1, 4, 1, 1)
    y, dy = adder2d(x, weight, p=p, impl="cpu"), torch.ones(1, 1, 1, 1)
    assert y.item() == 0
    geometry = Geometry.of((1, 1), (0, 0, 0, 0), (1, 1), 1)
    assert not power.grad_input(dy, x, weight, geometry, "full", p=p).any()
    assert not power.grad_weight(dy, x, weight, geometry, "full", p=p).any()


def adder_grad(x, weight, dy, which):
    """The gradient of one of the operands, where the other one needs none."""
    operands = [t.clone().requires_grad_(i == which) for i, t in enumerate((x, weight))]
    return torch.autograd.grad(adder2d(*operands, padding=1, p=1.5), operands[which], dy)[0]


def test_adder2d_takes_it_by_itself():
    """Autograd through the kernels; half precision; the same bits on any number of threads."""
    x, weight, dy, geometry = operands("3x3")
    where = Geometry.of(*geometry)
    before = torch.get_num_threads()
    try:
        for threads, dtype in itertools.product((1, 2), (torch.float32, torch.bfloat16)):
            torch.set_num_threads(threads)
            a, b = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
            y = adder2d(a, b, padding=1, p=1.5)
            dx, dw = torch.autograd.grad(y, (a, b), dy)
            a, b = a.detach(), b.detach()
            assert torch.equal(y, power.forward(a, b, where, p=1.5))
            assert all(map(torch.equal, (dx, dw), power.gradients(dy, a, b, where, p=1.5)))
            assert torch.equal(adder_grad(a, b, dy, 0), power.grad_input(dy, a, b, where, "full", p=1.5))
            assert torch.equal(adder_grad(a, b, dy, 1), power.grad_weight(dy, a, b, where, "full", p=1.5))
            assert (y.dtype, dx.dtype, dw.dtype) == (torch.float32, dtype, dtype)
    finally:
        torch.set_num_threads(before)


def test_what_the_kernels_refuse_the_definition_computes():
    """Infinities, NaN, and numbers beyond 2^60."""
    x, weight, dy, geometry = operands("3x3")
    where = Geometry.of(*geometry)
    for value in (torch.inf, torch.nan, 2.0**61):
        x[0, 0, 3, 3] = value
        numbers = [t.double().numpy() for t in (x, weight)]
        with np.errstate(invalid="ignore"):
            true = truth.forward(*numbers, *geometry, p=1.5)
            assert_within(power.forward(x, weight, where, p=1.5), true, 2 * bound(true), f"y with {value}")
            true = truth.grad_weight(dy.double().numpy(), *numbers, *geometry, p=1.5)
            assert_within(power.grad_weight(dy, x, weight, where, "full", p=1.5), true, 2 * bound(true), f"dw, {value}")


def test_the_fit():
    """m^(p-2) and m^p by the coefficients that the library gets, as exact as is said."""
    m = np.linspace(1, 2, 10001)
    for p in (*EXPONENTS, 1 + 1e-9, *np.linspace(1.01, 1.99, 50)):
        for exponent, degree, error in ((p - 2, power.DEGREE, 1.8), (p, power.FORWARD_DEGREE, 3.7)):
            of = power._power(exponent, 1.0, degree)
            assert not any(of.coefficients[degree + 1 :])
            polynomial = sum(c * (m - 1.5) ** i for i, c in enumerate(of.coefficients))
            assert np.abs(polynomial / m**exponent - 1).max() < error * 2.0**-24
