"""``quantize``: a trained adder network in bytes, for inference.

How: the network is fused (``adder_zoo.fuse``), each fused layer gets the range of values that its bytes cover
(``calibrate.py``), and becomes a ``QuantizedAdder2d``. Then the whole network is traced with ``torch.fx``, and where
the output of a layer goes to other such layers it stays bytes: scale, shift, shortcut, ReLU and the rounding to the
next layer's range are one pass behind the sum. A value that is also added as a shortcut, or that another kind of
layer reads, is kept in float32 beside the bytes.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import get_notrace_functions
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

from ..fuse import NOTHING, Folded, FusedAdder2d, Tracer, fuse
from ..layers import AdderLayer
from .calibrate import CalibrationError, calibrate
from .layers import QuantizedAdder2d, Range, range_of

BITS = range(2, 9)


Calibration = Tensor | DataLoader | Iterable[Any]


def quantize(
    model: nn.Module, calibration: Calibration | None = None, *, bits: int | None = None, images: int = 512
) -> nn.Module:
    """A copy of ``model`` in which adder layers compute with integers of ``bits`` bits, for inference.

    Adder layers with batch norm behind them become integer layers (their activations and filters are uint8, sums are
    exact); convolutions, the classifier and whatever else the network has stay float32. Nothing is trained.

    Args:
        model: An adder network in eval mode: the zoo's, a converted one, your own. It is left as it is.
        calibration: Images as the network takes them, normalised, of the kind that it will see: a tensor
            [N, C, H, W], a loader, or any iterable of batches, which are images or (images, labels). A few hundred
            are enough. None for a network that ``fake_quantize`` made, whose ranges are settled.
        bits: 8; or 2 to 7, on the same kernels, to study what a network needs. Default: 8, or those that the network
            was fine-tuned for.
        images: How many images are used at the most.

    Returns:
        The network. Its input and output are those of ``model``, but bytes have no NaN: an input with one gets finite
        logits. It pickles, copies, compiles and exports; ``train()``
        raises.

    Raises:
        ValueError: bits or images out of range; no images, or images that are not finite or do not differ; a network in
            training mode, without adder layers, or of which nothing can be quantised (the message says why).

    Example:
        >>> import adder_zoo, timm, torch
        >>> model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
        >>> small = adder_zoo.quantize(model, torch.rand(64, 1, 32, 32))
    """
    fused, layers, left = fused_layers("quantize", model)
    new: dict[str, QuantizedAdder2d] = {}
    for name, layer in layers.items():
        if layer.input_range is not None:
            new[name] = QuantizedAdder2d(layer, range_of(layer.input_range.tolist()))
    rest = {name: layer for name, layer in layers.items() if name not in new}
    trained = {layer.input_range.bits for layer in new.values()}
    if bits is not None and trained - {bits}:
        raise ValueError(
            f"quantize: this network was fine-tuned for {min(trained)} bits, got bits={bits!r}; leave it out"
        )
    if rest:
        new |= calibrated("quantize", fused, rest, calibration, 8 if bits is None else bits, images)
    for name, quantised in new.items():
        parent, _, child = name.rpartition(".")
        setattr(fused.get_submodule(parent), child, quantised)
    if left:
        warnings.warn(f"quantize: these adder layers stay float32:{listed(left)}", stacklevel=2)
    return _connect(fused)


def fused_layers(caller: str, model: nn.Module) -> tuple[nn.Module, dict[str, FusedAdder2d], dict[str, str]]:
    """``model`` fused; its layers that can be quantised, and why the others cannot, by name.

    Raises:
        ValueError: a network in training mode, quantised already, or of which nothing can be quantised.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"{caller}: {training[0]} is in training mode; call model.eval() first")
    if any(isinstance(module, QuantizedAdder2d) for module in model.modules()):
        raise ValueError(f"{caller}: this network is quantised already; give the float network")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fuse: nothing was fused")
        fused = fuse(model)
    layers, left = _layers(fused)
    if not layers:
        raise ValueError(f"{caller}: nothing of {type(model).__name__} can be quantised:{listed(left)}")
    return fused, layers, left


def calibrated(
    caller: str, fused: nn.Module, layers: dict[str, FusedAdder2d], calibration: Any, bits: int, images: int
) -> dict[str, QuantizedAdder2d]:
    """``layers`` of the network ``fused`` in integers of ``bits`` bits, by name.

    Raises:
        ValueError: bits or images out of range, or images that do not tell the ranges.
    """
    if type(bits) is not int or bits not in BITS:
        raise ValueError(f"{caller}: bits must be a whole number from {BITS[0]} to {BITS[-1]}, got {bits!r}")
    if type(images) is not int or images < 1:
        raise ValueError(f"{caller}: images must be a whole number from 1, got {images!r}")
    batches = _batches(caller, calibration, images, next(fused.parameters()))
    try:
        found = calibrate(fused, layers, batches, bits)
    except CalibrationError as error:
        raise ValueError(f"{caller}: {error}") from error
    return {name: found[name].choose(layer) for name, layer in layers.items()}


