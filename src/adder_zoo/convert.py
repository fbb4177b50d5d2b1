"""``convert_to_adder``: a network of convolutions becomes one of adder layers, in place."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from timm.layers import CondConv2d, Conv2dSame, SplitAttn
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torchvision.ops import SqueezeExcitation

from .architecture import rename_converted
from .binary import BinaryConv2d
from .inference import refuse_quantised
from .layers import Adder2d, Adder2dSame
from .norms import put_in_float32

SHOWN = 12  # names of layers in a message

# Methods by which blocks of timm fold themselves together for inference.
FUSIONS = ("fuse", "reparameterize", "switch_to_deploy")


def _of_timm(module: str, *names: str) -> Iterator[type[nn.Module]]:
    """Classes of ``timm.layers.<module>``, of which not all are names of ``timm.layers``; older timm lacks some."""
    with contextlib.suppress(ModuleNotFoundError):
        found = importlib.import_module(f"timm.layers.{module}")
        yield from (getattr(found, name) for name in names if hasattr(found, name))


# Convolutions in these compute a gate or attention from pooled features, where no batch norm follows and a distance has
# no place; they stay what they are unless a filter_fn says otherwise.
GATES: tuple[type[nn.Module], ...] = (
    SqueezeExcite,
    SqueezeExcitation,
    *_of_timm("squeeze_excite", "SEModule", "SqueezeExcite", "EffectiveSEModule", "EffectiveSqueezeExcite"),
    *_of_timm("gather_excite", "GatherExcite"),
    *_of_timm("global_context", "GlobalContext"),
    *_of_timm("cbam", "CbamModule", "LightCbamModule"),
    *_of_timm("eca", "EcaModule", "CecaModule"),
    *_of_timm("coord_attn", "CoordAttn", "SimpleCoordAttn", "EfficientLocalAttn", "StripAttn"),
    *_of_timm("selective_kernel", "SelectiveKernelAttn"),
    *_of_timm("non_local_attn", "NonLocalAttn", "BatNonLocalAttn"),
)
# The same where only parts of a module are the gate.
GATE_PARTS: dict[type[nn.Module], tuple[str, ...]] = {SplitAttn: ("fc1", "fc2")}
# What a gate ends with that is written out as pooling, convolutions and one of these.
SQUASHING = (nn.Sigmoid, nn.Hardsigmoid)
# Parts of a network whose convolutions without batch norm give its answers (torchvision's SqueezeNet, FCN, SSD,
# RetinaNet, Mask R-CNN, ...), where no configuration of timm's names the classifier.
ANSWERS = re.compile(r"(^|_)(classifiers?|heads?|predictors?|logits|fc)($|_)")


def convert_to_adder(
    model: nn.Module,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    *,
    convolutions: str = "",
    reset_weights: bool = True,
    weight_grad: str = "full",
    input_grad: str = "clipped",
    p: float = 1.0,
    impl: str | None = None,
) -> nn.Module:
    """Replaces convolutions of ``model`` by adder layers, in place.

    By default the first convolution and a convolution that is the classifier stay, as in the paper's networks for
    CIFAR and ImageNet, and so do those in squeeze-and-excite and other gates; fully connected layers always stay. The
    classifier is what timm's configuration of the network says, or, without one, every convolution in a part called
    classifier, head, predictor, logits or fc that no batch norm follows: the last of SqueezeNet, FCN and DeepLab, and
    the heads of SSD, RetinaNet, FCOS and R-CNN.

    Batch norm should follow each converted layer: without it nothing trains. A warning names those where none does,
    such as the layers of a feature pyramid (FPN), VGG or AlexNet. Frozen batch norm (torchvision's detectors with
    pretrained weights) does not count as one: it keeps the statistics of the convolutions that were there.

    A network of timm gets the name that timm builds it again by, "adder_<name>", where the zoo has it with the same
    layers; else one that timm refuses, so that no saved file leads back to convolutions.

    Normalisations become such that stay in float32 in half precision, see ``adder_zoo.float32_norms``.

    Args:
        model: Any network. Its device, dtypes and training mode are kept.
        filter_fn: Called with the name and the module of every convolution; True converts it. None: as above.
        convolutions: Names of layers that stay convolutions beside these, patterns as in a shell with commas between
            them: ``"*.conv_dw"`` are the depthwise layers of timm's MobileNets up to V3 and of its EfficientNets.
        reset_weights: Whether filters start from a standard normal distribution, as adder layers do. False keeps the
            convolution's values (for example to anneal p from 2 to 1, or before a state dict is loaded).
        weight_grad, input_grad, p, impl: Options of the new layers, see ``adder_zoo.adder2d``.

    Returns:
        ``model``; or the new layer, where ``model`` is itself a convolution.

    Raises:
        ValueError: a chosen convolution has no adder form (transposed, weight-standardised, 1-d and 3-d, parametrised
            weights, ...), there is nothing to convert, a pattern fits no convolution, or ``model`` is quantised. It is
            unchanged then.

    Example:
        >>> import adder_zoo, timm
        >>> model = adder_zoo.convert_to_adder(timm.create_model("resnet18"))
        >>> optimizer = adder_zoo.AdderSGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    """
    refuse_quantised("convert_to_adder", model, "Its adder layers are in bytes already")
    options: dict[str, Any] = {"weight_grad": weight_grad, "input_grad": input_grad, "p": p, "impl": impl}
    make = functools.partial(layer_for, reset_weights=reset_weights, **options)
    converted = replace_convolutions(model, make, filter_fn, convolutions=convolutions)
    put_in_float32(converted)
    rename_converted(converted, convolutions)
    return converted


def replace_convolutions(
    model: nn.Module,
    make: Callable[[nn.Conv2d], nn.Module],
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    *,
    convolutions: str = "",
    need_norm: bool = False,
) -> nn.Module:
    """What ``convert_to_adder`` does, with ``make`` to make a layer of any kind from a convolution; same errors.

    ``need_norm`` leaves those without batch norm as convolutions, instead of a warning that names them.
    """
    alone = without_norm(model)
    left = left_as_convolutions(model, alone) | set(alone if need_norm else ()) if filter_fn is None else set()
    named = named_convolutions(model, convolutions)
    chosen: list[tuple[str, nn.Conv2d]] = []
    refused: dict[tuple[str, str], list[str]] = {}
    found = False
    for name, module in model.named_modules(remove_duplicate=False):
        if not is_convolution(module):
            continue
        found = True
        if name in named or not (filter_fn(name, module) if filter_fn is not None else name not in left):
            continue
        reason = _no_adder_form(module)
        if reason:
            refused.setdefault((type(module).__name__, reason), []).append(name or "the model")
        else:
            chosen.append((name, module))  # type: ignore[arg-type]
    if refused:
        lines = [f"\n  {abbreviated(names, 3)} ({kind}): {reason}" for (kind, reason), names in refused.items()]
        raise ValueError(
            "convert_to_adder: these convolutions have no adder form:"
            + "".join(lines)
            + "\nGive a filter_fn that leaves them as they are."
        )
    if not chosen:
        raise ValueError(
            "convert_to_adder: there is nothing to convert: "
            + (
                "every convolution was left out, by filter_fn or convolutions"
                if found
                else f"{type(model).__name__} holds no convolution"
            )
        )

    replacements: dict[nn.Module, nn.Module] = {}  # a convolution that is used twice becomes one layer
    for _, conv in chosen:
        if conv not in replacements:
            replacements[conv] = make(conv)
    for name, conv in chosen:
        if not name:
            return replacements[conv]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacements[conv])
    _forbid_fusion(model)
    names = {name for name, _ in chosen}
    _warn_without_norm(model, [name for name in alone if name in names])
    return model


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution with filters of its own, also one that torch does not know as such."""
    return isinstance(module, (_ConvNd, CondConv2d))


