"""``fuse`` and the operator that it puts in: values, which chains it finds, what it refuses."""

import copy
import functools
import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import truth
from checks import assert_within, bound
from operator_checks import extras
from shapes import DEPTHWISE, NAMED, case, random_cases, tensors
from timm.layers import BatchNormAct2d
from torch import nn
from torch.library import opcheck

import adder_zoo
from adder_zoo import Adder2d, convert_to_adder, fuse
from adder_zoo.fuse import FusedAdder2d
from adder_zoo.layers import Adder2dSame
from adder_zoo.ops import cpu
from adder_zoo.ops.fused import adder2d_fused
from adder_zoo.ops.geometry import Geometry

U = truth.UNIT_ROUNDOFF["float32"]
CANCELLATION = 4  # of kernels/cpu/forward_tile.h
SHAPES = NAMED + DEPTHWISE + random_cases(80, seed=3)


# ---- the operator --------------------------------------------------------------------------------------------------


@functools.cache
def distance(shape):
    """The truth of the distance, which is the same whatever follows it."""
    x, weight, _ = tensors(shape)
    return truth.forward(x.double().numpy(), weight.double().numpy(), *shape.geometry)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shortcut", [None, torch.float32, torch.bfloat16])
def test_operator(shortcut, relu, impl):
    """Within what the distance may be off, scaled, and the roundings of what follows it."""
    for shape in SHAPES if shortcut is None or impl != "reference" else SHAPES[::6]:
        x, weight, _ = tensors(shape)
        scale, shift, residual = extras(shape)
        residual = None if shortcut is None else residual.to(shortcut)
        y = adder2d_fused(x, weight, scale, shift, residual, *shape.geometry, relu, impl)
        value, magnitude, terms = distance(shape)
        a, b = (t.double().numpy().reshape(-1, 1, 1) for t in (scale, shift))
        c = 0 if residual is None else residual.double().numpy()
        true = a * value + b + c
        error = np.abs(a) * bound((value, magnitude, terms)) * (2 * CANCELLATION + 1)
        error = error + 4 * U * (np.abs(a * value) + np.abs(b) + np.abs(c))
        true = np.maximum(true, 0) if relu else true
        assert y.dtype == torch.float32
        assert_within(y, (true,), error, f"{shape}, {shortcut}, {relu}, {impl}")


def test_operator_in_float64_and_half():
    for shape in SHAPES[::9]:
        x, weight, _ = tensors(shape, torch.float64)
        scale, shift, residual = (t.double() for t in extras(shape))
        y = adder2d_fused(x, weight, scale, shift, residual, *shape.geometry, True, "auto")
        value = truth.forward(x.numpy(), weight.numpy(), *shape.geometry)[0]
        a, b = (t.numpy().reshape(-1, 1, 1) for t in (scale, shift))
        true = np.maximum(a * value + b + residual.numpy(), 0)
        assert y.dtype == torch.float64
        np.testing.assert_allclose(y, true, rtol=1e-12, atol=1e-9)
        half = [t.to(torch.bfloat16) for t in (x, weight, scale, shift, residual)]
        wide = [t.float() for t in half]
        y = adder2d_fused(*half, *shape.geometry, True, "auto")
        assert y.dtype == torch.float32
        assert torch.equal(y, adder2d_fused(*wide, *shape.geometry, True, "auto"))


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "weight", "scale", "shift", "residual"])
def test_special_values(where, special, impl):
    """As the definition has them: a ReLU keeps a NaN."""
    for shape in (
        case("tiles", "", (2, 18, 7, 7), (20, 18, 3, 3), 1, 1),
        case("depthwise", "", (2, 19, 6, 6), (19, 1, 3, 3), 1, 1, groups=19),
        case("small groups", "", (1, 12, 6, 6), (24, 3, 3, 3), 1, 1, groups=4),
    ):
        x, weight, _ = tensors(shape)
        scale, shift, residual = extras(shape)
        named = {"x": x, "weight": weight, "scale": scale, "shift": shift, "residual": residual}
        named[where].view(-1)[3] = special
        y = adder2d_fused(*named.values(), *shape.geometry, True, impl)
        with np.errstate(invalid="ignore"):
            value = truth.forward(x.double().numpy(), weight.double().numpy(), *shape.geometry)[0]
            a, b = (t.double().numpy().reshape(-1, 1, 1) for t in (scale, shift))
            true = a * value + b + residual.double().numpy()
            true = np.where(np.isnan(true), true, np.maximum(true, 0))
        assert np.array_equal(y.isnan(), np.isnan(true))
        assert np.array_equal(y.isposinf(), np.isposinf(true))
        assert not y.isneginf().any()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "generic"])
