"""``convert_to_adder``: a network of convolutions becomes one of adder layers, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import timm.layers
from timm.layers import Conv2dSame
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .layers import Adder2d, Adder2dSame

# Convolutions in these compute a gate or attention from pooled features, where no batch norm follows and a distance has
# no place; they stay what they are unless a filter_fn says otherwise.
GATES: tuple[type[nn.Module], ...] = (
    SqueezeExcite,
    *(
        getattr(timm.layers, name)
        for name in (
            "SEModule", "SqueezeExcite", "EffectiveSEModule", "EffectiveSqueezeExcite", "GatherExcite", "GlobalContext",
            "CbamModule", "LightCbamModule", "EcaModule", "CecaModule", "CoordAttn", "SimpleCoordAttn",
        )
        if isinstance(getattr(timm.layers, name, None), type)
    ),
)  # fmt: skip


def convert_to_adder(
    model: nn.Module,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    *,
    reset_weights: bool = True,
    weight_grad: str = "full",
    input_grad: str = "clipped",
    p: float = 1.0,
    impl: str | None = None,
) -> nn.Module:
    """Replaces convolutions of ``model`` by adder layers, in place.

    By default the first convolution and a convolution that is the classifier stay, as in the paper's networks for
    CIFAR and ImageNet, and so do those in squeeze-and-excite and other gates; fully connected layers always stay. Batch
    norm should follow each converted layer: without it nothing trains.

    Args:
        model: Any network. Its device, dtypes and training mode are kept.
        filter_fn: Called with the name and the module of every convolution; True converts it. None: as above.
        reset_weights: Whether filters start from a standard normal distribution, as adder layers do. False keeps the
            convolution's values (for example to anneal p from 2 to 1, or before a state dict is loaded).
        weight_grad, input_grad, p, impl: Options of the new layers, see ``adder_zoo.adder2d``.

    Returns:
        ``model``; or the new layer, where ``model`` is itself a convolution.

    Raises:
        ValueError: a chosen convolution has no adder form (transposed, weight-standardised, 1-d and 3-d, parametrised
            weights, ...), or there is nothing to convert. ``model`` is unchanged then.

    Example:
        >>> model = convert_to_adder(timm.create_model("resnet18"))
        >>> optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    """
    keep = _kept(model)
    chosen: list[tuple[str, nn.Module]] = []
    refused: list[str] = []
    found = False
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, _ConvNd):
            continue
        found = True
        if not (filter_fn(name, module) if filter_fn is not None else name not in keep):
            continue
        reason = _no_adder_form(module)
        if reason:
            refused.append(f"{name or 'the model'} ({type(module).__name__}): {reason}")
        else:
            chosen.append((name, module))
    if refused:
        raise ValueError(
            "convert_to_adder: these convolutions have no adder form:\n  "
            + "\n  ".join(refused)
            + "\nGive a filter_fn that leaves them as they are."
        )
    if not chosen:
        raise ValueError(
            "convert_to_adder: there is nothing to convert: "
            + ("every convolution was left out" if found else f"{type(model).__name__} holds no convolution")
        )

    options = {"weight_grad": weight_grad, "input_grad": input_grad, "p": p, "impl": impl}
    replacements: dict[nn.Module, Adder2d] = {}  # a convolution that is used twice becomes one adder layer
    for _, conv in chosen:
        if conv not in replacements:
            replacements[conv] = _adder_layer(conv, reset_weights, options)
    for name, conv in chosen:
        if not name:
            return replacements[conv]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacements[conv])
    _warn_without_norm(model, replacements)
    return model


def _kept(model: nn.Module) -> set[str]:
    """Names of the convolutions that the default leaves as they are."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, _ConvNd)]
    cfg = getattr(model, "pretrained_cfg", None) or {}
    first = list(_names(cfg.get("first_conv"))) or names[:1]
    heads = list(_names(cfg.get("classifier")))
    gates = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, GATES)]
    ends = [*first, *heads, *gates]
    return {name for name in names if any(name == end or name.startswith(end + ".") for end in ends)}


def _names(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list)):
        yield from (v for v in value if isinstance(v, str))


def _no_adder_form(module: nn.Module) -> str | None:
    """Why a convolution cannot become an adder layer; None if it can."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known yet; run a batch through the model first"
    if type(module) not in (nn.Conv2d, Conv2dSame):
        if isinstance(module, nn.Conv2d):
            return "it changes its weights or its input in a way of its own, which a distance is not invariant to"
        return "only two-dimensional convolutions that are not transposed have one"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other parameters"
    return None


def _adder_layer(conv: nn.Module, reset_weights: bool, options: dict[str, object]) -> Adder2d:
    same = type(conv) is Conv2dSame
    assert isinstance(conv, nn.Conv2d)
    layer = (Adder2dSame if same else Adder2d)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",
        dtype=conv.weight.dtype,
        **options,  # type: ignore[arg-type]
    )
    layer.weight, layer.bias = conv.weight, conv.bias  # type: ignore[assignment]  # optimizers and ties keep theirs
    layer.train(conv.training)
    if reset_weights and not conv.weight.is_meta:
        layer.reset_parameters()
    return layer


def _warn_without_norm(model: nn.Module, replacements: dict[nn.Module, Adder2d]) -> None:
    if not any("Norm" in type(m).__name__ for m in model.modules()):
        warnings.warn(
            f"convert_to_adder: {type(model).__name__} has no normalisation layer. The output of an adder layer is "
            "large and never positive; without batch norm behind it the network will not train.",
            stacklevel=3,
        )
