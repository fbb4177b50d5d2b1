"""``quantize``: what it promises of accuracy, of integers, and of the network that it returns."""

import copy
import io
import warnings

import pytest
import timm
import torch
from torch import nn

import adder_zoo
from adder_zoo.fuse import FusedAdder2d
from adder_zoo.int8.layers import QuantizedAdder2d, Range, clipped_line, float_sums
from adder_zoo.layers import AdderLayer


def quantised(model):
    return [module for module in model.modules() if isinstance(module, QuantizedAdder2d)]


pytestmark = pytest.mark.filterwarnings(
    "ignore:quantize. these adder layers stay float32", "ignore:quantize. on calibration images"
)


def residual_network(name="resnet10t", **options):
    """A converted network whose batch norm knows its own outputs, as a trained one's does."""
    torch.manual_seed(0)
    model = adder_zoo.convert_to_adder(timm.create_model(name, num_classes=10, **options))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins with zeros at the end of a block, which pass nothing on
    images = torch.randn(16, 3, 32, 32)
    with adder_zoo.reestimated_batch_norm(model, [images]):
        return copy.deepcopy(model).eval(), images


@pytest.fixture(scope="module")
def small():
    return residual_network()


@pytest.fixture(scope="module")
def lenet():
    model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    return model, torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2


def loss(quantised_network, model, images):
    """Squared error of the logits, as a share of their variance over images."""
    with torch.no_grad():
        wanted, got = model(images), quantised_network(images)
    return float((got - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


def layer_losses(model, images, bits):
    """The same of each layer's output, given what it is given in the float network."""
    fused, network, losses = adder_zoo.fuse(model), adder_zoo.quantize(model, images, bits=bits), []

    def compare(name):
        alone = copy.deepcopy(network.get_submodule(name))
        alone.emit(True, None)

        def hook(module, args, output):
            spread = (output - output.mean((0, 2, 3), keepdim=True)).square().mean()
            got = alone(*args)
            if alone.relu:  # which may be a layer of its own in the float network
                got, output = (t.clamp(0, alone.ceiling) for t in (got, output))
            losses.append(float((got - output).square().mean() / spread))

        return hook

    for name, module in fused.named_modules():
        if isinstance(module, FusedAdder2d):
            module.register_forward_hook(compare(name))
    with torch.no_grad():
        fused(images)
    return torch.tensor(losses)


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mobilenetv2_050", "tf_efficientnet_lite0", "resnext26ts")),
    ],
)
def test_more_bits_lose_less(name):
    losses = [layer_losses(*residual_network(name), bits) for bits in (8, 6, 4)]
    assert torch.all(losses[0] < losses[1])
    assert torch.all(losses[1] < losses[2])
    assert losses[0].max() < 0.01


def test_bytes_go_from_layer_to_layer_and_change_nothing(small):
    model, images = small
    network = adder_zoo.quantize(model, images)
    layers = quantised(network)
    assert sum(layer.next_range is not None for layer in layers) >= len(layers) // 2
    assert any(not layer.wide for layer in layers)
    with torch.no_grad():
        connected = network(images)
    # The same layers, each of which hands on float32: the bytes are made where they are read, from the same values.
    apart = adder_zoo.fuse(model)
    for name, module in list(apart.named_modules()):
        if isinstance(module, FusedAdder2d):
            parent, _, child = name.rpartition(".")
            alone = copy.deepcopy(network.get_submodule(name))
            alone.emit(True, None)
            setattr(apart.get_submodule(parent), child, alone)
    with torch.no_grad():
        assert torch.equal(apart(images), connected)


def test_the_definition_and_the_kernels_give_the_same_bits(small):
    model, images = small
    network = adder_zoo.quantize(model, images)
    with torch.no_grad():
        native = network(images[:2])
        for layer in quantised(network):
            layer.impl = "reference"
        assert torch.equal(network(images[:2]), native)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_clipping_the_filters_loses_nothing(low):
    layer = nn.Sequential(adder_zoo.Adder2d(5, 7, 3, bias=False), nn.BatchNorm2d(7)).double().eval()
    fused = adder_zoo.fuse(layer)[0]
    covered = Range.covering(low, 1.5, 8)
    x = torch.rand(2, 5, 6, 6, dtype=torch.float64) * (covered.high - covered.low) + covered.low
    whole = float_sums(fused, x)
    slope, offset = clipped_line(fused, covered)
    fused.weight.copy_(fused.weight.clamp(covered.low, covered.high))
    clipped = float_sums(fused, x) + offset.view(-1, 1, 1)
    torch.testing.assert_close(clipped, whole, rtol=1e-13, atol=1e-12)
    assert torch.all(slope == covered.step)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_range_has_zero_as_a_level(bits):
    for low, high in ((0.0, 3.0), (-1.0, 3.0), (-3.0, 0.0), (-1e-6, 1e6)):
        covered = Range.covering(low, high, bits)
        assert covered.levels(torch.zeros(1)).item() == covered.zero_point
        assert 0 <= covered.zero_point <= covered.top == 2**bits - 1
        assert covered.high - covered.low == pytest.approx(high - low)


def test_few_pixels_are_not_fitted(lenet):
    model, images = lenet
    network = adder_zoo.quantize(model, images[:2])
    layer = network.get_submodule(next(name for name, m in network.named_modules() if isinstance(m, QuantizedAdder2d)))
    assert torch.isfinite(layer.scale).all()
    assert loss(network, model, images) < 0.05


