"""timm's networks with their convolutions exchanged for layers of another similarity, and what they share.

The first convolution, the classifier, squeeze-and-excite gates and what has no batch norm behind it stay convolutions,
and so does what ``convolutions`` names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..convert import layer_for, named_convolutions, patterns, replace_convolutions
from ..norms import put_in_float32
from ._pretrained import build_model, recorded
from ._similarity import CONVOLUTIONS


def build_exchanged(
    make: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    convolutions: str | None = None,
    standard: str = "",
    **kwargs: Any,
) -> Any:
    """``build_model`` for a network that timm builds and whose convolutions are then exchanged.

    Args:
        make: Builds the convolutional network from timm's arguments.
        variant, pretrained: See ``build_model``.
        convolutions: Which layers stay convolutions beside those that always do: patterns of names, see
            ``adder_zoo.convert_to_adder``; None: ``standard``.
        standard: Those of this network where nobody says otherwise.
        kwargs: Further arguments of ``build_model``, among them ``similarity``.

    Raises:
        ValueError: a pattern fits no convolution; or weights that were trained with other layers are asked for.
    """
    stay = standard if convolutions is None else convolutions
    patterns(stay)  # what is no pattern is an error before any weights are looked for
    record = {"convolutions": stay} if stay or standard else {}
    network = recorded(functools.partial(_network, make, stay), record)
    return build_model(network, variant, pretrained, left=stay, **kwargs)


def _network(make: Callable[..., nn.Module], convolutions: str, similarity: str, **kwargs: Any) -> nn.Module:
    """What timm's ``build_model_with_cfg`` takes for a class."""
    model = make(**kwargs)
    named_convolutions(model, convolutions)  # a pattern that fits none is an error whatever the similarity
    if similarity != "conv":
        layer = functools.partial(layer_for, kind=CONVOLUTIONS[similarity])
        # A convolution without batch norm is a fully connected layer on pooled features (vgg, mobilenetv3): those stay.
        replace_convolutions(model, layer, convolutions=convolutions, need_norm=True)
        put_in_float32(model)
    model.similarity = similarity  # type: ignore[assignment]
    return model
