"""``convert_to_adder``: what is converted, what stays, what is refused, and that nothing is lost."""

import copy
import re
import warnings

import pytest
import timm
import torch
import torchvision
from timm.layers import Conv2dSame, StdConv2d
from timm.utils import reparameterize_model
from torch import nn

from adder_zoo import Adder2d, convert_to_adder
from adder_zoo.convert import GATES
from adder_zoo.layers import Adder2dSame


def kinds(model):
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, Adder2d))}


def test_first_convolution_and_classifier_stay():
    model = timm.create_model("resnet18")
    before = kinds(model)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert convert_to_adder(model) is model
    after = kinds(model)
    assert list(after) == list(before)
    assert [name for name, kind in after.items() if kind is not Adder2d] == ["conv1"]
    assert isinstance(model.fc, nn.Linear)
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    loss = model.train()(torch.randn(2, 3, 64, 64)).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gates_stay_and_same_padding_is_kept():
    model = convert_to_adder(timm.create_model("tf_efficientnet_b0"))
    for name, kind in kinds(model).items():
        if name == "conv_stem" or ".se." in name:
            assert not issubclass(kind, Adder2d), name
        else:
            assert issubclass(kind, Adder2d), name
    strided = model.blocks[1][0].conv_dw
    assert type(strided) is Adder2dSame
    assert strided.stride == (2, 2)
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 65, 65)).shape == (1, 1000)


def test_bare_network_keeps_its_first_convolution():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5))
    convert_to_adder(model)
    assert type(model[0]) is nn.Conv2d
    assert repr(model[2]) == "Adder2d(4, 5, kernel_size=(3, 3), stride=(1, 1), bias=False)"


def test_filter_and_options():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))
    asked = []
    convert_to_adder(
        model, lambda name, m: asked.append((name, m)) or name == "0", weight_grad="sign", input_grad="full", p=1.5
    )
    assert [name for name, _ in asked] == ["0", "2"]
    assert type(model[2]) is nn.Conv2d
    assert (model[0].weight_grad, model[0].input_grad, model[0].p) == ("sign", "full", 1.5)


@pytest.mark.filterwarnings("ignore:convert_to_adder. no normalisation layer follows")
def test_parameters_keep_their_identity_mode_dtype_and_values_on_request():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)).double().eval()
    weight, values, bias = model[2].weight, model[2].weight.detach().clone(), model[2].bias.detach().clone()
    convert_to_adder(model, reset_weights=False)
    assert model[2].weight is weight
    assert torch.equal(weight, values)
    assert torch.equal(model[2].bias, bias)
    assert not model[2].training
    assert model[2].weight.dtype == torch.float64
    convert_to_adder(again := nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3)))
    assert 0.9 < again[2].weight.std() < 1.1


@pytest.mark.filterwarnings("ignore:convert_to_adder. no normalisation layer follows")
def test_a_convolution_that_is_used_twice_stays_one():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "a": shared, "b": shared})
    convert_to_adder(model)
    assert isinstance(model["a"], Adder2d)
    assert model["a"] is model["b"]


def test_a_convolution_itself_gives_the_layer():
    layer = convert_to_adder(nn.Conv2d(3, 4, 3, stride=2), lambda name, m: True)
    assert isinstance(layer, Adder2d)
    assert layer.stride == (2, 2)


def test_on_the_meta_device():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    convert_to_adder(model)
    assert all(p.is_meta for p in model.parameters())


