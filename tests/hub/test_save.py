"""What is saved comes back with the same answers, by this package's means and by timm's; or is not saved."""

import copy

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.nn.utils import prune

from adder_zoo import Adder2d, convert_to_adder, fuse
from adder_zoo.hub import save_pretrained

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(name="resnet18", **kwargs):
    return timm.create_model(name, num_classes=5, **kwargs)


def settled(model):
    """In eval mode, with statistics of batch norm that differ from a new one's."""
    with torch.no_grad():
        model.train()(X)
    return model.eval()


@torch.no_grad()
def same_after(save, model, folder, **kwargs):
    save(model, folder)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()
    return torch.equal(again(X), model(X))


def with_timm(model, folder):
    save_for_hf(model, str(folder), safe_serialization=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: small(output_stride=8),
        lambda: small("mobilenetv2_050"),
        lambda: small("adder_resnet18", similarity="conv"),
        lambda: small("tf_efficientnet_b0"),
    ],
    ids=["dilated", "depthwise", "twin of the zoo", "SAME padding"],
)
def test_converted_network_comes_back(tmp_path, make):
    model = settled(convert_to_adder(make()))
    assert model.pretrained_cfg["architecture"].startswith("adder_")
    assert model.default_cfg is model.pretrained_cfg
    assert same_after(save_pretrained, model, tmp_path / "ours")
    assert same_after(with_timm, model, tmp_path / "timm's")


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: convert_to_adder(small(), lambda name, _: name.startswith("layer4")), 5),
        (lambda: convert_to_adder(small("adder_resnet18", similarity="conv"), lambda n, _: "4.1" in n), 2),
    ],
    ids=["only some layers", "twin, in part"],
)
def test_network_converted_in_part_comes_back_in_part(tmp_path, make, count):
    model = settled(make())
    assert sum(isinstance(module, Adder2d) for module in model.modules()) == count
    assert model.pretrained_cfg["architecture"] == "adder_resnet18"
    assert same_after(save_pretrained, model, tmp_path / "ours")
    assert same_after(with_timm, model, tmp_path / "timm's")


OTHERWISE = {
    "the first layer too": lambda: convert_to_adder(small(), lambda name, _: True),
    "not in the zoo": lambda: convert_to_adder(small("resnet10t")),
    "what the zoo leaves": lambda: convert_to_adder(small("mobilenetv3_small_050")),
    "another exponent": lambda: convert_to_adder(small(), p=1.5),
    "the zoo's, further": lambda: convert_to_adder(small("adder_resnet18"), lambda name, _: True),
}


