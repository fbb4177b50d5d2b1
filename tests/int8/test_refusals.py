"""What a network in bytes refuses, at once and whole, and that it says what to do."""

import copy
import io
import pickle

import pytest
import timm
import torch
from torch import nn

import adder_zoo
from adder_zoo.int8.layers import QuantizedAdder2d, range_integers
from adder_zoo.int8.network import QuantizedNetwork

X = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def settled(model, x=X):
    with adder_zoo.reestimated_batch_norm(model, [x]):
        return copy.deepcopy(model).eval()


class Traced(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.first, self.norm1 = adder_zoo.Adder2d(6, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = adder_zoo.Adder2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.norm1(self.first(self.norm(self.stem(x)).relu())).relu()
        return self.head(self.norm2(self.second(x)).flatten(1))


class Untraced(Traced):
    """torch.fx does not know which way to go."""

    def forward(self, x):
        return super().forward(x if x.isfinite().all() else x * 0)


class CalledTwice(nn.Sequential):
    """Its root is a graph once it is fused, but bytes cannot be let through a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.norm1 = nn.BatchNorm2d(3), adder_zoo.Adder2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice = adder_zoo.Adder2d(3, 3, 1)

    def forward(self, x):
        y = self.norm(x)
        return self.twice(self.twice((y + self.norm1(self.first(y))).relu()) + 9)


KINDS = {"traced": Traced, "untraced": Untraced, "a layer called twice": CalledTwice}


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    torch.manual_seed(0)
    made = adder_zoo.quantize(settled(KINDS[request.param]()), X)
    assert (type(made).__mro__[1] is QuantizedNetwork) == (request.param != "untraced")
    return made


def saved_and_loaded(network):
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "itself": lambda network: network,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "torch.load": saved_and_loaded,
    "a copy of a copy": lambda network: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(network)))),
}


@pytest.mark.parametrize("how", COPIES)
@torch.no_grad()
def test_every_copy_refuses_what_the_network_refuses(network, how):
    wanted, made = network(X), COPIES[how](network)
    for refused in (made.train, lambda: nn.DataParallel(made).train(), lambda: nn.Sequential(made).train()):
        with pytest.raises(RuntimeError, match=r"quantised for inference and cannot be trained\. Train the network"):
            refused()
        assert not any(module.training for module in made.modules())
    with pytest.raises(RuntimeError, match="gradients do not pass bytes"):
        made.requires_grad_()
    before = {name: tensor.dtype for name, tensor in made.state_dict().items()}
    for to_float64 in (made.double, lambda: made.to(torch.float64), lambda: made.to("cpu", torch.float64)):
        with pytest.raises(TypeError, match=r"a quantised network has no float64 form: .* in float32"):
            to_float64()
    assert {name: tensor.dtype for name, tensor in made.state_dict().items()} == before
    for dtype in (torch.uint8, torch.int64):
        with pytest.raises(TypeError, match=rf"x must be floating point.*got {dtype}.*create_transform"):
            made((X * 255).to(dtype))
    assert made.eval() is made
    assert made.requires_grad_(False) is made
    assert torch.equal(made(X), wanted)
    assert torch.equal(made.float()(X), wanted)


def test_a_layer_in_bytes_within_a_network_of_ones_own():
    network = adder_zoo.quantize(settled(Traced()), X)
    with pytest.raises(TypeError, match="no float64 form"):
        nn.Sequential(network.get_submodule("first")).double()


def test_what_makes_another_network_of_it(network):
    for refused in (adder_zoo.fuse, adder_zoo.convert_to_adder, lambda n: adder_zoo.fake_quantize(n, X)):
        with pytest.raises(ValueError, match=r"this network is quantised|is quantised already"):
            refused(network)


def test_export_c_of_a_network_that_is_not_in_integers(network, tmp_path):
    with pytest.raises(TypeError, match=r"what adder_zoo.to_integers returns, got \w+.*to_integers\(small, pixels\)"):
        adder_zoo.export_c(network, tmp_path / "c", "name", torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert not (tmp_path / "c").exists()


# ---- state dicts


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = settled(Traced())
    return adder_zoo.quantize(model, X), adder_zoo.quantize(model, X, bits=4)


def test_other_bits_do_not_load(pair):
    for network, other in (pair, pair[::-1]):
        network, state = copy.deepcopy(network), other.state_dict()
        with pytest.raises(RuntimeError, match=r"first\.ranges: what is loaded has \d bits, and this network \d"):
            network.load_state_dict(state)
        only = {key: tensor for key, tensor in state.items() if key.startswith("second.")}
        with pytest.raises(RuntimeError, match=r"second\.ranges: what is loaded has \d bits"):
            network.load_state_dict(only, strict=False)


def changed_step(ranges, step):
    ranges[0, 0] = range_integers(type("", (), {"step": step, "zero_point": 0, "top": 0}))[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda ranges: changed_step(ranges, float("nan")),
        lambda ranges: changed_step(ranges, float("inf")),
        lambda ranges: changed_step(ranges, 0.0),
        lambda ranges: changed_step(ranges, -1.0),
        lambda ranges: ranges[0].__setitem__(1, 256),
        lambda ranges: ranges[1].__setitem__(1, -1),
        lambda ranges: ranges[0].__setitem__(2, 254),
        lambda ranges: ranges[0].__setitem__(2, 1),
    ],
    ids=["nan", "inf", "0", "negative", "zero point above", "zero point below", "254 levels", "one bit"],
)
def test_damaged_ranges_do_not_load(pair, damage):
    network = copy.deepcopy(pair[0])
    wanted, state = network(X), {key: tensor.clone() for key, tensor in network.state_dict().items()}
    damage(state["first.ranges"])
    with pytest.raises(RuntimeError, match=r"first\.ranges are damaged"):
        network.load_state_dict(state)
    assert torch.equal(network(X), wanted)


@pytest.mark.parametrize("lost", ["weight", "scale", "shift", "ranges"])
def test_half_a_layer_does_not_load(pair, lost):
    state = pair[0].state_dict()
    del state[f"first.{lost}"]
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"first\.(\w+ is missing|weight: .*bytes without their)"):
            copy.deepcopy(pair[0]).load_state_dict(state, strict=strict)
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("first.")}
    copy.deepcopy(pair[0]).load_state_dict(rest, strict=False)  # another part of the network may be loaded alone


# ---- calibration


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.norm, self.unused = adder_zoo.Adder2d(3, 4, 3), nn.BatchNorm2d(4), adder_zoo.Adder2d(3, 4, 3)

    def forward(self, x):
        return self.norm(self.used(x))


def test_a_layer_that_forward_never_calls_stays_float32():
    model = settled(Unreached())
    with pytest.warns(UserWarning, match=r"stay float32:\n  unused: no calibration image reaches it"):
        network = adder_zoo.quantize(model, X)
    assert [name for name, m in network.named_modules() if isinstance(m, QuantizedAdder2d)] == ["used"]
    with pytest.warns(UserWarning, match="unused: no calibration image reaches it"):
        tuned = adder_zoo.fake_quantize(model, X, bits=8)
    with pytest.warns(UserWarning, match="unused: no calibration image reaches it"):
        again = adder_zoo.quantize(tuned.eval())
    with torch.no_grad():
        assert torch.allclose(again(X), network(X), atol=0.1)
    model.forward = lambda x: x
    with pytest.raises(ValueError, match=r"nothing of Unreached can be quantised:\n  used: no calibration"):
        adder_zoo.quantize(model, X)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.rand(4, 3, 32, 32), r"does not take calibration images of \[4, 3, 32, 32\].*\[1, 32, 32\] for this"),
        (torch.rand(4, 1, 28, 28), r"does not take calibration images of \[4, 1, 28, 28\].*32 x 32 pixels"),
        (5, "calibration must be a tensor of images, a loader or batches, got int"),
    ],
    ids=["channels", "size", "a number"],
)
def test_images_of_another_kind(calibration, message):
    model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    with pytest.raises(ValueError, match=rf"(?s)quantize: .*{message}"):
        adder_zoo.quantize(model, calibration)


def test_a_dead_network():
    layers = adder_zoo.Adder2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), adder_zoo.Adder2d(4, 4, 1)
    model = nn.Sequential(nn.ReLU(), *layers)
    with pytest.raises(ValueError, match=r"the input of 4 is 0 for every .* dead .*adder_zoo.reestimated_batch_norm"):
        adder_zoo.quantize(model.eval(), X)