def patterns(convolutions: str) -> list[str]:
    """The patterns in a string with commas between them, each once and in order.

    Raises:
        TypeError: it is not a string.
    """
    if not isinstance(convolutions, str):
        raise TypeError(
            "convolutions must be one string of patterns with commas between them, such as '*.conv_dw,conv_head', got "
            f"{convolutions!r}"
        )
    return sorted(set(filter(None, map(str.strip, convolutions.split(",")))))


def named_convolutions(model: nn.Module, convolutions: str) -> set[str]:
    """Names of the convolutions that the patterns in ``convolutions`` name, as in a shell.

    Raises:
        TypeError, ValueError: it is not a string; or a pattern fits no convolution: shows what names there are.
    """
    names = [name for name, module in model.named_modules(remove_duplicate=False) if is_convolution(module)]
    found: set[str] = set()
    for pattern in patterns(convolutions):
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            many = len(names) > SHOWN
            kinds = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)) if many else names
            raise ValueError(
                f"convolutions={convolutions!r}: no convolution has a name like {pattern!r}; there are "
                f"{abbreviated(kinds, SHOWN) or 'none'}"
            )
        found.update(fitting)
    return found


def left_as_convolutions(model: nn.Module, alone: Sequence[str]) -> set[str]:
    """Names of the convolutions that the default leaves as they are: the first, the classifier's and gates.

    ``alone``: the names of those without a normalisation, from ``without_norm``.
    """
    names = [name for name, module in model.named_modules(remove_duplicate=False) if is_convolution(module)]
    cfg = getattr(model, "pretrained_cfg", None) or {}
    first = list(_names(cfg.get("first_conv"))) or names[:1]
    heads = list(_names(cfg.get("classifier")))
    gates = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, GATES)]
    parts = [
        f"{name}.{part}" if name else part
        for name, module in model.named_modules(remove_duplicate=False)
        for part in GATE_PARTS.get(type(module), ())
    ]
    ends = [*first, *heads, *gates, *parts, *_written_gates(model)]
    stay = {name for name in names if any(name == end or name.startswith(end + ".") for end in ends)}
    if not heads:
        answering = {name for name in names if any(ANSWERS.search(part) for part in name.split(".")[:-1] or [name])}
        stay |= answering & set(alone)
    return stay


