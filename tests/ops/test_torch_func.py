"""``torch.func``: gradients, Jacobians and samples side by side, held against a loop of plain calls."""

import dataclasses
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, adder2d, fuse
from adder_zoo.ops import backends

B = 3
CONFIGS = {
    "plain": {"padding": 1},
    "groups": {"groups": 2, "stride": (2, 1)},
    "dilated": {"dilation": (1, 2), "padding": (0, 2)},
    "p 1.5": {"p": 1.5},
    "p 2": {"p": 2, "groups": 2},
}


@pytest.fixture(autouse=True)
def _no_slow_loops():
    """vmap warns where it has no rule and loops over the samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def operands(config, batched):
    shapes = {"x": (2, 4, 7, 6), "weight": (6, 4 // config.get("groups", 1), 3, 2), "bias": (6,)}
    return [
        torch.randn(*([B] if name in batched else []), *shape, dtype=torch.float64) for name, shape in shapes.items()
    ]


def each(function, dims, *args):
    """``vmap`` as a loop."""
    samples = [[a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)] for i in range(B)]
    results = [function(*sample) for sample in samples]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def gradients(config):
    def of_a_sample(x, weight, bias):
        x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
        return torch.autograd.grad(adder2d(x, weight, bias, **config).square().sum(), (x, weight, bias))

    return of_a_sample


def loss(config):
    return lambda *operands: adder2d(*operands, **config).square().sum()


BATCHED = [c for n in (1, 2, 3) for c in itertools.combinations(("x", "weight", "bias"), n)]


@pytest.mark.parametrize("batched", BATCHED, ids="-".join)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_vmap(config, batched):
    args = operands(config, batched)
    dims = tuple(0 if name in batched else None for name in ("x", "weight", "bias"))
    torch.testing.assert_close(
        vmap(lambda *a: adder2d(*a, **config), dims)(*args), each(lambda *a: adder2d(*a, **config), dims, *args)
    )
    got = vmap(grad(loss(config), argnums=(0, 1, 2)), dims)(*args)
    for a, b in zip(got, each(gradients(config), dims, *args), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_grad_vjp_and_jacrev(config):
    args = operands(config, ())
    for a, b in zip(grad(loss(config), argnums=(0, 1, 2))(*args), gradients(config)(*args), strict=True):
        torch.testing.assert_close(a, b)
    y, pull = vjp(lambda *a: adder2d(*a, **config), *args)
    for a, b in zip(pull(2 * y), gradients(config)(*args), strict=True):
        torch.testing.assert_close(a, b)

    def outputs(*args):
        return adder2d(*args, **config).mean((0, 2, 3))

    got = jacrev(outputs, argnums=(0, 1, 2))(*args)
    leaves = [a.requires_grad_() for a in args]
    rows = [torch.autograd.grad(outputs(*leaves)[k], leaves) for k in range(6)]
    for a, b in zip(got, map(torch.stack, zip(*rows, strict=True)), strict=True):
        torch.testing.assert_close(a, b)


def test_dimensions_anywhere_and_nested():
    x, weight = torch.randn(2, 4, B, 5, 5), torch.randn(6, 4, 3, 3, 2)
    got = vmap(vmap(adder2d, (None, 4)), (2, None))(x, weight)
    want = torch.stack([torch.stack([adder2d(x[:, :, i], weight[..., j]) for j in range(2)]) for i in range(B)])
    torch.testing.assert_close(got, want)
    assert vmap(adder2d, (0, None))(torch.zeros(B, 0, 4, 5, 5), weight[..., 0]).shape == (B, 0, 6, 3, 3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_one_call_for_all_samples(native, monkeypatch, precision):
    calls = []
    cpu = backends.CPU
    spies = {
        "forward": lambda *args: calls.append("forward") or cpu.forward(*args),
        "grad_input": lambda *args: calls.append("grad_input") or cpu.grad_input(*args),
        "grad_weight": lambda *args: calls.append("grad_weight") or cpu.grad_weight(*args),
    }
    monkeypatch.setattr(backends, "CPU", dataclasses.replace(cpu, **spies))
    x, weight = torch.randn(5, 1, 4, 6, 6).to(precision), torch.randn(8, 4, 3, 3).to(precision)
    got = vmap(grad(lambda x, w: adder2d(x, w).square().sum(), (0, 1)), (0, None))(x, weight)
    assert calls == ["forward", "grad_input", "grad_weight"]
    want = [grad(lambda x, w: adder2d(x, w).square().sum(), (0, 1))(x[i], weight) for i in range(5)]
    for a, b in zip(got, map(torch.stack, zip(*want, strict=True)), strict=True):
        assert a.dtype == precision
        torch.testing.assert_close(a, b, rtol=1e-4 if precision == torch.float32 else 2e-2, atol=1e-3)


def test_gradients_of_each_sample():
    """As differential privacy and influence functions take them: functional_call, vmap, grad."""
    model = nn.Sequential(
        Adder2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), AdderLinear(96, 5), nn.LayerNorm(5)
    ).double()
    x, target = torch.randn(4, 3, 4, 4, dtype=torch.float64), torch.arange(4)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of_one(parameters, x, target):
        return nn.functional.cross_entropy(functional_call(model, parameters, (x[None],)), target[None])

    got = vmap(grad(of_one), (None, 0, 0))(parameters, x, target)
    for i in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), target[i : i + 1]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(got[name][i], p.grad)


def test_ensemble_of_models():
    models = [nn.Sequential(Adder2d(3, 4, 3), nn.Flatten(), AdderLinear(64, 2)) for _ in range(B)]
    stacked, _ = torch.func.stack_module_state(models)
    x = torch.randn(2, 3, 6, 6)
    got = vmap(lambda p, x: functional_call(models[0], p, (x,)), (0, None))(stacked, x)
    torch.testing.assert_close(got, torch.stack([m(x) for m in models]))


@pytest.mark.parametrize("batched", ["x", "weight", "scale", "residual", "x residual", "all"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_of_the_fused_operator(groups, batched):
    names = ("x", "weight", "scale", "shift", "residual")
    shapes = ((2, 4, 6, 5), (6, 4 // groups, 3, 3), (6,), (6,), (2, 6, 4, 3))
    dims = tuple(0 if name in batched or batched == "all" else None for name in names)
    args = [torch.randn(*([B] if d == 0 else []), *shape) for d, shape in zip(dims, shapes, strict=True)]

    def run(*args):
        return torch.ops.adder_zoo.adder2d_fused(*args, [1, 1], [0] * 4, [1, 1], groups, True, "reference")

    torch.testing.assert_close(vmap(run, dims)(*args), each(run, dims, *args))
    if batched == "all":
        args, dims = [*args[:4], None], (*dims[:4], None)
        got = vmap(lambda *a: run(*a, None), dims[:4])(*args[:4])
        torch.testing.assert_close(got, each(lambda *a: run(*a, None), dims[:4], *args[:4]))


# ---- what has no derivative ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own
def test_forward_mode_is_refused():
    """A zero tangent would be taken for a derivative."""
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    layer = Adder2d(2, 3, 3)
    fused = fuse(nn.Sequential(layer, nn.BatchNorm2d(3)).eval())
    for function in (
        lambda: jvp(lambda w: adder2d(x, w), (weight,), (weight,)),
        lambda: jvp(lambda x: adder2d(x, weight, p=2), (x,), (x,)),
        lambda: jvp(layer, (x,), (x,)),
        lambda: jvp(fused, (x,), (x,)),
        lambda: jacfwd(lambda w: adder2d(x, w))(weight),
        lambda: hessian(lambda w: adder2d(x, w).sum())(weight),
        lambda: jvp(grad(lambda x: adder2d(x, weight).square().sum()), (x,), (x,)),
        lambda: jvp(vmap(lambda x: adder2d(x, weight)), (x[None],), (x[None],)),
        lambda: torch.autograd.functional.jvp(lambda w: adder2d(x, w), weight, weight, strict=True),
    ):
        with pytest.raises(RuntimeError, match=r"no forward-mode derivative|no second derivative"):
            function()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        adder2d(forward_ad.make_dual(x, x), weight)
    with forward_ad.dual_level():  # nothing here has a tangent
        assert torch.equal(adder2d(x, weight), adder2d(x, weight))


def test_second_derivative_is_refused():
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)

    def loss(x, w):
        return adder2d(x, w).square().sum()

    for function in (
        lambda: grad(lambda w: grad(loss, 1)(x, w).sum())(weight),
        lambda: grad(lambda x: grad(loss, 1)(x, weight).sum())(x),
        lambda: jacrev(jacrev(loss), argnums=1)(x, weight),
    ):
        with pytest.raises(RuntimeError, match="adder2d has no second derivative"):
            function()


def test_compiled():
    x, weight = torch.randn(4, 2, 2, 5, 5), torch.randn(3, 2, 3, 3)
    per_sample = vmap(grad(lambda w, x: adder2d(x, w).square().sum()), (None, 0))
    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight, x), per_sample(weight, x))


def test_operators_of_the_package_alone():
    """By hand and in exported programs the operator is called without ``functional``."""
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    operator = torch.ops.adder_zoo.adder2d
    where = [1, 1], [0] * 4, [1, 1], 1
    got = grad(lambda w: operator(x, w, *where, "full", "clipped", 1.0, "auto").sum())(weight)
    assert torch.equal(got, grad(lambda w: adder_zoo.adder2d(x, w).sum())(weight))
