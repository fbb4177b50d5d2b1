"""timm's ImageNet networks as adder networks: each is what its parent is, with adder layers in the middle.

What needs no numbers runs on torch's meta device, where size does not matter.
"""

import gc
import shutil
import warnings

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from adder_zoo import Adder2d
from adder_zoo.binary import BinaryConv2d
from adder_zoo.hub import save_pretrained
from adder_zoo.models.imagenet import parents

PARENTS = parents()
SPREAD = (
    "resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "res2net50_26w_4s", "regnety_002", "mobilenetv2_050",
    "mobilenetv3_small_050", "tf_efficientnet_b0", "vgg11_bn", "densenet121", "dla34", "hrnet_w18", "cspresnet50",
    "inception_v3",
)  # fmt: skip
# Of the others only the structure is looked at in a hurry: gradients, features and heads follow from it.
FAST = ("resnet18", "regnety_002", "mobilenetv3_small_050", "tf_efficientnet_b0", "dla34")
REAL = ("resnet18", "mobilenetv3_small_050", "regnetx_002")
# The smallest images that their strides and poolings leave something of.
SMALLEST = {"inception_v3": 75, "inception_v4": 75}


def some(quick):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in PARENTS]


def create(parent, **kwargs):
    """The adder network; any warning is an error: nothing unnormalised is converted in these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="convert_to_adder")
        return timm.create_model(f"adder_{parent}", **kwargs)


def convolutions(model):
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, Adder2d))}


def names(value):
    return [value] if isinstance(value, str) else list(value)


def image(parent, n=2):
    return torch.randn(n, *timm.get_pretrained_cfg(parent).input_size)


def reached(model, x):
    for y in torch.utils._pytree.tree_leaves(model(x)):
        y.sum().backward(retain_graph=True)
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_table_chooses_what_people_use():
    assert set(SPREAD) | set(REAL) <= set(PARENTS)
    assert len(PARENTS) > 120
    assert {f"adder_{parent}" for parent in PARENTS} <= set(timm.list_models("adder_*", module="imagenet"))


@pytest.mark.parametrize("parent", some(SPREAD))
def test_body_is_adder_layers_and_both_ends_stay(parent):
    with torch.device("meta"):
        ours, theirs = create(parent), timm.create_model(parent)
    before, after = convolutions(theirs), convolutions(ours)
    assert list(after) == list(before)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    cfg = ours.pretrained_cfg
    for end in (*names(cfg["first_conv"]), *names(cfg["classifier"])):
        assert type(ours.get_submodule(end)) is type(theirs.get_submodule(end))
        assert not isinstance(ours.get_submodule(end), Adder2d)
    # What stays besides is a gate or a fully connected layer, on a map that has been pooled to one pixel.
    areas = {}

    def measure(name, y):
        areas[name] = y.shape[2] * y.shape[3]

    handles = [
        m.register_forward_hook(lambda m, args, y, name=name: measure(name, y))
        for name, m in ours.named_modules()
        if name in after
    ]
    with torch.no_grad():
        ours.eval()(image(parent, 1).to("meta"))
    for handle in handles:
        handle.remove()
    stay = [name for name, kind in after.items() if not issubclass(kind, Adder2d)]
    first = names(cfg["first_conv"])
    assert [name for name in stay if name not in first and areas[name] != 1] == []
    assert len(stay) < len(after)
    assert ours.pretrained_cfg["num_classes"] == ours.num_classes == 1000
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key], key


@pytest.mark.parametrize("parent", some(FAST))
def test_gradients_reach_what_the_parents_do(parent):
    with torch.device("meta"):
        ours, theirs = create(parent), timm.create_model(parent)
        x = image(parent)
    got = reached(ours, x)
    assert got == reached(theirs, x)
    assert got == {name for name, _ in ours.named_parameters()}


@pytest.mark.parametrize("parent", some(FAST))
def test_features_are_those_of_the_parent(parent):
    with torch.device("meta"):
        ours, theirs = create(parent, features_only=True).eval(), timm.create_model(parent, features_only=True).eval()
        x = image(parent, 1)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    with torch.no_grad():
        assert [y.shape for y in ours(x)] == [y.shape for y in theirs(x)]
    assert any(isinstance(m, Adder2d) for m in ours.modules())
    last = ours.feature_info.out_indices[-1]
    with torch.device("meta"):
        one = create(parent, features_only=True, out_indices=(last,)).eval()
    with torch.no_grad():
        assert [y.shape for y in one(x)] == [ours(x)[-1].shape]


@pytest.mark.parametrize("parent", some(FAST))
def test_head_of_any_size(parent):
    with torch.device("meta"):
        model = create(parent, num_classes=7, in_chans=1, drop_rate=0.1).eval()
        x = image(parent)[:, :1]
    with torch.no_grad():
        features = model.forward_features(x)
        assert model.forward_head(features).shape == (2, 7)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        with torch.device("meta"):
            model.reset_classifier(3)
        assert model(x).shape == (2, 3)


@pytest.mark.parametrize("parent", some(("resnet18", "mobilenetv3_small_050", "tf_efficientnet_b0")))
def test_binary_twin_or_a_reason(parent):
    with torch.device("meta"):
        ours = create(parent)
        same = {name for name, kind in convolutions(timm.create_model(parent)).items() if kind is Conv2dSame}
        wanted = [name for name, kind in convolutions(ours).items() if issubclass(kind, Adder2d)]
        if same & set(wanted):
            assert parent.startswith("tf_")
            with pytest.raises(ValueError, match="SAME padding"):
                create(parent, similarity="xnor")
            return
        assert not parent.startswith("tf_")
        model = create(parent, similarity="xnor")
        x = image(parent)
    assert [name for name, kind in convolutions(model).items() if kind is BinaryConv2d] == wanted
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [(k, v.shape) for k, v in ours.state_dict().items()]
    assert reached(model, x) == {name for name, _ in model.named_parameters()}


@pytest.fixture
def folder(tmp_path):
    """Emptied after the test: the networks together would fill a disk."""
    yield tmp_path / "saved"
    shutil.rmtree(tmp_path / "saved", ignore_errors=True)
    gc.collect()


@pytest.mark.parametrize("parent", some(REAL))
def test_trains_saves_and_comes_back(parent, folder):
    size = SMALLEST.get(parent, 64)
    model = create(parent, num_classes=7, in_chans=1)
    x = torch.randn(2, 1, size, size)
    model(x).square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    model.eval()
    with torch.no_grad():
        want = model(x)
    assert want.shape == (2, 7)
    assert want.isfinite().all()
    save_pretrained(model, folder)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    del model, gradients
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    with torch.no_grad():
        assert torch.equal(again(x), want)
    assert again.similarity == "adder"
    assert again.num_classes == 7


@pytest.mark.parametrize(
    ("parent", "similarity"),
    [
        pytest.param(parent, similarity, marks=[pytest.mark.slow] * ((i + j) % 2))
        for i, parent in enumerate(REAL)
        for j, similarity in enumerate(("conv", "xnor"))
    ],
)
def test_twins_come_back_and_take_no_other_weights(parent, similarity, folder):
    model = create(parent, similarity=similarity, num_classes=7).eval()
    save_pretrained(model, folder)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match=f"the weights belong to similarity='{similarity}'"):
        timm.create_model(f"local-dir:{folder}", pretrained=True, similarity="adder")


@pytest.mark.parametrize("parent", some((*REAL, "tf_efficientnet_b0")))
def test_convolutional_twin_is_the_parent(parent):
    size = SMALLEST.get(parent, 64)
    theirs = timm.create_model(parent).eval()
    ours = create(parent, similarity="conv").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(stride):
    model = create("resnet18", output_stride=stride).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert model.forward_features(x).shape == (1, 512, 64 // stride, 64 // stride)
    dilations = {m.dilation for m in model.modules() if isinstance(m, Adder2d)}
    assert dilations == ({(1, 1), (2, 2), (4, 4)} if stride == 8 else {(1, 1), (2, 2)})
    features = create("resnet18", output_stride=stride, features_only=True)
    assert features.feature_info.reduction()[-1] == stride


def test_gradient_checkpointing_changes_nothing():
    model = create("resnet18", num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_without_weights_it_says_so():
    with pytest.raises(FileNotFoundError, match=r"adder_resnet18\.in1k has no weights"):
        timm.create_model("adder_resnet18", pretrained=True)
    assert not [name for name in timm.list_pretrained("adder_*") if name.endswith(".in1k")]
