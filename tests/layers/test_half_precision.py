"""Networks in half precision: normalisation behind adder layers stays in float32, with one cast behind it."""

import copy
import gzip
import pickle
from pathlib import Path

import pytest
import timm
import torch
from small_networks import SIZES, dtypes, fitted, network
from timm.layers import BatchNormAct2d, convert_splitbn_model, freeze_batch_norm_2d
from torch import nn
from truth import UNIT_ROUNDOFF

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, AdderSGD, convert_to_adder, float32_norms, fuse, norms
from adder_zoo.layers import AdderLayer

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
SAMPLE = Path(__file__).parents[2] / "recipes" / "data" / "fashion_mnist_sample"


def unit(dtype):
    return UNIT_ROUNDOFF[str(dtype).removeprefix("torch.")]


# ---- the layer: values against float64


def large_chain(dtype):
    """An adder layer with 4608 taps and its batch norm, in float32; sums of about -5000 with a spread of 40."""
    chain = float32_norms(nn.Sequential(Adder2d(512, 5, 3, bias=False), nn.BatchNorm2d(5)))
    for p in chain.parameters():
        p.data = p.data.to(dtype).float()  # so that rounding the filters costs nothing
    fitted(chain, (512, 5, 5))
    return chain


def wide(model, dtype=torch.float64):
    """The same values in float64, by torch's own batch norm."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, norms.BatchNorm2d):
            module.__class__ = nn.BatchNorm2d
    return model


@HALF
@pytest.mark.parametrize("how", ["half", "autocast", "fused", "fused in half", "fused under autocast"])
def test_values_where_half_precision_has_no_room(dtype, how):
    chain = large_chain(dtype)
    assert chain[1].running_mean.abs().min() > 3000
    x = torch.randn(3, 512, 5, 5).to(dtype)
    with torch.no_grad():
        true = wide(chain)(x.double())
        spread = chain[1].running_var.min().sqrt().item()
        run, given = chain, x
        if how.startswith("fused"):
            run = fuse(chain)
        if how in ("half", "fused in half"):
            run = run.to(dtype)
        elif how == "fused":
            run = fuse(copy.deepcopy(chain).to(dtype))
        with torch.autocast("cpu", dtype=dtype, enabled="autocast" in how):
            y = run(given)
    assert y.dtype == dtype
    # One rounding of the answer, beside those of float32 in the sum: a few steps at 8000, over the spread.
    sums = 8 * unit(torch.float32) * 8000 / spread
    assert ((y.double() - true).abs() <= unit(dtype) * true.abs() + sums).all()


@HALF
def test_statistics_in_training_are_those_of_float32(dtype):
    chain = large_chain(dtype).to(dtype).train()
    x = torch.randn(4, 512, 5, 5).to(dtype)
    true = wide(chain).train()
    y, expected = chain(x), true(x.double())
    assert y.dtype == dtype
    assert dtypes(chain[1].buffers()) == {torch.float32}
    assert int(chain[1].num_batches_tracked) == int(true[1].num_batches_tracked) == 2
    sums = 8 * unit(torch.float32) * 8000  # what rounding may do to a sum, and to the mean of many
    spread = true[1].running_var.min().sqrt().item()
    torch.testing.assert_close(chain[1].running_mean.double(), true[1].running_mean, rtol=0, atol=sums)
    torch.testing.assert_close(chain[1].running_var.double(), true[1].running_var, rtol=4 * sums / spread, atol=0)
    assert ((y - expected).abs() <= unit(dtype) * expected.abs() + 4 * sums / spread).all()


@HALF
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(4, momentum=None),
        lambda: nn.BatchNorm2d(4, affine=False),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: BatchNormAct2d(4, act_layer=nn.SiLU),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LayerNorm([4, 6, 6]),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: timm.layers.LayerNorm2d(4),
        lambda: timm.layers.GroupNorm1(4),
        lambda: timm.layers.SplitBatchNorm2d(4),
        lambda: freeze_batch_norm_2d(nn.BatchNorm2d(4)),
        lambda: freeze_batch_norm_2d(BatchNormAct2d(4)),
        lambda: nn.SyncBatchNorm(4).eval(),
    ],
    ids=["momentum", "affine", "statistics", "act", "group", "layer", "instance", "layer2d", "group1", "split",
         "frozen", "frozen_act", "sync"],
)  # fmt: skip
def test_every_kind_of_norm(dtype, norm):
    plain = norm()
    for t in (*plain.parameters(), *plain.buffers()):
        if t.is_floating_point():
            t.data = torch.rand(t.shape) + 0.5
    changed = float32_norms(copy.deepcopy(plain))
    assert type(changed) is not type(plain)
    assert isinstance(changed, type(plain))
    assert list(changed.state_dict()) == list(plain.state_dict())
    x = -5000 + 40 * torch.randn(4, 4, 6, 6)
    for _ in range(2):
        assert torch.equal(changed(x), plain(x))
    half = copy.deepcopy(changed).to(dtype)
    expected = plain(x.clone())
    y = half(x.clone())
    assert y.dtype == dtype
    assert dtypes([*half.parameters(), *half.buffers()]) <= {torch.float32}
    assert torch.equal(y, expected.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(half.buffers(), plain.buffers(), strict=True))


def test_one_dimension_and_wrong_ones():
    model = float32_norms(nn.Sequential(AdderLinear(30, 4), nn.BatchNorm1d(4))).bfloat16()
    assert model(torch.randn(8, 30).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="expected 2 or 3D input"):
        model[1](torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="expected 4D input"):
        norms.BatchNorm2d(4)(torch.zeros(4, 4))


# ---- whole networks


# With the other similarities the larger networks have the layers of the smaller ones.
LARGER = ("adder_vgg_small", "adder_lenetpp")
ZOO = [
    pytest.param(name, similarity, marks=[pytest.mark.slow] * (similarity != "adder" and name in LARGER))
    for name in SIZES
    for similarity in ("adder", "xnor", "conv")
]


@HALF
@pytest.mark.parametrize(("name", "similarity"), ZOO)
def test_networks_of_the_zoo(recwarn, name, similarity, dtype):
    model = network(name, similarity=similarity)
    x = torch.randn(2, *SIZES[name]).to(dtype)
    kept = copy.deepcopy(model.state_dict())
    half = copy.deepcopy(model).to(dtype)
    y = half(x)
    assert y.dtype == dtype
    assert y.isfinite().all()
    for key, value in half.state_dict().items():
        wanted = kept[key] if "bn" in key or ".downsample.1." in key else kept[key].to(dtype)
        assert value.dtype == wanted.dtype, key
        assert torch.equal(value, wanted)
    half.train()(x).float().sum().backward()
    AdderSGD(half.parameters(), lr=0.1, momentum=0.9).step()
    assert all(p.grad.dtype == p.dtype for p in half.parameters() if p.grad is not None)
    assert all(p.isfinite().all() for p in half.parameters())
    made = timm.create_model("adder_resnet20" if name == "adder_resnet8" else name, similarity=similarity, dtype=dtype)
    assert {m.precision for m in made.modules() if isinstance(m, norms.InFloat32)} == {dtype}
    assert dtypes(made.buffers()) == {torch.float32}
    assert not recwarn.list


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "densenet121"])
def test_networks_of_timm(name):
    model = convert_to_adder(timm.create_model(name, num_classes=5, dtype=torch.bfloat16)).eval()
    assert model(torch.randn(1, 3, 64, 64).bfloat16()).dtype == torch.bfloat16
    assert dtypes(model.buffers()) == {torch.float32}


@HALF
def test_trained_weights_answer_alike(dtype):
    """The accuracy on 500 images of Fashion-MNIST stays, but for images that are close to the margin."""
    model = timm.create_model("adder_lenet5_bn.fashion_mnist", pretrained=True).eval()
    images, labels = (_idx(f"t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    cfg = model.pretrained_cfg
    x = torch.nn.functional.pad((images[:500, None] / 255 - cfg["mean"][0]) / cfg["std"][0], (2, 2, 2, 2))
    half = copy.deepcopy(model).to(dtype)

    def right(run, x):
        return int((run(x).argmax(1) == labels[:500]).sum())

    with torch.no_grad():
        wanted = right(model, x)
        assert wanted > 400
        for run in (half, fuse(half), fuse(model).to(dtype)):
            assert abs(right(run, x.to(dtype)) - wanted) <= 5
        with torch.autocast("cpu", dtype=dtype):
            assert abs(right(model, x) - wanted) <= 5


def _idx(name):
    data = gzip.decompress((SAMPLE / name).read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return torch.frombuffer(bytearray(data[4 + 4 * len(shape) :]), dtype=torch.uint8).view(shape)


def test_autocast_feeds_adder_layers_half_precision():
    model = network()
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Adder2d):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(2, 3, 8, 8))
        wide = copy.deepcopy(model).double()
        assert norms.BatchNorm2d(3)(torch.randn(2, 3, 4, 4).double().float()).dtype == torch.bfloat16
        assert wide.bn1.double()(torch.randn(1, 16, 4, 4).double()).dtype == torch.float64
    assert len(seen) == 8
    assert set(seen.values()) == {torch.bfloat16}
    assert y.dtype == torch.bfloat16


def test_there_and_back():
    model = network()
    x = torch.randn(2, 3, 8, 8)
    logits = model(x)
    norm = model.layer1[0].bn1

    def half(model):
        return model(x.bfloat16()).dtype == torch.bfloat16 and model.layer1[0].bn1.precision == torch.bfloat16

    assert half(copy.deepcopy(model).to("cpu", torch.bfloat16))
    assert half(copy.deepcopy(model).type(torch.bfloat16))
    assert half(copy.deepcopy(model).double().bfloat16())
    assert half(copy.deepcopy(model).half().bfloat16())
    assert half(pickle.loads(pickle.dumps(copy.deepcopy(model).bfloat16())))
    assert half(copy.deepcopy(model).bfloat16().to(memory_format=torch.channels_last))
    assert half(copy.deepcopy(model).bfloat16().to("cpu"))
    for back in (model.bfloat16().float(), model.half().to(torch.float32)):
        assert norm.precision is None
        assert norm.running_mean.dtype == torch.float32
        assert back(x).dtype == torch.float32
    assert model.bfloat16().double()(x.double()).dtype == torch.float64
    assert norm.precision is None
    assert norm.weight.dtype == torch.float64
    assert logits.dtype == torch.float32


def test_gradients_stay_beside_their_parameters():
    model = network().train()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    kept = model.bn1.weight.grad.clone()
    model.bfloat16()
    assert torch.equal(model.bn1.weight.grad, kept)
    assert model.conv1.weight.grad.dtype == torch.bfloat16


def test_conversion_by_swapping():
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = timm.create_model("adder_resnet20", depth=8).eval().bfloat16()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert dtypes(model.bn1.parameters()) == {torch.float32}
    assert model(torch.randn(2, 3, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_default_dtype_and_meta():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = timm.create_model("adder_resnet20", depth=8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.bn1.precision == torch.bfloat16
    assert dtypes(model.buffers()) == {torch.float32}
    with torch.device("meta"):
        model = timm.create_model("adder_resnet20", depth=8).bfloat16()
    model = model.to_empty(device="cpu")
    assert model.bn1.precision == torch.bfloat16
    assert model.bn1.weight.dtype == torch.float32


# ---- layers placed by hand


def test_plain_batch_norm_by_hand_is_warned_of():
    model = nn.Sequential(Adder2d(3, 4, 3), nn.BatchNorm2d(4)).bfloat16()
    x = torch.randn(1, 3, 5, 5).bfloat16()
    with pytest.warns(UserWarning, match=r"adder_zoo\.float32_norms"), pytest.raises(RuntimeError):
        model(x)


def test_float32_norms_is_quiet_and_keeps_everything(recwarn):
    model = nn.Sequential(Adder2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Adder2d(4, 4, 3))
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    parts = {name: id(t) for name, t in (*model.named_modules(), *model.named_parameters())}
    assert float32_norms(model) is model
    assert parts == {name: id(t) for name, t in (*model.named_modules(), *model.named_parameters())}
    assert model.bfloat16()(torch.randn(1, 3, 7, 7).bfloat16()).dtype == torch.float32
    assert calls
    assert not recwarn.list


def test_tools_that_exchange_batch_norm():
    x = torch.randn(2, 3, 8, 8).bfloat16()
    for tool in (
        nn.SyncBatchNorm.convert_sync_batchnorm,
        timm.layers.convert_sync_batchnorm,
        lambda m: convert_splitbn_model(m, 2),
        freeze_batch_norm_2d,
    ):
        model = tool(network())
        assert float32_norms(model).bfloat16().eval()(x).dtype == torch.bfloat16
        assert dtypes(model.buffers()) == {torch.float32}


def test_statistics_that_are_lost_are_refused():
    model = nn.Sequential(Adder2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_mean.fill_(-5001)
    with pytest.raises(ValueError, match=r"1\.running_mean is in half precision"):
        float32_norms(model.bfloat16())
    model = network()
    for buffer in model.buffers():  # as some trainers do, past half()
        if buffer.is_floating_point():
            buffer.data = buffer.data.bfloat16()
    with pytest.raises(TypeError, match=r"running statistics are in torch\.bfloat16"):
        model(torch.randn(1, 3, 8, 8))


# ---- torch's other ways to run a network


@pytest.mark.parametrize("mode", ["half", "autocast"])
def test_compile_and_export(mode):
    parts = (Adder2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Adder2d(4, 5, 3), nn.BatchNorm2d(5))
    model = float32_norms(nn.Sequential(*parts))
    fitted(model, (3, 7, 7))
    x = torch.randn(2, 3, 7, 7)
    if mode == "half":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        for run in (model, fuse(model)):
            y = run(x)
            assert y.dtype == torch.bfloat16
            assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(x), y)
            assert torch.equal(torch.export.export(run, (x,)).module()(x), y)
    trained = copy.deepcopy(model).train()
    torch.compile(trained, backend="aot_eager", fullgraph=True)(x).float().sum().backward()
    assert int(trained[1].num_batches_tracked) == 2
    assert torch.equal(trained[0].weight.grad, _gradient(model, x))


def _gradient(model, x):
    model = copy.deepcopy(model).train()
    model(x).float().sum().backward()
    return model[0].weight.grad


def test_fx():
    layer = norms.BatchNormAct2d(4).bfloat16()
    traced = torch.fx.symbolic_trace(layer)
    assert int(layer.num_batches_tracked) == 0
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(traced(x.clone()), copy.deepcopy(layer)(x))
    assert int(traced.num_batches_tracked) == 1
    names = [name for name, m in network().named_modules() if isinstance(m, norms.BatchNorm2d)]
    features = timm.models._features_fx.create_feature_extractor(network(), names[1:2])
    assert list(features(torch.randn(1, 3, 8, 8))) == names[1:2]


@HALF
def test_fused_network_is_the_network(dtype):
    model = network()
    half = copy.deepcopy(model).to(dtype)
    x = torch.randn(2, 3, 8, 8).to(dtype)
    with torch.no_grad():
        first, second = fuse(half), fuse(model).to(dtype)
        assert torch.equal(first(x), second(x))
        for fused in (first, second):
            layers = [m for m in fused.modules() if isinstance(m, adder_zoo.fuse.__globals__["FusedAdder2d"])]
            assert len(layers) == 8
            assert {m.precision for m in layers} == {dtype}
            assert dtypes(t for m in layers for t in (m.scale, m.shift)) == {torch.float32}
            assert dtypes(m.weight for m in layers) == {dtype}
        assert fuse(half).float()(x.float()).dtype == torch.float32


def test_report_sees_the_same_network():
    model = network()
    plain = timm.create_model("adder_resnet20", depth=8)
    for module in plain.modules():
        if type(module) is norms.BatchNorm2d:
            module.__class__ = nn.BatchNorm2d
    assert adder_zoo.report(model).layers == adder_zoo.report(plain).layers
    assert adder_zoo.report(model.bfloat16()).layers == adder_zoo.report(plain).layers
    assert all(isinstance(m, AdderLayer) for m in model.modules() if "Adder2d" in type(m).__name__)