@pytest.mark.parametrize("what", OTHERWISE)
@pytest.mark.filterwarnings("ignore:convert_to_adder")
def test_network_that_timm_cannot_build_again_is_not_saved_as_another(tmp_path, what):
    model = OTHERWISE[what]().eval()
    with pytest.raises(ValueError, match=r"^save_pretrained: .*register a model"):
        save_pretrained(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with_timm(model, tmp_path)  # writes whatever it is given; loading says what it is
    with pytest.raises(RuntimeError, match=r"Unknown model .*converted by adder_zoo"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_fused_network_is_not_saved(tmp_path):
    fused = fuse(convert_to_adder(small()).eval())
    with pytest.raises(ValueError, match=r"fused for inference.*Save the network that was given to adder_zoo.fuse\(\)"):
        save_pretrained(fused, tmp_path)
    save_config_for_hf(fused, tmp_path / "config.json")
    with pytest.raises(RuntimeError, match=r"Unknown model .*fused by adder_zoo"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_the_message_names_the_layers(tmp_path):
    with pytest.raises(ValueError, match=r"conv1: Adder2d here, Conv2d there.*build it as 'adder_resnet18'"):
        save_pretrained(OTHERWISE["the first layer too"](), tmp_path)
    with pytest.raises(ValueError, match=r"layer1.0.conv1: p 1.5 here, p 1.0 there; .*; and \d+ more"):
        save_pretrained(OTHERWISE["another exponent"](), tmp_path)


def test_exponent_that_came_down_to_one(tmp_path):
    model = OTHERWISE["another exponent"]()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 1.0
    assert same_after(save_pretrained, settled(model), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m.layer1[0], "conv1", nn.Conv2d(64, 64, 3, 1, 1)), "conv1: Conv2d here, Adder2d"),
        (lambda m: setattr(m.layer1[0].conv2, "p", 2.0), "conv2: p 2.0 here"),
        (lambda m: setattr(m.layer1[0].conv2, "dilation", (2, 2)), "conv2: dilation"),
        (lambda m: setattr(m.layer1[0].bn1, "eps", 0.1), "bn1: eps 0.1 here"),
        (lambda m: setattr(m, "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 5))), "fc: missing"),
        (lambda m: setattr(m.layer1[0], "conv2", m.layer1[0].conv1), "one parameter in only one"),
        (lambda m: setattr(m.layer1[1].conv1, "weight", m.layer1[0].conv1.weight), "one parameter in only one"),
        (lambda m: setattr(m, "maxpool", nn.Identity()), "maxpool: missing here, MaxPool2d"),
        (lambda m: setattr(m.layer1[0], "act1", nn.SiLU()), r"act1: SiLU\(\) here, ReLU\(\) there"),
        (lambda m: prune.random_unstructured(m.layer1[0].conv1, "weight", 0.5), "conv1: weight"),
    ],
    ids=[
        "layer",
        "exponent",
        "dilation",
        "eps",
        "classifier",
        "layer used twice",
        "weight used twice",
        "pooling",
        "activation",
        "pruned",
    ],
)
def test_network_that_was_changed_by_hand_is_not_saved(tmp_path, change, said):
    model = small("adder_resnet18")
    save_pretrained(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    change(model)
    with pytest.raises(ValueError, match=f"^save_pretrained: .*{said}"):
        save_pretrained(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Tied(nn.Module):
    """A network of timm's form that uses one layer twice."""

    def __init__(self, num_classes=5, in_chans=3):
        super().__init__()
        self.num_classes, self.num_features = num_classes, 8
        self.stem = nn.Conv2d(in_chans, 8, 3)
        self.first = self.second = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.second(self.first(self.stem(x))).mean((2, 3)))


@pytest.fixture
def tied(monkeypatch):
    from timm.models import _registry, build_model_with_cfg

    def tied_net(pretrained=False, **kwargs):
        return build_model_with_cfg(Tied, "tied_net", pretrained, **kwargs)

    monkeypatch.setitem(_registry._model_entrypoints, "tied_net", tied_net)
    cfg = {"architecture": "tied_net", "first_conv": "stem", "classifier": "fc", "input_size": (3, 32, 32)}
    return timm.create_model("tied_net", pretrained_cfg=cfg).eval()


def test_layer_that_the_network_itself_uses_twice(tmp_path, tied):
    assert same_after(save_pretrained, tied, tmp_path)


def test_parameters_in_one_buffer(tmp_path):
    """As optimizers with flat memory leave them; safetensors refuses tensors that share memory."""
    model = settled(small("adder_resnet18"))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    at = 0
    for p in model.parameters():
        p.data = flat[at : at + p.numel()].view_as(p)
        at += p.numel()
    assert same_after(save_pretrained, model, tmp_path)


def test_conversion_within_a_larger_network():
    """A detector's backbone, say: timm's name for the part goes with its layers."""
    outer = nn.ModuleDict({"backbone": small(), "head": nn.Conv2d(512, 4, 1)})
    convert_to_adder(outer, lambda name, _: name != "backbone.conv1" and name.startswith("backbone"))
    assert outer["backbone"].pretrained_cfg["architecture"] == "adder_resnet18"


def test_conversion_leaves_other_networks_of_the_same_name_alone():
    first = small()
    second = copy.deepcopy(first)
    convert_to_adder(first)
    assert second.pretrained_cfg["architecture"] == "resnet18"
    assert timm.get_pretrained_cfg("resnet18").architecture == "resnet18"
    assert first.pretrained_cfg.get("url") is None  # these weights are not of there
    assert first.pretrained_cfg["mean"] == second.pretrained_cfg["mean"]


def test_model_that_converts_itself(tmp_path, monkeypatch):
    """The way that CONTRIBUTING.md names for a network of one's own."""
    from timm.models import _registry

    def adder_resnet10t(pretrained=False, **kwargs):
        return convert_to_adder(timm.create_model("resnet10t", **kwargs))

    monkeypatch.setitem(_registry._model_entrypoints, "adder_resnet10t", adder_resnet10t)
    model = timm.create_model("adder_resnet10t", num_classes=5)
    assert model.pretrained_cfg["architecture"] == "adder_resnet10t"
    save_pretrained(model, tmp_path)
