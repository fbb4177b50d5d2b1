"""The paper's networks as citizens of timm, in each similarity."""

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from adder_zoo import Adder2d, AdderLinear
from adder_zoo.binary import BinaryConv2d, BinaryLinear
from adder_zoo.hub import save_pretrained

# name: channels and size of its images, adder layers, parameters (counted by hand from the definition), channels of its
# features
NETWORKS = {
    "adder_lenet5_bn": (1, 32, 5, 61_942, [6, 16, 120]),
    # 5x5: 25·(32 + 32·32 + 32·64 + 64·64 + 64·128 + 128·128), 1152·2, 2·10, and batch norm of 460 channels
    "adder_lenetpp": (1, 28, 8, 25 * 31_776 + 2_304 + 20 + 2 * 460, [32, 64, 128]),
    # 3x3: 9·(3·128 + 128·128 + 128·256 + 256·256 + 256·512 + 512·512), 8192·10, and batch norm of 1,802 channels
    "adder_vgg_small": (3, 32, 5, 9 * 508_288 + 81_920 + 2 * 1_802, [128, 256, 512]),
    "adder_resnet20": (3, 32, 20, 272_484, [16, 16, 32, 64]),
    "adder_resnet32": (3, 32, 32, 466_916, [16, 16, 32, 64]),
    "adder_resnet44": (3, 32, 44, 661_348, [16, 16, 32, 64]),
    "adder_resnet56": (3, 32, 56, 855_780, [16, 16, 32, 64]),
    "adder_resnet110": (3, 32, 110, 1_730_724, [16, 16, 32, 64]),
}
SMALL = [name for name in NETWORKS if name not in ("adder_resnet44", "adder_resnet56", "adder_resnet110")]
KINDS = {"adder": (Adder2d, AdderLinear), "conv": (nn.Conv2d, nn.Linear), "xnor": (BinaryConv2d, BinaryLinear)}
WHOLE = ("adder_lenet5_bn", "adder_lenetpp")  # every layer is of the similarity, the first and the last too


def images(name, n=2, channels=None):
    C, size = NETWORKS[name][:2]
    return torch.randn(n, channels or C, size, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_structure(name):
    _, _, layers, parameters, _ = NETWORKS[name]
    networks = {s: timm.create_model(name, similarity=s, num_classes=10) for s in KINDS}
    for similarity, network in networks.items():
        assert sum(p.numel() for p in network.parameters()) == parameters
        weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, Adder2d, AdderLinear))]
        of_kind = [m for m in weighted if type(m) in KINDS[similarity]]
        if similarity == "conv":
            assert len(of_kind) == len(weighted)
        else:
            assert len(of_kind) == layers
            rest = [m for m in weighted if m not in of_kind]
            if name in WHOLE:
                assert not rest
            else:
                assert [m for m in rest if type(m) not in KINDS["conv"]] == []
                assert rest == [weighted[0], weighted[-1]]
    keys = [{k: v.shape for k, v in network.state_dict().items()} for network in networks.values()]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("similarity", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_trains(name, similarity):
    network = timm.create_model(name, similarity=similarity)
    loss = nn.functional.cross_entropy(network(images(name, 4)), torch.arange(4))
    loss.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", SMALL)
def test_head_and_classes(name):
    network = timm.create_model(name, num_classes=7, drop_rate=0.5).eval()
    x = images(name)
    features = network.forward_features(x)
    assert features.shape[1] == network.num_features
    hidden = network.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, network.head_hidden_size)
    assert torch.equal(network.forward_head(features), network(x))
    assert network(x).shape == (2, 7)
    assert network.get_classifier() is network.head
    network.reset_classifier(3)
    assert network(x).shape == (2, 3)
    network.reset_classifier(0)
    assert torch.equal(network(x), hidden)
    network.reset_classifier(0, "")
    assert torch.equal(network(x), features)
    assert timm.create_model(name, in_chans=5)(images(name, 2, 5)).shape[0] == 2
    with pytest.raises(ValueError, match="num_classes=0"):
        timm.create_model(name, global_pool="")


@pytest.mark.parametrize("name", SMALL)
def test_features(name):
    channels = NETWORKS[name][-1]
    features = timm.create_model(name, features_only=True)
    x = images(name)
    maps = features(x)
    assert [m.shape[1] for m in maps] == channels == features.feature_info.channels()
    if name not in WHOLE:  # whose sizes are no multiples of their reduction
        assert [x.shape[-1] // m.shape[-1] for m in maps] == features.feature_info.reduction()
    assert len(timm.create_model(name, features_only=True, out_indices=(0, 2))(x)) == 2
    network = timm.create_model(name).eval()
    last, all_of_them = network.forward_intermediates(x)
    assert torch.equal(last, network.forward_features(x))
    assert torch.equal(last, all_of_them[-1])
    assert len(network.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)) == 1
    assert network.prune_intermediate_layers([1]) == [1]
    assert torch.equal(network(x), all_of_them[1])


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_and_groups(name):
    network = timm.create_model(name)
    x = images(name)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    groups = group_parameters(network, network.group_matcher())
    named = [name for group in groups.values() for name in group]
    assert sorted(named) == sorted(key for key, _ in network.named_parameters())
    assert len(groups) > 2


@pytest.mark.parametrize("similarity", KINDS)
@pytest.mark.parametrize("name", ["adder_lenetpp", "adder_vgg_small", "adder_resnet20"])
def test_compile_and_export(name, similarity):
    network = timm.create_model(name, similarity=similarity).eval()
    x = images(name)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


@pytest.mark.parametrize("similarity", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_saved_networks_come_back(name, similarity, tmp_path):
    network = timm.create_model(name, similarity=similarity, num_classes=7, in_chans=2)
    network(images(name, 8, 2))  # moves the statistics of batch norm
    network.eval()
    save_pretrained(network, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (again.similarity, again.num_classes, again.in_chans) == (similarity, 7, 2)
    x = images(name, 3, 2)
    assert torch.equal(again(x), network(x))
    others = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert torch.equal(others.forward_features(x), network.forward_features(x))
    wrong = next(s for s in KINDS if s != similarity)
    with pytest.raises(ValueError, match="mean nothing"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, similarity=wrong)


def test_bad_arguments():
    with pytest.raises(ValueError, match="similarity must be one of"):
        timm.create_model("adder_resnet20", similarity="cosine")
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        timm.create_model("adder_resnet20", depth=21)
    with pytest.raises(ValueError, match="28 x 28"):
        timm.create_model("adder_lenetpp")(torch.randn(2, 1, 32, 32))
