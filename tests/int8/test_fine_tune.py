"""``fake_quantize``: training sees the integers that ``quantize`` makes, and keeps AdderNet's gradients."""

import copy

import pytest
import timm
import torch
from torch import nn

import adder_zoo
from adder_zoo.fuse import FusedAdder2d
from adder_zoo.hub import save_pretrained
from adder_zoo.int8.fake import fake_quantized
from adder_zoo.int8.layers import QuantizedAdder2d, Range, clipped_line, range_integers, range_of

pytestmark = pytest.mark.filterwarnings("ignore:(fake_)?quantize. these adder layers stay float32")

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def lenet():
    model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2
    return model, images, adder_zoo.fake_quantize(model, images, bits=3)


def with_range(layer, low, high, bits):
    layer.input_range = torch.tensor(range_integers(Range.covering(low, high, bits)))
    return layer


def normed(layer, x):
    """The layer with a batch norm behind it that knows its outputs."""
    network = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))
    with torch.no_grad():
        network[1].momentum = None
        network.train()(x)
    return network.eval()


LAYERS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride and groups": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
    "dilation and bias": {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": True},
    "1x1": {"kernel_size": 1},
}


@pytest.mark.parametrize("low", [0.0, -0.7])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_the_levels_of_its_integer_form(name, bits, low):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 9) * 1.5  # beyond the range on both sides
    layer = with_range(adder_zoo.Adder2d(6, 4, **{"bias": False, **LAYERS[name]}), low, 1.3, bits)
    network = normed(layer, x)
    fused = adder_zoo.fuse(network)
    integers = QuantizedAdder2d(fused[0], range_of(layer.input_range.tolist()))
    covered = integers.input_range
    rounded, weight, _ = fake_quantized(x, layer.weight, layer.input_range)
    assert torch.equal((rounded / covered.step).round() + covered.zero_point, covered.levels(x).float())
    level = (weight / covered.step).round() + covered.zero_point
    assert torch.equal(level.clamp(0, covered.top), integers.weight.float())

    slope, offset = (t.view(-1, 1, 1) for t in clipped_line(fused[0], covered))
    whole = slope * integers.sums(x) + offset
    if layer.bias is not None:
        whole = whole + layer.bias.double().view(-1, 1, 1)
    taps = layer.weight[0].numel()
    room = (3 * taps + 8) * EPS * (whole.abs() + covered.step * taps)
    with torch.no_grad():
        assert ((layer(x) - whole).abs() <= room).all()
        scale = fused[0].scale.abs().view(-1, 1, 1)
        error = (network(x).double() - integers(x).double()).abs()
        assert (error <= 4 * scale * room + 8 * EPS * (whole * scale).abs()).all()
        assert ((fused(x).double() - integers(x)).abs() <= 4 * scale * room + 8 * EPS * (whole * scale).abs()).all()


