"""``report``: layers counted by hand, whole networks against the paper, and that nothing is left changed."""

import copy
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adder_zoo import Adder2d, AdderLinear, adder2d, convert_to_adder, report
from adder_zoo import counts as zoo_counts
from adder_zoo.binary import BinaryConv2d, BinaryLinear
from adder_zoo.report import Count

DOC = Path(__file__).parents[2] / "docs" / "counts.md"
SIZE = (4, 8, 8)

# id: (layer, kind, output, taps, multiplications, additions, xnors, parameters), on an image of 4 x 8 x 8
LAYERS = {
    "convolution, bias": (nn.Conv2d(4, 6, 3), "convolution", (6, 6, 6), 7776, 7776, 7776 + 216, 0, 222),
    "convolution": (nn.Conv2d(4, 6, 3, bias=False), "convolution", (6, 6, 6), 7776, 7776, 7776, 0, 216),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), "convolution", (6, 6, 6), 3888, 3888, 3888, 0, 108),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), "convolution", (4, 6, 6), 1296, 1296, 1296, 0, 36),
    "strided, padded": (
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), "convolution", (6, 4, 4), 3456, 3456, 3456, 0, 216,
    ),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, bias=False), "convolution", (6, 4, 4), 3456, 3456, 3456, 0, 216),
    # Each of the 8 x 8 inputs is multiplied with all filters: 256 · 6 · 9.
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), "convolution", (6, 17, 17), 13824, 13824, 13824, 0, 216,
    ),
    "transposed, bias": (
        nn.ConvTranspose2d(4, 6, 3, stride=2), "convolution", (6, 17, 17), 13824, 13824, 13824 + 1734, 0, 222,
    ),
    "adder": (Adder2d(4, 6, 3, bias=False), "adder", (6, 6, 6), 7776, 0, 15552, 0, 216),
    "adder, bias": (Adder2d(4, 6, 3), "adder", (6, 6, 6), 7776, 0, 15552 + 216, 0, 222),
    "adder, grouped": (Adder2d(4, 6, 3, groups=2, bias=False), "adder", (6, 6, 6), 3888, 0, 7776, 0, 108),
    "adder, p = 2": (Adder2d(4, 6, 3, bias=False, p=2), "adder", (6, 6, 6), 7776, 7776, 15552, 0, 216),
    "adder, p = 1.5": (Adder2d(4, 6, 3, bias=False, p=1.5), "adder", (6, 6, 6), 7776, 7776, 15552, 0, 216),
    "binary": (BinaryConv2d(4, 6, 3, bias=False), "binary", (6, 6, 6), 7776, 0, 7776, 7776, 216),
    "batch norm": (nn.BatchNorm2d(4), "norm", (4, 8, 8), 0, 256, 256, 0, 8),
    "layer norm": (nn.LayerNorm(8), "norm", (4, 8, 8), 0, 768, 1024, 0, 16),
    "group norm": (nn.GroupNorm(2, 4), "norm", (4, 8, 8), 0, 768, 1024, 0, 8),
}  # fmt: skip

# The same for fully connected layers, on the 8 columns of each of 4 x 8 rows.
ROWS = {
    "linear": (nn.Linear(8, 5, bias=False), "linear", 1280, 1280, 1280, 0, 40),
    "linear, bias": (nn.Linear(8, 5), "linear", 1280, 1280, 1280 + 160, 0, 45),
    "adder linear": (AdderLinear(8, 5, bias=False), "adder", 1280, 0, 2560, 0, 40),
    "adder linear, bias": (AdderLinear(8, 5), "adder", 1280, 0, 2560 + 160, 0, 45),
    "binary linear, bias": (BinaryLinear(8, 5), "binary", 1280, 0, 1280 + 160, 1280, 45),
    "binary linear": (BinaryLinear(8, 5, bias=False), "binary", 1280, 0, 1280, 1280, 40),
}


def only(result):
    assert len(result.layers) == 1, result.layers
    return result.layers[0]


@pytest.mark.parametrize("id", LAYERS)
def test_one_layer(id):
    module, kind, output, *want = LAYERS[id]
    layer = only(report(module, SIZE))
    got = [layer.taps, layer.multiplications, layer.additions, layer.xnors, layer.parameters]
    assert (layer.kind, layer.input_shape, layer.output_shape) == (kind, (1, *SIZE), (1, *output))
    assert got == want


