"""The int8 operator in torch: equal to exact integers on every path, and at home in torch.library."""

import int8_truth
import numpy as np
import pytest
import torch
from shapes import DEPTHWISE, NAMED, case, random_cases

from adder_zoo.ops.int8 import cpu as native
from adder_zoo.ops.int8.library import adder2d_int8, adder2d_int8_fused, int8_levels
from adder_zoo.ops.int8.reference import MOST_TAPS

SHAPES = NAMED + DEPTHWISE
CHANNELS_LAST = torch.channels_last
ISAS = native.int8_library().isas


@pytest.fixture
def best_isa_afterwards():
    library = native.int8_library()
    before = library.isa
    yield
    library.use(before)


def operands(shape, kind="random", seed=0):
    rng = np.random.default_rng(seed)
    x, weight = (rng.integers(0, 256, size).astype(np.uint8) for size in (shape.x, shape.weight))
    if kind != "random":
        x[:], weight[:] = (0, 255) if kind == "least" else (255, 0)
    return x, weight


def check(shape, impls, kind="random", zero_point=7, seed=0):
    """``impls``: names of implementations, or of the native library's instruction sets."""
    x, weight = operands(shape, kind, seed)
    truth = int8_truth.distance(x, weight, zero_point, *shape.geometry)
    for impl in impls:
        if impl != "reference":
            native.int8_library().use(impl)
        got = adder2d_int8(
            torch.from_numpy(x), torch.from_numpy(weight), zero_point, *shape.geometry,
            "reference" if impl == "reference" else "cpu",
        )  # fmt: skip
        assert got.dtype == torch.int32
        assert np.array_equal(got.numpy(), truth), (impl, kind, zero_point)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.id)
@pytest.mark.usefixtures("best_isa_afterwards")
def test_every_path_is_exact(shape):
    check(shape, ("reference", *ISAS))


@pytest.mark.usefixtures("best_isa_afterwards")
def test_native_is_exact_on_random_shapes():
    for number, shape in enumerate(random_cases(500, seed=3, work=30_000)):
        check(shape, ISAS, ("random", "random", "least", "most")[number % 4], (0, 128, 255)[number % 3], number)


@pytest.mark.usefixtures("best_isa_afterwards")
def test_any_number_of_threads_gives_the_same():
    threads = torch.get_num_threads()
    shape = case("threads", "many tasks", (3, 24, 20, 20), (40, 24, 3, 3), 1, 1)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            check(shape, ISAS)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("top", [255, 15])