class Unusual(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "bad",
    [
        StdConv2d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv1d(4, 4, 3),
        nn.Conv3d(4, 4, 3),
        nn.LazyConv2d(4, 3),
        Unusual(4, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_has_no_adder_form_is_refused_by_name_and_nothing_changes(bad):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model.add_module("odd", bad)
    with pytest.raises(ValueError, match=r"odd \(\w+\): .*"):
        convert_to_adder(model)
    assert type(model[1]) is nn.Conv2d
    convert_to_adder(model, lambda name, m: name == "1")
    assert type(model[1]) is Adder2d
    assert model.odd is bad


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ValueError, match="holds no convolution"):
        convert_to_adder(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="left out"):
        convert_to_adder(nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_warns_where_no_normalisation_is():
    with pytest.warns(UserWarning, match="no normalisation"):
        convert_to_adder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))


@pytest.mark.filterwarnings("ignore:convert_to_adder. no normalisation layer follows")
def test_same_convolution_becomes_a_same_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Conv2dSame(4, 4, 3, 2, bias=False))
    convert_to_adder(model)
    assert type(model[2]) is Adder2dSame
    assert model(torch.randn(1, 3, 9, 9)).shape == (1, 4, 4, 4)


@pytest.mark.filterwarnings("ignore:convert_to_adder. no normalisation layer follows")
def test_refusal_groups_the_layers_by_reason_and_is_not_longer_than_it_must_be():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *(StdConv2d(4, 4, 3) for _ in range(5)), nn.Conv1d(4, 4, 3))
    with pytest.raises(ValueError, match="no adder form") as caught:
        convert_to_adder(model)
    header, *lines, advice = str(caught.value).splitlines()
    assert [line.strip() for line in lines] == [
        "1, 2, 3 and 2 more (StdConv2d): it changes its weights or its input in a way of its own, which a distance is "
        "not invariant to",
        "6 (Conv1d): only two-dimensional convolutions that are not transposed have one",
    ]
    assert "filter_fn" in advice
    convert_to_adder(model, lambda name, m: name == "0")


def test_filters_that_are_mixed_for_each_image_are_refused():
    with torch.device("meta"):
        model = timm.create_model("efficientnet_cc_b0_4e")
    before = {name: type(m) for name, m in model.named_modules()}
    with pytest.raises(ValueError, match=r"\(CondConv2d\): its filters are mixed again for each image"):
        convert_to_adder(model)
    assert {name: type(m) for name, m in model.named_modules()} == before


def warnings_of(name, **kwargs):
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert_to_adder(model)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        # Behind a block's depthwise layer comes a norm; behind those that shrink the map none does; VGG has none.
        ("convnext_tiny", "stages.1.downsample.1, stages.2.downsample.1, stages.3.downsample.1 in ConvNeXt"),
        ("vgg11", "features.3, features.6, features.8, features.11, features.13 and 4 more in VGG"),
    ],
)
def test_warning_names_the_layers_without_norm(name, named):
    (message,) = warnings_of(name)
    assert f"no normalisation layer follows {named}" in message


@pytest.mark.parametrize("name", ["resnet18", "res2net50_26w_4s", "densenet121", "mobilenetv2_100", "resnest14d"])
def test_no_warning_where_norms_are_whatever_their_order(name):
    assert warnings_of(name) == []


GATES_OF_TIMM = {
    "SEModule", "SqueezeExcite", "EffectiveSEModule", "GatherExcite", "GlobalContext", "CbamModule", "LightCbamModule",
    "EcaModule", "CecaModule", "CoordAttn", "SimpleCoordAttn", "EfficientLocalAttn", "StripAttn", "SelectiveKernelAttn",
    "NonLocalAttn", "BatNonLocalAttn",
}  # fmt: skip


def test_every_gate_is_found_in_timm():
    """Some are only names of their module; one that is not found would be converted without a word."""
    assert {gate.__name__ for gate in GATES} >= GATES_OF_TIMM


@pytest.mark.parametrize("attention", ["cbam", "lcbam", "sk", "coord", "se"])
def test_gates_in_a_network(attention):
    if attention == "sk":
        model = timm.create_model("skresnet18")
        gates = [n for n, _ in model.named_modules() if n.endswith(("fc_reduce", "fc_select"))]
    else:
        model = timm.create_model("resnet18", block_args={"attn_layer": attention})
        gates = [n for n, m in model.named_modules() if ".se." in n and isinstance(m, nn.Conv2d)]
    assert gates
    convert_to_adder(model)
    assert [name for name in gates if not isinstance(model.get_submodule(name), nn.Conv2d)] == []
    assert len([m for m in model.modules() if isinstance(m, Adder2d)]) >= 19


