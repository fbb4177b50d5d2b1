"""Batch norm behind a float convolution, in the convolution: the first layer of networks in bytes, and their twins.

A convolution is linear in its filters, so batch norm in eval mode is other filters and a bias. That saves a pass over
the largest activations of a network.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, get_notrace_functions
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..fuse import NOTHING, Tracer, is_changed, is_constant


def folded(model: nn.Module) -> nn.Module:
    """``model``, a convolutional network in eval mode, with batch norm in its convolutions; changed in place.

    Raises:
        ValueError: torch.fx cannot trace it.
    """
    try:
        graph = Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(model)
    except Exception as error:  # whatever a forward raises when it meets a proxy
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    fold_into_convolutions(model, graph)
    return fx.GraphModule(model, graph, type(model).__name__).eval()


def fold_into_convolutions(model: nn.Module, graph: fx.Graph) -> None:
    """Folds what ``graph`` calls behind a convolution of ``model`` into it, in both."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        conv: Any = _called_once(model, calls, node)
        if type(conv) not in (nn.Conv2d, Conv2dSame) or len(node.users) != 1:
            continue
        (user,) = node.users
        norm: Any = _called_once(model, calls, user)
        if not is_constant(norm, conv):
            continue
        _fold(conv, norm)
        act = norm.act if isinstance(norm, BatchNormAct2d) else None
        if act is None or type(act) in NOTHING:
            user.replace_all_uses_with(node)
            graph.erase_node(user)
        else:
            parent, _, child = str(user.target).rpartition(".")
            setattr(model.get_submodule(parent), child, act)


def _called_once(model: nn.Module, calls: Counter[Any], node: fx.Node) -> nn.Module | None:
    """The module that a node calls with one value, if nothing else calls it or sees what it does."""
    if node.op != "call_module" or calls[node.target] > 1 or len(node.all_input_nodes) != 1:
        return None
    module = model.get_submodule(str(node.target))
    return None if is_changed(module) else module


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Gives ``conv`` the filters and the bias of both; computed in float64, so that each is rounded once."""
    gain, shift = (None if t is None else t.double() for t in (norm.weight, norm.bias))
    bias = None if conv.bias is None else conv.bias.double()
    folded_weight, offset = fuse_conv_bn_weights(
        conv.weight.double(), bias, norm.running_mean.double(), norm.running_var.double(), norm.eps, gain, shift
    )
    in_channels_last = conv.weight.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if in_channels_last else torch.contiguous_format
    weight = folded_weight.to(conv.weight.dtype).contiguous(memory_format=order)
    conv.bias = nn.Parameter(offset.to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter(weight, requires_grad=False)
