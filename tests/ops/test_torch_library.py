"""The operators inside torch: opcheck, compile, export, autograd's corners, autocast."""

import copy
import dataclasses
import warnings

import pytest
import torch
from torch.library import opcheck

from adder_zoo import adder2d
from adder_zoo.ops import backends, library


class Net(torch.nn.Module):
    def __init__(self, groups=1, impl=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 4 // groups, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(8))
        self.options = {"stride": 2, "padding": 1, "groups": groups, "impl": impl}

    def forward(self, x):
        y = adder2d(x, self.weight, self.bias, **self.options)
        return torch.nn.functional.elu(y / 40 + 1)


CONFIGS = {
    "plain": {},
    "strided": {"stride": [2, 3], "padding": [0, 1, 2, 1]},
    "groups": {"groups": 2},
    "dilated_sign": {"dilation": [2, 1], "weight_grad": "sign", "input_grad": "sign"},
    "channels_last": {"format": torch.channels_last},
    "half": {"x": torch.float16, "weight": torch.float16},
    "half_beside_float32": {"x": torch.bfloat16, "format": torch.channels_last},
    "empty_batch": {"N": 0},
    "one_channel": {"C": 1, "format": torch.channels_last},
}


def operands(N=2, C=4, groups=1, x=torch.float32, weight=torch.float32, format=torch.contiguous_format, **_):
    return (
        torch.randn(N, C, 9, 8).to(x).contiguous(memory_format=format),
        torch.randn(6, C // groups, 3, 3).to(weight).contiguous(memory_format=format),
    )


def geometry(stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1, **_):
    return list(stride), list(padding), list(dilation), groups


# "auto" is "cpu" here: the choice is looked at in a part of these, and in tests of its own.
@pytest.mark.parametrize(
    ("config", "impl"),
    [
        pytest.param(
            CONFIGS[name], impl, id=f"{name}-{impl}", marks=[pytest.mark.slow] * (impl == "auto" and i % 4 > 0)
        )
        for i, name in enumerate(CONFIGS)
        for impl in ("reference", "cpu", "auto")
    ],
)
def test_opcheck(config, impl):
    x, weight = operands(**config)
    weight_grad, input_grad = config.get("weight_grad", "full"), config.get("input_grad", "clipped")
    where = geometry(**config)
    y = library.adder2d(x, weight, *where, weight_grad, input_grad, 1.0, impl)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    opcheck(torch.ops.adder_zoo.adder2d.default, (*leaves, *where, weight_grad, input_grad, 1.0, impl))
    dy = torch.randn_like(y)
    opcheck(torch.ops.adder_zoo.adder2d_grad_input.default, (dy, x, weight, *where, input_grad, 1.0, impl))
    opcheck(torch.ops.adder_zoo.adder2d_grad_weight.default, (dy, x, weight, *where, weight_grad, 1.0, impl))


@pytest.mark.parametrize("p", [1.5, 2.0])
def test_opcheck_p(p):
    leaves = [t.requires_grad_() for t in operands()]
    opcheck(torch.ops.adder_zoo.adder2d.default, (*leaves, *geometry(), "full", "clipped", p, "auto"))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last, "sliced"])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("C", "K", "kernel", "H"), [(4, 6, 3, 9), (1, 6, 3, 9), (4, 1, 3, 9), (4, 6, 1, 9), (4, 6, 3, 3)]
)
def test_fake_tensors_have_the_real_strides(C, K, kernel, H, weight_format, x_format, impl):
    """Where a size is 1 as well: compiled code is built on what the fake kernels say."""
    if x_format == "sliced":
        x = torch.randn(2, 2 * C, 2 * H, H)[:, ::2, ::2]
    else:
        x = torch.randn(2, C, H, H).contiguous(memory_format=x_format)
    weight = torch.randn(K, C, kernel, kernel).contiguous(memory_format=weight_format)
    where = geometry(padding=(0, 0, 0, 0))

    def everything(x, weight):
        y = library.adder2d(x, weight, *where, "full", "clipped", 1.0, impl)
        dy = torch.ones_like(y, memory_format=torch.contiguous_format)
        return (
            y,
            library.adder2d_grad_input(dy, x, weight, *where, "clipped", 1.0, impl),
            library.adder2d_grad_weight(dy, x, weight, *where, "full", 1.0, impl),
        )

    def layout(t):
        # A size of 1 has no stride that anybody could see.
        return t.shape, t.dtype, [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]

    real = everything(x, weight)
    mode = torch._subclasses.FakeTensorMode()
    fake = everything(mode.from_tensor(x), mode.from_tensor(weight))
    assert [layout(t) for t in fake] == [layout(t) for t in real]


# ---- compile -------------------------------------------------------------------------------------------------------


