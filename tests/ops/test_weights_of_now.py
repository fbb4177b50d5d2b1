"""Whoever writes the filters, and however: the next call answers with what they are now, as ``conv2d`` does.

Neither an address nor a version counter shows most of these writes.
"""

import gc
import weakref

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, adder2d, fuse


def other_process(layer):
    """Another process writes to shared memory. (Forked, as a new one would take seconds to import torch.)"""
    layer.share_memory()
    memory = layer.weight.detach().numpy()
    process = torch.multiprocessing.get_context("fork").Process(target=lambda: np.multiply(memory, 0.5, out=memory))
    process.start()
    process.join()
    assert process.exitcode == 0


def flat_buffer(layer):
    flat = torch.randn(layer.weight.numel())
    layer.weight.data = flat.view_as(layer.weight)
    layer(layer.x)
    flat.mul_(0.5)


def optimizer(layer):
    layer.weight.requires_grad_()
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], 0.1).step()


def vector(layer):
    torch.nn.utils.vector_to_parameters(torch.randn(layer.weight.numel()), [layer.weight])


def set_numpy(layer):
    layer.weight.detach().numpy()[...] = 0.5


def set_item(layer):
    layer.weight.data[:] = torch.randn_like(layer.weight)


def assigned(layer):
    layer.weight.data = layer.weight.data * 2


def through_half(layer):
    """What is freed may be given out again at the same address."""
    layer.weight.data = layer.weight.data.half() * 1.5
    layer.weight.data = layer.weight.data.float()


def swapped(layer):
    torch.utils.swap_tensors(layer.weight, nn.Parameter(torch.randn_like(layer.weight)))


def swapped_on_conversion(layer):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.half().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def loaded(layer):
    layer.load_state_dict({name: torch.rand_like(value) for name, value in layer.state_dict().items()})


def loaded_by_assignment(layer):
    layer.load_state_dict({n: torch.rand_like(v) for n, v in layer.state_dict().items()}, assign=True)


def foreach(layer):
    torch._foreach_mul_([layer.weight.data], 0.5)


WRITES = {
    "mul_": lambda layer: layer.weight.mul_(0.5),
    "data.mul_": lambda layer: layer.weight.data.mul_(0.5),
    "data.copy_": lambda layer: layer.weight.data.copy_(torch.randn_like(layer.weight)),
    "data.clamp_": lambda layer: layer.weight.data.clamp_(-0.1, 0.1),
    "init of data": lambda layer: nn.init.normal_(layer.weight.data),
    "detach": lambda layer: layer.weight.detach().neg_(),
    "order of filters": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0).clone()),
    "dlpack": lambda layer: torch.from_dlpack(layer.weight.detach()).add_(1),
    **{f.__name__: f for f in (set_numpy, set_item, assigned, through_half, swapped, swapped_on_conversion)},
    **{f.__name__: f for f in (optimizer, vector, flat_buffer, foreach, loaded, loaded_by_assignment, other_process)},
}
LAYERS = {
    "Adder2d": lambda impl: (Adder2d(8, 16, 3, impl=impl), torch.randn(2, 8, 6, 6)),
    "covers the image": lambda impl: (Adder2d(8, 16, 6, bias=False, impl=impl), torch.randn(2, 8, 6, 6)),
    "depthwise": lambda impl: (Adder2d(8, 8, 3, groups=8, impl=impl), torch.randn(2, 8, 6, 6)),
    "channels_last": lambda impl: (
        Adder2d(8, 16, 3, impl=impl).to(memory_format=torch.channels_last), torch.randn(2, 8, 6, 6)
    ),
    "AdderLinear": lambda impl: (AdderLinear(40, 16, impl=impl), torch.randn(3, 40)),
    "fused": lambda impl: (
        fuse(nn.Sequential(Adder2d(8, 16, 3, impl=impl), nn.BatchNorm2d(16)).eval())[0], torch.randn(2, 8, 6, 6)
    ),
}  # fmt: skip


def fresh(layer):
    """The layer with filters that nothing has seen."""
    other = type(layer).__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other._parameters = {
        name: None if p is None else nn.Parameter(p.detach().clone()) for name, p in layer._parameters.items()
    }
    return other


@pytest.mark.parametrize("impl", ["cpu", "exact"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_answers_with_the_weights_of_now(write, kind, impl, native):
    layer, layer.x = LAYERS[kind](impl)
    with torch.no_grad():
        layer(layer.x), layer(layer.x)
        before = layer(layer.x)
        write(layer)
        y = layer(layer.x)
        assert torch.equal(y, fresh(layer)(layer.x))
        if write is not swapped_on_conversion:
            assert not torch.equal(y, before)
        with torch.inference_mode():
            assert torch.equal(layer(layer.x), y)


def test_momentum_teacher(native):
    """A whole network whose weights are moved through ``.data``, as teachers and EMA copies are."""
    x = torch.randn(2, 3, 12, 12)
    student, teacher = (timm.create_model("adder_resnet20").eval() for _ in range(2))
    with torch.no_grad():
        teacher(x)
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            ours.data.copy_(theirs.data)
        assert torch.equal(teacher(x), student(x))


def test_fused_network_under_inference_mode(native):
    model = nn.Sequential(Adder2d(8, 16, 3), nn.BatchNorm2d(16)).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.inference_mode():
        fused = fuse(model)
        before = fused(x)
        fused[0].weight.data.mul_(0.5)
        assert not torch.equal(fused(x), before)
    with torch.no_grad():
        fused[0].weight.mul_(2)
        assert torch.equal(fused(x), before)


def large_tensors():
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    # Parameters of lazy modules have no size yet, and those on "meta" no memory.
    sized = [t for t in tensors if not isinstance(t, UninitializedTensorMixin) and t.device.type == "cpu"]
    return [t for t in sized if t.numel() >= 36_000]


def test_nothing_is_kept(native):
    """Of a layer that was called and then moved away, or deleted, no memory stays and no reference."""
    others = large_tensors()  # of other tests
    layer, linear = Adder2d(64, 64, 3, bias=False), AdderLinear(100, 360, bias=False)
    fused = fuse(nn.Sequential(layer, nn.BatchNorm2d(64)).eval())
    with torch.no_grad():
        adder2d(torch.randn(1, 64, 6, 6), layer.weight)
        layer(torch.randn(1, 64, 6, 6)), linear(torch.randn(2, 100)), fused(torch.randn(1, 64, 6, 6))
    assert [weakref.getweakrefcount(m.weight) for m in (layer, linear, fused[0])] == [0, 0, 0]
    for module in (layer, linear, fused):
        module.to("meta")
    assert not [t.shape for t in large_tensors() if all(t is not other for other in others)]


def test_fused_network_is_no_larger(native):
    """Its state and its pickle hold the filters once."""
    model = nn.Sequential(Adder2d(8, 16, 3), nn.BatchNorm2d(16)).eval()
    fused = fuse(model)
    with torch.no_grad():
        fused(torch.randn(1, 8, 6, 6))
    assert sum(t.numel() for t in [*fused.parameters(), *fused.buffers()]) < model[0].weight.numel() + 200
    assert set(fused.state_dict()) == {"0.weight", "0.scale", "0.shift"}


def test_no_difference_between_training_and_inference(native):
    layer, x = Adder2d(8, 16, 3), torch.randn(2, 8, 6, 6)
    y = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), y)
    assert "inference" not in str(torch.ops.adder_zoo.adder2d.default._schema)
    assert adder_zoo.implementations()["cpu"].available
