"""``fuse``: a trained network as it is run for inference, adder layers in one pass with what follows them.

    adder - batch norm [- shortcut] [- ReLU]    becomes    act(scale·y + shift + shortcut), ``adder_zoo::adder2d_fused``

(``Adder2d`` with ``BatchNorm2d``, ``AdderLinear`` with ``BatchNorm1d``.)

How: parts of the network are traced with ``torch.fx``, the smallest that hold a whole chain of this kind. Where a chain
consists of modules alone, they are exchanged in place; where a shortcut is added, which is code and not a module, the
part becomes an ``fx.GraphModule`` that keeps its attributes. All the rest stays the Python that it is, so that
``forward_features`` and its like still work, and what cannot be traced is left as it was. (A part is traced as it is
called with one argument. Blocks with more arguments, such as ``dla``'s, are found through the module around them.)
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath, get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from . import norms
from .architecture import rename_fused
from .convert import abbreviated
from .functional import adder_linear
from .inference import Fused, FusedGraph, for_inference, refuse_quantised
from .int8.fake import fake_quantized
from .layers import Adder2d, Adder2dSame, AdderLayer, AdderLinear
from .norms import InFloat32, PartlyFloat32, cast, half_of
from .ops.fused import adder2d_and_rest
from .ops.reference import compute_dtype
from .precision import HALF

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath)  # what they do in eval mode
NORMS = (nn.BatchNorm2d, BatchNormAct2d, norms.BatchNorm2d, norms.BatchNormAct2d)  # behind an Adder2d
NORMS_1D = (nn.BatchNorm1d, norms.BatchNorm1d)  # behind an AdderLinear
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE_ADDITIONS = (operator.iadd, "add_")
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
RELUS6 = (F.relu6,)


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, in which adder layers take what follows them into their own pass.

    Batch norm in eval mode, with it a shortcut that is added and a ReLU, in any network of ``nn.Module`` blocks:
    converted ones of timm, the zoo's, your own. The logits are the same as before, within rounding. Other activations
    and layers without batch norm behind them stay as they are.

    Args:
        model: A network in eval mode, on any device. It is left as it is, and the copy does not follow it: fuse again
            after training. Save the weights of ``model``, for the copy's keys are others.

    Returns:
        The copy, for ``torch.no_grad()`` or ``torch.inference_mode()``; ``torch.compile`` takes it. ``train()`` raises.

    Raises:
        ValueError: ``model`` is in training mode, in whole or in part, has no adder layer, or is quantised.

    Example:
        >>> import adder_zoo, timm
        >>> model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
        >>> fused = adder_zoo.fuse(model)
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"fuse: {abbreviated(training, 3)} {'is' if len(training) == 1 else 'are'} in training mode, where batch "
            "norm depends on the batch and cannot be a constant; call model.eval() first"
        )
    refuse_quantised("fuse", model, "Its layers have taken what follows them into their own pass: run it as it is")
    if not any(isinstance(module, AdderLayer) for module in model.modules()):
        raise ValueError(f"fuse: {type(model).__name__} has no adder layer; convert_to_adder() makes them")
    with torch.inference_mode(False):  # its tensors could not be written to outside of it
        copied = copy.deepcopy(model)
        fused = _Fuser(copied).fused(copied)
    rename_fused(fused)
    if any(isinstance(module, FusedAdder2d) for module in fused.modules()):
        if isinstance(fused, fx.GraphModule):
            return fused if isinstance(fused, FusedGraph) else FusedGraph.of(fused, fused.graph)
        if not isinstance(fused, FusedAdder2d):
            for_inference(fused, Fused)
    else:
        warnings.warn(
            f"fuse: nothing was fused in {type(model).__name__}: no adder layer is followed by batch norm in a part "
            "that torch.fx can trace. The copy runs as the network itself does.",
            stacklevel=2,
        )
    return fused


class FusedAdder2d(PartlyFloat32, Adder2d):
    """An adder layer, the batch norm behind it, and perhaps a shortcut and a ReLU, in one pass; for inference only.

    ``adder_zoo.fuse`` makes it. ``weight`` are the layer's filters; ``scale`` and ``shift``, [K], are batch norm in
    eval mode with the layer's bias in it; they stay in float32 in half precision.

    Shapes: input [N, C, H, W] and, where a shortcut is added, that, [N, K, P, Q]; output [N, K, P, Q], float32 (float64
    for float64). Where the batch norm was one of ``norms.py``, and the network is in half precision or under autocast,
    the output is cast to that.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: AdderLayer, norm: nn.modules.batchnorm._BatchNorm | None, relu: bool) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in vars(layer).items() if name not in vars(self)})
        self.same = isinstance(layer, Adder2dSame)
        self.relu = relu
        self.normed = norm is not None  # or there is nothing behind the layer but its bias, which quantize() can take
        self.casts = isinstance(norm, InFloat32)  # to autocast's precision, which a plain one does not
        self.precision = (getattr(norm, "precision", None) or half_of(norm.weight)) if norm is not None else None
        # channels_last, so that what comes out is, and only the first layer has to convert what it is given.
        order = torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format
        self.weight = nn.Parameter(layer.weight.contiguous(memory_format=order), requires_grad=False)
        self.register_parameter("bias", None)
        self.register_buffer("input_range", layer.input_range)
        scale, shift = _scale_and_shift(layer, norm)
        dtype = compute_dtype(layer.weight)
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("shift", shift.to(dtype))
        self.eval()

    def _float32_tensors(self) -> list[Tensor]:
        return [self.scale, self.shift]

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, filters and shift as the layer takes them, rounded where it was fine-tuned for few bits."""
        if self.input_range is None:
            return x, self.weight, self.shift
        x, weight, offset = fake_quantized(x, self.weight, self.input_range)
        return x, weight, self.shift + self.scale * offset

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x, weight, shift = self._operands(x)
        x, padding = Adder2dSame.padded(self, x) if self.same else self.padded(x)  # type: ignore[arg-type]
        y = adder2d_and_rest(
            x, weight, self.scale, shift, residual, self.stride, padding, self.dilation, self.groups,
            relu=self.relu, impl=self.impl,
        )  # fmt: skip
        return self._cast(y)

    def _cast(self, y: Tensor) -> Tensor:
        return cast(y, y, None, self.precision) if self.normed and (self.casts or self.precision) else y

    def train(self, mode: bool = True) -> FusedAdder2d:
        """Raises RuntimeError for ``mode = True``: batch norm is a constant here."""
        if mode:
            raise RuntimeError(Fused.REFUSED)
        return super().train(False)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


class FusedAdderLinear(FusedAdder2d):
    """The same of an ``AdderLinear`` and a ``BatchNorm1d``: input [N, C], shortcut and output [N, K], as a 1x1 kernel.

    ``weight`` is [K, C]. A sequence, [N, L, C], raises ValueError: batch norm takes its L for the features.
    """

    kernel_size = stride = dilation = (1, 1)
    padding = (0, 0)
    groups, padding_mode = 1, "zeros"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() != 2 or (residual is not None and list(residual.shape) != [len(x), len(self.weight)]):
            return self._apart(x, residual)
        x, weight, shift = self._operands(x)
        y = adder2d_and_rest(
            x[:, :, None, None], self.weight[:, :, None, None], self.scale, self.shift,
            None if residual is None else residual[:, :, None, None], self.stride, self.padding, self.dilation,
            self.groups, relu=self.relu, impl=self.impl,
        )  # fmt: skip
        return self._cast(y.flatten(1))

    def _apart(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if self.normed and x.dim() != 2:
            raise ValueError(
                f"a fully connected layer that is fused with batch norm takes [N, C], got {list(x.shape)}: batch norm "
                "would take the second dimension for the features. Run this network as it was before adder_zoo.fuse()."
            )
        x, weight, shift = self._operands(x)
        y = self._cast(adder_linear(x, weight, None, impl=self.impl) * self.scale + shift)
        y = y if residual is None else y + residual
        return y.relu() if self.relu else y

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self) + (", relu=True" if self.relu else "")  # type: ignore[arg-type]


def _scale_and_shift(layer: AdderLayer, norm: nn.modules.batchnorm._BatchNorm | None) -> tuple[Tensor, Tensor]:
    """What batch norm in eval mode and the layer's bias make of the sums; in float64, so that each is rounded once."""
    bias = torch.zeros_like(layer.weight.flatten(1)[:, 0]) if layer.bias is None else layer.bias
    bias = bias.detach().double()
    if norm is None:
        return torch.ones_like(bias), bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = (bias - norm.running_mean.double()) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def fused_layer(
    layer: AdderLayer, norm: nn.modules.batchnorm._BatchNorm | None = None, relu: bool = False
) -> FusedAdder2d:
    """``layer`` and what follows it as one layer."""
    return (FusedAdderLinear if isinstance(layer, AdderLinear) else FusedAdder2d)(layer, norm, relu)