def test_same_bits_on_any_number_of_threads(isa, native):
    native(isa)
    before = torch.get_num_threads()
    shape = case("3x3", "", (4, 32, 28, 28), (64, 32, 3, 3), 1, 1)
    x, weight, _ = tensors(shape)
    answers = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        answers.append(adder2d_fused(x, weight, *extras(shape), *shape.geometry, True, "cpu"))
    torch.set_num_threads(before)
    assert all(torch.equal(y, answers[0]) for y in answers)


@pytest.mark.parametrize("impl", ["reference", "cpu", "auto"])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(format, shortcut, impl):
    x, weight = torch.randn(2, 4, 9, 8).to(memory_format=format), torch.randn(6, 4, 3, 3)
    residual = torch.randn(2, 6, 9, 8) if shortcut else None
    where = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    args = (x, weight, torch.randn(6), torch.randn(6), residual, *where, True, impl)
    opcheck(torch.ops.adder_zoo.adder2d_fused.default, args)


def test_refuses_other_shapes():
    x, weight, scale = torch.randn(1, 4, 6, 6), torch.randn(6, 4, 3, 3), torch.randn(6)
    where = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    for arguments, name in (
        ((torch.randn(5), scale, None), "scale"),
        ((scale, torch.randn(6, 1), None), "shift"),
        ((scale, scale, torch.randn(1, 6, 1, 1)), "residual"),
    ):
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            adder2d_fused(x, weight, *arguments, *where, True, "auto")


def test_no_gradient():
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    where = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    y = adder2d_fused(x, torch.randn(6, 4, 3, 3), torch.ones(6), torch.ones(6), None, *where, True, "auto")
    with pytest.raises(RuntimeError, match="for inference and has no gradient"):
        y.sum().backward()


# ---- instruction sets ----------------------------------------------------------------------------------------------


def test_follows_the_instruction_set(native):
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(20, 8, 3, 3)
    geometry = Geometry((1, 1), (1, 1, 1, 1), (1, 1), 1)
    for isa in cpu.library().isas * 2:
        native(isa)
        y = cpu.forward_fused(x, weight, torch.ones(20), torch.zeros(20), None, geometry, False)
        assert torch.equal(y, cpu.forward(x, weight.clone(), geometry))


# ---- networks ------------------------------------------------------------------------------------------------------


