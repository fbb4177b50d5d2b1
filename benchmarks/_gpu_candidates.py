"""What ``gpu.py`` times: calls by "direction / who"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from layers import Layer
from torch import nn

import adder_zoo
from adder_zoo.ops import reference
from adder_zoo.ops import triton as triton_kernels
from adder_zoo.ops.geometry import Geometry
from adder_zoo.ops.int8.library import adder2d_int8, adder2d_int8_fused

Calls = dict[str, Callable[[], Any]]
POWER = 1.5  # for every p between 1 and 2


class tf32:
    """A call with cuDNN's switch set."""

    def __init__(self, allow: bool, call: Callable[[], Any]):
        self.allow, self.call = allow, call

    def __call__(self):
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, self.allow
        try:
            return self.call()
        finally:
            torch.backends.cudnn.allow_tf32 = before


def layer(device: str, layer: Layer, batch: int) -> Calls:
    """Forward, dx and dw of one layer: adder layers and convolutions."""
    stride, padding = (layer.stride,) * 2, (layer.padding,) * 2
    geometry = Geometry.of(stride, (layer.padding,) * 4, (1, 1), 1)
    x32 = torch.randn(batch, layer.C, layer.H, layer.H, device=device)
    w32 = torch.randn(layer.K, layer.C, layer.R, layer.R, device=device)
    dy32 = torch.randn(batch, layer.K, layer.P, layer.P, device=device)
    found: Calls = {}

    def gradient(dy, x, w, which):
        mask = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward(dy, x, w, None, stride, padding, (1, 1), False, [0, 0], 1, mask)

    for name, dtype, memory_format in (
        ("float32", torch.float32, torch.contiguous_format),
        ("float32 channels_last", torch.float32, torch.channels_last),
        ("float16", torch.float16, torch.channels_last),
        ("bfloat16", torch.bfloat16, torch.channels_last),
    ):
        x, w = (t.to(dtype).to(memory_format=memory_format) for t in (x32, w32))
        dy = dy32.to(memory_format=memory_format)
        found[f"forward / adder {name}"] = lambda x=x, w=w: triton_kernels.forward(x, w, geometry)
        found[f"dx / adder {name}"] = lambda x=x, w=w, dy=dy: triton_kernels.grad_input(dy, x, w, geometry, "clipped")
        if dtype == torch.float32:
            call = lambda x=x, w=w, dy=dy: triton_kernels.grad_weight(dy, x, w, geometry, "full")  # noqa: E731
            found[f"dw / adder {name}"] = tf32(False, call)
            found[f"dw / adder {name} TF32"] = tf32(True, call)
            found |= powers(f"power {name}", triton_kernels, x, w, dy, geometry)
    for name, dtype, memory_format, allow in (
        ("float32", torch.float32, torch.contiguous_format, False),
        ("TF32", torch.float32, torch.channels_last, True),
        ("bfloat16", torch.bfloat16, torch.channels_last, True),
    ):
        x, w, dy = (t.to(dtype).to(memory_format=memory_format) for t in (x32, w32, dy32))
        found[f"forward / conv {name}"] = tf32(allow, lambda x=x, w=w: F.conv2d(x, w, None, stride, padding))
        for which, direction in enumerate(("dx", "dw")):
            call = lambda x=x, w=w, dy=dy, i=which: gradient(dy, x, w, i)  # noqa: E731
            found[f"{direction} / conv {name}"] = tf32(allow, call)
    return {**found, **in_bytes(device, layer, batch)}


def powers(who: str, module: Any, x, w, dy, geometry: Geometry) -> Calls:
    """Forward, dx and dw for Σ|x - w|^p by the functions of ``module``."""
    return {
        f"forward / {who}": lambda: module.forward(x, w, geometry, p=POWER),
        f"dx / {who}": lambda: module.grad_input(dy, x, w, geometry, "clipped", p=POWER),
        f"dw / {who}": lambda: module.grad_weight(dy, x, w, geometry, "full", p=POWER),
    }