class Folded(nn.Identity):
    """Takes the place of a batch norm that went into an adder layer: passes its input on, and knows what it was."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("eps", "momentum", "affine", "num_features", "weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name, None)
            if isinstance(value, Tensor):
                self.register_buffer(name, value.detach(), persistent=False)
            else:
                setattr(self, name, value)
        self.eval()


@dataclass
class _Chain:
    """An adder layer and what can go with it, in the graph of a part of the network."""

    adder: fx.Node
    norm: fx.Node
    addition: fx.Node | None = None
    residual: int = 0  # which argument of the addition it is
    relu: fx.Node | None = None
    relu_alone: bool = True  # the module of relu is called nowhere else

    @property
    def last(self) -> fx.Node:
        return self.relu or self.addition or self.norm

    @property
    def gain(self) -> int:
        """Passes over the output that it saves."""
        return 1 + (self.addition is not None) + (self.relu is not None)

    @property
    def of_modules(self) -> bool:
        return self.addition is None and (self.relu is None or (self.relu.op == "call_module" and self.relu_alone))


class _Proxy(fx.Proxy):
    """One that records ``x += y`` as such: to fx it is ``x + y``, which another name of x does not see."""


def _in_place(target: Callable[..., Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", target, (proxy, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = (AdderLayer, *NORMS, *NORMS_1D, *NOTHING, Folded, *get_notrace_modules())
        return isinstance(module, whole) or super().is_leaf_module(module, name)


class _Fuser:
    def __init__(self, model: nn.Module) -> None:
        modules = model.named_modules(remove_duplicate=False)
        self.places = Counter(id(module) for _, module in modules)
        self.plans: dict[nn.Module, tuple[fx.Graph, list[_Chain]] | None] = {}

    def fused(self, module: nn.Module) -> nn.Module:
        """``module``, changed, or what is to stand in its place."""
        plan = self._planned(module)
        inside = self._inside(module)
        own = [chain for chain in plan[1] if chain.gain > inside.get(str(chain.adder.target), 0)] if plan else []
        if plan and not all(chain.of_modules for chain in own):
            return _as_graph(module, *plan)
        for chain in own:
            _exchange(module, chain, relu_too=True)
        if own:
            for part in module.modules():
                self.plans.pop(part, None)
        for name, child in list(module.named_children()):
            if self._gains(child):
                setattr(module, name, self.fused(child))
        return module

    def _gains(self, module: nn.Module) -> dict[str, int]:
        """By name of the adder layer, the passes that can be saved in ``module``."""
        plan = self._planned(module)
        gains = self._inside(module)
        for chain in plan[1] if plan else ():
            name = str(chain.adder.target)
            gains[name] = max(chain.gain, gains.get(name, 0))
        return gains

    def _inside(self, module: nn.Module) -> dict[str, int]:
        """The same by parts of ``module``, each for itself."""
        parts = ((name, self._gains(child)) for name, child in module.named_children())
        return {f"{name}.{inner}": gain for name, gains in parts for inner, gain in gains.items()}

    def _planned(self, module: nn.Module) -> tuple[fx.Graph, list[_Chain]] | None:
        if module not in self.plans:
            self.plans[module] = self._plan(module)
        return self.plans[module]

    # ---- which chains there are ----

    def _plan(self, module: nn.Module) -> tuple[fx.Graph, list[_Chain]] | None:
        parts = list(module.modules())
        if not any(is_adder(m) for m in parts) or not any(isinstance(m, (*NORMS, *NORMS_1D)) for m in parts):
            return None
        # What is traced is called with one argument here and maybe seen by a hook (or has a forward of its own, as
        # accelerate puts its hooks in), or stands in two places.
        parameters = inspect.signature(module.forward).parameters.values()
        if len(parameters) != 1 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
            return None
        if any(is_changed(m) or self.places[id(m)] > 1 for m in parts):
            return None
        try:
            graph = Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(module)
        except Exception:  # whatever its forward raises when it meets a proxy
            return None
        return graph, list(self._chains(module, graph))

    def _chains(self, root: nn.Module, graph: fx.Graph) -> Iterator[_Chain]:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        order = {node: i for i, node in enumerate(graph.nodes)}
        nodes = list(graph.nodes)
        taken: set[fx.Node] = set()

        def called(node: fx.Node) -> nn.Module | None:
            """The module that a node calls, if it is called nowhere else."""
            if node.op != "call_module" or calls[node.target] > 1:
                return None
            return root.get_submodule(str(node.target))

        def follower(node: fx.Node) -> tuple[fx.Node | None, fx.Node]:
            """What alone uses a node's value, over modules that do nothing, and the node it takes the value from."""
            while len(node.users) == 1:
                (user,) = node.users
                # By exact type: a class made of one of these may do something.
                if user.op != "call_module" or type(root.get_submodule(str(user.target))) not in (*NOTHING, Folded):
                    return user, node
                node = user
            return None, node

        for adder in reversed(nodes):  # of two branches that meet, the later one takes the other's value
            layer = called(adder)
            if not is_adder(layer) or len(adder.args) != 1 or adder.kwargs:
                continue
            norm, _ = follower(adder)
            module = called(norm) if norm is not None else None
            if norm is None or not is_constant(module, layer):
                continue
            chain = _Chain(adder, norm)
            if isinstance(module, BatchNormAct2d) and not isinstance(module.act, nn.Identity):
                yield chain  # its activation is settled when it is replaced
                continue
            node, value = follower(norm)
            if node is not None and node.op != "call_module" and node.target in ADDITIONS and node not in taken:
                residual = _other(node, value)
                moved_over = nodes[order[adder] + 1 : order[node]]
                if residual is not None and not any(writes(root, n) for n in moved_over):
                    chain.addition, chain.residual = node, residual
                    taken.add(node)
                    node, _ = follower(node)
            if node is not None and _is_relu(root, node):
                chain.relu, chain.relu_alone = node, calls[node.target] == 1
            yield chain