def ready(model, x):
    """``model`` in eval mode with statistics of batch norm that say something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def layers(model):
    found = [m for m in model.modules() if isinstance(m, Adder2d)]
    fused = [m for m in found if isinstance(m, FusedAdder2d)]
    return len(found), len(fused), sum(m.relu for m in fused)


# name, adder layers, of them with batch norm behind them, of those with a ReLU in the same pass
NETWORKS = [
    ("adder_vgg_small", 5, 5, 5),
    ("resnet50", 52, 52, 48),
    ("resnext50_32x4d", 52, 52, 48),
    ("mobilenetv2_100", 51, 51, 0),
    ("tf_efficientnet_b0", 48, 48, 0),
    ("densenet121", 119, 58, 58),
    ("dla34", 36, 36, 32),
    ("resnetv2_50", 52, 32, 32),
]


@pytest.mark.filterwarnings("ignore:convert_to_adder. no normalisation layer follows")
@pytest.mark.parametrize(("name", "adders", "with_norm", "with_relu"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_what_is_found(name, adders, with_norm, with_relu):
    model = timm.create_model(name, num_classes=7)
    model = (model if name.startswith("adder") else convert_to_adder(model)).eval()
    fused = fuse(model)
    assert layers(model) == (adders, 0, 0)
    assert layers(fused) == (adders, with_norm, with_relu)
    # The blocks of dla take two arguments, so it is traced as a whole.
    assert isinstance(fused, type(model)) or (name == "dla34" and isinstance(fused, torch.fx.GraphModule))


@pytest.mark.filterwarnings("ignore:convert_to_adder. no normalisation layer follows")
@pytest.mark.parametrize(
    ("name", "size"), [("adder_resnet20", 12), ("resnet10t", 32), ("mobilenetv3_small_050", 32), ("regnety_002", 32)]
)
def test_network_in_float64(name, size):
    """Where rounding has no say, the fused network is the network."""
    model = timm.create_model(name, num_classes=7)
    if not name.startswith("adder"):
        model = convert_to_adder(model)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    model = ready(model.double(), x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model)
    with torch.no_grad():
        wanted, got = model(x), fused(x)
        assert torch.equal(model(x), wanted)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-7 * wanted.abs().max().item())


def test_network_in_float32(impl):
    """No further from the network in float64 than the network in float32 is, give or take chance."""
    x = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    model = ready(timm.create_model("adder_resnet20").double(), x)
    with torch.no_grad():
        true = model(x)
        model, x = model.float(), x.float()
        for module in model.modules():
            if isinstance(module, Adder2d):
                module.impl = impl
        off, off_fused = (((m(x) - true).norm() / true.norm()).item() for m in (model, fuse(model)))
    assert off_fused < 4 * off
    assert off < 1e-3


class Block(nn.Module):
    """A block whose forward is given as a function of its parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, module in ({"conv": Adder2d(4, 4, 3, padding=1), "bn": nn.BatchNorm2d(4)} | parts).items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def in_place_on_the_input(m, x):
    y = m.conv(x)
    x = F.relu_(x * 1)
    return m.bn(y) + x


def written_between(m, x):
    x = x * 1
    y = m.bn(m.conv(x))
    x.mul_(2)
    return y + x


def added_into_the_shortcut(m, x):
    x = x * 1
    y = m.bn(m.conv(x))
    z = x
    x += y
    return x + z


def second_use(m, x):
    y = m.conv(x)
    return m.bn(y) + y


def second_use_of_norm(m, x):
    y = m.bn(m.conv(x))
    return y.relu() + y


def called_twice(m, x):
    return m.bn(m.conv(m.bn(m.conv(x))))


def relu_called_twice(m, x):
    return m.relu(m.bn2(m.conv2(m.relu(m.bn(m.conv(x))))))


def norm_of_another(m, x):
    return m.bn(m.conv(x) + x)


def depends_on_values(m, x):
    y = m.bn(m.conv(x))
    return y if y.sum() > 0 else -y


def broadcast_shortcut(m, x):
    return F.relu(m.bn(m.conv(x)) + x.mean((2, 3), keepdim=True))


def both_branches(m, x):
    y = m.bn(m.conv(x))
    return F.relu(torch.add(y, m.bn2(m.conv2(x))))


def reversed_sum(m, x):
    return torch.relu(x + m.bn(m.conv(x)))


def scaled_sum(m, x):
    return torch.add(m.bn(m.conv(x)), x, alpha=3).relu()