class ConvNormAct(nn.Sequential):
    """Named after a normalisation that it may lack."""


def test_a_block_that_is_named_after_its_norm_is_not_one():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        ConvNormAct(nn.Conv2d(4, 4, 1), nn.ReLU()),
        ConvNormAct(nn.Conv2d(4, 4, 1), nn.ReLU()),
        ConvNormAct(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    )
    with pytest.warns(UserWarning, match="follows 1.0, 2.0 in Sequential"):
        convert_to_adder(model)


def torchvision_network(name):
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, weights_backbone=None)


def classifier_or_gate(name):
    return any(part in name for part in (".se.", "fc1", "fc2", "scale"))


SEGMENTATION_AND_DETECTION = {
    # what stays beside the first convolution and gates, and what a warning names
    "fcn_resnet50": (["classifier.4"], ""),
    "deeplabv3_mobilenet_v3_large": (["classifier.4"], ""),
    "lraspp_mobilenet_v3_large": (["classifier.low_classifier", "classifier.high_classifier"], ""),
    "ssd300_vgg16": ([f"head.{h}_head.module_list.{i}" for h in ("classification", "regression") for i in range(6)],
        "backbone.features.2, backbone.features.5, backbone.features.7, backbone.features.10"),
    "ssdlite320_mobilenet_v3_large": (
        [f"head.{h}_head.module_list.{i}.1" for h in ("classification", "regression") for i in range(6)], ""),
    "retinanet_resnet50_fpn_v2": (["head.classification_head.cls_logits", "head.regression_head.bbox_reg"],
        "backbone.fpn.inner_blocks.0.0, backbone.fpn.inner_blocks.1.0, backbone.fpn.inner_blocks.2.0, "
        "backbone.fpn.layer_blocks.0.0, backbone.fpn.layer_blocks.1.0 and 3 more"),
    "fcos_resnet50_fpn": (["head.classification_head.cls_logits", "head.regression_head.bbox_reg",
        "head.regression_head.bbox_ctrness"], "backbone.fpn.inner_blocks.0.0"),
    "maskrcnn_resnet50_fpn_v2": (["rpn.head.conv.0.0", "rpn.head.conv.1.0", "rpn.head.cls_logits", "rpn.head.bbox_pred",
        "roi_heads.mask_predictor.conv5_mask", "roi_heads.mask_predictor.mask_fcn_logits"], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTATION_AND_DETECTION)
def test_torchvision_segmentation_and_detection(name):
    """What answers stays a convolution; a feature pyramid without batch norm is converted with a warning."""
    answers, warned = SEGMENTATION_AND_DETECTION[name]
    model = torchvision_network(name)
    before = kinds(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert_to_adder(model)
    after = kinds(model)
    assert set(before) == set(after)
    transposed = [name for name in answers if name.endswith("conv5_mask")]
    stay = [name for name, kind in after.items() if kind is not Adder2d and not classifier_or_gate(name)]
    assert sorted(stay[1:] + transposed) == sorted(answers)
    assert [name for name, kind in after.items() if kind is Adder2d and classifier_or_gate(name)] == []
    messages = [str(w.message) for w in caught]
    assert len(messages) == bool(warned)
    assert all(warned in message for message in messages)


@pytest.mark.parametrize(
    ("name", "gates"),
    [("mobilenet_v3_small", 18), ("efficientnet_b0", 32), ("squeezenet1_1", 0), ("mnasnet0_5", 0), ("densenet121", 0)],
)
@pytest.mark.filterwarnings("ignore:convert_to_adder")
def test_torchvision_classification(name, gates):
    model = torchvision.models.get_model(name, weights=None)
    convert_to_adder(model)
    stay = [name for name, kind in kinds(model).items() if kind is not Adder2d]
    assert len([name for name in stay if classifier_or_gate(name)]) == gates
    others = [name for name in stay if not classifier_or_gate(name)]
    first = {"mnasnet0_5": "layers.0", "densenet121": "features.conv0", "squeezenet1_1": "features.0"}
    assert others == [first.get(name, "features.0.0"), *(["classifier.1"] if name == "squeezenet1_1" else [])]


def test_frozen_batch_norm_is_no_batch_norm():
    frozen = torchvision.ops.FrozenBatchNorm2d
    model = nn.Sequential(nn.Conv2d(3, 4, 3), frozen(4), nn.Conv2d(4, 4, 3), frozen(4), nn.Conv2d(4, 4, 3), frozen(4))
    with pytest.warns(UserWarning, match=r"follows 2, 4 in Sequential.*not frozen"):
        convert_to_adder(model)


def test_gates_that_are_written_out_and_named_heads():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid())
    body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    head = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 10, 1))
    model = nn.Sequential()
    for name, part in {"stem": nn.Conv2d(3, 4, 3), "body": body, "gate": gate, "seg_head": head}.items():
        model.add_module(name, part)
    model.add_module("overhead", nn.Conv2d(10, 10, 1))  # no head
    with pytest.warns(UserWarning, match="follows overhead in Sequential"):
        convert_to_adder(model)
    assert [name for name, kind in kinds(model).items() if kind is Adder2d] == [
        "body.0", "body.2", "seg_head.0", "overhead",
    ]  # fmt: skip


