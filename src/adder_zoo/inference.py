"""Networks that are for inference alone: what they refuse, as a whole, before any part of them has changed.

A layer could refuse by itself, but only after the layers before it were put into training mode, and those would answer
otherwise from then on. So the network refuses. It does so by its class, which copies and pickles keep.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import fx, nn
from torch.fx.graph_module import reduce_graph_module

if TYPE_CHECKING:
    from typing_extensions import Self

Network = TypeVar("Network", bound=nn.Module)


class ForInference:
    """Mixed into the class of a network that cannot be trained; ``REFUSED`` says why, and what to do instead."""

    REFUSED: ClassVar[str]
    _plain: ClassVar[type[nn.Module] | None] = None  # the network's own class
    _kind: ClassVar[type[ForInference]]

    def train(self, mode: bool = True) -> Any:
        """Raises RuntimeError for ``mode = True``."""
        if mode:
            raise RuntimeError(self.REFUSED)
        return super().train(False)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Its class was made when the program ran: a pickle names the network's own class instead.
        reduced: Any = super().__reduce_ex__(protocol)
        if self._plain is None:
            return reduced
        make, arguments, *state = reduced
        arguments = (self._plain if argument is type(self) else argument for argument in arguments)
        return (_made_again, (self._kind, make, *arguments), *state)


class Fused(ForInference):
    """What every fused network refuses."""

    REFUSED = (
        "this network was fused for inference and cannot be trained: batch norm is folded into its layers. "
        "Train the network that was given to adder_zoo.fuse(), and fuse it again."
    )


class LayerInBytes:
    """Mixed into the layers of quantised networks."""


def refuse_quantised(caller: str, model: nn.Module, reason: str) -> None:
    """Raises ValueError if ``model`` was quantised, with the reason why that is in the way."""
    if any(isinstance(module, LayerInBytes) for module in model.modules()):
        raise ValueError(
            f"{caller}: this network is quantised. {reason}. Where you want another one, give the float network that "
            "was given to adder_zoo.quantize()."
        )


class GraphForInference(ForInference, fx.GraphModule):
    """A graph that took a network's place, with its attributes, which copies and pickles keep."""

    RECORDS: ClassVar[tuple[str, ...]] = ()  # private attributes that it takes too
    PROPERTIES: ClassVar[tuple[str, ...]] = ()  # what some networks compute, and it keeps

    @classmethod
    def of(cls, model: nn.Module, graph: fx.Graph) -> Self:
        """``graph`` over the modules of ``model``, with its attributes, in eval mode."""
        network = cls(model, graph, type(model).__name__)
        network._take_attributes(model)
        return network.eval()

    def _take_attributes(self, other: nn.Module) -> None:
        for name, value in self._wanted(other).items():
            setattr(self, name, value)
        for name in self.PROPERTIES:
            if name not in vars(self) and hasattr(other, name):
                setattr(self, name, getattr(other, name))

    def _wanted(self, other: nn.Module) -> dict[str, Any]:
        """The attributes of ``other`` that this has not. (A GraphModule has a `graph` and a `code` of its own.)"""
        return {
            name: value
            for name, value in vars(other).items()
            if name not in vars(self)
            and (name in self.RECORDS or not (name.startswith("_") or hasattr(fx.GraphModule, name)))
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied: Any = super().__deepcopy__(memo)
        for name, value in copy.deepcopy(copied._wanted(self), memo).items():
            setattr(copied, name, value)
        return copied

    def __copy__(self) -> Self:
        return self._kind_of_graph().of(self, self.graph)

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return _graph_again, (self._kind_of_graph(), *arguments)

    def _kind_of_graph(self) -> type[Self]:
        """Its class; fx makes one more, of one object each."""
        return next(kind for kind in type(self).__mro__ if kind.__module__ != fx.graph_module.__name__)  # type: ignore[return-value]


class FusedGraph(Fused, GraphForInference):
    """A part of a fused network in which a shortcut went into a layer."""


def _graph_again(kind: type[GraphForInference], body: dict[str, Any], imports: str) -> GraphForInference:
    graph_module: Any = reduce_graph_module(body, imports)
    return kind.of(graph_module, graph_module.graph)


def for_inference(network: Network, kind: type[ForInference]) -> Network:
    """``network`` itself, which is not a graph, with ``kind`` mixed into its class."""
    own: Any = type(network)
    plain = vars(own).get("_plain") or own
    made: Any = types.new_class(plain.__name__, (kind, plain))
    made.__module__, made.__qualname__, made.__doc__ = plain.__module__, plain.__qualname__, plain.__doc__
    made._plain, made._kind = plain, kind
    network.__class__ = made
    return network


def _made_again(kind: type[ForInference], make: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    return for_inference(make(*arguments), kind)
