"""Letting bytes go from layer to layer: the network is traced with ``torch.fx``, and its layers are told what to emit.

Where the output of a layer goes to other such layers it stays bytes: scale, shift, shortcut, ReLU and the rounding to
the next layer's range are one pass behind the sum. Max pooling and changes of shape on the way take the bytes as they
are: the largest of rounded values is the rounded largest. A ReLU or ReLU6 that alone reads a layer, also behind those,
becomes part of the layer: it gives the same before them. A value that is also added as a shortcut, or that another kind
of layer reads, average pooling say, is kept in float32 beside the bytes.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_notrace_functions
from torch import Tensor, fx, nn

from ..fuse import NOTHING, RELUS, RELUS6, Folded, Tracer, is_changed, writes
from .folding import fold_into_convolutions
from .layers import QuantizedAdder2d, Range
from .network import QuantizedNetwork

SHAPES = (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, "flatten", "reshape", "view", "squeeze",
          "unsqueeze", "contiguous")  # fmt: skip
# What returns memory of its own, for certain.
NEW = (operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, torch.add, torch.sub, torch.mul,
       torch.div, torch.cat, torch.stack, torch.relu, torch.sigmoid, torch.clamp, F.conv2d, F.linear, F.avg_pool2d,
       F.max_pool2d, F.interpolate, "add", "sub", "mul", "div", "mean", "sum", "relu", "sigmoid", "clamp",
       "softmax")  # fmt: skip
NEW_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.AvgPool2d, nn.MaxPool2d, nn.Sigmoid)
QUESTIONS = ("size", "dim", "numel")  # of a value's shape, which bytes answer as well


class MaxPoolOfBytes(nn.MaxPool2d):
    """``nn.MaxPool2d`` that takes bytes as well as floating point, on any device; without ``ceil_mode``.

    torch's own refuses bytes on a GPU, and on a CPU in channels_last.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            return super().forward(x)
        top, left = _pair(self.padding)
        x = F.pad(x, (left, left, top, top))  # 0 is the lowest byte
        for dim, size, stride, dilation in zip(
            (2, 3), _pair(self.kernel_size), _pair(self.stride), _pair(self.dilation), strict=True
        ):
            last = (x.shape[dim] - dilation * (size - 1) - 1) // stride * stride
            taps = [
                x[(slice(None),) * dim + (slice(r, r + last + 1, stride),)] for r in range(0, dilation * size, dilation)
            ]
            x = functools.reduce(torch.maximum, taps)
        return x


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class _Tracer(Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, QuantizedAdder2d) or super().is_leaf_module(module, name)


def connect(model: nn.Module) -> nn.Module:
    """Lets bytes go from layer to layer, where the whole network can be traced; elsewhere each layer makes its own.

    It depends on nothing but the network's code and the ranges of its layers.
    """
    connected = _connected(model)
    if connected is None:
        return QuantizedNetwork.of(model, model.graph) if isinstance(model, fx.GraphModule) else model
    return connected


def _connected(model: nn.Module) -> QuantizedNetwork | None:
    if any(p.default is not p.empty for p in inspect.signature(model.forward).parameters.values()):
        return None  # a graph would have one way through code that asks which options were given
    try:
        graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(model)
    except Exception:  # whatever a forward raises when it meets a proxy
        return None
    for node in list(graph.nodes):
        if node.op == "call_module" and _kind(model, node) in (*NOTHING, Folded):
            node.replace_all_uses_with(node.all_input_nodes[0])  # given by place or by name
            graph.erase_node(node)
    quantised: dict[fx.Node, QuantizedAdder2d] = {}
    for node in graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizedAdder2d):
            quantised[node] = module
    if len({id(module) for module in quantised.values()}) < len(quantised):
        return None  # a layer that is called twice has one output for two uses
    fold_into_convolutions(model, graph)
    for node in quantised:
        _take_activations(graph, model, node, quantised)
    for node in quantised:
        _connect_output(graph, model, node, quantised)
    graph.lint()
    return QuantizedNetwork.of(model, graph)


def _take_activations(
    graph: fx.Graph, model: nn.Module, node: fx.Node, quantised: dict[fx.Node, QuantizedAdder2d]
) -> None:
    """Makes each ReLU and ReLU6 that alone follows the layer a part of it, behind max pooling and new shapes too."""
    value = node
    while True:
        readers = [user for user in value.users if not _asks_for_shape(user)]
        if len(readers) != 1:
            return
        (user,) = readers
        ceiling = _ceiling(model, user)
        if ceiling is None:
            if not (_passes_bytes(model, user) and user.args[:1] == (value,)) or _has_gaps(model, user):
                return
            value = user
        elif ceiling == math.inf or _goes_on_as_bytes(model, node, quantised):
            quantised[node].activate(ceiling)
            user.replace_all_uses_with(value)
            graph.erase_node(user)
        else:
            return


def _ceiling(model: nn.Module, node: fx.Node) -> float | None:
    """What a ReLU lets through at most, infinity or the 6 of ReLU6; None for another node."""
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if _kind(model, node) is nn.ReLU6:  # which somebody may have given other bounds
            return 6.0 if (module.min_val, module.max_val) == (0.0, 6.0) else None
        return math.inf if _kind(model, node) is nn.ReLU else None
    return math.inf if node.target in RELUS else 6.0 if node.target in RELUS6 else None


