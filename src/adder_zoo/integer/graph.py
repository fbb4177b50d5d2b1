"""What a network computes, read from its ``torch.fx`` graph: layers with what follows them, poolings, shortcuts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import BatchNormAct2d, get_notrace_functions
from torch import Tensor, fx, nn

from .. import norms
from ..fuse import ADDITIONS, NOTHING, RELUS, RELUS6, Folded, FusedAdder2d, Tracer, is_changed
from ..int8.layers import QuantizedAdder2d
from ..layers import AdderLayer, AdderLinear
from ..models._staged import require_images_of_size

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, norms.BatchNorm1d, norms.BatchNorm2d)
NORMS_WITH_ACTIVATION = (BatchNormAct2d, norms.BatchNormAct2d)
RESHAPES = (nn.Flatten, nn.Unflatten)
WEIGHTED = (QuantizedAdder2d, AdderLinear, nn.Conv2d, nn.Linear)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class NoIntegerForm(ValueError):
    """A network, or a layer of it, that has no integer form; names the layer and says what to do."""


@dataclass
class Value:
    """What a node of the graph computes, with its range over the calibration images."""

    name: str
    shape: tuple[int, int, int] = (0, 0, 0)  # height, width, channels
    low: float = 0.0
    high: float = 0.0


@dataclass
class Layer:
    """A layer with filters, the batch norm, shortcut and ReLU behind it; or a pooling (all of them empty).

    ``most`` is what ReLU6 lets through at most, 6.
    """

    name: str
    module: nn.Module
    x: Value
    y: Value
    norm: nn.Module | None = None
    shortcut: Value | None = None
    relu: bool = False
    most: float | None = None


@dataclass
class Network:
    """The layers in order, the value of the images, and the value of the logits."""

    image: Value
    layers: list[Layer] = field(default_factory=list)
    logits: Value | None = None


class _LayerTracer(Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, WEIGHTED) or super().is_leaf_module(module, name)


def read(model: nn.Module, images: Tensor) -> Network:
    """The layers of ``model``; ``images``, normalised [N, C, H, W], give shapes and ranges.

    Raises:
        NoIntegerForm: a layer is of a kind that has no integer form, or the network cannot be traced.
    """
    return _Reader(_traced(model)).read(images)


def _traced(model: nn.Module) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        return model
    try:
        graph = _LayerTracer(autowrap_functions=tuple(get_notrace_functions())).trace(model)
    except Exception as error:  # whatever a forward raises when it meets a proxy
        raise NoIntegerForm(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    return fx.GraphModule(model, graph)


class _Ranges(fx.Interpreter):
    """Runs the network once and notes the shape and range of every node's output."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: dict[fx.Node, tuple[torch.Size, float, float]] = {}
        self.pairs: set[fx.Node] = set()  # what answers with more than one tensor

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        value = result[0] if isinstance(result, tuple) and result else result
        if isinstance(result, tuple):
            self.pairs.add(n)
        if isinstance(value, Tensor):
            floats = value.float()
            if value.dtype == torch.uint8:
                module = self._producer(n)
                assert module.next_range is not None
                floats = (floats - module.next_range.zero_point) * module.next_range.step
            low, high = (float(v) for v in torch.aminmax(floats))
            self.found[n] = value.shape, low, high
        return result

    def _producer(self, node: fx.Node) -> QuantizedAdder2d:
        while True:
            module = self.submodules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, QuantizedAdder2d):
                return module
            node = node.all_input_nodes[0]