MORE = {"conv2": Adder2d(4, 4, 3, padding=1, bias=False), "bn2": nn.BatchNorm2d(4, affine=False)}
BLOCKS = [
    (in_place_on_the_input, {}, 1, 0),
    (written_between, {}, 1, 0),
    (added_into_the_shortcut, {}, 1, 0),
    (second_use, {}, 0, 0),
    (second_use_of_norm, {}, 1, 0),
    (called_twice, {}, 0, 0),
    (relu_called_twice, MORE | {"relu": nn.ReLU(inplace=True)}, 2, 2),
    (norm_of_another, {}, 0, 0),
    (depends_on_values, {}, 0, 0),
    (broadcast_shortcut, {}, 1, 1),
    (both_branches, MORE, 2, 1),
    (reversed_sum, {}, 1, 1),
    (scaled_sum, {}, 1, 0),
    (lambda m, x: m.conv2(m.bn(m.conv(x))), {"conv2": Adder2d(4, 4, 1), "bn": nn.GroupNorm(2, 4)}, 0, 0),
    (lambda m, x: m.bn(m.conv(x)), {"bn": nn.BatchNorm2d(4, track_running_stats=False)}, 0, 0),
    (lambda m, x: m.bn(m.conv(x)), {"conv": Adder2d(4, 4, 3, p=1.5)}, 0, 0),
    (lambda m, x: m.bn(m.conv(x)), {"conv": Adder2d(4, 4, 3, padding=1, padding_mode="reflect")}, 1, 0),
    (lambda m, x: m.bn(m.conv(x)), {"conv": Adder2dSame(4, 4, 3, 2)}, 1, 0),
    (lambda m, x: m.bn(m.conv(x)), {"bn": BatchNormAct2d(4)}, 1, 1),
    (lambda m, x: m.bn(m.conv(x)) + x, {"bn": BatchNormAct2d(4, act_layer=nn.SiLU)}, 1, 0),
    (lambda m, x: m.drop(m.bn(m.drop(m.conv(x)))) + x, {"drop": nn.Dropout(0.5)}, 1, 0),
]


@pytest.mark.parametrize(("forward", "parts", "fused", "relu"), BLOCKS, ids=lambda v: getattr(v, "__name__", ""))
def test_blocks(forward, parts, fused, relu):
    """What may be fused is, and whatever a block does, it answers as before."""
    x = torch.randn(2, 4, 7, 7)
    model = ready(nn.Sequential(Block(forward, **copy.deepcopy(parts)), nn.Sigmoid()), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not fused else "error")
        other = fuse(model)
    assert layers(other)[1:] == (fused, relu)
    with torch.no_grad():
        for image in (x, torch.randn(3, 4, 5, 6)):
            torch.testing.assert_close(other(image), model(image), rtol=1e-3, atol=1e-3)


def test_keeps_what_is_hooked():
    model = timm.create_model("adder_resnet20").eval()
    seen = []
    model.layer1[0].bn1.register_forward_hook(lambda module, args, out: seen.append(out))
    fused = fuse(model)
    assert layers(fused) == (20, 18, 16)  # the block as a whole is left alone
    with torch.no_grad():
        fused(torch.randn(1, 3, 8, 8))
    assert len(seen) == 1


def test_citizenship():
    """Features, copies and pickles of the fused network, compiled and exported: the same answers."""
    x = torch.randn(2, 3, 16, 16)
    model = ready(timm.create_model("adder_resnet20"), x)
    fused = fuse(model)
    with torch.no_grad():
        wanted = fused(x)
        torch.testing.assert_close(fused.forward_features(x), model.forward_features(x), rtol=1e-3, atol=1e-3)
        _, features = fused.forward_intermediates(x)
        assert [f.shape[1] for f in features] == [16, 16, 32, 64]
        assert torch.equal(copy.deepcopy(fused)(x), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(fused))(x), wanted)
        with torch.inference_mode():
            assert torch.equal(fused(x), wanted)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(fused, (x,)).module()
        torch.testing.assert_close(exported(x), wanted, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for m in fused.modules() if isinstance(m, FusedAdder2d) for p in m.parameters())
    counts, before = adder_zoo.report(fused), adder_zoo.report(model)
    assert sum(layer.taps for layer in counts.layers) == sum(layer.taps for layer in before.layers)


