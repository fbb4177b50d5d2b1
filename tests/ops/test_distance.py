"""``cdist`` and ``nearest`` against the truth in float64, and beside ``torch.cdist``."""

import pytest
import torch
import truth
from checks import assert_within, bound
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adder_zoo import cdist, distance, nearest
from adder_zoo.ops import backends

SHAPES = [
    ((5, 7), (4, 7)),
    ((1, 1), (1, 1)),
    ((130, 65), (67, 65)),
    ((3, 5, 32), (3, 4, 32)),
    ((9, 300), (20, 300)),
    ((2, 150), (400, 150)),
    ((3, 5, 7), (4, 7)),
    ((5, 7), (3, 4, 7)),
    ((2, 1, 5, 7), (3, 4, 7)),
]
EMPTY = [((0, 7), (4, 7)), ((5, 7), (0, 7)), ((5, 0), (4, 0)), ((0, 5, 7), (0, 4, 7))]
CANCELLATION = 4  # how many times the rounding of the sum the identity may cost: kernels/cpu/forward_tile.h


def points(shape, dtype=torch.float32, seed=0):
    """A third of the coordinates are 0 or -0, so that some are equal."""
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(t.abs() < 0.4, t * 0, t).to(dtype)


def expected(x, y, dy):
    """Distance, and its derivatives by x and y, of [N, D] and [M, D]; each with magnitude and number of terms."""
    x, y, dy = (t.double().numpy()[:, :, None, None] for t in (x, y, dy))
    (d, magnitude, terms), dx = truth.forward(x, y), truth.grad_input(dy, x, y, mode="sign")
    by_y = truth.grad_input(dy.swapaxes(0, 1), y, x, mode="sign")
    return [
        (f * t[0][:, :, 0, 0], t[1][:, :, 0, 0], t[2]) for f, t in ((-1, (d, magnitude, terms)), (-1, dx), (-1, by_y))
    ]


def check(x, y, impl, cancellation):
    """The distances and both derivatives, batch by batch."""
    x, y = x.requires_grad_(), y.requires_grad_()
    d = cdist(x, y, impl=impl)
    dy = points(d.shape, d.dtype, seed=2)
    gradients = torch.autograd.grad(d, (x, y), dy)
    computed = str(d.dtype).removeprefix("torch.")
    stored = [computed, *(str(t.dtype).removeprefix("torch.") for t in (x, y))]
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    assert batch == () or x.dim() == y.dim() == 3, "derivatives of what is broadcast are sums over batches"
    for results in zip(*(t.detach().reshape(-1, *t.shape[-2:]) for t in (x, y, dy, d, *gradients)), strict=True):
        for got, true, dtype, factor in zip(
            results[3:], expected(*results[:3]), stored, (cancellation, 1, 1), strict=True
        ):
            assert_within(got, true, factor * bound(true, computed, dtype), (tuple(x.shape), tuple(y.shape), impl))


@pytest.mark.parametrize("impl", [None, "cpu", "exact", "reference"])
@pytest.mark.parametrize(("first", "second"), SHAPES[:6])
def test_distances_and_derivatives(first, second, impl):
    cancellation = 2 * CANCELLATION + 1 if impl in (None, "cpu") else 1
    check(points(first), points(second, seed=1), impl, cancellation)


@pytest.mark.parametrize(("first", "second"), [((1, 33), (150, 33)), ((40, 9), (3, 9)), ((33, 300), (2, 300))])
def test_one_derivative_alone(first, second):
    """Another kernel computes it than both, and for few points another one again."""
    x, y = points(first), points(second, seed=1)
    dy = points((len(x), len(y)), seed=2)
    for operand, true in zip((x, y), expected(x, y, dy)[1:], strict=True):
        operand.requires_grad_()
        (got,) = torch.autograd.grad(cdist(x, y), operand, dy)
        operand.requires_grad_(False)
        assert_within(got, true, bound(true, "float32", "float32"), (first, second))