def test_nothing_is_lost_within_the_range_but_rounding():
    """Clipped filters answer as they are: what is cut off comes back as an offset."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 5, 5)
    layer = with_range(adder_zoo.Adder2d(3, 4, 3, bias=False), 0.0, 1.0, 8)
    plain = copy.deepcopy(layer)
    plain.input_range = None
    assert (layer.weight < 0).any()
    taps = layer.weight[0].numel()
    with torch.no_grad():
        assert ((layer(x) - plain(x)).abs() <= taps / 255 + 1e-4).all()  # half a step for each of x and w


@pytest.mark.parametrize("weight_grad", ["full", "sign"])
@pytest.mark.parametrize("input_grad", ["clipped", "full", "sign"])
def test_the_gradient_is_that_of_the_operator_at_the_rounded_values(weight_grad, input_grad):
    torch.manual_seed(0)
    rules = {"weight_grad": weight_grad, "input_grad": input_grad}
    x, dy = (torch.randn(2, 3, 6, 6) * 2).requires_grad_(), torch.randn(2, 4, 4, 4)
    layer = with_range(adder_zoo.Adder2d(3, 4, 3, **rules), -0.5, 2.0, 3)
    layer(x).backward(dy)
    covered = range_of(layer.input_range.tolist())
    at_x = (covered.step * (covered.levels(x.detach()).float() - covered.zero_point)).requires_grad_()
    at_w = (covered.step * (layer.weight.detach() / covered.step).round()).requires_grad_()
    adder_zoo.adder2d(at_x, at_w, **rules).backward(dy)
    half = covered.step / 2
    inside = (x > covered.low - half) & (x < covered.high + half)
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(x.grad, at_x.grad * inside)
    torch.testing.assert_close(layer.weight.grad, at_w.grad)
    torch.testing.assert_close(layer.bias.grad, dy.sum((0, 2, 3)))


def test_quantize_takes_the_ranges_of_the_training(lenet):
    model, images, network = lenet
    integers = adder_zoo.quantize(network)
    layers = {name: m for name, m in integers.named_modules() if isinstance(m, QuantizedAdder2d)}
    assert layers
    for name, layer in layers.items():
        assert layer.input_range == range_of(network.get_submodule(name).input_range.tolist())
        assert layer.input_range.bits == 3
    with torch.no_grad():
        wanted, got, apart = network(images), integers(images), model(images)
    assert torch.equal(wanted.argmax(1), got.argmax(1))
    # A value at the border between two levels may fall on either side, after sums in another order.
    assert (wanted - got).square().mean() < 1e-4 * (wanted - apart).square().mean()


def test_training_changes_the_integers(lenet):
    _, images, network = lenet
    trained = copy.deepcopy(network).train()
    optimizer = adder_zoo.AdderSGD(trained.parameters(), lr=0.02, momentum=0.9)
    labels = torch.arange(len(images)) % 10
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(trained(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    with adder_zoo.reestimated_batch_norm(trained, [images]), torch.no_grad():
        wanted, got = trained.eval()(images), adder_zoo.quantize(trained)(images)
    assert (wanted - got).square().mean() < 1e-3 * wanted.var()
    before, after = (adder_zoo.quantize(n).state_dict() for n in (network, trained))
    assert any(not torch.equal(before[key], after[key]) for key in before if before[key].dtype == torch.uint8)


def test_the_range_is_saved_with_the_network(lenet, tmp_path):
    model, images, network = lenet
    save_pretrained(network, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
        assert not torch.equal(again(images), model(images))
        assert torch.equal(adder_zoo.quantize(again)(images), adder_zoo.quantize(network)(images))
    with pytest.raises(RuntimeError, match="input_range"):  # a float network's weights say nothing of a range
        copy.deepcopy(network).load_state_dict(model.state_dict())


def test_fuse_and_half_precision_keep_the_rounding(lenet):
    _, images, network = lenet
    fused = adder_zoo.fuse(network)
    assert any(isinstance(m, FusedAdder2d) and m.input_range is not None for m in fused.modules())
    half = copy.deepcopy(network).bfloat16()
    with torch.no_grad():
        assert torch.equal(fused(images).argmax(1), network(images).argmax(1))
        assert torch.isfinite(half(images.bfloat16())).all()
    assert all(b.dtype == torch.int64 for name, b in half.named_buffers() if name.endswith("input_range"))


def test_what_is_refused(lenet):
    model, images, network = lenet
    with pytest.raises(ValueError, match="fine-tuned for 3 bits, got bits=8"):
        adder_zoo.quantize(network, images, bits=8)
    with pytest.raises(ValueError, match="give the float network"):
        adder_zoo.fake_quantize(network, images)
    with pytest.raises(ValueError, match="give calibration images"):
        adder_zoo.quantize(model)
    with pytest.raises(ValueError, match="fake_quantize: bits must be a whole number from 2 to 8, got 1"):
        adder_zoo.fake_quantize(model, images, bits=1)
    with pytest.raises(ValueError, match=r"fake_quantize: .* is in training mode"):
        adder_zoo.fake_quantize(copy.deepcopy(model).train(), images)


def test_compiled_training_steps(lenet):
    network = copy.deepcopy(lenet[2]).train()
    exported = torch.export.export(copy.deepcopy(lenet[2]), (lenet[1],)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(lenet[1]), lenet[2](lenet[1]))
    step = torch.compile(network, backend="aot_eager", fullgraph=True)
    step(lenet[1][:4]).square().sum().backward()
    compiled = {name: p.grad.clone() for name, p in network.named_parameters()}
    plain = copy.deepcopy(lenet[2]).train()
    plain(lenet[1][:4]).square().sum().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(compiled[name], p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))
