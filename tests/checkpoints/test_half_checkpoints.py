"""Checkpoints in half precision: filters may come in it, running statistics may not; what is saved keeps them."""

import copy

import pytest
import safetensors.torch
import timm
import torch
from small_networks import dtypes, network
from timm.models import save_for_hf

from adder_zoo.checkpoints import CheckpointError, import_checkpoint
from adder_zoo.hub.save import save_pretrained


def lossy(model):
    """The state dict as ``{key: value.half()}`` leaves it, with means where half precision has no room."""
    model.layer2[0].bn1.running_mean.copy_(-5000 - torch.rand(32))
    return {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()}


@pytest.fixture
def half_file(tmp_path):
    safetensors.torch.save_file(lossy(network()), tmp_path / "half.safetensors")
    return tmp_path / "half.safetensors"


REFUSED = "running statistics of an adder network are destroyed"


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}])
def test_statistics_in_half_precision_are_not_loaded(options):
    model = network()
    state = lossy(copy.deepcopy(model))
    before = copy.deepcopy({k: v for k, v in model.state_dict().items() if "running" in k})
    with pytest.raises(RuntimeError, match=REFUSED):
        model.load_state_dict(state, **options)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    with torch.device("meta"):
        empty = timm.create_model("adder_resnet20", depth=8)
    with pytest.raises(RuntimeError, match=REFUSED):
        empty.load_state_dict(state, assign=True)


def test_half_precision_filters_and_new_statistics_are_loaded():
    model = network()
    state = {k: v if "running" in k or "num" in k else v.bfloat16() for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    assert dtypes(model.parameters()) == {torch.float32}
    fresh = timm.create_model("adder_resnet20", depth=8)
    fresh.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in fresh.state_dict().items()})
    again = network()
    again.load_state_dict(state, assign=True)
    assert again.eval()(torch.randn(1, 3, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_a_file_in_half_precision_is_refused_on_every_way_in(half_file, tmp_path):
    with pytest.raises(RuntimeError, match=REFUSED):
        timm.create_model("adder_resnet20", depth=8, checkpoint_path=str(half_file))
    overlay = {"file": str(half_file)}
    with pytest.raises(RuntimeError, match=REFUSED) as error:
        timm.create_model("adder_resnet20", depth=8, pretrained=True, pretrained_cfg_overlay=overlay)
    assert "another model" not in str(error.value)
    folder = tmp_path / "folder"
    save_pretrained(network(), folder)
    safetensors.torch.save_file(lossy(network()), folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=REFUSED):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("widened", [None, torch.float32, torch.float64])
def test_import_refuses_rounded_statistics(tmp_path, dtype, widened):
    model = timm.create_model("adder_resnet20.cifar10", pretrained=True)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    if widened:
        state = {k: v.to(widened) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=REFUSED):
        import_checkpoint(tmp_path / "half.pth", "adder_resnet20", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exact = model.state_dict()
    state = {k: exact[k] if "running" in k else v for k, v in state.items()}
    torch.save(state, tmp_path / "filters.pth")
    network = import_checkpoint(tmp_path / "filters.pth", "adder_resnet20.cifar10", tmp_path / "out")
    assert torch.equal(network.bn1.running_mean, model.bn1.running_mean)


@pytest.mark.parametrize("save", [save_pretrained, lambda m, d: save_for_hf(m, str(d), safe_serialization=True)])
def test_a_network_in_half_precision_is_saved_with_statistics_in_float32(tmp_path, save):
    model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    x = torch.rand(2, 1, 32, 32)
    half = copy.deepcopy(model).bfloat16()
    logits = half(x.bfloat16())
    save(half, tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {t.dtype for k, t in tensors.items() if "bn" in k and "num" not in k} == {torch.float32}
    assert tensors["stages.0.conv.weight"].dtype == torch.bfloat16
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dtype=torch.bfloat16).eval()
    assert torch.equal(again(x.bfloat16()), logits)


def test_save_refuses_statistics_that_are_lost(tmp_path):
    model = network("adder_lenet5_bn")
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.bfloat16()
    with pytest.raises(ValueError, match=REFUSED):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
