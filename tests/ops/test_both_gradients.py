"""Both gradients with signs in one pass on a CPU: against the equations in float64, on every instruction set.

Those of powers are in ``test_power.py``.
"""

import numpy as np
import pytest
import torch
import truth
from checks import assert_within
from torch.library import opcheck

from adder_zoo import adder2d
from adder_zoo.ops import cpu, library
from adder_zoo.ops.geometry import Geometry

# N, C, H, W, K, (R, S), stride, (top, bottom, left, right), dilation, groups
SHAPES = {
    "3x3": (2, 8, 7, 6, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "no padding": (2, 16, 7, 6, 5, (3, 2), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "lanes that are not whole": (1, 37, 9, 9, 3, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    "padding on one side": (1, 5, 6, 6, 3, (3, 3), (1, 1), (0, 2, 3, 0), (1, 1), 1),
    "padding beyond the kernel": (1, 4, 3, 3, 3, (2, 2), (1, 1), (4, 4, 4, 4), (1, 1), 1),
    "stride and dilation": (2, 6, 11, 10, 4, (3, 2), (2, 3), (2, 1, 1, 2), (2, 3), 1),
    "pixels that no output takes": (1, 4, 7, 7, 4, (1, 1), (3, 3), (0, 0, 0, 0), (1, 1), 1),
    "a kernel as large as the image": (3, 4, 5, 5, 6, (5, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "a matrix product": (3, 40, 1, 57, 70, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "one pixel": (1, 5, 1, 1, 2, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "chains of filters": (1, 9, 2, 3, 700, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "groups of whole vectors": (2, 64, 5, 5, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
}
ISAS = ("avx512", "avx2", "generic")


def operands(name, decimals=1):
    """Numbers with one decimal, so that some x equal some w, and -0 among them."""
    N, C, H, W, K, kernel, *geometry = SHAPES[name]
    random = np.random.default_rng(0)
    size = Geometry.of(*geometry).output_size((H, W), kernel)
    shapes = (N, C, H, W), (K, C // geometry[3], *kernel), (N, K, *size)
    x, weight, dy = (torch.from_numpy(random.standard_normal(shape, np.float32)) for shape in shapes)
    x, weight = (t.round(decimals=decimals) for t in (x, weight))
    return x, torch.where(weight == 0, -0.0, weight), dy, geometry


def check(x, weight, dy, geometry, what):
    both = cpu.gradients(dy, x, weight, Geometry.of(*geometry))
    if both is None and x.shape[1] < 4:
        return  # fewer channels than half a vector of any instruction set
    assert both is not None, what
    numbers = [t.double().numpy() for t in (dy, x, weight)]
    for got, equation in zip(both, (truth.grad_input, truth.grad_weight), strict=True):
        true = equation(*numbers, *geometry, mode="sign")
        _, magnitude, terms = true
        # The sum of a border's dy is rounded by itself.
        bound = truth.gamma(terms + 2, truth.UNIT_ROUNDOFF["float32"]) * magnitude
        assert_within(got, true, bound, f"{equation.__name__} of {what}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_equations(name, isa, native):
    native(isa)
    check(*operands(name), f"{name}, {isa}")


@pytest.mark.parametrize("isa", ISAS)
def test_sums_near_the_largest_float(isa, native):
    """Twice the sign must not make infinity of them."""
    native(isa)
    x, weight, dy = torch.zeros(1, 16, 3, 1), torch.ones(4, 16, 1, 1), torch.zeros(1, 4, 3, 1)
    dy[0, 0, 0, 0] = 2e38
    a, b = x.requires_grad_(), weight.requires_grad_()
    dx, dw = torch.autograd.grad(adder2d(a, b, weight_grad="sign", input_grad="sign"), (a, b), dy)
    assert dx.max() == -dw.min() == dy.max()


@pytest.mark.parametrize("isa", ISAS)
def test_no_sign_times_a_sum_beyond_the_largest_float(isa, native):
    native(isa)
    x, weight = torch.randn(4, 16, 1, 1), torch.zeros(2, 16, 3, 3)
    both = cpu.gradients(torch.full((4, 2, 1, 1), 3e38), x, weight, Geometry.of((1, 1), (1,) * 4, (1, 1), 1))
    if both is not None:  # AVX2 leaves such dy to the kernels for one gradient
        outer = both[1].flatten(2)[:, :, [0, 1, 2, 3, 5, 6, 7, 8]]
        assert not outer.any()


@pytest.mark.parametrize("isa", ISAS)
def test_no_images(isa, native):
    native(isa)
    x, weight, dy, geometry = operands("3x3")
    dx, dw = cpu.gradients(dy[:0], x[:0], weight, Geometry.of(*geometry))
    assert dx.shape == x[:0].shape
    assert dw.shape == weight.shape
    assert not dw.any()


@pytest.mark.parametrize("isa", ISAS)
def test_random_shapes(isa, native):
    native(isa)
    random = np.random.default_rng(2)
    for _ in range(60):
        R, S = random.integers(1, 4, 2)
        C, K = random.integers(1, 40), random.integers(1, 20)
        stride, dilation = (tuple(map(int, random.integers(1, 4, 2))) for _ in range(2))
        padding = tuple(map(int, random.integers(0, 4, 4)))
        H, W = (int(random.integers(0, 6)) + d * (int(k) - 1) + 1 for d, k in zip(dilation, (R, S), strict=True))
        x = torch.from_numpy(random.standard_normal((int(random.integers(1, 4)), C, H, W), np.float32))
        weight = torch.from_numpy(random.standard_normal((K, C, R, S), np.float32))
        geometry = (stride, padding, dilation, 1)
        size = Geometry.of(*geometry).output_size((H, W), (int(R), int(S)))
        dy = torch.from_numpy(random.standard_normal((x.shape[0], K, *size), np.float32))
        check(x, weight, dy, geometry, f"{tuple(x.shape)}, {tuple(weight.shape)}, {geometry}")


@pytest.mark.parametrize("name", SHAPES)
def test_same_bits_on_any_number_of_threads(name):
    *tensors, geometry = operands(name)
    x, weight, dy = tensors
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cpu.gradients(dy, x, weight, Geometry.of(*geometry)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adder2d_takes_it_where_both_gradients_are_signs(dtype):
    x, weight, dy, geometry = operands("3x3")
    a, b = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    y = adder2d(a, b, padding=1, weight_grad="sign", input_grad="sign")
    found = torch.autograd.grad(y, (a, b), dy)
    wanted = cpu.gradients(dy, a.detach(), b.detach(), Geometry.of(*geometry))
    assert all(map(torch.equal, found, wanted))
    assert [t.dtype for t in found] == [dtype, dtype]


def test_what_it_does_not_take_is_computed_by_two_kernels():
    """Groups smaller than a vector, and numbers that are not finite."""
    x, weight, dy = torch.randn(2, 8, 6, 6), torch.randn(8, 2, 3, 3), torch.randn(2, 8, 4, 4)
    for x_value, groups in ((0.5, 4), (torch.nan, 1), (torch.inf, 1)):
        x[0, 0, 1, 1] = x_value
        filters = weight if groups == 4 else torch.randn(8, 8, 3, 3)
        where = Geometry.of((1, 1), (0, 0, 0, 0), (1, 1), groups)
        assert cpu.gradients(dy, x, filters, where) is None
        a, b = x.clone().requires_grad_(), filters.clone().requires_grad_()
        y = adder2d(a, b, groups=groups, weight_grad="sign", input_grad="sign")
        found = torch.autograd.grad(y, (a, b), dy)
        wanted = cpu.grad_input(dy, x, filters, where, "sign"), cpu.grad_weight(dy, x, filters, where, "sign")
        assert all(torch.equal(*(t.nan_to_num(7.0) for t in pair)) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("p", "impl"), [(1.0, "cpu"), (1.0, "reference"), (1.5, "cpu"), (1.5, "reference")])
@pytest.mark.parametrize("name", ["3x3", "groups of whole vectors", "stride and dilation"])
def test_registration(name, p, impl):
    x, weight, dy, geometry = operands(name)
    where = [list(part) for part in geometry[:3]] + [geometry[3]]
    x = x.contiguous(memory_format=torch.channels_last)
    opcheck(library.adder2d_gradients, (dy, x, weight, *where, p, impl))
    if p == 1:
        dx, dw = library.adder2d_gradients(dy, x, weight, *where, p, impl)
        torch.testing.assert_close(dx, library.adder2d_grad_input(dy, x, weight, *where, "sign", p, impl))
        torch.testing.assert_close(dw, library.adder2d_grad_weight(dy, x, weight, *where, "sign", p, impl))


@pytest.mark.parametrize("options", [{"p": 1.5}, {"weight_grad": "sign", "input_grad": "sign"}], ids=["power", "sign"])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_gradients(options, in_dims):
    """Of each sample, as a loop over them gives it."""
    x, weight = torch.randn(3, 2, 4, 6, 6), torch.randn(3, 5, 4, 3, 3)
    x, weight = (t if dim == 0 else t[0] for t, dim in zip((x, weight), in_dims, strict=True))

    def loss(x, weight):
        return (adder2d(x, weight, padding=1, **options) ** 2).sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    found = torch.func.vmap(gradient, in_dims)(x, weight)
    pairs = [(x[i] if in_dims[0] == 0 else x, weight[i] if in_dims[1] == 0 else weight) for i in range(3)]
    wanted = [torch.stack(grads) for grads in zip(*(gradient(*pair) for pair in pairs), strict=True)]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_compiled():
    x, weight, dy, _ = operands("3x3")

    @torch.compile(fullgraph=True)
    def step(x, weight):
        return adder2d(x, weight, padding=1, p=1.5)

    found = []
    for function in (step, step._torchdynamo_orig_callable):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        found.append(torch.autograd.grad(function(a, b), (a, b), dy))
    assert all(map(torch.equal, *found))