@pytest.mark.parametrize("dtypes", [(torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
def test_half_precision_is_computed_in_float32(dtypes):
    check(points((9, 33), dtypes[0]), points((7, 33), dtypes[1], seed=1), None, 2 * CANCELLATION + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("first", "second"), SHAPES + EMPTY)
def test_shapes_and_values_are_those_of_torch(first, second, dtype):
    """Broadcasting and empty operands included, gradients too."""
    ours = [points(shape, dtype, seed).requires_grad_() for seed, shape in enumerate((first, second))]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    d, true = cdist(*ours), torch.cdist(*theirs, p=1.0)
    assert (d.shape, d.dtype) == (true.shape, true.dtype)
    torch.testing.assert_close(d, true)
    dy = points(d.shape, dtype, seed=2)
    gradients = torch.autograd.grad(d, ours, dy), torch.autograd.grad(true, theirs, dy)
    torch.testing.assert_close(*gradients)


def test_equal_points_are_at_distance_0_and_neighbours_keep_their_order():
    """Σx + Σy - 2·Σmax(x, y) alone would answer with its rounding."""
    x = points((200, 64)) + 100
    assert not cdist(x, x).diagonal().any()
    assert not torch.signbit(cdist(x, x)).any()  # 1/d of equal points is +inf
    assert not torch.signbit(cdist(x[None, :2].expand(2, -1, -1), x[None, :2].expand(2, -1, -1))).any()
    near = x + 1e-4 * torch.arange(200).view(-1, 1)
    found = cdist(x, near).diagonal()
    true = (x.double() - near.double()).abs().sum(-1)
    assert ((found - true).abs() <= 9 * truth.gamma(64 + 8, 2.0**-24) * true).all()


def test_infinity_and_nan():
    x = torch.tensor([[1.0, float("inf")], [float("nan"), 0.0], [1.0, 2.0]])
    torch.testing.assert_close(cdist(x, x), torch.cdist(x, x, p=1.0), equal_nan=True)


def test_vmap_compile_and_registration():
    x, y = points((3, 5, 7)), points((3, 4, 7), seed=1)
    together = cdist(x, y)
    assert torch.equal(torch.func.vmap(cdist)(x, y), together)
    assert torch.equal(torch.func.vmap(cdist, (0, None))(x, y[0])[2], cdist(x[2], y[0]))
    assert torch.equal(torch.compile(cdist, backend="aot_eager", fullgraph=True)(x, y), together)
    program = torch.export.export(_Distance(), (x, y), dynamic_shapes=({1: torch.export.Dim("N")}, None))
    assert torch.equal(program.module()(x[:, :3], y), cdist(x[:, :3], y))
    slope = torch.func.grad(lambda x: cdist(x, y[0]).sum())(x[0])
    assert torch.equal(slope, (x[0, :, None] - y[0]).sign().sum(1))
    operands = x.clone().requires_grad_(), y.clone().requires_grad_(), "auto"
    torch.library.opcheck(torch.ops.adder_zoo.cdist.default, operands)


class _Distance(torch.nn.Module):
    def forward(self, x, y):
        return cdist(x, y)


def test_a_second_derivative_is_refused():
    x = points((3, 4)).requires_grad_()
    (slope,) = torch.autograd.grad(cdist(x, points((2, 4), seed=1)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_is_a_sort_of_all_distances(dtype, monkeypatch):
    x, y = points((50, 6), dtype), points((40, 6), dtype, seed=1)
    whole = nearest(x, y, 5)
    true = torch.cdist(x, y, p=1.0).sort(dim=1, stable=True)
    torch.testing.assert_close(whole[0], true.values[:, :5])
    torch.testing.assert_close(cdist(x, y).gather(1, whole[1]), whole[0])
    monkeypatch.setattr(distance, "DISTANCES_AT_A_TIME", 120)  # three rows at a time
    parts = nearest(x.requires_grad_(), y, 5)
    assert torch.equal(parts[0], whole[0])
    assert not parts[0].requires_grad
    assert [t.shape for t in nearest(x[:0], y, 2)] == [(0, 2), (0, 2)]


class _Largest(TorchDispatchMode):
    """The largest tensor that an operator made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)), 0)
        return made


def test_nearest_never_holds_the_whole_matrix():
    x = torch.randn(30_000, 4)
    with _Largest() as largest:
        nearest(x[:600], x, 1)  # 18 million distances
    assert 0 < largest.elements <= distance.DISTANCES_AT_A_TIME


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: cdist(x, x[:, :3]), ValueError, "as many coordinates"),
        (lambda x: cdist(x[0], x), ValueError, "at least 2 dimensions"),
        (lambda x: cdist(x.int(), x), TypeError, "floating point"),
        (lambda x: cdist(x, x.double()), TypeError, "float64 goes with float64"),
        (lambda x: cdist(x, [1.0]), TypeError, "must be a tensor"),
        (lambda x: cdist(x, x.to("meta")), ValueError, "move one of them"),
        (lambda x: cdist(x, x, impl="fast"), ValueError, "impl must be"),
        (lambda x: cdist(x.expand(2, 5, 4), x.expand(3, 5, 4)), ValueError, "do not broadcast"),
        (lambda x: nearest(x, x, 0), ValueError, "k must be between 1 and"),
        (lambda x: nearest(x, x, 6), ValueError, "k must be between 1 and"),
        (lambda x: nearest(x, x, 2.0), TypeError, "k must be an int"),
        (lambda x: nearest(x[None], x, 2), ValueError, "expected"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randn(5, 4))


def test_without_kernels_torch_computes(monkeypatch):
    monkeypatch.setattr(backends, "_choose", lambda x, p: backends.REFERENCE)
    x, y = points((5, 7)).requires_grad_(), points((4, 7), seed=1).requires_grad_()
    d = cdist(x, y)
    assert torch.equal(d, torch.cdist(x, y, p=1.0))
    torch.testing.assert_close(
        torch.autograd.grad(d.sum(), (x, y)), torch.autograd.grad(torch.cdist(x, y, p=1.0).sum(), (x, y))
    )


def test_operators_refuse_dy_of_another_shape():
    x, y = torch.randn(1, 40, 16), torch.randn(1, 130, 16)
    for shape in ((1, 2, 3), (1, 40, 1), (1, 130, 40), (2, 40, 130)):
        with pytest.raises(ValueError, match="dy must have shape"):
            torch.ops.adder_zoo.cdist_grads(torch.ones(shape), x, y, "auto")
        with pytest.raises(ValueError, match="dy must have shape"):
            torch.ops.adder_zoo.cdist_grad(torch.ones(shape), x, y, False, "auto")