def step(net, x):
    """One training step's results: output, loss, gradients."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    net.zero_grad()
    y = net(x)
    loss = y.square().mean()
    loss.backward()
    assert net.weight.grad.count_nonzero() > 0.9 * net.weight.numel()
    return [y.detach(), loss.detach(), x.grad, net.weight.grad.clone(), net.bias.grad.clone()]


@pytest.mark.parametrize(
    ("backend", "formats"),
    [
        ("aot_eager", (torch.contiguous_format, torch.channels_last)),
        ("inductor", (torch.channels_last,)),
        pytest.param("inductor", (torch.contiguous_format, torch.channels_last), marks=pytest.mark.slow),
    ],
    ids=["aot_eager", "inductor", "inductor, both formats"],
)
def test_compile(backend, formats):
    torch._dynamo.reset()
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for format in formats:
        x = torch.randn(3, 4, 8, 9).contiguous(memory_format=format)
        for got, wanted in zip(step(compiled, x), step(net, x), strict=True):
            torch.testing.assert_close(got, wanted)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_compile_once_for_every_size(impl):
    torch._dynamo.reset()
    net = Net(groups=2, impl=impl)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter, dynamic=True)
    frames = set()
    for shape in ((2, 4, 8, 9), (5, 4, 12, 10), (3, 4, 7, 21)):
        x = torch.randn(shape)
        for got, wanted in zip(step(compiled, x), step(net, x), strict=True):
            torch.testing.assert_close(got, wanted)
        frames.add(counter.frame_count)
    assert len(frames) == 1, "compiled again for another size"


def test_compile_marks_the_batch_dynamic():
    torch._dynamo.reset()
    net = Net()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for N in (2, 3, 7):
        x = torch.randn(N, 4, 8, 8)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), net(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("padding", ["same", "valid", (1, 0)])
def test_compile_padding_and_unbatched(padding):
    torch._dynamo.reset()
    weight = torch.randn(4, 3, 2, 3)
    compiled = torch.compile(adder2d, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((3, 6, 7), (2, 3, 6, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x, weight, padding=padding), adder2d(x, weight, padding=padding))


# ---- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic, training):
    net = Net().train(training)
    x = torch.randn(2, 4, 8, 8)
    shapes = {"x": {0: torch.export.Dim("N"), 2: torch.export.Dim("H", min=4)}} if dynamic else None
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    targets = [str(node.target) for node in program.graph.nodes]
    assert "adder_zoo.adder2d.default" in targets
    module = program.module()
    for shape in [(2, 4, 8, 8), *([(5, 4, 11, 8), (1, 4, 8, 8)] if dynamic else [])]:
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), net(x))
    if training:
        module(x).sum().backward()
        assert all(p.grad is not None for p in module.parameters())


def test_export_round_trip(tmp_path):
    net = Net().eval()
    x = torch.randn(2, 4, 8, 8)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), net(x))


# ---- autograd ------------------------------------------------------------------------------------------------------


def test_no_second_derivative(impl):
    x, weight = (t.requires_grad_() for t in operands())
    y = adder2d(x, weight, impl=impl)
    dx, dw = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
    for gradient, leaf in ((dx, x), (dx, weight), (dw, x), (dw, weight)):
        with pytest.raises(RuntimeError, match="adder2d has no second derivative"):
            torch.autograd.grad(gradient.sum(), leaf, retain_graph=True)
    # A gradient that is used but not differentiated is fine.
    assert torch.isfinite(dx.detach().norm())


def test_no_second_derivative_for_gradgradcheck():
    x, weight = (t[:1, :, :3, :3].double().requires_grad_() for t in operands())
    with pytest.raises(RuntimeError, match="adder2d has no second derivative"):
        torch.autograd.gradgradcheck(adder2d, (x, weight))


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_only_what_is_asked_for_is_computed(wanted, impl, monkeypatch):
    called = []
    backend = backends.BACKENDS[impl]
    spies = {
        "grad_input": lambda *args: called.append("grad_input") or backend.grad_input(*args),
        "grad_weight": lambda *args: called.append("grad_weight") or backend.grad_weight(*args),
    }
    monkeypatch.setitem(backends.BACKENDS, impl, dataclasses.replace(backend, **spies))
    x, weight = operands()
    named = {"x": x, "weight": weight}
    named[wanted].requires_grad_()
    adder2d(x, weight, impl=impl).sum().backward()
    assert called == [{"x": "grad_input", "weight": "grad_weight"}[wanted]]
    assert [t.grad is not None for t in named.values()] == [name == wanted for name in named]


def test_no_grad(impl):
    x, weight = (t.requires_grad_() for t in operands())
    with torch.no_grad():
        assert not adder2d(x, weight, impl=impl).requires_grad
    with torch.inference_mode():
        assert not adder2d(x, weight, impl=impl).requires_grad
    assert not adder2d(x.detach(), weight.detach(), impl=impl).requires_grad


def test_gradients_accumulate(impl):
    x, weight = (t.requires_grad_() for t in operands())
    adder2d(x, weight, impl=impl).sum().backward()
    once = [t.grad.clone() for t in (x, weight)]
    adder2d(x, weight, impl=impl).sum().backward()
    for t, first in zip((x, weight), once, strict=True):
        torch.testing.assert_close(t.grad, 2 * first)


def test_saved_tensors_are_guarded(impl):
    x, weight = (t.requires_grad_() for t in operands())
    y = adder2d(x, weight, impl=impl)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_deepcopy():
    net = Net()
    x = torch.randn(2, 4, 8, 8)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    step(net, x)
    assert twin.weight.grad is None
    y = adder2d(x, net.weight.detach())
    assert torch.equal(copy.deepcopy(y), y)


# ---- autocast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_output_in_float32(dtype, impl):
    """A convolution before it hands over half precision; the filters stay float32, and so does what comes out."""
    x, weight = operands()
    conv = torch.nn.Conv2d(4, 4, 3, padding=1)
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        half = conv(x)
        y = adder2d(half, weight, padding=1, impl=impl)
    assert half.dtype == dtype
    assert y.dtype == torch.float32
    assert torch.equal(y, adder2d(half.detach().float(), weight, padding=1, impl=impl))
    y.sum().backward()
    assert weight.grad.dtype == conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("impl", [None, "reference"])
def test_autocast_changes_no_bit(impl, x_dtype, dtype, p):
    """Eager implementations consist of operations that autocast would send to half precision, backward included."""
    weight_dtype = torch.float64 if x_dtype == torch.float64 else torch.float32
    x, weight = (t + 3 for t in operands(x=x_dtype, weight=weight_dtype))
    bias = torch.randn(6)
    results = []
    for enabled in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            y = adder2d(*leaves, stride=2, padding=1, p=p, impl=impl)
            y.backward(torch.ones_like(y))  # whoever calls backward inside of the block
        results.append([y, *(leaf.grad for leaf in leaves)])
    assert results[0][0].dtype == weight_dtype
    for plain, cast in zip(*results, strict=True):
        assert cast.dtype == plain.dtype
        assert torch.equal(cast, plain)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_autocast_changes_no_bit_of_the_fused_operator(impl):
    x, weight = operands()
    scale, shift, residual = torch.randn(6), torch.randn(6), torch.randn(2, 6, 9, 8)
    args = (x, weight, scale, shift, residual, *geometry(), True, impl)
    plain = torch.ops.adder_zoo.adder2d_fused(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.ops.adder_zoo.adder2d_fused(*args), plain)


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "mps", "hpu", "meta"])
def test_autocast_of_any_device_is_switched_off(device):
    """No such device is needed to see which autocast an operator's code runs under."""
    from adder_zoo.ops.registration import without_autocast

    class Fake:
        def __init__(self):
            self.device = torch.device(device)

    def seen(x):
        return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)

    before = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if torch.amp.is_autocast_available(device):
        torch.set_autocast_enabled(device, True)
    try:
        assert not without_autocast(seen)(Fake())
        assert seen(None) == torch.amp.is_autocast_available(device)
    finally:
        if torch.amp.is_autocast_available(device):
            torch.set_autocast_enabled(device, before)