@pytest.mark.parametrize("id", ROWS)
def test_one_fully_connected_layer(id):
    module, kind, *want = ROWS[id]
    layer = only(report(module, SIZE))
    assert layer.kind == kind
    assert [layer.taps, layer.multiplications, layer.additions, layer.xnors, layer.parameters] == want


@pytest.mark.parametrize("id", ROWS)
def test_rows_that_do_not_lie_one_behind_the_other(id):
    """torch adds the bias by another operator then."""
    module, kind, *want = ROWS[id]

    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = module

        def forward(self, x):
            return self.fc(x.transpose(2, 3))

    layer = only(report(Columns(), SIZE))
    assert (layer.name, layer.kind) == ("fc", kind)
    assert [layer.taps, layer.multiplications, layer.additions, layer.xnors, layer.parameters] == want


class Attention(nn.Module):
    """timm's own on the 64 pixels of an image of 4 channels, with 2 heads."""

    def __init__(self):
        super().__init__()
        self.attn = timm.layers.Attention(4, num_heads=2, qkv_bias=True)

    def forward(self, x):
        return self.attn(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("fused", [False, True])
def test_attention(fused):
    model = Attention()
    model.attn.fused_attn = fused
    result = report(model, SIZE)
    products = [layer for layer in result.layers if layer.kind == "matmul"]
    assert all(layer.name == "attn" for layer in products)
    # Two products of 64 x 2 and 2 x 64 numbers for each of two heads: queries with keys, and their answer with values.
    assert sum(layer.taps for layer in products) == 2 * (2 * 64 * 64 * 2)
    linear = {layer.name: layer for layer in result.layers if layer.kind == "linear"}
    assert {name: layer.taps for name, layer in linear.items()} == {"attn.qkv": 64 * 4 * 12, "attn.proj": 64 * 4 * 4}
    assert {name: layer.additions - layer.taps for name, layer in linear.items()} == {
        "attn.qkv": 64 * 12,
        "attn.proj": 64 * 4,
    }
    assert result.total.multiplications == result.total.taps == 32768 + 3072 + 1024


def test_sums_over_layers():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        Adder2d(6, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        BinaryConv2d(6, 2, 1, bias=False),
        nn.Flatten(1),
        nn.Linear(72, 3),
    )
    result = report(model, SIZE)
    assert [layer.name for layer in result.layers] == ["0", "1", "2", "3", "4", "6"]
    assert [layer.kind for layer in result.layers] == ["convolution", "norm", "adder", "norm", "binary", "linear"]
    # 7776 of the first, 6·36·6 = 1296 of the second, 2·36·6 = 432 of the third, 72·3 = 216 of the last.
    assert result.without_norm == Count(
        taps=7776 + 1296 + 432 + 216,
        multiplications=7776 + 216,
        additions=7776 + 2 * 1296 + 432 + 216 + 3,
        xnors=432,
    )
    assert result.paper == Count(taps=1296 + 432, multiplications=0, additions=2 * 1296 + 432, xnors=432)
    norms = 2 * 216
    assert result.total == Count(
        taps=result.without_norm.taps,
        multiplications=result.without_norm.multiplications + norms,
        additions=result.without_norm.additions + norms,
        xnors=432,
    )
    assert result.parameters == 216 + 12 + 36 + 12 + 12 + 219
    text = str(result)
    assert "7,776" in text
    assert text.splitlines()[0].split() == [
        "layer", "kind", "input", "output", "parameters", "multiplications", "additions", "XNORs",
    ]  # fmt: skip
    told = json.loads(json.dumps(result.to_dict()))
    assert told["parameters"] == result.parameters
    assert told["without_norm"]["taps"] == result.without_norm.taps
    assert [layer["kind"] for layer in told["layers"]] == [layer.kind for layer in result.layers]


def test_a_layer_that_runs_twice_counts_twice_and_its_parameters_once():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    result = report(nn.Sequential(conv, conv), SIZE)
    assert result.without_norm.taps == 2 * 1024
    assert result.parameters == 16


# ---- the paper

TAPS = {
    "adder_lenet5_bn": 416_520,
    "adder_vgg_small": 607_600_640,
    "adder_resnet20": 40_813_184,
    "adder_resnet32": 69_124_736,
    "adder_resnet18": 1_814_073_344,
    "adder_resnet50": 4_089_184_256,
}
PAPER = {
    "adder_lenet5_bn": 435e3,
    "adder_vgg_small": 0.65e9,
    "adder_resnet20": 41.17e6,
    "adder_resnet32": 69.12e6,
    "adder_resnet18": 1.8e9,
    "adder_resnet50": 3.9e9,
}


def counted(name, **kwargs):
    with torch.device("meta"):
        return report(timm.create_model(name, **kwargs))


def off(ours, papers):
    return 100 * (ours / papers - 1)


def shown(number):
    """Whether docs/counts.md shows ``number`` as it is written there."""
    text = " ".join(DOC.read_text().split())  # a line may end within it
    return re.search(rf"(?<![\d,.]){re.escape(number)}(?![\d,]*\d)", text) is not None


@pytest.mark.parametrize("name", TAPS)
def test_document_shows_what_is_counted(name):
    result = counted(name)
    ours = result.without_norm.taps
    assert ours == TAPS[name]
    (row,) = (line for line in DOC.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    _, _, paper, taps, difference, inner, _ = (cell.strip() for cell in row.split("|"))
    value, unit = paper.split()
    assert float(value) * {"K": 1e3, "M": 1e6, "G": 1e9}[unit] == pytest.approx(PAPER[name], rel=1e-12)
    assert taps == f"{ours:,}"
    assert difference == f"{off(ours, PAPER[name]):+.2f} %"
    assert inner == f"{result.paper.taps:,}"


@pytest.mark.parametrize("name", ["adder_resnet20", "adder_resnet32", "adder_resnet18"])
def test_within_one_percent_of_the_paper(name):
    assert abs(off(counted(name).without_norm.taps, PAPER[name])) < 1


@pytest.mark.parametrize("name", ["adder_lenet5_bn", "adder_resnet20"])
def test_an_adder_network_computes_two_additions_where_its_twin_multiplies_and_adds(name):
    adder, conv, xnor = (counted(name, similarity=s).paper for s in ("adder", "conv", "xnor"))
    taps = adder.taps
    assert (adder.multiplications, adder.additions, adder.xnors) == (0, 2 * taps, 0)
    assert (conv.multiplications, conv.additions, conv.xnors) == (taps, taps, 0)
    assert (xnor.multiplications, xnor.additions, xnor.xnors) == (0, taps, taps)


def test_paper_counts_first_and_last_layers():
    """Without them its figure for ResNet-32, to which ours is exact, would not be reached."""
    result = counted("adder_resnet32")
    assert round(result.without_norm.taps / 1e6, 2) == 69.12
    assert round(result.paper.taps / 1e6, 2) == 68.68


def test_batch_norm_of_resnet20():
    result = counted("adder_resnet20")
    # Seven layers of 16 channels, seven of 32 and of 64 with the shortcuts, and the classifier's ten.
    elements = 7 * 16 * 32**2 + 7 * 32 * 16**2 + 7 * 64 * 8**2 + 10
    assert result.total.multiplications - result.without_norm.multiplications == elements
    assert result.total.additions - result.without_norm.additions == elements


def test_resnet50_with_its_stride_where_the_original_has_it():
    with torch.device("meta"):
        model = timm.create_model("adder_resnet50")
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    taps = report(model).without_norm.taps
    # In three blocks the first 1x1 layer sees a quarter of the pixels: 256, 512, 1024 to 128, 256, 512 channels.
    smaller = sum(3 * size**2 * c * c // 2 for size, c in ((28, 256), (14, 512), (7, 1024)))
    assert taps == TAPS["adder_resnet50"] - smaller
    assert round(taps / 1e9, 1) == 3.9
    assert shown(f"{taps:,}")


def test_papers_resnet20_and_resnet32_are_not_counted_alike():
    twelve = 12 * 2_359_296
    assert counted("adder_resnet32").without_norm.taps - counted("adder_resnet20").without_norm.taps == twelve
    assert round((PAPER["adder_resnet32"] - PAPER["adder_resnet20"]) / 1e6, 2) == 27.95
    assert PAPER["adder_resnet32"] - PAPER["adder_resnet20"] < twelve - 3e5
    assert shown(f"{twelve:,}")
    assert shown("27.95")


def test_lenet5_with_three_more_operations_for_each_output_that_is_pooled():
    lenet, resnet = counted("adder_lenet5_bn"), counted("adder_resnet32")
    adder = [layer for layer in lenet.layers if layer.kind == "adder"]
    assert [f"{layer.taps:,}" for layer in adder] == ["117,600", "240,000", "48,000", "10,080", "840"]
    assert shown("117,600 + 240,000 + 48,000 + 10,080 + 840")
    missing = PAPER["adder_lenet5_bn"] - TAPS["adder_lenet5_bn"]
    assert shown(f"{missing:,.0f}")
    pooled = sum(torch.Size(layer.output_shape).numel() for layer in adder[:2])
    assert shown(f"{pooled:,}")
    assert shown(f"{3 * pooled:,}")
    assert abs(3 * pooled - missing) < 500
    more = lenet.without_norm.taps + 3 * pooled
    assert shown(f"{more:,}")
    assert round(more / 1e3) == 435
    there = 2 * sum(torch.Size(layer.output_shape).numel() for layer in resnet.layers if layer.kind == "adder")
    assert shown(f"{there:,}")
    assert shown(f"{off(resnet.without_norm.taps + there, PAPER['adder_resnet32']):+.2f} %")


def test_vgg_small_by_other_rules():
    ours = counted("adder_vgg_small").without_norm.taps
    seventh = 4**2 * 512 * 512 * 3**2
    assert shown(f"{seventh:,}")
    assert shown(f"{(PAPER['adder_vgg_small'] - ours) / 1e6:.1f} M")
    assert round((ours + seventh) / 1e9, 2) == 0.65
    body = ours - 8192 * 10
    hidden = [body + 8192 * units + inner + units * 10 for units, inner in ((1024, 0), (4096, 0), (4096, 4096**2))]
    for taps in (ours + seventh, *hidden):
        assert shown(f"{taps:,}")
        assert shown(f"{off(taps, PAPER['adder_vgg_small']):+.2f} %")
    assert all(round(taps / 1e9, 2) != 0.65 for taps in hidden)


def test_energy_of_resnet20():
    cnn, adder = (counted("adder_resnet20", similarity=s).without_norm for s in ("conv", "adder"))
    assert f"{cnn.energy():.1f} µJ" == "187.7 µJ"
    assert f"{adder.energy():.1f} µJ" == "74.7 µJ"
    assert shown(f"{cnn.energy():.1f} µJ")
    assert shown(f"{adder.energy():.1f} µJ")
    paper = Count(taps=41_170_000, multiplications=41_170_000, additions=41_170_000)
    assert paper.energy() == pytest.approx(41.17 * (3.7 + 0.9), rel=1e-12)
    assert round(paper.energy()) == 189
    assert shown(f"{paper.energy():.1f}")
    assert shown(f"{Count(taps=41_170_000, additions=82_340_000).energy():.1f} µJ")


def test_energy_by_precision():
    count = Count(taps=10, multiplications=3, additions=27, xnors=5)
    assert count.energy("fp16") == pytest.approx((3 * 1.1 + 27 * 0.4) * 1e-6, rel=1e-12)
    assert count.energy("int8") == pytest.approx((3 * 0.2 + 27 * 0.03) * 1e-6, rel=1e-12)
    # The sums go into int32, one for each tap.
    assert count.energy("int8", "int32") == pytest.approx((3 * 0.2 + 17 * 0.03 + 10 * 0.1) * 1e-6, rel=1e-12)


# ---- what it leaves behind, and what it runs on


def state(model):
    return {
        name: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize("fails", [False, True])
def test_network_is_left_as_it_was(fails):
    model = timm.create_model("adder_resnet20").train()
    model.layer2.eval()
    calls = []
    handle = model.layer1.register_forward_hook(lambda *a: calls.append(1))
    before, tensors = state(model), copy.deepcopy(model.state_dict())
    pointers = [t.data_ptr() for t in model.state_dict().values()]
    if fails:
        with pytest.raises(RuntimeError):
            report(model, (5, 32, 32))
    else:
        report(model)
        assert calls == [1]
    assert state(model) == before
    assert [t.data_ptr() for t in model.state_dict().values()] == pointers
    assert all(torch.equal(tensors[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    handle.remove()


class Undecided(nn.Module):
    """Its code looks at values, so it cannot run on the meta device."""

    def __init__(self, how):
        super().__init__()
        self.conv = Adder2d(4, 6, 3, bias=False)
        self.how = how
        self.batches = []

    def forward(self, x):
        self.batches.append(x.device.type)
        x = self.conv(x)
        if self.how == "item":
            return x if x.sum().item() < 0 else -x
        if self.how == "tolist":
            return x * len(x.flatten().tolist())
        return x + torch.from_numpy(x.numpy())


@pytest.mark.parametrize("how", ["item", "tolist", "numpy"])
def test_code_that_looks_at_values_runs_on_the_network_itself(how):
    model = Undecided(how)
    layer = only(report(model, SIZE))
    assert model.batches == ["meta", "cpu"]
    assert (layer.kind, layer.taps) == ("adder", 7776)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_meta_network_and_half_precision():
    with torch.device("meta"):
        model = timm.create_model("adder_resnet20")
    want = report(model)
    assert report(timm.create_model("adder_resnet20")).layers == want.layers
    assert report(model.bfloat16()).layers == want.layers


def test_input_size():
    model = timm.create_model("adder_resnet20", in_chans=1)
    assert report(model).input_size == (1, 32, 32)
    assert report(model, (1, 16, 16)).layers[0].taps == 16 * 9 * 16 * 16
    with pytest.raises(ValueError, match="input_size"):
        report(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        report(model, (1, 1, 32, 32))


def test_converted_network_has_the_taps_of_its_parent():
    with torch.device("meta"):
        parent = timm.create_model("resnet18")
        conv = report(parent)
        adder = report(convert_to_adder(parent))
    assert [layer.taps for layer in conv.layers] == [layer.taps for layer in adder.layers]
    assert adder.paper.multiplications == 0
    assert conv.paper.multiplications == conv.paper.taps == adder.paper.taps


# ---- torch's own counter


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flop_counter_knows_forward_and_backward(device):
    x = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
    weight = torch.randn(6, 2, 3, 3, device=device, requires_grad=True)
    taps = 2 * 6 * 4 * 4 * 2 * 9
    with FlopCounterMode(display=False) as forward:
        y = adder2d(x, weight, None, 2, 1, 1, 2)
    assert forward.get_total_flops() == 2 * taps
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    by_operator = backward.get_flop_counts()["Global"]
    assert {str(op): n for op, n in by_operator.items()} == {
        "adder_zoo.adder2d_grad_input": 2 * taps,
        "adder_zoo.adder2d_grad_weight": 2 * taps,
    }


def test_flop_counter_on_a_network():
    with torch.device("meta"):
        model = timm.create_model("adder_resnet20").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(3, 3, 32, 32))
    assert counter.get_total_flops() == 3 * 2 * TAPS["adder_resnet20"]


# ---- counts.json


def test_stored_counts_name_the_networks_of_the_zoo():
    listed = set(timm.list_models("adder_*", include_tags=True))
    missing = listed - set(json.loads(zoo_counts.FILE.read_text()))
    assert not missing, f"run python -m adder_zoo.counts: {sorted(missing)}"


def stored(names):
    known = json.loads(zoo_counts.FILE.read_text())
    for name in names:
        assert known[name] == zoo_counts.count_model(name) == zoo_counts.known_counts(name), name


def test_stored_counts_of_a_few():
    stored(
        ["adder_lenet5_bn.mnist", "adder_resnet20.cifar10_int8", "adder_resnet18.in1k", "adder_mobilenetv2_100.in1k"]
    )


@pytest.mark.slow
def test_stored_counts_of_all():
    stored(timm.list_models("adder_*", include_tags=True))


def test_counts_of_a_network_that_is_not_stored(monkeypatch):
    want = zoo_counts.known_counts("adder_resnet20.cifar10")
    monkeypatch.setattr(zoo_counts, "_stored", dict)
    assert zoo_counts.known_counts("adder_resnet20.cifar10") == want
