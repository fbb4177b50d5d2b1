"""The paper's networks: their structure, parameters counted from the definition, and that each is a citizen of timm."""

import itertools
import json

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

from adder_zoo import Adder2d, AdderLinear
from adder_zoo.binary import BinaryConv2d, BinaryLinear
from adder_zoo.hub import save_pretrained
from adder_zoo.models import SIMILARITIES, AdderResNetCifar

RESNETS = tuple(f"adder_resnet{depth}" for depth in (20, 32, 44, 56, 110))
LENETS = ("adder_lenet5_bn", "adder_lenetpp")
NETWORKS = (*LENETS, "adder_vgg_small", *RESNETS)
# One of each family; they share the code in which all of a family differ from others.
FAMILIES = (*LENETS, "adder_vgg_small", "adder_resnet20")
QUICK = {("adder_lenet5_bn", "adder")}  # binary layers compile in test_binary.py

COMPILED = [
    pytest.param(name, similarity, marks=() if (name, similarity) in QUICK else pytest.mark.slow)
    for name in FAMILIES
    for similarity in SIMILARITIES
]

# Channels and sizes of the stages' maps, and the width of what the classifier sees.
STAGES = {
    "adder_lenet5_bn": ([(6, 28), (16, 10), (120, 1)], 84),
    "adder_lenetpp": ([(32, 14), (64, 7), (128, 3)], 2),
    "adder_vgg_small": ([(128, 16), (256, 8), (512, 4)], 512 * 4 * 4),
    **{name: ([(16, 32), (16, 32), (32, 16), (64, 8)], 64) for name in RESNETS},
}

KINDS = {
    "adder": (Adder2d, AdderLinear),
    "conv": (nn.Conv2d, nn.Linear),
    "xnor": (BinaryConv2d, BinaryLinear),
}


def create(name, **kwargs):
    return timm.create_model(name, **kwargs)


def images(name, n=2, in_chans=None):
    channels, height, width = timm.get_pretrained_cfg(name).input_size
    return torch.randn(n, in_chans or channels, height, width)


def layers(model):
    """Of every layer with filters: its name and what compares in it."""
    found = {}
    for name, m in model.named_modules():
        for similarity in ("adder", "xnor", "conv"):  # a binary layer is a subclass of a convolution
            if isinstance(m, KINDS[similarity]):
                found[name] = similarity
                break
    return found


