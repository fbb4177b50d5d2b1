"""Counts of operations: layers counted by hand, networks against the figures of the paper."""

import json

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, report
from adder_zoo.binary import BinaryConv2d
from adder_zoo.counts import FILE, count


def only(layer, shape):
    (row,) = report(layer, shape).layers
    return row.kind, row.taps, row.multiplications, row.additions, row.xnors, row.parameters


@pytest.mark.parametrize(
    ("layer", "row"),
    [
        # 5 x 5 outputs of 6 filters with 3·9 taps
        (nn.Conv2d(3, 6, 3), ("convolution", 4050, 4050, 4050 + 150, 0, 168)),
        (nn.Conv2d(3, 6, 3, groups=3, bias=False), ("convolution", 1350, 1350, 1350, 0, 54)),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), ("convolution", 2592, 2592, 2592, 0, 162)),
        # 7 x 7 inputs of 3 channels, each spread over 6·9 outputs
        (nn.ConvTranspose2d(3, 6, 3, bias=False), ("convolution", 7938, 7938, 7938, 0, 162)),
        (Adder2d(3, 6, 3, bias=False), ("adder", 4050, 0, 8100, 0, 162)),
        (Adder2d(3, 6, 3), ("adder", 4050, 0, 8100 + 150, 0, 168)),
        (Adder2d(3, 6, 3, bias=False, p=2), ("adder", 4050, 4050, 8100, 0, 162)),
        (BinaryConv2d(3, 6, 3, bias=False), ("binary", 4050, 0, 4050, 4050, 162)),
        (nn.BatchNorm2d(3), ("norm", 0, 147, 147, 0, 6)),
        (nn.GroupNorm(1, 3), ("norm", 0, 3 * 147, 4 * 147, 0, 6)),
        (nn.Linear(7, 2), ("linear", 3 * 7 * 7 * 2, 294, 294 + 42, 0, 16)),
        (AdderLinear(7, 2, bias=False), ("adder", 294, 0, 588, 0, 14)),
    ],
)
def test_layers(layer, row):
    assert only(layer, (3, 7, 7)) == row


def test_products_in_attention():
    block = timm.layers.Attention(8, num_heads=2, qkv_bias=False)
    model = nn.Sequential(nn.Flatten(2), block)
    rows = report(model, (5, 2, 4)).layers  # 5 tokens of 8 features
    # q, k, v and the projection, then 2 heads of 5 x 5 dot products of 4 features, twice
    assert sum(r.taps for r in rows if r.kind == "linear") == 5 * 8 * 24 + 5 * 8 * 8
    assert sum(r.taps for r in rows if r.kind == "matmul") == 2 * (2 * 5 * 5 * 4)


def test_networks_against_the_paper():
    """Tables 2 and 3 and sec. 4.1 of arXiv 1912.13200; docs/counts.md explains what differs."""
    ours = {n: report(timm.create_model(n)).weighted.taps for n in (
        "adder_resnet20", "adder_resnet32", "adder_vgg_small", "adder_lenet5_bn")}  # fmt: skip
    with torch.device("meta"):
        ours |= {n: report(timm.create_model(n)).weighted.taps for n in ("adder_resnet18", "adder_resnet50")}
    assert ours == {
        "adder_resnet20": 40_813_184, "adder_resnet32": 69_124_736, "adder_vgg_small": 607_600_640,
        "adder_lenet5_bn": 416_520, "adder_resnet18": 1_814_073_344, "adder_resnet50": 4_089_184_256,
    }  # fmt: skip
    assert ours["adder_resnet20"] == pytest.approx(41.17e6, rel=0.01)
    assert ours["adder_resnet32"] == pytest.approx(69.12e6, rel=1e-4)
    assert ours["adder_resnet18"] == pytest.approx(1.8e9, rel=0.01)
    # The paper's ResNet-50 strides in the 1x1 before the 3x3, as He et al.'s; timm's in the 3x3. In the first block of
    # stages 2 to 4 the 1x1 then runs on a quarter of the pixels, and nothing else changes.
    saved = sum(3 * pixels // 4 * c * k for pixels, c, k in ((56**2, 256, 128), (28**2, 512, 256), (14**2, 1024, 512)))
    assert ours["adder_resnet50"] - saved == pytest.approx(3.9e9, rel=0.02)
    docs = (FILE.parents[2] / "docs/counts.md").read_text()
    for value in ours.values():
        assert f"{value:,}" in docs


def test_paper_rule_leaves_out_first_last_and_norms():
    counts = report(timm.create_model("adder_resnet20"))
    assert counts.paper.multiplications == 0
    assert counts.weighted.taps - counts.paper.taps == 32 * 32 * 16 * 27 + 640
    assert counts.total.multiplications - counts.weighted.multiplications == 200_714  # elements of batch norm
    assert str(counts).count("adder") == 20
    json.dumps(counts.to_dict())


def test_energy():
    cnn, adder = (report(timm.create_model("adder_resnet20", similarity=s)).weighted for s in ("conv", "adder"))
    assert cnn.energy() == pytest.approx(1e-6 * cnn.taps * (3.7 + 0.9))
    assert adder.energy() == pytest.approx(1e-6 * (0.443008e6 * (3.7 + 0.9) + 40.370176e6 * 1.8))
    # A tap of int8 with sums in int32: a difference of 0.03 pJ and a sum of 0.1 pJ.
    layer = report(Adder2d(3, 6, 3, bias=False), (3, 7, 7)).total
    assert layer.energy("int8", "int32") == pytest.approx(1e-6 * 4050 * 0.13)


def test_model_stays_what_it_is():
    model = timm.create_model("adder_resnet20").train()
    model.layer1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report(model)
    assert model.training
    assert not model.layer1.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_a_network_that_looks_at_values():
    class Looks(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if x.sum().item() == 0 else x

    assert report(Looks(3, 6, 3), (3, 7, 7)).total.taps == 4050


def test_needs_a_size():
    with pytest.raises(ValueError, match="input_size"):
        report(nn.Conv2d(3, 6, 3))
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        report(nn.Conv2d(3, 6, 3), (7, 7))


def test_flop_counter_knows_the_operators():
    layer = Adder2d(3, 6, 3, bias=False)
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = layer(x)
    assert forward.get_total_flops() == 2 * 2 * 4050
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    counts = backward.get_flop_counts()["Global"]
    for op in (torch.ops.adder_zoo.adder2d_grad_input, torch.ops.adder_zoo.adder2d_grad_weight):
        assert counts[op] == 2 * 2 * 4050


FEW = ("adder_resnet20.cifar10", "adder_mobilenetv3_small_050.in1k", "adder_lenetpp.mnist")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in FEW else pytest.mark.slow)
        for n in timm.list_models("adder_*", include_tags=True)
    ],
)
def test_stored_counts_are_fresh(name):
    """`python -m adder_zoo.counts` writes them."""
    assert json.loads(FILE.read_text())[name] == count(name)


def test_exported():
    assert adder_zoo.report is report