def _written_gates(model: nn.Module) -> Iterator[str]:
    """Names of gates that are an ``nn.Sequential``: it pools the map to a point and ends with a squashing function."""
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Sequential) or not len(module) or not isinstance(module[-1], SQUASHING):
            continue
        if any(isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1)) for m in module):
            yield name


def _names(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list)):
        yield from (v for v in value if isinstance(v, str))


def _no_adder_form(module: nn.Module) -> str | None:
    """Why a convolution cannot become an adder layer; None if it can."""
    if isinstance(module, CondConv2d):
        return "its filters are mixed again for each image, which a distance is not linear in"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known yet; run a batch through the model first"
    if type(module) not in (nn.Conv2d, Conv2dSame):
        if isinstance(module, nn.Conv2d):
            return "it changes its weights or its input in a way of its own, which a distance is not invariant to"
        return "only two-dimensional convolutions that are not transposed have one"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other parameters"
    return None


def layer_for(
    conv: nn.Conv2d, kind: type[nn.Module] = Adder2d, *, reset_weights: bool = True, **options: Any
) -> nn.Module:
    """A layer of ``kind`` for ``conv``: its shapes, and the same parameter objects, which optimizers and ties hold.

    Args:
        conv: The convolution. One that pads as TensorFlow does, by each image's size, becomes an ``Adder2dSame``.
        kind: ``Adder2d``, or another class that is built as ``nn.Conv2d`` is.
        reset_weights: Whether the parameters start again from the layer's own distribution.
        options: Further arguments of ``kind``.

    Raises:
        ValueError: ``conv`` pads as TensorFlow does and ``kind`` is not ``Adder2d``.
    """
    if type(conv) is Conv2dSame:
        if kind is not Adder2d:
            raise ValueError(f"{kind.__name__} knows no SAME padding; take a network whose name has no tf_")
        kind = Adder2dSame
    layer: Any = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",
        dtype=conv.weight.dtype,
        **options,
    )
    layer.weight, layer.bias = conv.weight, conv.bias
    layer.train(conv.training)
    if reset_weights and not conv.weight.is_meta:
        layer.reset_parameters()
    return layer


def _forbid_fusion(model: nn.Module) -> None:
    """Takes from blocks with replaced layers what would fold batch norm into filters, or one kernel into another.

    timm calls these methods by name (``timm.utils.reparameterize_model``). They compute filters that give the same
    *convolution*, and a distance is linear in neither its filters nor its input.
    """
    for name, module in model.named_modules():
        if any(isinstance(child, (Adder2d, BinaryConv2d)) for child in module.modules()):
            for method in FUSIONS:
                if inspect.ismethod(getattr(module, method, None)):
                    setattr(module, method, functools.partial(_refuse_fusion, name or type(model).__name__, method))


def _refuse_fusion(name: str, method: str, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(
        f"{name}.{method}() would fold filters together as only a convolution allows; this block holds adder (or "
        "binary) layers, which would answer otherwise afterwards. Leave the network as it is."
    )


def _warn_without_norm(model: nn.Module, alone: list[str]) -> None:
    if alone:
        warnings.warn(
            f"convert_to_adder: no normalisation layer follows {abbreviated(alone, 5)} in {type(model).__name__}. The "
            "output of an adder layer is large and never positive; without batch norm behind it (that is not frozen) "
            "the network will not train. Use a filter_fn that leaves these as convolutions, or add batch norm.",
            stacklevel=4,
        )


def without_norm(model: nn.Module) -> list[str]:
    """Names of the convolutions that no normalisation follows, as far as the order of definition tells.

    Of the modules with parameters the next one must normalise. Where layers are listed in a ``ModuleList``, their
    normalisations may be listed behind them. A pre-activation block whose shortcut is defined before its first
    normalisation (``resnetv2``) makes the layer before it look alone, though it is not.
    """
    alone: list[str] = []
    waiting: list[str] = []
    for name, module in model.named_modules():
        if _normalises(module):
            del waiting[:1]
        elif is_convolution(module) or next(module.parameters(recurse=False), None) is not None:
            parent = name.rpartition(".")[0]
            listed = parent and isinstance(model.get_submodule(parent), nn.ModuleList)
            if not listed or any(other.rpartition(".")[0] != parent for other in waiting):
                alone += waiting
                waiting = []
            if is_convolution(module):
                waiting.append(name)
    return alone + waiting


def _normalises(module: nn.Module) -> bool:
    """Whether a module is a normalisation; not a frozen one, nor a block like ``ConvNormAct`` with one in it."""
    name = type(module).__name__
    inner = (p for child in module.children() for p in child.parameters())
    return "Norm" in name and "Frozen" not in name and all(p.dim() < 2 for p in inner)


def abbreviated(names: list[str], most: int) -> str:
    """The first ``most`` of ``names``, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
