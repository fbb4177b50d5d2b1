"""Every implementation that a CPU runs against the truth in float64: values, special values, layouts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import truth
from checks import assert_within, bound, clipped_bound
from operator_checks import (
    CANCELLATION,
    HALF,
    RANDOM,
    SPECIAL_SHAPES,
    check,
    dtype_name,
    expected,
    longest_chain,
    run,
)  # fmt: skip
from shapes import DEPTHWISE, IMAGES, NAMED, case, tensors

from adder_zoo import adder2d
from adder_zoo.ops import cpu
from adder_zoo.ops.geometry import Geometry

pytestmark = pytest.mark.usefixtures("threads")


def test_forgotten_outputs_would_show():
    assert torch.empty(7).isnan().all()
    assert cpu.empty((2, 3, 4, 5)).isnan().all()


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NAMED + IMAGES + DEPTHWISE, ids=lambda c: c.id)
def test_named_shapes(case, impl):
    check(case, impl, torch.float32)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "generic"])
def test_exact(isa, native):
    """Within the error of the differences themselves, whatever offset x and w share."""
    native(isa)
    for shape in NAMED + RANDOM[::8]:
        check(shape, "exact", torch.float32)
        if shape.work <= 30_000:
            x, weight, dy = tensors(shape)
            x, weight = (x + 300).requires_grad_(), (weight + 300).requires_grad_()
            y = run(shape, x, weight, impl="exact")
            dx, dw = torch.autograd.grad(y, (x, weight), dy)
            x, weight, dy = (t.detach().double().numpy() for t in (x, weight, dy))
            for got, true in (
                (y, truth.forward(x, weight, *shape.geometry)),
                (dx, truth.grad_input(dy, x, weight, *shape.geometry)),
                (dw, truth.grad_weight(dy, x, weight, *shape.geometry)),
            ):
                assert_within(got, true, bound(true), f"{shape}, offset 300")


@pytest.mark.parametrize("part", range(12))
def test_random_shapes(part, impl):
    for shape in RANDOM[part::12]:
        check(shape, impl, torch.float32)


@pytest.mark.parametrize("weight_dtype", [*HALF, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("x_dtype", [*HALF, torch.float32], ids=dtype_name)
def test_half_precision(x_dtype, weight_dtype, impl):
    if x_dtype == weight_dtype == torch.float32:
        pytest.skip("test_named_shapes and test_random_shapes are this")
    for shape in NAMED[::2] + RANDOM[::16]:
        check(shape, impl, x_dtype, weight_dtype)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_reference_in_float64(p):
    for shape in NAMED + RANDOM[::4]:
        check(shape, "reference", torch.float64, p=p)


def test_default_takes_float64():
    check(NAMED[2], None, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_name)
@pytest.mark.parametrize("p", [1.5, 2.0])
def test_reference_between_l2_and_l1(p, dtype):
    for shape in NAMED[::3] + RANDOM[::8]:
        check(shape, "reference", dtype, p=p)


@pytest.mark.parametrize(
    ("dtype", "impl"),
    [(torch.float64, None), (torch.float32, None), (torch.float32, "convolution"), *((dtype, None) for dtype in HALF)],
)
def test_p2_by_convolution(dtype, impl):
    """The same for p = 2, where a convolution adds up x², w² and x·w: their magnitudes bound the error."""
    computed = "float64" if dtype == torch.float64 else "float32"
    for shape in NAMED[::2] + RANDOM[::8]:
        x, weight, dy = tensors(shape, dtype)
        x, weight = x.requires_grad_(), weight.requires_grad_()
        y = run(shape, x, weight, p=2, impl=impl)
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
        true = expected(shape, dtype, dtype, 2.0)
        ax, aw, ady = (t.detach().double().abs().numpy() for t in (x, weight, dy))
        sums = truth.forward(ax, -aw, *shape.geometry, p=2)[1]
        value, _, terms = true["y"]
        assert_within(y, true["y"], bound((value, sums, terms), computed), f"y of {shape}, {dtype}")
        sums = truth.grad_input(ady, ax, -aw, *shape.geometry, p=2)[1]
        value, _, terms = true["dx", "clipped"]
        assert_within(dx, true["dx", "clipped"], bound((value, sums, terms), computed, dtype_name(x)), f"dx of {shape}")
        sums = truth.grad_weight(ady, ax, -aw, *shape.geometry, p=2)[1]
        value, _, terms = true["dw", "full"]
        assert_within(dw, true["dw", "full"], bound((value, sums, terms), computed, dtype_name(x)), f"dw of {shape}")


def test_gradient_of_p_above_1_is_the_derivative():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=g, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=g, requires_grad=True)
    for p in (1.5, 2.0):
        assert torch.autograd.gradcheck(lambda a, b, p=p: adder2d(a, b, stride=2, padding=1, p=p), (x, weight))


def covered(size, kernel, stride, padding):
    """How many taps meet each of `size` pixels."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    return torch.tensor([
        sum(0 <= i + padding - o * stride < kernel for o in range(outputs)) for i in range(size)
    ]).float()  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3, 16, 20])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (4, 2, 1), (2, 2, 0), (1, 2, 0), (3, 3, 1), (5, 3, 2), (2, 5, 0)]
)
def test_strided_dx_reaches_every_pixel(kernel, stride, padding, channels, impl):
    """With dy = 1 and w - x > 1, dx counts the taps that meet a pixel: no phase of the stride may be left out."""
    for groups in {1, channels}:
        x = torch.zeros(2, channels, 11, 9, requires_grad=True)
        weight = torch.full((channels * 2, channels // groups, kernel, kernel), 5.0)
        y = adder2d(x, weight, stride=stride, padding=padding, groups=groups, impl=impl)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        counts = covered(11, kernel, stride, padding).outer(covered(9, kernel, stride, padding))
        torch.testing.assert_close(dx, (counts * (2 * channels // groups)).expand_as(dx), rtol=0, atol=0)


@pytest.mark.parametrize("offset", [0, 1, 10, 100, 1e4])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
def test_identity_keeps_its_bound(isa, offset, native):
    """y by 2 Σ max - Σ x - Σ w is within (2·CANCELLATION + 1) times the error of the differences, at any offset."""
    native(isa)
    shapes = [
        case("3x3", "", (2, 40, 9, 9), (37, 40, 3, 3), 1, 1),
        case("1x1", "", (2, 300, 7, 7), (40, 300, 1, 1)),
        case("1x1_deep", "", (1, 3000, 3, 3), (16, 3000, 1, 1)),
        case("groups", "", (1, 64, 7, 7), (64, 32, 3, 3), 2, 1, groups=2),
        case("5x5", "", (1, 20, 8, 8), (50, 20, 5, 5), 1, 2),
    ]
    for shape in shapes:
        x, weight, _ = tensors(shape)
        x, weight = x + offset, weight + offset
        true = truth.forward(x.double().numpy(), weight.double().numpy(), *shape.geometry)
        exact_bound = bound(true, chain=longest_chain(shape))
        fast = cpu.forward(x, weight, Geometry.of(*shape.geometry))
        exact = cpu.forward(x, weight, Geometry.of(*shape.geometry), exact=True)
        assert_within(exact, true, exact_bound, f"exact y of {shape} at {offset}")
        assert_within(fast, true, exact_bound * (2 * CANCELLATION + 1), f"y of {shape} at {offset}")
        if shape.id in ("3x3", "1x1", "5x5"):
            off_fast, off_exact = (np.abs(y.double().numpy() - true[0]).mean() for y in (fast, exact))
            if offset == 0:
                assert not torch.equal(fast, exact), "the identity was not used"
            if offset == 1:
                assert off_exact < off_fast, "the identity was not used, or it costs nothing"
            if offset >= 10 and sum(shape.padding) == 0:
                assert torch.equal(fast, exact), "cancellation was not noticed"


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("offset", [0, 3])
def test_identity_cuts_its_sums_over_channels(isa, offset, native):
    """Terms that all round the same way: over many channels one long chain would be beyond the bound."""
    native(isa)
    lanes = {"avx512": 16, "avx2": 8, "generic": 4}[isa]
    shape = case("1x1", "", (1, 8191 * lanes + offset, 1, 1), (16, 8191 * lanes + offset, 1, 1))
    x, weight = torch.full(shape.x, 1 + 2**-12 - 2**-20), torch.full(shape.weight, 0.5937)
    true = truth.forward(x.double().numpy(), weight.double().numpy(), *shape.geometry)
    error = bound(true, chain=longest_chain(shape)) * (2 * CANCELLATION + 1)
    assert_within(cpu.forward(x, weight, Geometry.of(*shape.geometry)), true, error, f"y of {shape}")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("size", [1e36, 5e36, 5.3e36])
def test_identity_that_would_overflow(isa, size, native):
    """2 Σ max(x, w) is beyond float32 here, and y is not."""
    native(isa)
    x, weight = torch.full((1, 64, 3, 3), size), torch.zeros(20, 64, 1, 1)
    y = cpu.forward(x, weight, Geometry.of(*case("1x1", "", x.shape, weight.shape).geometry))
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y, torch.full_like(y, -64 * x.double()[0, 0, 0, 0].item()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("offset", [-100, -6, -4.5, -3, -1.5, 0, 0.5, 3.5, 6, 100])
def test_median_keeps_its_bound(offset, native):
    """dx by medians, Σ dy·median(w, x - 1, x + 1) - x·Σ dy, where x allows it, and by differences elsewhere.

    Where x is below -1 here and there, x and w grow by the same whole number first.
    """
    native("avx2")
    for shape in (
        case("3x3", "", (2, 40, 9, 9), (37, 40, 3, 3), 1, 1),
        case("stride2", "", (2, 24, 9, 8), (16, 24, 3, 3), 2, 1),
        case("1x1", "", (2, 48, 7, 7), (300, 48, 1, 1)),
        case("dilation", "", (1, 20, 11, 11), (9, 20, 3, 3), 2, 2, 2),
        case("images", "", (9, 20, 7, 7), (37, 20, 3, 3), 1, 1),
    ):
        x, weight, dy = tensors(shape)
        x = x.abs() % (6 if offset == -4.5 else 2) + offset
        numbers = [t.double().numpy() for t in (dy, x, weight)]
        true = truth.grad_input(*numbers, *shape.geometry)
        dx = cpu.grad_input(dy, x, weight, Geometry.of(*shape.geometry), "clipped")
        medians = -5 <= offset <= 6
        error = clipped_bound(true, dy.double().numpy(), x.double().numpy(), shape.weight, shape.geometry)
        assert_within(dx, true, error if medians else bound(true), f"dx of {shape} at {offset}")
        # Medians round as 2·|x| + 2 does, differences, which the generic kernels take, as |t| does.
        if offset in (-4.5, 6):
            native("generic")
            other = cpu.grad_input(dy, x, weight, Geometry.of(*shape.geometry), "clipped")
            native("avx2")
            off, off_other = (np.abs(t.double().numpy() - true[0]).mean() for t in (dx, other))
            assert off > off_other, "medians were not used, or they cost nothing"


def test_bias(impl):
    x, weight, bias = torch.randn(2, 5, 6, 6), torch.randn(7, 5, 3, 3), torch.randn(7, requires_grad=True)
    y = adder2d(x, weight, bias, padding=1, impl=impl)
    assert torch.equal(y, adder2d(x, weight, padding=1, impl=impl) + bias.view(-1, 1, 1))
    dy = torch.randn_like(y)
    (db,) = torch.autograd.grad(y, bias, dy)
    torch.testing.assert_close(db, dy.sum((0, 2, 3)))
    half = adder2d(x.half(), weight.half(), bias.detach().half(), padding=1, impl=impl)
    assert half.dtype == torch.float32
    assert torch.equal(
        half, adder2d(x.half(), weight.half(), padding=1, impl=impl) + bias.detach().half().float().view(-1, 1, 1)
    )


def test_unbatched(impl):
    x, weight, bias = torch.randn(5, 6, 7), torch.randn(4, 5, 3, 3), torch.randn(4)
    y = adder2d(x, weight, bias, 2, 1, impl=impl)
    assert y.shape == F.conv2d(x, weight, bias, 2, 1).shape == (4, 3, 4)
    assert torch.equal(y, adder2d(x[None], weight, bias, 2, 1, impl=impl)[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of F.conv2d
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 4), (4, 3), (5, 6)])
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
def test_same_and_valid(kernel, dilation, impl):
    x, weight = torch.randn(2, 3, 17, 18), torch.randn(4, 3, *kernel)
    geometry = {"dilation": dilation, "impl": impl}
    assert torch.equal(adder2d(x, weight, padding="valid", **geometry), adder2d(x, weight, padding=0, **geometry))
    same = adder2d(x, weight, padding="same", **geometry)
    assert same.shape == F.conv2d(x, weight, padding="same", dilation=dilation).shape == (2, 4, 17, 18)
    d = (dilation, dilation) if isinstance(dilation, int) else dilation
    total = [d[i] * (kernel[i] - 1) for i in range(2)]
    padded = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    torch.testing.assert_close(same, adder2d(padded, weight, **geometry), rtol=1e-5, atol=1e-5)


def test_sequences_of_one(impl):
    x, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    y = adder2d(x, weight, None, [2], (1,), [2], impl=impl)
    assert torch.equal(y, adder2d(x, weight, None, 2, 1, 2, impl=impl))


# ---- NaN and infinities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["x", "weight", "dy"])
@pytest.mark.parametrize("special", ["nan", "inf", "-inf", "nan and inf", "inf twice"])
@pytest.mark.parametrize("shape", SPECIAL_SHAPES, ids=lambda c: c.id)
def test_special_values(shape, special, where, impl):
    """A NaN reaches exactly what the equations say it touches; an infinity gives what they give."""
    named = dict(zip(("x", "weight", "dy"), tensors(shape), strict=True))
    t = named[where]
    values = {"nan": ["nan"], "nan and inf": ["nan", "inf"], "inf twice": ["inf", "-inf"]}.get(special, [special])
    places = torch.randperm(t.numel())[: 2 * len(values)]
    for i, place in enumerate(places):
        t.view(-1)[place] = float(values[i % len(values)])
    if special == "inf twice" and where == "x":  # an infinity on both sides of a difference
        named["weight"].view(-1)[0] = torch.inf
    x, weight, dy = named.values()
    numbers = [v.double().numpy() for v in (x, weight, dy)]
    x, weight = x.requires_grad_(), weight.requires_grad_()
    for weight_grad, input_grad in [("full", "clipped"), ("sign", "full"), ("full", "sign")]:
        y = run(shape, x, weight, weight_grad, input_grad, impl=impl)
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
        what = f"{shape}, {special} in {where}, {impl}"
        with np.errstate(invalid="ignore"):
            true = truth.forward(numbers[0], numbers[1], *shape.geometry)
            assert_within(y, true, bound(true) * 9, f"y of {what}")
            true = truth.grad_input(numbers[2], numbers[0], numbers[1], *shape.geometry, mode=input_grad)
            error = bound(true)
            if impl == "cpu" and input_grad == "clipped":
                error = clipped_bound(true, numbers[2], numbers[0], shape.weight, shape.geometry)
            assert_within(dx, true, error, f"dx {input_grad} of {what}")
            true = truth.grad_weight(numbers[2], numbers[0], numbers[1], *shape.geometry, mode=weight_grad)
            assert_within(dw, true, bound(true), f"dw {weight_grad} of {what}")


@pytest.mark.parametrize("p", [1.5, 2.0])
def test_nan_for_p_above_1(p):
    shape = SPECIAL_SHAPES[1]
    for where in range(3):
        ts = list(tensors(shape))
        ts[where].view(-1)[1] = torch.nan
        numbers = [t.double().numpy() for t in ts]
        x, weight, dy = ts[0].requires_grad_(), ts[1].requires_grad_(), ts[2]
        for impl in ("reference", None):
            y = run(shape, x, weight, p=p, impl=impl)
            dx, dw = torch.autograd.grad(y, (x, weight), dy)
            assert np.array_equal(y.isnan(), np.isnan(truth.forward(*numbers[:2], *shape.geometry, p=p)[0]))
            true = truth.grad_input(numbers[2], *numbers[:2], *shape.geometry, p=p)[0]
            assert np.array_equal(dx.isnan(), np.isnan(true))
            true = truth.grad_weight(numbers[2], *numbers[:2], *shape.geometry, p=p)[0]
            assert np.array_equal(dw.isnan(), np.isnan(true))
