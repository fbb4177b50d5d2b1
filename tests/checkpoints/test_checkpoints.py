"""Checkpoints from elsewhere: the authors' file and its many copies come in, whatever does not fit stays out."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from adder_zoo.checkpoints import CheckpointError, import_checkpoint, load_checkpoint, read_state_dict

pytestmark = pytest.mark.filterwarnings("ignore::adder_zoo.checkpoints.AssumptionWarning")


def authors(network):
    """The state dict of a CIFAR ResNet under the names of the authors' code."""
    state = {}
    for key, value in network.state_dict().items():
        adder = type(network.get_submodule(key.rpartition(".")[0])).__name__ == "Adder2d"
        key = key.replace(".weight", ".adder") if adder else key
        state[key.replace("head.fc.", "fc.").replace("head.bn.", "bn2.")] = value.clone()
    return state


@pytest.fixture
def network():
    network = timm.create_model("adder_resnet20", num_classes=7, in_chans=1).train()
    network(torch.randn(4, 1, 32, 32))  # moves the statistics of batch norm
    return network.eval()


WRAPPINGS = {
    "plain": lambda s: s,
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled in ddp": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}},
    "nested twice": lambda s: {"model": {"state_dict": {f"module.{k}": v for k, v in s.items()}}},
    "net": lambda s: {"net": s, "acc": 91.0},
    "averaged": lambda s: {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.tensor(3)},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_copies_of_the_authors_format(network, tmp_path, wrap):
    torch.save(wrap(authors(network)), tmp_path / "x.pth")
    import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert (again.num_classes, again.in_chans) == (7, 1)
    x = torch.randn(3, 1, 32, 32)
    assert torch.equal(again(x), network(x))


def test_convolutions_are_not_taken_for_adder_layers(tmp_path):
    """Their filters have the same shapes, but an adder layer's answers are never positive."""
    network = timm.create_model("adder_resnet20", similarity="conv").train()
    network(torch.randn(4, 3, 32, 32))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"not of adder layers.*--similarity conv"):
        load_checkpoint(tmp_path / "x.pth", "adder_resnet20", dataset="cifar10")
    x = torch.randn(2, 3, 32, 32)
    loaded = load_checkpoint(tmp_path / "x.pth", "adder_resnet20", "conv", dataset="cifar10")
    assert torch.equal(loaded(x), network.eval()(x))


def test_half_precision_becomes_float32(network, tmp_path):
    """But for running statistics, which cannot (tests/checkpoints/test_half_checkpoints.py)."""
    state = {k: v.half() if v.is_floating_point() and "running" not in k else v for k, v in authors(network).items()}
    torch.save(state, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth", "adder_resnet20")
    assert torch.equal(loaded.conv1.weight, network.conv1.weight.half().float())
    assert loaded.layer1[0].conv1.weight.dtype == torch.float32


def test_safetensors_and_the_tag_that_fits(tmp_path):
    for classes, tag in ((10, "cifar10"), (100, "cifar100")):
        network = timm.create_model("adder_resnet20", num_classes=classes)
        save_file(authors(network), tmp_path / "x.safetensors")
        import_checkpoint(tmp_path / "x.safetensors", "adder_resnet20", tmp_path / tag)
        config = json.loads((tmp_path / tag / "config.json").read_text())
        assert (config["architecture"], config["pretrained_cfg"]["tag"]) == ("adder_resnet20", tag)
        assert config["num_classes"] == classes


def test_similarity_is_kept(tmp_path):
    network = timm.create_model("adder_resnet20", similarity="conv").eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out", similarity="conv")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert again.similarity == "conv"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), network(x))


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_pickle_is_not_run(network, tmp_path):
    trace = tmp_path / "trace"
    torch.save({"state_dict": authors(network), "x": Trap(trace)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_state_dict(tmp_path / "x.pth")
    assert not trace.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)["x"].close()
    assert trace.exists()  # the trap works


def test_whole_modules_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"weights_only=False\)\.state_dict\(\)"):
        read_state_dict(tmp_path / "x.pth")


def test_what_does_not_fit_is_named(network, tmp_path):
    state = authors(network)
    file = tmp_path / "x.pth"
    torch.save({**state, "layer9.adder": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"not in the model \(1\): layer9"):
        load_checkpoint(file, "adder_resnet20")
    torch.save({k: v for k, v in state.items() if k != "layer1.0.conv1.adder"}, file)
    with pytest.raises(CheckpointError, match=r"missing \(1\): layer1.0.conv1.weight"):
        load_checkpoint(file, "adder_resnet20")
    torch.save({**state, "layer1.0.bn1.weight": torch.ones(3)}, file)
    with pytest.raises(CheckpointError, match=r"layer1.0.bn1.weight is \(3,\), not \(16,\)"):
        load_checkpoint(file, "adder_resnet20")
    torch.save({**state, "layer1.0.bn1.weight": torch.full((16,), torch.nan)}, file)
    with pytest.raises(CheckpointError, match=r"not finite \(1\): layer1.0.bn1.weight"):
        load_checkpoint(file, "adder_resnet20")
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"(?s)adder_resnet32.*missing"):
        load_checkpoint(file, "adder_resnet32")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "damaged"), (b"no checkpoint", "damaged|more than tensors"), (None, "is not a file")],
)
def test_damaged_files(tmp_path, content, message):
    for name in ("x.pth", "x.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / name)


def test_cut_off_file(network, tmp_path):
    torch.save(authors(network), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_state_dict(tmp_path / "x.pth")


def test_no_state_dict(tmp_path):
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no state dict, but a dict with epoch, loss"):
        read_state_dict(tmp_path / "x.pth")


def test_weights_in_the_folder_are_left_alone(network, tmp_path):
    torch.save(authors(network), tmp_path / "x.pth")
    import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    torch.save(authors(timm.create_model("adder_resnet20")), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="--force"):
        import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    import_checkpoint(tmp_path / "x.pth", "adder_resnet20", tmp_path / "out", force=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