def expected_layers(name):
    """Names of the layers in order of definition, and of the layers that stay convolutions."""
    if name == "adder_lenet5_bn":
        return [*(f"stages.{i}.conv" for i in range(3)), "pre_logits.fc", "head.fc"], set()
    stages = [f"stages.{i}.conv{j}" for i in range(3) for j in (1, 2)]
    if name == "adder_lenetpp":
        return [*stages, "pre_logits.fc", "head.fc"], set()
    if name == "adder_vgg_small":
        return [*stages, "head.fc"], {"stages.0.conv1", "head.fc"}
    names = ["conv1"]
    for stage in (1, 2, 3):
        for block in range((int(name.removeprefix("adder_resnet")) - 2) // 6):
            names += [f"layer{stage}.{block}.conv{j}" for j in (1, 2)]
            if stage > 1 and block == 0:
                names.append(f"layer{stage}.{block}.downsample.0")
    return [*names, "head.fc"], {"conv1", "head.fc"}


def expected_parameters(name, classes, in_chans):
    """From the definition: filters without bias, and a batch norm of two parameters a channel behind each layer."""

    def layer(c, k, size=1):
        return c * k * size**2 + 2 * k

    if name == "adder_lenet5_bn":
        return layer(in_chans, 6, 5) + layer(6, 16, 5) + layer(16, 120, 5) + layer(120, 84) + layer(84, classes)
    if name == "adder_lenetpp":
        widths = [in_chans, 32, 32, 64, 64, 128, 128]
        body = sum(layer(c, k, 5) for c, k in itertools.pairwise(widths))
        return body + layer(128 * 3 * 3, 2) + layer(2, classes)
    if name == "adder_vgg_small":
        widths = [in_chans, 128, 128, 256, 256, 512, 512]
        return sum(layer(c, k, 3) for c, k in itertools.pairwise(widths)) + layer(512 * 4 * 4, classes)
    n = (int(name.removeprefix("adder_resnet")) - 2) // 6
    total = layer(in_chans, 16, 3) + 2 * n * layer(16, 16, 3)
    for c in (16, 32):
        total += layer(c, 2 * c, 3) + (2 * n - 1) * layer(2 * c, 2 * c, 3) + layer(c, 2 * c)
    return total + layer(64, classes)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_which_layers_compare_how(name, similarity):
    with torch.device("meta"):
        found = layers(create(name, similarity=similarity))
    names, stay = expected_layers(name)
    assert set(found) == set(names)
    assert found == {layer: "conv" if layer in stay else similarity for layer in names}


@pytest.mark.parametrize(("classes", "in_chans"), [(10, 3), (100, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_those_of_the_definition(name, classes, in_chans):
    shapes = []
    for similarity in SIMILARITIES:
        with torch.device("meta"):
            model = create(name, similarity=similarity, num_classes=classes, in_chans=in_chans)
        assert sum(p.numel() for p in model.parameters()) == expected_parameters(name, classes, in_chans)
        shapes.append([(key, value.shape) for key, value in model.state_dict().items()])
    assert shapes[0] == shapes[1] == shapes[2]


def test_depth_of_the_resnets():
    """Depth counts the first layer, the two of each block and the classifier, but no shortcut."""
    for name in RESNETS:
        names, _ = expected_layers(name)
        assert len([n for n in names if "downsample" not in n]) == int(name.removeprefix("adder_resnet"))


def test_tags():
    tags = set(timm.list_models("adder_*", include_tags=True))
    assert {"adder_lenet5_bn.mnist", "adder_lenet5_bn.fashion_mnist", "adder_lenetpp.mnist"} <= tags
    for name in ("adder_vgg_small", *RESNETS):
        assert {f"{name}.cifar10", f"{name}.cifar100"} <= tags
        with torch.device("meta"):
            assert create(f"{name}.cifar100").num_classes == 100
            assert create(f"{name}.cifar10").num_classes == 10


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter(name, similarity):
    with torch.device("meta"):
        model = create(name, similarity=similarity)
        model(images(name)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_features_head_and_another_classifier(name, similarity):
    stages, hidden = STAGES[name]
    x = images(name, in_chans=2)
    model = create(name, similarity=similarity, num_classes=7, in_chans=2, drop_rate=0.5).eval()
    channels, size = stages[-1]
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, channels, size, size)
        assert model.num_features == channels
        assert model.forward_head(features, pre_logits=True).shape == (2, hidden) == (2, model.head_hidden_size)
        logits = model.forward_head(features)
        assert logits.shape == (2, 7)
        assert torch.equal(model(x), logits)
        assert model.get_classifier() is model.head

        before = model.head
        model.reset_classifier(3)
        assert model.head is not before
        assert not model.head.training
        assert model.num_classes == 3
        assert model(x).shape == (2, 3)
        kind = "conv" if "head.fc" in expected_layers(name)[1] else similarity
        assert layers(model)["head.fc"] == kind
        model.reset_classifier(0)
        assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        with pytest.raises(ValueError, match="num_classes=0"):
            model.reset_classifier(5, "")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_pooling_and_no_classes_from_the_start(name):
    channels, size = STAGES[name][0][-1]
    x = images(name)
    assert create(name, num_classes=0, global_pool="").eval()(x).shape == (2, channels, size, size)
    assert create(name, num_classes=0).eval()(x).shape == (2, STAGES[name][1])
    with pytest.raises(ValueError, match="num_classes=0"):
        create(name, global_pool="")


def test_poolings_of_the_resnets():
    x = images("adder_resnet20")
    for pool, width in (("avg", 64), ("max", 64), ("avgmax", 64), ("catavgmax", 128)):
        model = create("adder_resnet20", global_pool=pool).eval()
        assert model.head.fc.weight.shape == (10, width, 1, 1)
        with torch.no_grad():
            assert model(x).shape == (2, 10)
            want = {
                "avg": lambda f: f.mean((2, 3)),
                "max": lambda f: f.amax((2, 3)),
                "avgmax": lambda f: 0.5 * (f.mean((2, 3)) + f.amax((2, 3))),
                "catavgmax": lambda f: torch.cat([f.mean((2, 3)), f.amax((2, 3))], 1),
            }[pool](model.forward_features(x))
            torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), want)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_before_the_classifier(name):
    x = images(name, n=8)
    model = create(name, drop_rate=0.99)
    assert model.head_drop.p == 0.99
    model.head_drop.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    seen = []
    with torch.no_grad():
        model(x)
        model.eval()(x)
    (trained_in, trained_out), (tested_in, tested_out) = seen
    assert not torch.equal(trained_in, trained_out)
    assert torch.equal(tested_in, tested_out)


def test_stochastic_depth_of_the_resnets():
    x = images("adder_resnet20", n=64)
    model = create("adder_resnet20", drop_path_rate=0.4)
    blocks = [block for i in (1, 2, 3) for block in model.get_submodule(f"layer{i}")]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(9)])
    plain = create("adder_resnet20")
    assert list(plain.state_dict()) == list(model.state_dict())
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(x[:2]), plain.eval()(x[:2]))
        maps = torch.rand(256, 64, 8, 8)  # not negative, so that ReLU leaves a shortcut alone as it is
        kept = (blocks[-1].train()(maps) != maps).flatten(1).any(1)
    assert 0.6 - 0.12 < kept.float().mean() < 0.6 + 0.12  # four standard deviations