def _exchange(module: nn.Module, chain: _Chain, relu_too: bool) -> None:
    """Puts the fused layer where the layer was, and what is left of the other modules where those were."""
    layer, norm = (module.get_submodule(str(node.target)) for node in (chain.adder, chain.norm))
    assert isinstance(layer, AdderLayer)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    rest: nn.Module = Folded(norm)
    relu = chain.relu is not None
    if isinstance(norm, BatchNormAct2d):
        if type(norm.act) is nn.ReLU:
            relu = True
        elif not isinstance(norm.act, nn.Identity):
            rest = norm.act
    _put(module, chain.adder, fused_layer(layer, norm, relu))
    _put(module, chain.norm, rest)
    if relu_too and chain.relu is not None:
        _put(module, chain.relu, nn.Identity().eval())


def _as_graph(module: nn.Module, graph: fx.Graph, chains: list[_Chain]) -> FusedGraph:
    for chain in chains:
        _exchange(module, chain, relu_too=False)
        # Where the layer was, if nothing is added: what it reads may be written over afterwards.
        with graph.inserting_after(chain.addition or chain.adder):
            new = graph.call_module(str(chain.adder.target), chain.adder.args)
        if chain.addition is not None:
            new.args = (*new.args, chain.addition.args[chain.residual])
        end_of_chain = new
        if not isinstance(module.get_submodule(str(chain.norm.target)), nn.Identity):
            with graph.inserting_after(new):
                end_of_chain = graph.call_module(str(chain.norm.target), (new,))
        chain.last.replace_all_uses_with(end_of_chain)
        for old in (chain.relu, chain.addition, chain.norm, chain.adder):
            if old is not None:
                _erase(graph, old)
    graph.lint()
    return FusedGraph.of(module, graph)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erases a node that nobody uses, and before it those that do nothing and only it used."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _put(root: nn.Module, node: fx.Node, module: nn.Module) -> None:
    parent, _, name = str(node.target).rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def is_constant(module: nn.Module | None, layer: nn.Module | None) -> bool:
    """Whether a module is batch norm, of the kind that follows ``layer``, that is a scale and a shift now."""
    if type(module) not in (NORMS_1D if isinstance(layer, AdderLinear) else NORMS):
        return False
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if isinstance(layer, AdderLinear) and module.num_features != layer.out_features:
        return False  # of a sequence, [N, L, C], it takes L for the features
    if isinstance(module, BatchNormAct2d) and type(module.drop) not in NOTHING:
        return False
    if module.running_mean is None or module.running_var is None or module.running_mean.dtype in HALF:
        return False
    return not module.training


def is_adder(module: nn.Module | None) -> bool:
    """Whether a module is an adder layer as it comes, with exponent 1."""
    return type(module) in (Adder2d, Adder2dSame, AdderLinear) and getattr(module, "p", None) == 1


def is_changed(module: nn.Module) -> bool:
    """Whether a module may do something else than its class: it has hooks, or a forward of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _other(addition: fx.Node, value: fx.Node) -> int | None:
    """Which argument is added to ``value``; None if it is not a plain addition, or writes over the other."""
    if len(addition.args) != 2 or addition.kwargs:
        return None
    first, second = addition.args
    if first is value and isinstance(second, fx.Node) and second is not value:
        return 1
    if second is value and isinstance(first, fx.Node) and first is not value:
        return None if addition.target in IN_PLACE_ADDITIONS else 0
    return None


def _is_relu(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))) is nn.ReLU
    return node.target in RELUS and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}


def writes(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node may write over a value that another one reads."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") or node.kwargs.get("out") is not None
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place = name.endswith("_") or (getattr(operator, name, None) is node.target and name.startswith("i"))
        written = node.kwargs.get("inplace") or node.kwargs.get("out") is not None
        return in_place or name == "setitem" or bool(written)
    return False