def test_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="no normalisation") as caught:
        convert_to_adder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
    assert caught[0].filename == __file__


FUSING = {"repvgg_a0": "stages.0.0", "mobileone_s0": "stages.0.0", "fastvit_t8": "stages.0.blocks.0.token_mixer"}


@pytest.mark.filterwarnings("ignore:convert_to_adder")
@pytest.mark.parametrize("name", FUSING)
def test_fusion_is_refused_and_nothing_changes(name):
    model = convert_to_adder(timm.create_model(name, num_classes=3)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
    with pytest.raises(RuntimeError, match="this block holds adder"):
        reparameterize_model(model)
    with torch.no_grad():
        assert torch.equal(model(x), want)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(x), want)
    with pytest.raises(RuntimeError, match=re.escape(FUSING[name])):
        twin.get_submodule(FUSING[name]).reparameterize()


def test_a_network_of_convolutions_still_fuses():
    model = timm.create_model("repvgg_a0", num_classes=3).eval()
    first = model.stem
    convert_to_adder(model, lambda name, m: name.startswith("stages.3"))
    first.reparameterize()
    with pytest.raises(RuntimeError, match=r"stages\.3"):
        model.stages[3][0].reparameterize()


def test_features_only_networks_convert():
    model = timm.create_model("resnet18", features_only=True)
    shapes = [y.shape for y in model.eval()(torch.randn(1, 3, 64, 64))]
    convert_to_adder(model)
    assert [name for name, kind in kinds(model).items() if kind is not Adder2d] == ["conv1"]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert [y.shape for y in model(x)] == shapes
    assert model.feature_info.channels() == [shape[1] for shape in shapes]


def test_output_stride_is_kept():
    model = timm.create_model("resnet18", output_stride=8)
    geometry = {n: (m.stride, m.dilation, m.padding) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    convert_to_adder(model).eval()
    assert {n: (m.stride, m.dilation, m.padding) for n, m in model.named_modules() if n in geometry} == geometry
    assert {m.dilation for m in model.modules() if isinstance(m, Adder2d)} == {(1, 1), (2, 2), (4, 4)}
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 512, 8, 8)