def test_fused_rounds_step_by_step(impl, relu, with_residual, top):
    shape = case("fused", "", (2, 17, 6, 7), (70, 17, 3, 3), 2, 1)
    x, weight = operands(shape)
    rng = np.random.default_rng(1)
    y = int8_truth.distance(x, weight, 3, *shape.geometry)
    scale, shift = (rng.normal(size=70) / 2000).astype(np.float32), rng.normal(size=70).astype(np.float32)
    residual = rng.normal(size=shape.output).astype(np.float32) if with_residual else None
    v = int8_truth.epilogue(y, scale, shift, residual, relu)
    args = (torch.from_numpy(x), torch.from_numpy(weight), 3, torch.from_numpy(scale), torch.from_numpy(shift),
            None if residual is None else torch.from_numpy(residual), relu)  # fmt: skip
    both = adder2d_int8_fused(*args, True, 17.3, 5, top, True, *shape.geometry, impl)
    assert np.array_equal(both[0].numpy(), v)
    assert np.array_equal(both[1].numpy(), int8_truth.levels(v, 17.3, 5, top))
    alone = adder2d_int8_fused(*args, False, 17.3, 5, top, True, *shape.geometry, impl)
    assert torch.equal(alone[1], both[1])
    assert alone[0].numel() == 0
    wide = adder2d_int8_fused(*args, True, 17.3, 5, top, False, *shape.geometry, impl)
    assert torch.equal(wide[0], both[0])
    assert wide[1].numel() == 0


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.usefixtures("best_isa_afterwards")
def test_zeros_keep_their_sign(groups):
    """A sum of 0 is a positive zero, whatever scale and shift are: -0.0 comes out where the definition says so."""
    x = torch.full((1, 16, 2, 9), 7, dtype=torch.uint8)
    weight = torch.full((16, 16 // groups, 1, 1), 7, dtype=torch.uint8)
    scale = torch.tensor([1.0, -1.0]).repeat(8)
    shift = torch.tensor([0.0, 0.0, -0.0, -0.0]).repeat(4)

    def signs(impl):
        return torch.signbit(adder2d_int8_fused(
            x, weight, 7, scale, shift, None, False, True, 1.0, 0, 255, False, [1, 1], [0] * 4, [1, 1], groups, impl
        )[0])  # fmt: skip

    wanted = signs("reference")
    assert wanted.any()
    for isa in ISAS:
        native.int8_library().use(isa)
        assert torch.equal(signs("cpu"), wanted), isa


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.usefixtures("best_isa_afterwards")
def test_what_is_not_finite_becomes_a_level(groups, relu, wide):
    x = torch.zeros(1, 2, 1, 4, dtype=torch.uint8)
    weight = torch.zeros(2, 2 // groups, 1, 1, dtype=torch.uint8)
    residual = torch.tensor([torch.nan, torch.inf, -torch.inf, 300.0]).expand(1, 2, 1, 4).contiguous()
    one = torch.ones(2)

    def levels(impl):
        return adder2d_int8_fused(
            x, weight, 0, one, one * 0, residual, relu, wide, 1.0, 9, 255, True, [1, 1], [0] * 4, [1, 1], groups, impl
        )[1]

    wanted = levels("reference")
    assert wanted[0, 0, 0].tolist() == [9 if relu else 0, 255, 9 if relu else 0, 255]
    for isa in ISAS:
        native.int8_library().use(isa)
        assert torch.equal(levels("cpu"), wanted), isa


@pytest.mark.parametrize("inverse_step", [-1.0, 0.0, torch.inf, 1e39, torch.nan])
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.usefixtures("best_isa_afterwards")
def test_steps_that_no_network_has(inverse_step, groups):
    """A ReLU is not the lowest level of such a step."""
    x, weight = torch.zeros(1, 16, 1, 3, dtype=torch.uint8), torch.zeros(16, 16 // groups, 1, 1, dtype=torch.uint8)
    shift = torch.tensor([3.0, 0.0, -0.0, -3.0, torch.inf, -torch.inf, torch.nan, 1e-40]).repeat(2)

    def levels(impl):
        return adder2d_int8_fused(
            x, weight, 0, torch.ones(16), shift, None, True, False, inverse_step, 9, 255, True, [1, 1], [0] * 4,
            [1, 1], groups, impl,
        )[1]  # fmt: skip

    wanted = levels("reference")
    for isa in ISAS:
        native.int8_library().use(isa)
        assert torch.equal(levels("cpu"), wanted), isa


@pytest.fixture
def flushing():
    """A program that takes denormals for zero."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("best_isa_afterwards", "flushing")
def test_exact_where_denormals_are_flushed(threads):
    """Integers may be added up as denormal floats; what the program wants of its own floats is as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in NAMED:
            check(shape, ISAS)
        assert (torch.tensor([1e-40]) * 1).item() == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.usefixtures("best_isa_afterwards")
def test_denormals_behind_the_sum_are_kept(groups, request):
    """On every path, whatever the program wants of its own floats."""
    x, weight = torch.zeros(1, 8, 1, 3, dtype=torch.uint8), torch.zeros(8, 8 // groups, 1, 1, dtype=torch.uint8)
    one, shift = torch.ones(8), torch.full((8,), 9e-39)
    request.getfixturevalue("flushing")
    for isa in ISAS:
        native.int8_library().use(isa)
        wide, narrow = adder2d_int8_fused(
            x, weight, 0, one, shift, None, True, True, 3e38, 0, 255, True, [1, 1], [0] * 4, [1, 1], groups, "cpu"
        )
        assert wide.view(torch.int32).unique().tolist() == [6422615], isa
        assert narrow.unique().tolist() == [3], isa
        assert int8_levels(shift, 3e38, 0, 255, "cpu").tolist() == [3] * 8, isa


@pytest.mark.parametrize("size", [(0,), (1,), (2, 3, 5, 7), (1, 3, 200, 200)])
@pytest.mark.usefixtures("best_isa_afterwards")
def test_bytes_of_a_float_image(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 9
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5 / 7, 1.5 / 7, -0.0, 3e38])
    values.view(-1)[: len(special)] = special[: values.numel()]
    for isa in ISAS:
        native.int8_library().use(isa)
        for zero_point, top in ((0, 255), (9, 15), (255, 255)):
            wanted = int8_levels(values, 7.0, zero_point, top, "reference")
            assert torch.equal(int8_levels(values, 7.0, zero_point, top, "cpu"), wanted), (isa, zero_point, top)


def test_bytes_keep_the_memory_format():
    x = torch.randn(2, 8, 5, 6)
    wanted = int8_levels(x, 30.0, 100, 255, "reference")
    for t in (x.contiguous(memory_format=CHANNELS_LAST), x.transpose(2, 3), x[:, ::2, 1:], x.expand(3, 2, 8, 5, 6)):
        got = int8_levels(t, 30.0, 100, 255, "cpu")
        assert torch.equal(got, int8_levels(t, 30.0, 100, 255, "reference"))
        if t.is_contiguous(memory_format=CHANNELS_LAST):
            assert got.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(int8_levels(x, 30.0, 100, 255, "cpu"), wanted)


@pytest.mark.parametrize(
    ("args", "kind"),
    [((torch.zeros(2).double(), 1.0, 0, 255), TypeError), ((torch.zeros(2), 1.0, 9, 8), ValueError),
     ((torch.zeros(2), 1.0, 0, 256), ValueError)],
)  # fmt: skip
def test_bytes_refuse_what_does_not_fit(args, kind):
    with pytest.raises(kind, match="int8_levels"):
        int8_levels(*args)


@pytest.mark.parametrize("order", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_memory_format_follows_the_input(order, impl):
    x = torch.zeros(2, 8, 5, 5, dtype=torch.uint8).contiguous(memory_format=order)
    weight = torch.zeros(4, 8, 3, 3, dtype=torch.uint8)
    y = adder2d_int8(x, weight, 0, [1, 1], [1] * 4, [1, 1], 1, impl)
    assert y.is_contiguous(memory_format=order)


def test_torch_library_finds_nothing_wrong():
    shape = case("opcheck", "", (2, 5, 6, 6), (6, 5, 3, 3), 1, 1)
    x, weight = (torch.from_numpy(t) for t in operands(shape))
    torch.library.opcheck(adder2d_int8, (x, weight, 1, *shape.geometry))
    torch.library.opcheck(int8_levels, (torch.randn(2, 3, 4, 5), 3.0, 7, 255))
    scale = torch.rand(6)
    for wide, narrow in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            adder2d_int8_fused, (x, weight, 1, scale, scale, None, True, wide, 2.0, 0, 255, narrow, *shape.geometry)
        )


GOOD = {
    "x": torch.zeros(1, 4, 5, 5, dtype=torch.uint8),
    "weight": torch.zeros(6, 4, 3, 3, dtype=torch.uint8),
    "zero_point": 0,
    "stride": [1, 1],
    "padding": [0, 0, 0, 0],
    "dilation": [1, 1],
    "groups": 1,
}


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ({"x": torch.zeros(1, 4, 5, 5)}, TypeError, "x must be uint8, got torch.float32"),
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.int8)}, TypeError, "weight must be uint8"),
        ({"x": torch.zeros(4, 5, 5, dtype=torch.uint8)}, ValueError, "expected 4 dimensions"),
        ({"groups": 3}, ValueError, "do not fit"),
        ({"zero_point": 256}, ValueError, "zero_point must lie between 0 and 255"),
        ({"stride": [0, 1]}, ValueError, "at least 1"),
        ({"padding": [-1, 0, 0, 0]}, ValueError, "at least 0"),
        ({"dilation": [3, 1]}, ValueError, "larger than the padded input"),
        (
            {
                "x": torch.zeros(1, 1, dtype=torch.uint8).expand(1, MOST_TAPS + 1)[:, :, None, None],
                "weight": torch.zeros(1, 1, dtype=torch.uint8).expand(1, MOST_TAPS + 1)[:, :, None, None],
            },
            ValueError,
            "could overflow",
        ),
        ({"impl": "gpu"}, ValueError, "impl must be one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(bad, kind, message):
    with pytest.raises(kind, match=message):
        adder2d_int8(**{**GOOD, **bad})
