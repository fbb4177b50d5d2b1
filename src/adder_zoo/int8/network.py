"""``QuantizedNetwork``: a network in bytes, as ``adder_zoo.quantize`` returns it and a saved one is built again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from ..inference import ForInference, GraphForInference
from .layers import REFUSED_TRAINING, refuse_float64

# What a network of timm has and the graph of one has not: it goes from images to logits, whole.
PARTS = (
    "forward_features", "forward_head", "forward_intermediates", "get_classifier", "reset_classifier",
    "prune_intermediate_layers", "set_grad_checkpointing", "group_matcher", "set_input_size",
)  # fmt: skip


class InBytes(ForInference):
    """What every network in bytes refuses, traced or not."""

    REFUSED = REFUSED_TRAINING

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Raises RuntimeError for ``requires_grad = True``."""
        if requires_grad:
            raise RuntimeError(f"gradients do not pass bytes: {self.REFUSED}")
        return super().requires_grad_(False)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        refuse_float64(fn, next(t.device for t in self.buffers()))  # type: ignore[attr-defined]
        return super()._apply(fn, recurse)  # type: ignore[misc]


def refuse_pixels(network: nn.Module, images: tuple[Any, ...]) -> None:
    """A hook before ``forward``: raises TypeError for images in integers, which the float network takes neither."""
    x = images[0] if images else None
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise TypeError(
            f"{type(network).__name__}: x must be floating point, images normalised as the float network takes them, "
            f"got {x.dtype}. timm.data.create_transform(**timm.data.resolve_data_config(model=network)) prepares "
            "them; or by hand: (images / 255 - mean) / std."
        )


class QuantizedNetwork(InBytes, GraphForInference):
    """A whole network, from images to logits, in which bytes go from layer to layer; for inference only.

    Its layers bear the names of the float network's. It has that network's attributes (``num_classes``,
    ``pretrained_cfg``, ...), which copies and pickles keep, and none of its methods. No parameter of it needs a
    gradient: none would pass the bytes.
    """

    RECORDS = ("_model_args", "_traits")
    PROPERTIES = ("num_classes", "num_features", "head_hidden_size")  # of some networks, of others attributes

    @classmethod
    def of(cls, model: nn.Module, graph: fx.Graph) -> QuantizedNetwork:
        """``graph`` over the modules of ``model``, with its attributes."""
        network = super().of(model, graph)
        network.requires_grad_(False)
        network.register_forward_pre_hook(refuse_pixels)
        return network

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

    def __getattr__(self, name: str) -> Any:
        if name in PARTS:
            raise AttributeError(
                f"a quantised network has no {name}: it goes from images to logits, whole. Use the network that was "
                "given to adder_zoo.quantize(), change that, and quantise it again."
            )
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedNetwork:
        copied = super().__deepcopy__(memo)
        copied.register_forward_pre_hook(refuse_pixels)  # a GraphModule does not copy its hooks
        return copied