@pytest.mark.slow
def test_compile_by_inductor():
    x = torch.randn(2, 3, 16, 16)
    fused = fuse(ready(timm.create_model("adder_resnet20"), x))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fused, fullgraph=True)(x), fused(x), rtol=1e-4, atol=1e-4)


def test_refuses_training():
    model = timm.create_model("adder_resnet20")
    with pytest.raises(ValueError, match=r"in training mode.*call model.eval\(\) first"):
        fuse(model)
    model.eval().layer2[0].bn1.train()
    with pytest.raises(ValueError, match=r"layer2\.0\.bn1 is in training mode"):
        fuse(model)
    fused = fuse(model.eval())
    assert fused.eval() is fused
    with pytest.raises(RuntimeError, match="fused for inference and cannot be trained"):
        fused.train()


def test_refuses_networks_without_adder_layers():
    with pytest.raises(ValueError, match="ResNet has no adder layer"):
        fuse(timm.create_model("resnet10t").eval())
    with pytest.warns(UserWarning, match="nothing was fused in Adder2d"):
        fuse(Adder2d(3, 3, 3).eval())
    with pytest.raises(ValueError, match="expects 4 input channels"), torch.no_grad():
        fuse(nn.Sequential(Adder2d(4, 4, 3), nn.BatchNorm2d(4)).eval())(torch.randn(1, 3, 8, 8))


# ---- what must be left alone ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.conv = Adder2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.between = between

    def forward(self, x):
        return self.between(self.bn(self.conv(x))) + x


class AlwaysDropout(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Noise(nn.Identity):
    def forward(self, x):
        return x + 1


def close(model, x):
    with torch.no_grad():
        torch.manual_seed(1)
        want = model(x)
        fused = fuse(model)
        torch.manual_seed(1)
        torch.testing.assert_close(fused(x), want, rtol=1e-4, atol=1e-4)
    return fused


@pytest.mark.parametrize("between", [AlwaysDropout(), Noise()], ids=["dropout", "noise"])
def test_class_made_of_one_that_does_nothing(between):
    """Monte Carlo dropout is a Dropout that drops in eval mode, too (by a mask in the order of memory)."""
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    close(ready(nn.Sequential(Residual(between)).eval(), x), x)


@pytest.mark.parametrize("part", ["conv", "bn", "between", ""])
def test_forward_of_its_own(part):
    """As accelerate puts its hooks in: an attribute of the module, which no class knows of."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Twice(hooks.ModelHook):
        def post_forward(self, module, output):
            return 2 * output

    model = ready(nn.Sequential(Residual(nn.Identity())).eval(), x := torch.randn(2, 4, 6, 6))
    hooks.add_hook_to_module(model[0].get_submodule(part), Twice())
    with pytest.warns(UserWarning, match="nothing was fused"):
        close(model, x)


class Reads(Residual):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn.weight.view(-1, 1, 1) + self.bn.eps


@pytest.mark.parametrize("graph", [False, True])
def test_norm_that_is_read_elsewhere(graph):
    x = torch.randn(2, 4, 6, 6)
    model = ready(nn.Sequential(Reads(nn.Identity()), Residual(nn.Identity()) if graph else nn.Identity()).eval(), x)
    fused = close(model, x)
    assert not any(name.startswith("0.bn") for name in fused.state_dict())
    close(fused, x)  # what is fused already is in eval mode in all its parts


def test_residual_of_another_precision(native):
    x, weight, one = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1), torch.ones(4)
    where = ([1, 1], [0, 0, 0, 0], [1, 1], 1, True)
    got, want = (adder2d_fused(x, weight, one, one, -x.double(), *where, impl) for impl in ("cpu", "reference"))
    torch.testing.assert_close(got, want)