def _layers(fused: nn.Module) -> tuple[dict[str, FusedAdder2d], dict[str, str]]:
    """The layers that can be quantised, and why the others cannot, by name."""
    layers, left = {}, {}
    for name, module in fused.named_modules():
        if isinstance(module, FusedAdder2d):
            if module.padding_mode != "zeros":
                left[name] = f"padding_mode {module.padding_mode!r}: only padding with zeros has an integer form"
            elif module.scale.dtype != torch.float32:
                left[name] = "it computes in float64"
            else:
                layers[name] = module
        elif isinstance(module, AdderLayer):
            no_norm = "no batch norm follows it where torch.fx can see it"
            left[name] = no_norm if module.p == 1 else "its exponent p is not 1"
    return layers, left


def listed(left: dict[str, str]) -> str:
    return "".join(f"\n  {name}: {reason}" for name, reason in left.items())


def _batches(caller: str, calibration: Any, images: int, like: Tensor) -> list[Tensor]:
    """Up to ``images`` images of the calibration, in batches, where and as precise as the network is."""
    if calibration is None:
        raise ValueError(f"{caller}: give calibration images; a few hundred of the training set are enough")
    if isinstance(calibration, Tensor):
        calibration = calibration.split(64) if calibration.dim() == 4 else [calibration]
    batches: list[Tensor] = []
    for batch in calibration:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(batch, Tensor) or batch.dim() != 4 or not batch.is_floating_point():
            what = f"{batch.dtype} of {list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"{caller}: calibration needs batches of images, float [N, C, H, W], got {what}")
        batch = batch[: images - sum(map(len, batches))]
        if not torch.isfinite(batch).all():
            raise ValueError(f"{caller}: the calibration images have values that are not finite")
        if len(batch):
            batches.append(batch.to(like.device, like.dtype))
        if sum(map(len, batches)) >= images:
            break
    if not batches:
        raise ValueError(f"{caller}: there are no calibration images; a few hundred of the training set are enough")
    return batches


class _Tracer(Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, QuantizedAdder2d) or super().is_leaf_module(module, name)


def _connect(model: nn.Module) -> nn.Module:
    """Lets bytes go from layer to layer, where the whole network can be traced; elsewhere each layer makes its own."""
    try:
        graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(model)
    except Exception:  # whatever a forward raises when it meets a proxy
        return model
    for node in list(graph.nodes):
        if node.op == "call_module" and type(model.get_submodule(str(node.target))) in (*NOTHING, Folded):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    quantised: dict[fx.Node, QuantizedAdder2d] = {}
    for node in graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizedAdder2d):
            quantised[node] = module
    if len({id(module) for module in quantised.values()}) < len(quantised):
        return model  # a layer that is called twice has one output for two uses
    for node, module in quantised.items():
        _connect_output(graph, node, module, quantised)
    graph.lint()
    connected = fx.GraphModule(model, graph, type(model).__name__)
    for name, value in vars(model).items():
        if not name.startswith("_") and name not in vars(connected):
            setattr(connected, name, value)
    return connected.eval()


def _connect_output(
    graph: fx.Graph, node: fx.Node, module: QuantizedAdder2d, quantised: dict[fx.Node, QuantizedAdder2d]
) -> None:
    def takes_bytes(user: fx.Node) -> bool:
        return user in quantised and user.args[0] is node and node not in user.args[1:] and not user.kwargs

    readers = [user for user in node.users if takes_bytes(user)]
    if not readers:
        return
    shared = _shared_range([quantised[user] for user in readers])
    readers = [user for user in readers if quantised[user].input_range == shared]
    others = [user for user in node.users if user not in readers]
    module.emit(wide=bool(others), next_range=shared)
    for user in readers:
        quantised[user].take_bytes()
    if not others:
        return
    with graph.inserting_after(node):
        narrow = graph.call_function(operator.getitem, (node, 1))
        wide = graph.call_function(operator.getitem, (node, 0))
    for user in [*readers, *others]:
        user.replace_input_with(node, narrow if user in readers else wide)


def _shared_range(readers: list[QuantizedAdder2d]) -> Range:
    """The range that most readers of a value have; those with another make bytes of the float value themselves."""
    ranges = [reader.input_range for reader in readers]
    return max(ranges, key=ranges.count)