@pytest.mark.parametrize(
    ("name", "fits"), [("adder_lenet5_bn", 32), ("adder_lenetpp", 28), ("adder_vgg_small", 48), ("adder_resnet20", 64)]
)
def test_image_size_as_an_argument(name, fits):
    for size in (fits, (fits, fits), None):
        model = create(name, img_size=size).eval()
        with torch.no_grad():
            assert model(torch.randn(1, model.in_chans, fits, fits)).shape == (1, 10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_classifier_tells_its_features(name, similarity):
    model = create(name, similarity=similarity, num_classes=7).eval()
    assert (model.get_classifier().in_features, model.get_classifier().out_features) == (STAGES[name][1], 7)
    model.reset_classifier(4)
    assert (model.get_classifier().in_features, model.get_classifier().out_features) == (STAGES[name][1], 4)
    model.head = nn.Linear(model.get_classifier().in_features, 5)  # as people do it by hand
    with torch.no_grad():
        assert model(images(name)).shape == (2, 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_timm_does_not_know_either_is_a_type_error(name):
    for argument in ("no_such", "drop_block_rate", *(() if "resnet" in name else ("drop_path_rate",))):
        with pytest.raises(TypeError, match=argument):
            create(name, **{argument: 0.1})


@pytest.mark.parametrize("name", FAMILIES)
def test_what_timm_passes_around_a_network(tmp_path, name):
    model = create(name).eval()
    x = images(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = create(name, checkpoint_path=str(tmp_path / "weights.pth"), scriptable=False, exportable=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    other = create(name, pretrained_cfg_overlay={"mean": (0.5,), "num_classes": 3}, cache_dir=str(tmp_path))
    assert other.num_classes == 3
    assert other.pretrained_cfg["mean"] == (0.5,)
    assert model.default_cfg is model.pretrained_cfg


@pytest.mark.parametrize("feature_cls", ["fx", "hook", "getter"])
@pytest.mark.parametrize("name", FAMILIES)
def test_features_by_each_of_timms_wrappers(name, feature_cls):
    model = create(name, features_only=True, feature_cls=feature_cls, out_indices=(-2, -1)).eval()
    with torch.no_grad():
        maps = model(images(name))
    assert [y.shape[1:3] for y in maps] == STAGES[name][0][-2:]
    with pytest.raises((IndexError, AssertionError)):
        create(name, features_only=True, feature_cls=feature_cls, out_indices=(9,))


@pytest.mark.parametrize("name", LENETS)
def test_symbolic_trace_keeps_the_check_of_the_size(name):
    with pytest.raises(ValueError, match="takes images of"):
        torch.fx.symbolic_trace(create(name, similarity="conv").eval())(torch.zeros(1, 1, 20, 20))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_features_only(name, similarity):
    stages, _ = STAGES[name]
    x = images(name)
    whole = create(name, similarity=similarity).eval()
    model = create(name, similarity=similarity, features_only=True).eval()
    missing = model.load_state_dict(whole.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        got = model(x)
        if not missing:  # some wrappers of timm rename the stages
            last, features = whole.forward_intermediates(x)
            assert all(torch.equal(a, b) for a, b in zip(got, features, strict=True))
        assert [f.shape[1:] for f in got] == [(c, s, s) for c, s in stages]
        assert model.feature_info.channels() == [c for c, _ in stages]
        if name != "adder_lenet5_bn":  # whose layers pad nothing
            assert [x.shape[2] // r for r in model.feature_info.reduction()] == [s for _, s in stages]
        chosen = create(name, similarity=similarity, features_only=True, out_indices=(0, 2)).eval()
        assert [f.shape[1] for f in chosen(x)] == [stages[0][0], stages[2][0]]
        assert chosen.feature_info.channels() == [stages[0][0], stages[2][0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_intermediates_are_those_of_the_forward_pass(name):
    stages, _ = STAGES[name]
    x = images(name)
    model = create(name).eval()
    with torch.no_grad():
        features = model.forward_features(x)
        last, every = model.forward_intermediates(x)
        assert torch.equal(last, features)
        assert torch.equal(every[-1], features)
        assert [f.shape[1:] for f in every] == [(c, s, s) for c, s in stages]
        only = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert len(only) == 1
        assert torch.equal(only[0], every[1])
        two = model.forward_intermediates(x, indices=2, intermediates_only=True)
        assert [f.shape for f in two] == [f.shape for f in every[-2:]]
        with pytest.raises(ValueError, match="NCHW"):
            model.forward_intermediates(x, output_fmt="NLC")
        assert model.prune_intermediate_layers([1]) == [1]
        assert torch.equal(model(x), every[1])
        assert [f.shape for f in model.forward_intermediates(x, intermediates_only=True)] == [
            f.shape for f in every[:2]
        ]
        whole = create(name).eval()
        count = sum(p.numel() for p in whole.parameters())
        assert sum(p.numel() for p in model.parameters()) < count
        assert whole.prune_intermediate_layers([len(stages) - 1], prune_head=False) == [len(stages) - 1]
        assert sum(p.numel() for p in whole.parameters()) == count


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_nothing(name, similarity):
    x = images(name)
    model = create(name, similarity=similarity)
    gradients = []
    saved = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            y = model(x)
        y.square().sum().backward()
        saved.append(sum(sizes))
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved[1] < saved[0] / 2  # it was really done


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_groups_follow_the_forward_pass(name, coarse):
    with torch.device("meta"):
        model = create(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse), return_values=False)
    of = {parameter: group for group, members in groups.items() for parameter in members}
    assert sorted(of) == sorted(p for p, _ in model.named_parameters())
    order = [of[p] for p, _ in model.named_parameters()]
    assert order == sorted(order)
    assert of[expected_layers(name)[0][0] + ".weight"] == 0
    stages = 3 if coarse or name != "adder_resnet20" else 9
    # The stem of a plain network is its first stage, and so is its first block.
    assert len(groups) in (stages + 1, stages + 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_decay(name):
    model = create(name)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert set(scales) == {id(p) for p in model.parameters()}
    first, *_, head = expected_layers(name)[0]
    by_name = {n: scales[id(p)] for n, p in model.named_parameters()}
    assert by_name[f"{head}.weight"] == max(scales.values()) == 1
    assert by_name[f"{first}.weight"] == min(scales.values()) < 0.5


@pytest.mark.parametrize(("name", "similarity"), COMPILED)
def test_compile_whole(name, similarity):
    x = images(name)
    model = create(name, similarity=similarity)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        loss = network(x).square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_export_with_any_batch(name, similarity):
    model = create(name, similarity=similarity).eval()
    program = torch.export.export(model, (images(name),), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    x = images(name, n=3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_network_comes_back(tmp_path, name, similarity):
    x = images(name, in_chans=2, n=4)
    model = create(name, similarity=similarity, num_classes=7, in_chans=2)
    with torch.no_grad():
        model(x)  # moves the statistics
        save_pretrained(model, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["architecture"] == name
        assert config["num_classes"] == 7
        assert config["model_args"]["similarity"] == similarity
        assert config["model_args"]["in_chans"] == 2
        assert config["pretrained_cfg"]["input_size"][0] == 2
        again = create(f"local-dir:{tmp_path}", pretrained=True)
        assert (again.similarity, again.num_classes, again.in_chans) == (similarity, 7, 2)
        assert torch.equal(again.eval()(x), model.eval()(x))
        for other in SIMILARITIES:
            if other != similarity:
                with pytest.raises(ValueError, match=f"the weights belong to similarity='{similarity}'"):
                    create(f"local-dir:{tmp_path}", pretrained=True, similarity=other)
        with pytest.raises(ValueError, match="2 input channel"):
            create(f"local-dir:{tmp_path}", pretrained=True, in_chans=3)
        tuned = create(f"local-dir:{tmp_path}", pretrained=True, num_classes=4)
        assert tuned(x).shape == (4, 4)
        first = expected_layers(name)[0][0]
        assert torch.equal(tuned.get_submodule(first).weight, model.get_submodule(first).weight)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_input_channels_survive(tmp_path, name, in_chans):
    """Older versions of timm keep no record of how a model was made, so ``save_pretrained`` tells."""
    model = create(name, in_chans=in_chans).eval()
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["in_chans"] == in_chans
    again = create(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(name, in_chans=in_chans)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_unknown_similarity(name):
    with pytest.raises(ValueError, match="similarity must be one of"):
        create(name, similarity="xor")


@pytest.mark.parametrize("depth", [0, 2, 19, 21])
def test_impossible_depth(depth):
    with pytest.raises(ValueError, match="6n"):
        AdderResNetCifar(depth)


def test_features_of_lenetpp_have_two_dimensions_and_keep_their_sign():
    """The paper's Fig. 1 draws them."""
    model = create("adder_lenetpp")
    x = images("adder_lenetpp", n=16)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (16, 2)
    assert (features < 0).any()
    assert (features > 0).any()
