"""timm's networks for ImageNet as adder networks: what the parent can, they can."""

import warnings

import pytest
import timm
import torch
from torch import nn

from adder_zoo import Adder2d, adder_parameters
from adder_zoo.binary import BinaryConv2d
from adder_zoo.hub import save_pretrained
from adder_zoo.models.imagenet import parents

SPREAD = ("resnet18", "resnext50_32x4d", "regnetx_002", "mobilenetv3_small_050", "vgg11_bn", "efficientnet_lite0")
SPREAD += ("densenet121", "dla34")
REAL = ("resnet18", "mobilenetv3_small_050", "regnetx_002")


def some(names):
    assert set(names) <= set(parents())
    return [pytest.param(p, marks=() if p in names else pytest.mark.slow) for p in parents()]


def test_the_papers_networks_are_there():
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} <= set(parents())
    assert {f"adder_{p}" for p in parents()} <= set(timm.list_models("adder_*"))


@pytest.mark.parametrize("parent", some(SPREAD))
def test_like_its_parent(parent):
    """On the meta device: structure, gradients, features; nothing converted without batch norm behind it."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("error", message="convert_to_adder")
        network, cnn = timm.create_model(f"adder_{parent}"), timm.create_model(parent)
        features, theirs = (timm.create_model(n, features_only=True) for n in (f"adder_{parent}", parent))
        x = torch.empty(2, *network.pretrained_cfg["input_size"])
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in cnn.state_dict().items()}
    first = network.pretrained_cfg["first_conv"]
    for name in (first,) if isinstance(first, str) else first:
        assert type(network.get_submodule(name)) is type(cnn.get_submodule(name))
    assert sum(isinstance(m, Adder2d) for m in network.modules()) > 3
    y = network(x)
    assert y.shape == (2, 1000)
    y.sum().backward()
    assert all(w.grad is not None for w in adder_parameters(network))
    assert [m.shape for m in features(x)] == [m.shape for m in theirs(x)]
    assert features.feature_info.channels() == theirs.feature_info.channels()
    assert features.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("parent", some(REAL))
def test_saved_networks_come_back(parent, tmp_path):
    """On the CPU, with small images: forward, backward, save, load, the same logits."""
    torch.manual_seed(0)
    network = timm.create_model(f"adder_{parent}", num_classes=7, in_chans=1)
    # Some networks shrink an image too often for 64 pixels.
    x = torch.randn(2, 1, *((139, 139) if parent.startswith("inception") else (64, 64)))
    network(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    network.eval()
    save_pretrained(network, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.num_classes == 7
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    for file in tmp_path.iterdir():
        file.unlink()


def test_similarities():
    torch.manual_seed(0)
    cnn = timm.create_model("resnet18").eval()
    twin = timm.create_model("adder_resnet18", similarity="conv").eval()
    twin.load_state_dict(cnn.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(twin(x), cnn(x))
    binary = timm.create_model("adder_resnet18", similarity="xnor")
    adder = timm.create_model("adder_resnet18")
    count = sum(isinstance(m, Adder2d) for m in adder.modules())
    assert count == sum(isinstance(m, BinaryConv2d) for m in binary.modules()) == 19
    assert type(binary.conv1) is nn.Conv2d
    with pytest.raises(ValueError, match="no SAME padding"):
        timm.create_model("adder_tf_efficientnet_b0", similarity="xnor")


def test_output_stride():
    features = timm.create_model("adder_resnet18", features_only=True, output_stride=8)
    assert features.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert [m.shape[-1] for m in features(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 8, 8]