class _Reader:
    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.values: dict[fx.Node, Value] = {}
        self.done: set[fx.Node] = set()

    def read(self, images: Tensor) -> Network:
        ranges = _Ranges(self.model)
        with torch.no_grad():
            ranges.run(images)
        self.found, self.pairs = ranges.found, ranges.pairs
        network: Network | None = None
        for node in self.model.graph.nodes:
            self._check_changes(node)
            if node in self.done:
                continue
            if node.op == "placeholder":
                if network is not None:
                    raise NoIntegerForm("the network has more than one input")
                self.values[node] = self._value("image", node)
                network = Network(self.values[node])
            elif node.op == "output":
                assert network is not None
                result = node.args[0]
                if not isinstance(result, fx.Node) or result not in self.values:
                    raise NoIntegerForm("the network has more than one output")
                network.logits = self.values[result]
            else:
                assert network is not None
                network.layers += self._read(node)
        assert network is not None
        return network

    def _read(self, node: fx.Node) -> Iterator[Layer]:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        target = getattr(node.target, "__name__", str(node.target))
        if node.target is require_images_of_size or "require_images_of_size" in target:
            return
        if self._passes_on(node, module):
            self.values[node] = self.values[node.all_input_nodes[0]]
        elif isinstance(module, WEIGHTED):
            self._check_place(node, str(node.target))
            yield self._layer(node, module)
        elif isinstance(module, POOLS):
            self.values[node] = self._value(str(node.target), node)
            yield Layer(str(node.target), module, self.values[node.args[0]], self.values[node])  # type: ignore[index]
        else:
            self._refuse(node, module, target)

    def _check_changes(self, node: fx.Node) -> None:
        """Refuses a module that does something else than its class says, or in which one does."""
        if node.op != "call_module":
            return
        for module in self.modules[str(node.target)].modules():
            if is_changed(module):
                raise NoIntegerForm(f"{node.target} has hooks or a forward of its own, which have no integer form")
            if type(module) is nn.ReLU6 and (module.min_val, module.max_val) != (0.0, 6.0):
                raise NoIntegerForm(f"{node.target} is a ReLU6 from {module.min_val} to {module.max_val}")

    def _refuse(self, node: fx.Node, module: nn.Module | None, target: str) -> None:
        if isinstance(module, (FusedAdder2d, AdderLayer)):
            raise NoIntegerForm(
                f"{node.target} computes in float32: this network was not quantised. Call small = "
                "adder_zoo.quantize(model, images) first, and give small."
            )
        what = f"{node.target} ({type(module).__name__})" if module is not None else f"{node.name} ({target})"
        raise NoIntegerForm(
            f"{what} has no integer form here. Known are adder layers, Conv2d and Linear with batch norm, shortcut and "
            "ReLU or ReLU6 behind them, MaxPool2d, and average pooling over the whole map."
        )

    def _check_place(self, node: fx.Node, name: str) -> None:
        if sum(other.target == node.target for other in self.model.graph.nodes if other.op == "call_module") > 1:
            raise NoIntegerForm(f"{name} is called more than once")

    def _passes_on(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node hands on what it takes: all of it, and in the same order."""
        if module is not None:
            return type(module) in (*NOTHING, Folded) or (type(module) in RESHAPES and self._keeps_order(node))
        name = getattr(node.target, "__name__", str(node.target))
        if name == "getitem":  # of what a layer answers with, float32 and bytes; of a tensor it would be a part
            return node.args[0] in self.pairs
        return name in ("flatten", "view", "reshape") and self._keeps_order(node)

    def _keeps_order(self, node: fx.Node) -> bool:
        """Whether a change of shape leaves images apart: to [N, F], or from or to maps of one pixel."""
        (before, *_), (after, *_) = self.found[node.all_input_nodes[0]], self.found[node]
        if before[0] != after[0] or before.numel() != after.numel():
            return False
        return len(after) == 2 or after == before or (len(after) == 4 and after[1] == before[1] and after[2:] == (1, 1))

    def _layer(self, node: fx.Node, module: nn.Module) -> Layer:
        """The layer at ``node``, with the batch norm, addition and ReLU that alone use its value."""
        layer = Layer(str(node.target), module, self.values[node.args[0]], Value(str(node.target)))  # type: ignore[index]
        last = node
        if isinstance(module, QuantizedAdder2d):
            layer.relu, layer.most = module.relu, None if module.ceiling == math.inf else module.ceiling
            if len(node.args) > 1 or "residual" in node.kwargs:
                shortcut = node.args[1] if len(node.args) > 1 else node.kwargs["residual"]
                layer.shortcut = self.values[shortcut] if shortcut is not None else None  # type: ignore[index]
        last = self._followers(node, layer)
        layer.y = self._value(layer.name, last)
        self.values[last] = layer.y
        return layer

    def _followers(self, node: fx.Node, layer: Layer) -> fx.Node:
        """Takes what alone follows ``node`` into ``layer``; a layer in bytes has batch norm and shortcut in it."""
        last, open_ = node, not isinstance(layer.module, QuantizedAdder2d)
        while len(last.users) == 1 and not layer.relu:
            (user,) = last.users
            module = self.modules.get(str(user.target)) if user.op == "call_module" else None
            shape = self.found[last][0]
            # A larger map that becomes a row stays a map for the layer that reads it.
            is_pixel = shape.numel() == shape[:2].numel()
            if self._passes_on(user, module) and (is_pixel or type(module) in (*NOTHING, Folded)):
                pass
            elif type(module) in (*NORMS, *NORMS_WITH_ACTIVATION) and open_ and not (layer.norm or layer.shortcut):
                layer.norm = module
                if type(module) in NORMS_WITH_ACTIVATION:
                    self._activation(user, layer, module.drop)  # type: ignore[union-attr, arg-type]
                    self._activation(user, layer, module.act)  # type: ignore[union-attr, arg-type]
            elif user.op != "call_module" and user.target in ADDITIONS and open_ and not layer.shortcut:
                others = [value for value in user.all_input_nodes if value is not last]
                if len(others) != 1 or others[0] not in self.values:
                    break  # the other branch is computed later: it takes this one as its shortcut
                layer.shortcut = self.values[others[0]]
            elif type(module) in (nn.ReLU, nn.ReLU6):
                self._activation(user, layer, module)
            elif module is None and user.target in (*RELUS, *RELUS6):
                layer.relu, layer.most = True, 6.0 if user.target in RELUS6 else None
            else:
                break
            self.done.add(user)
            last = user
        return last

    def _activation(self, node: fx.Node, layer: Layer, module: nn.Module | None) -> None:
        if type(module) in (nn.ReLU, nn.ReLU6):
            layer.relu, layer.most = True, 6.0 if type(module) is nn.ReLU6 else None
        elif type(module) not in NOTHING:
            self._refuse(node, module, str(node.target))

    def _value(self, name: str, node: fx.Node) -> Value:
        shape, low, high = self.found[node]
        if len(shape) == 2:
            shape = torch.Size((*shape, 1, 1))
        return Value(name, (shape[2], shape[3], shape[1]), min(low, 0.0), max(high, 0.0))