def _kind(model: nn.Module, node: fx.Node) -> type | None:
    """The class of the module that a node calls; None where hooks or a forward of its own make something else of it."""
    module = model.get_submodule(str(node.target))
    return None if is_changed(module) else type(module)


def _has_gaps(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node is max pooling with windows so wide that all of one may be padding, which is below 0."""
    module: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.MaxPool2d) and _pair(module.dilation) != (1, 1)


def _goes_on_as_bytes(model: nn.Module, node: fx.Node, quantised: dict[fx.Node, QuantizedAdder2d]) -> bool:
    """Whether all that reads a layer's output can have it in bytes, and in one range."""
    ways = [_ways(model, node, user, quantised) for user in node.users if not _asks_for_shape(user)]
    ranges = {quantised[reader].input_range for way in ways for reader in _readers(way or [], quantised)}
    return None not in ways and len(ranges) == 1


def _connect_output(
    graph: fx.Graph, model: nn.Module, node: fx.Node, quantised: dict[fx.Node, QuantizedAdder2d]
) -> None:
    if _overwritten(model, node):
        return
    module = quantised[node]
    ways = {user: _ways(model, node, user, quantised) for user in node.users}
    ranges = [quantised[reader].input_range for way in ways.values() if way for reader in _readers(way, quantised)]
    if not ranges:
        return
    shared = max(ranges, key=ranges.count)  # those with another range make bytes of the float value themselves
    narrow_users = [
        user
        for user, way in ways.items()
        if way and all(quantised[reader].input_range == shared for reader in _readers(way, quantised))
    ]
    if not narrow_users:
        return
    wide_users = [user for user in node.users if user not in narrow_users and not _asks_for_shape(user)]
    module.emit(wide=bool(wide_users), next_range=shared)
    for user in narrow_users:
        for step in ways[user] or ():
            _take_bytes(graph, model, step, quantised, shared)
    if not wide_users:
        return
    users = list(node.users)
    with graph.inserting_after(node):
        narrow = graph.call_function(operator.getitem, (node, 1))
        wide = graph.call_function(operator.getitem, (node, 0))
    for user in users:
        if user in narrow_users or user in wide_users or _asks_for_shape(user):
            user.replace_input_with(node, narrow if user in narrow_users else wide)


def _ways(
    model: nn.Module, value: fx.Node, user: fx.Node, quantised: dict[fx.Node, QuantizedAdder2d]
) -> list[fx.Node] | None:
    """The nodes that bytes of ``value`` go through from ``user`` on, layers last; None where something needs more."""
    others = [*user.args[1:], *user.kwargs.values()]
    if not user.args or user.args[0] is not value or value in others:
        return None
    if user in quantised:
        return None if user.kwargs else [user]
    if not _passes_bytes(model, user) or _overwritten(model, user):
        return None
    way = [user]
    for follower in user.users:
        if _asks_for_shape(follower):
            continue
        further = _ways(model, user, follower, quantised)
        if further is None:
            return None
        way += further
    return way if _readers(way, quantised) else None


def _readers(way: list[fx.Node], quantised: dict[fx.Node, QuantizedAdder2d]) -> list[fx.Node]:
    return [node for node in way if node in quantised]


def _overwritten(model: nn.Module, value: fx.Node) -> bool:
    """Whether one of several users of a value writes over it, which the others may see."""
    return len(value.users) > 1 and any(_writes_over(model, user, set()) for user in value.users)


def _writes_over(model: nn.Module, user: fx.Node, seen: set[fx.Node]) -> bool:
    """Whether ``user`` writes over what it is given, or something that is given a view of it does."""
    if user in seen:
        return False
    seen.add(user)
    if writes(model, user):
        return True
    return not _makes_new(model, user) and any(_writes_over(model, further, seen) for further in user.users)


def _makes_new(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node certainly returns memory of its own. What is not known may be a view."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, (QuantizedAdder2d, *NEW_MODULES)) and not getattr(module, "inplace", False)
    return node.target in NEW


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in QUESTIONS
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


def _passes_bytes(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node commutes with rounding to bytes."""
    if node.op != "call_module":
        given = (*node.args, *node.kwargs.values())
        if any(isinstance(argument, torch.dtype) for argument in given):
            return False  # x.view(dtype) is about bytes, but others
        return node.target in (*SHAPES, *RELUS, *RELUS6)
    module: Any = model.get_submodule(str(node.target))
    kind = _kind(model, node)
    if kind in (nn.MaxPool2d, MaxPoolOfBytes):
        return not (module.return_indices or module.ceil_mode)
    return kind in (nn.Flatten, nn.Unflatten) or _ceiling(model, node) is not None


def _take_bytes(
    graph: fx.Graph, model: nn.Module, node: fx.Node, quantised: dict[fx.Node, QuantizedAdder2d], covered: Range
) -> None:
    if node in quantised:
        quantised[node].take_bytes()
        return
    module: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if type(module) is nn.MaxPool2d:
        name = str(node.target)
        options = (module.kernel_size, module.stride, module.padding, module.dilation)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, MaxPoolOfBytes(*options).eval())
    elif (ceiling := _ceiling(model, node)) is not None:
        node.op, node.target, node.args = "call_function", torch.clamp, node.args[:1]
        node.kwargs = {"min": covered.zero_point, "max": covered.level(ceiling)}