def test_grad_scaler():
    """The gradient is linear in dy, so a scaled loss gives the same step."""
    x = torch.randn(2, 4, 8, 8)
    net = Net()
    plain = copy.deepcopy(net)
    optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in (net, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizers[0])
    scaler.update()
    plain(x).square().mean().backward()
    optimizers[1].step()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    before = net.weight.detach().clone()
    optimizers[0].zero_grad()
    scaler.scale(net(x).sum() * torch.inf).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert torch.equal(net.weight, before), "an infinite gradient must be seen, and the step left out"
    assert scaler.get_scale() == 512


def test_no_warnings():
    x, weight = (t.requires_grad_() for t in operands())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adder2d(x, weight).sum().backward()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_operands_that_do_not_fit_are_refused(impl, native):
    """The operators are called by exported programs and by hand, too; a kernel would read beyond the end."""
    x, weight, dy = torch.randn(1, 16, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(1, 8, 4, 4)
    where = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
    with pytest.raises(ValueError, match="do not fit 16 channels"):
        library.adder2d(x, weight, *where, "full", "clipped", 1.0, impl)
    with pytest.raises(ValueError, match="do not fit 16 channels"):
        library.adder2d_grad_weight(dy, x, weight, *where, "full", 1.0, impl)
    weight = torch.randn(8, 16, 3, 3)
    with pytest.raises(ValueError, match=r"dy must have shape \[1, 8, 4, 4\]"):
        library.adder2d_grad_input(dy[..., :3], x, weight, *where, "clipped", 1.0, impl)
    with pytest.raises(ValueError, match="expected 4 dimensions"):
        library.adder2d(x[0], weight, *where, "full", "clipped", 1.0, impl)
