"""``QuantizedNetwork``: a network in bytes, as ``adder_zoo.quantize`` returns it and a saved one is built again."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torch.fx.graph_module import reduce_graph_module

from .layers import REFUSED_TRAINING

# What timm's functions read of a network: how it was built, and for which images.
RECORDS = ("_model_args", "_traits")
PROPERTIES = ("num_classes", "num_features", "head_hidden_size")  # of some networks, of others attributes

# What a network of timm has and the graph of one has not: it goes from images to logits, whole.
PARTS = (
    "forward_features", "forward_head", "forward_intermediates", "get_classifier", "reset_classifier",
    "prune_intermediate_layers", "set_grad_checkpointing", "group_matcher", "set_input_size",
)  # fmt: skip


class QuantizedNetwork(fx.GraphModule):
    """A whole network, from images to logits, in which bytes go from layer to layer; for inference only.

    Its layers bear the names of the float network's. It has that network's attributes (``num_classes``,
    ``pretrained_cfg``, ...), which copies and pickles keep, and none of its methods. No parameter of it needs a
    gradient: none would pass the bytes.
    """

    @classmethod
    def of(cls, model: nn.Module, graph: fx.Graph) -> QuantizedNetwork:
        """``graph`` over the modules of ``model``, with its attributes."""
        network = cls(model, graph, type(model).__name__)
        network._take_attributes(model)
        network.requires_grad_(False)
        return network.eval()

    def _take_attributes(self, other: nn.Module) -> None:
        own = vars(self)
        for name, value in vars(other).items():
            # A GraphModule has a `graph` and a `code` of its own.
            if name not in own and (name in RECORDS or not (name.startswith("_") or hasattr(fx.GraphModule, name))):
                setattr(self, name, value)
        for name in PROPERTIES:
            if name not in own and hasattr(other, name):
                setattr(self, name, getattr(other, name))

    def calls(self) -> list[tuple[str, str, str]]:
        """What it calls, in order: kind, target and arguments, whatever the values between are called."""
        place = {node: i for i, node in enumerate(self.graph.nodes)}

        def numbered(arguments: Any) -> str:
            return str(fx.map_arg(arguments, lambda node: place[node]))

        return [
            (node.op, getattr(node.target, "__name__", str(node.target)), numbered((node.args, node.kwargs)))
            for node in self.graph.nodes
            if node.op != "placeholder"
        ]

    def train(self, mode: bool = True) -> QuantizedNetwork:
        """Raises RuntimeError for ``mode = True``: bytes have no gradient."""
        if mode:
            raise RuntimeError(REFUSED_TRAINING)
        return super().train(False)

    def __getattr__(self, name: str) -> Any:
        if name in PARTS:
            raise AttributeError(
                f"a quantised network has no {name}: it goes from images to logits, whole. Use the network that was "
                "given to adder_zoo.quantize(), change that, and quantise it again."
            )
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedNetwork:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, QuantizedNetwork)
        missing = {
            name: value
            for name, value in vars(self).items()
            if name not in vars(copied)
            and (name in RECORDS or not (name.startswith("_") or hasattr(fx.GraphModule, name)))
        }
        for name, value in copy.deepcopy(missing, memo).items():
            setattr(copied, name, value)
        return copied

    def __copy__(self) -> QuantizedNetwork:
        return QuantizedNetwork.of(self, self.graph)

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return _unpickled, arguments


def _unpickled(body: dict[str, Any], imports: str) -> QuantizedNetwork:
    graph_module: Any = reduce_graph_module(body, imports)
    return QuantizedNetwork.of(graph_module, graph_module.graph)