def test_what_people_do_with_a_network(lenet):
    model, images = lenet
    network = adder_zoo.quantize(model, [(images[:32], torch.zeros(32)), (images[32:], None)])
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(copy.deepcopy(network)(images), logits)
        buffer = io.BytesIO()
        torch.save(network, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(images), logits)
        exported = torch.export.export(network, (images,))
        assert torch.equal(exported.module()(images), logits)
        assert torch.equal(torch.compile(network, fullgraph=True, backend="aot_eager")(images), logits)
    with pytest.raises(RuntimeError, match="was quantised for inference"):
        network.train()
    filters = [t for t in network.state_dict().values() if t.dtype == torch.uint8]
    layers = [module for module in model.modules() if isinstance(module, AdderLayer)]
    assert sum(t.numel() for t in filters) == sum(module.weight.numel() for module in layers)


def test_the_network_that_was_given_is_left_alone(lenet):
    model, images = lenet
    before = {name: t.clone() for name, t in model.state_dict().items()}
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    adder_zoo.quantize(model, images)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks


class TwoExponents(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = adder_zoo.Adder2d(3, 4, 3, p=2.0)
        self.second = adder_zoo.Adder2d(4, 4, 3)

    def forward(self, x):
        return self.second(self.first(x))


def test_what_stays_float_is_named():
    images = torch.randn(2, 3, 9, 9)
    with pytest.warns(UserWarning, match=r"stay float32:\n  first: its exponent p is not 1"):
        network = adder_zoo.quantize(TwoExponents().eval(), images)
    assert len(quantised(network)) == 1


def test_a_network_of_which_nothing_can_be_quantised():
    with pytest.raises(ValueError, match=r"nothing of Sequential can be quantised:\n  0: its exponent p is not 1"):
        adder_zoo.quantize(nn.Sequential(adder_zoo.Adder2d(3, 4, 3, p=2.0)).eval(), torch.randn(2, 3, 9, 9))
    with pytest.raises(ValueError, match="has no adder layer"):
        adder_zoo.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "there are no calibration images"),
        (torch.empty(0, 1, 32, 32), "there are no calibration images"),
        (torch.full((2, 1, 32, 32), torch.nan), "not finite"),
        ([["a.png"]], r"needs batches of images, float \[N, C, H, W\], got str"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(1, 32, 32), r"got torch.float32 of \[1, 32, 32\]"),
    ],
)
def test_bad_calibration(lenet, calibration, message):
    with pytest.raises(ValueError, match=f"quantize: .*{message}"):
        adder_zoo.quantize(lenet[0], calibration)


@pytest.mark.parametrize("bits", [1, 9, 0, 8.0, True, "8"])
def test_bad_bits(lenet, bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8"):
        adder_zoo.quantize(*lenet, bits=bits)


def test_networks_in_the_wrong_state(lenet):
    model, images = lenet
    with pytest.raises(ValueError, match="in training mode; call"):
        adder_zoo.quantize(copy.deepcopy(model).train(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = adder_zoo.quantize(model, images)
    with pytest.raises(ValueError, match="is quantised already"):
        adder_zoo.quantize(network, images)


def test_an_input_that_is_always_the_same():
    model = nn.Sequential(nn.ReLU(), adder_zoo.Adder2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="the input of 1 is 0 for every calibration image"):
        adder_zoo.quantize(model, -torch.rand(2, 3, 9, 9))
    with pytest.raises(ValueError, match="the input of 1 is the constant 2"):
        adder_zoo.quantize(model, torch.full((2, 3, 9, 9), 2.0))


def test_images_that_the_float_network_refuses(lenet):
    model, images = lenet
    network = adder_zoo.quantize(model, images)
    for dtype in (torch.uint8, torch.int64):  # bytes are not levels because they are bytes
        with pytest.raises(TypeError, match="x must be floating point"):
            network(images.to(dtype))


def test_state_dicts_carry_the_ranges_of_their_bytes(small):
    model, images = small
    network, other = adder_zoo.quantize(model, images), adder_zoo.quantize(model, images * 0.9)
    with torch.no_grad():
        assert not torch.equal(other(images), network(images))
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(images), network(images))
    apart = adder_zoo.quantize(model, images)
    first = next(layer for layer in quantised(apart) if layer.next_range is not None)
    first.emit(True, None)
    with pytest.raises(RuntimeError, match="bytes go from layer to layer in another way"):
        apart.load_state_dict(network.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_scales_and_ranges_alone(dtype):
    torch.manual_seed(0)
    model = adder_zoo.float32_norms(nn.Sequential(adder_zoo.Adder2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3)))
    images = torch.randn(8, 3, 9, 9)
    with adder_zoo.reestimated_batch_norm(model, [images]), torch.no_grad():
        model.eval()
        wanted = adder_zoo.quantize(model, images).get_submodule("0")(images)
        for network in (adder_zoo.quantize(model, images).to(dtype), adder_zoo.quantize(model.to(dtype), images)):
            assert network(images.to(dtype)).dtype == dtype
            got = network.get_submodule("0")(images)
            assert got.dtype == dtype
            torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.1)


def test_a_report_counts_the_layers_in_bytes(lenet):
    model, images = lenet
    wanted, got = (adder_zoo.report(m, (1, 32, 32)) for m in (adder_zoo.fuse(model), adder_zoo.quantize(model, images)))
    assert (got.parameters, len(got.layers)) == (wanted.parameters, len(wanted.layers))
    assert [(a.kind, a.taps, a.additions) for a in got.layers] == [(a.kind, a.taps, a.additions) for a in wanted.layers]


@pytest.mark.parametrize("images", [0, -1, 2.0])
def test_bad_numbers_of_images(lenet, images):
    with pytest.raises(ValueError, match="images must be a whole number from 1"):
        adder_zoo.quantize(*lenet, images=images)