def in_bytes(device: str, layer: Layer, batch: int) -> Calls:
    """The layer on bytes: its sums, and with batch norm and ReLU from bytes to bytes."""
    geometry = [layer.stride] * 2, [layer.padding] * 4, [1, 1], 1
    x = torch.randint(256, (batch, layer.C, layer.H, layer.H), dtype=torch.uint8, device=device)
    x = x.to(memory_format=torch.channels_last)
    w = torch.randint(256, (layer.K, layer.C, layer.R, layer.R), dtype=torch.uint8, device=device)
    scale, shift = torch.full((layer.K,), 1e-3, device=device), torch.zeros(layer.K, device=device)
    after = scale, shift, None, True, False, 40.0, 3, 255, True
    return {
        "forward / adder int8": lambda: adder2d_int8(x, w, 100, *geometry, "triton"),
        "forward / adder int8 to bytes": lambda: adder2d_int8_fused(x, w, 100, *after, *geometry, "triton"),
    }


def broadcast(x, w, stride, padding):
    """y by the definition, in a form that Inductor may fuse."""
    patches = F.unfold(x, w.shape[2:], padding=padding, stride=stride).transpose(1, 2)  # [N, PQ, CRS]
    return -(patches.unsqueeze(2) - w.flatten(1)).abs().sum(-1)


def unfold_cdist(x, w, stride, padding):
    patches = F.unfold(x, w.shape[2:], padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)
    return -torch.cdist(patches, w.flatten(1), p=1)


def rivals(machine, layer: Layer, batch: int, compiled: bool) -> Calls:
    """Other ways to write the forward pass, and ours beside them; for 1 < p < 2 plain PyTorch in all directions."""
    x = torch.randn(batch, layer.C, layer.H, layer.H, device=machine.device)
    w = torch.randn(layer.K, layer.C, layer.R, layer.R, device=machine.device)
    geometry = Geometry.of((layer.stride,) * 2, (layer.padding,) * 4, (1, 1), 1)
    dy = torch.randn(batch, layer.K, layer.P, layer.P, device=machine.device)
    found: Calls = {"forward / adder float32": lambda: triton_kernels.forward(x, w, geometry)}
    if compiled:  # for few layers: it is slow
        found |= powers("power float32", triton_kernels, x, w, dy, geometry)
        found |= powers("power in plain PyTorch", reference, x, w, dy, geometry)
    patches = batch * layer.P**2 * layer.C * layer.R**2 * 4
    if patches < machine.free_memory() // 4:
        found["forward / cdist"] = lambda: unfold_cdist(x, w, layer.stride, layer.padding)
        if compiled:
            form = machine.compile(broadcast)
            found["forward / compiled broadcast"] = lambda: form(x, w, layer.stride, layer.padding)
    return found


def distances(device: str, N: int, M: int, D: int) -> Calls:
    """``adder_zoo.cdist`` and torch's, forward ("forward") and with the gradients of both inputs ("both")."""
    x, y = (torch.randn(n, D, device=device, requires_grad=True) for n in (N, M))
    dy = torch.randn(N, M, device=device)
    found: Calls = {}
    for name, distance in (
        ("adder_zoo", lambda x, y: adder_zoo.cdist(x, y, impl="triton")),
        ("torch", lambda x, y: torch.cdist(x, y, p=1.0)),
    ):
        found[f"forward / {name}"] = lambda d=distance: d(x.detach(), y.detach())
        found[f"both / {name}"] = lambda d=distance: torch.autograd.grad(d(x, y), (x, y), dy)
    return found


def steps(device: str, network: str, batch: int, rehearse: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(who, a training step) one after the other, so that one network at a time is on the card."""
    import timm

    size, classes = (16, 10) if rehearse else (224, 1000)
    for who, adder, dtype, allow in (
        ("adder float32", True, None, False),
        ("adder bfloat16", True, torch.bfloat16, False),
        ("conv float32", False, None, False),
        ("conv TF32", False, None, True),
        ("conv bfloat16", False, torch.bfloat16, True),
    ):
        model = _tiny(adder) if rehearse else timm.create_model(f"adder_{network}" if adder else network)
        model = model.to(device, memory_format=torch.channels_last).train()
        optimizer = adder_zoo.AdderSGD(model.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
        labels = torch.randint(classes, (batch,), device=device)

        def step(model=model, optimizer=optimizer, x=x, labels=labels, dtype=dtype):
            with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        yield who, tf32(allow, step)
        del model, optimizer, step


def _tiny(adder: bool) -> nn.Module:
    """The network of a rehearsal."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [adder_zoo.Adder2d(4, 8, 3, impl="triton") if adder else nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
