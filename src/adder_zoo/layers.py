"""``Adder2d`` and ``AdderLinear``: the operator as layers, built and called like ``nn.Conv2d`` and ``nn.Linear``.

They are not subclasses of those, on purpose: tools that find convolutions by type (batch norm fusion,
re-parameterisation, quantisation) rely on linearity in the weights, which a distance does not have.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from .functional import adder2d, adder_linear, check_options
from .int8.fake import fake_quantized
from .living import LAYERS
from .precision import HALF

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class AdderLayer(nn.Module):
    """What adder layers share: the filters, the bias, and the options of the operator.

    Every instance is remembered by a weak reference, also a copied or unpickled one. That is how ``AdderSGD`` finds
    the weights of adder layers among the parameters. An attribute of the parameter would not survive ``deepcopy``.
    """

    weight: Tensor
    bias: Tensor | None
    input_range: Tensor | None
    float32_behind = False  # whether what follows is known to take float32, see norms.py

    def __new__(cls, *args: Any, **kwargs: Any) -> AdderLayer:
        layer = super().__new__(cls)
        LAYERS.add(layer)
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias") and not torch.compiler.is_compiling():  # pruning sets it at each call
            _refuse_folding(sys._getframe(1).f_code.co_name)
        super().__setattr__(name, value)

    def __init__(self, weight_grad: str, input_grad: str, p: float, impl: str | None) -> None:
        super().__init__()
        check_options(type(self).__name__, weight_grad, input_grad, p, impl)
        self.weight_grad = weight_grad
        self.input_grad = input_grad
        self.p = p
        self.impl = impl
        self.register_buffer("input_range", None)

    def _add_parameters(self, shape: Sequence[int], bias: bool, device: Any, dtype: Any) -> None:
        self.weight = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, filters and bias as the operator takes them, rounded where the layer is fine-tuned for few bits."""
        if self.input_range is None:
            return x, self.weight, self.bias
        x, weight, offset = fake_quantized(x, self.weight, self.input_range)
        return x, weight, offset if self.bias is None else self.bias + offset

    def reset_parameters(self) -> None:
        """Filters from a standard normal distribution, as in the authors' code; bias zero."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes the keys of the authors' code as well, ``adder`` for the filters and ``b`` for the bias.

        Becomes a layer that was fine-tuned for few bits where the state is of one.
        """
        saved = state_dict.get(prefix + "input_range")
        if saved is not None and self.input_range is None:
            self.input_range = torch.empty_like(saved, device=self.weight.device)
        for theirs, ours in (("adder", "weight"), ("b", "bias")):
            if prefix + theirs in state_dict and prefix + ours not in state_dict:
                state_dict[prefix + ours] = state_dict.pop(prefix + theirs)  # the dictionary is load_state_dict's own
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, Tensor) and weight.dtype == torch.uint8:
            errors: list[str] = args[-1] if args else kwargs["error_msgs"]
            errors.append(
                f"{prefix}weight: what is loaded are the bytes of a quantised network, which mean nothing to a float "
                "layer. Build that network: timm.create_model('local-dir:FOLDER', pretrained=True), or by its tag."
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _warn_in_half(self) -> None:
        """Warns before torch fails in what follows the layer, whose error would not say what to do."""
        weight: Any = self.weight
        if not isinstance(weight, Tensor):  # a proxy of torch.fx
            return
        if weight.dtype in HALF and not self.float32_behind and not torch.compiler.is_compiling():
            warnings.warn(
                f"{type(self).__name__} answers in float32 though its filters are in {weight.dtype}, because its "
                "sums do not fit into that. A batch norm in half precision after it fails. Call "
                "adder_zoo.float32_norms(model): normalisations then stay in float32 and cast their output to half "
                "precision. (If what follows takes float32 already, the call only ends this warning.)",
                stacklevel=3,
            )

    def _operator_repr(self) -> str:
        defaults = {"weight_grad": "full", "input_grad": "clipped", "p": 1.0, "impl": None}
        return "".join(
            f", {name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        )


def _refuse_folding(caller: str) -> None:
    """Raises for a function that folds batch norm into a layer's filters, by its name.

    Such functions (``torch.nn.utils.fusion`` and all that call it, or are written after it) take whatever has a weight
    and a bias, copy it and give it new ones. In what they do there is nothing else to know them by.
    """
    if re.search(r"(fuse|fold|merge|absorb).*(bn|norm)|(bn|batch_?norm).*(fus|fold)", caller, re.IGNORECASE):
        raise RuntimeError(
            f"{caller}: batch norm cannot be folded into the filters of an adder layer: a distance is not linear in "
            "them. adder_zoo.fuse(model) computes batch norm in the layer's own pass"
        )


class Adder2d(AdderLayer):
    """Negative L1 distance between patches and learned filters (AdderNet, arXiv 1912.13200, Eq. 2).

    Constructor, attributes, state-dict keys and ``repr`` are as in ``nn.Conv2d``; the operator is
    ``adder_zoo.adder2d``, which describes ``weight_grad``, ``input_grad``, ``p`` and ``impl``. Follow it with batch
    norm: the output is never positive and large, and without normalisation nothing trains. In half precision, that has
    to stay in float32: see ``adder_zoo.float32_norms``.

    Args:
        in_channels, out_channels: C and K.
        kernel_size, stride, padding, dilation, groups: As in ``nn.Conv2d``; padding may be "same" or "valid".
        bias: Whether to add a learned bias after the distance.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device, dtype: Of the parameters.
        weight_grad, input_grad, p, impl: Options of the operator.

    Shapes: input [N, C, H, W] or [C, H, W]; output [N, K, P, Q] or [K, P, Q], float32 (float64 for float64);
    ``weight`` [K, C/groups, R, S]; ``bias`` [K].

    ``input_range``, None in most layers, is the range of bytes that ``adder_zoo.fake_quantize`` gave the layer. Input
    and filters are then rounded to the values that these bytes stand for, in training and in evaluation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        weight_grad: str = "full",
        input_grad: str = "clipped",
        p: float = 1.0,
        impl: str | None = None,
    ) -> None:
        super().__init__(weight_grad, input_grad, p, impl)
        # nn.Conv2d checks these arguments and brings them into its attributes' form; on "meta" it costs no memory.
        geometry: Any = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        conv = nn.Conv2d(*geometry, False, padding_mode, "meta")  # type: ignore[call-arg]
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.transposed = False
        self.output_padding = conv.output_padding
        self.groups = groups
        self.padding_mode = padding_mode
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        self._add_parameters(conv.weight.shape, bias, device, dtype)

    def padded(self, x: Tensor) -> tuple[Tensor, Sequence[int] | str]:
        """x as the operator takes it, and the padding that is left to the operator."""
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        return x, self.padding

    def forward(self, x: Tensor) -> Tensor:
        self._warn_in_half()
        x, weight, bias = self._operands(x)
        x, padding = self.padded(x)
        return adder2d(
            x,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            weight_grad=self.weight_grad,
            input_grad=self.input_grad,
            p=self.p,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return nn.Conv2d.extra_repr(self) + self._operator_repr()  # type: ignore[arg-type]


class Adder2dSame(Adder2d):
    """``Adder2d`` with TensorFlow's SAME padding, found from each input's size, like timm's ``Conv2dSame``.

    ``padding`` in the constructor is ignored, as there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, *args, **kwargs)

    def padded(self, x: Tensor) -> tuple[Tensor, Sequence[int] | str]:
        return _pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)


def _pad_same(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """timm's padding by x's size, which in a graph of ``torch.fx`` has to be found when the graph is run."""
    if has_torch_function_unary(x):
        return handle_torch_function(_pad_same, (x,), x, kernel_size, stride, dilation)
    return pad_same(x, list(kernel_size), list(stride), list(dilation))


class AdderLinear(AdderLayer):
    """Negative L1 distance between feature vectors and learned ones, the fully connected adder layer::

        y[..., k] = bias[k] - Σ_c |x[..., c] - weight[k, c]|

    Constructor, attributes and state-dict keys are as in ``nn.Linear``; gradients and options as in
    ``adder_zoo.adder2d``, which computes it as a 1x1 kernel.

    Shapes: input [..., C], output [..., K], float32 (float64 for float64); ``weight`` [K, C]; ``bias`` [K].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        weight_grad: str = "full",
        input_grad: str = "clipped",
        p: float = 1.0,
        impl: str | None = None,
    ) -> None:
        super().__init__(weight_grad, input_grad, p, impl)
        if in_features < 1 or out_features < 1:
            raise ValueError(f"AdderLinear: needs at least one feature, got {in_features} in and {out_features} out")
        self.in_features = in_features
        self.out_features = out_features
        self._add_parameters((out_features, in_features), bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._warn_in_half()
        x, weight, bias = self._operands(x)
        return adder_linear(
            x,
            weight,
            bias,
            weight_grad=self.weight_grad,
            input_grad=self.input_grad,
            p=self.p,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self) + self._operator_repr()  # type: ignore[arg-type]


def filters_of(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that an adder layer's filters are, or are computed from.

    That is ``weight``; or, where something computes it at each call, all that it is computed from: ``weight_orig``
    (``nn.utils.prune``, the old ``spectral_norm``), ``weight_g`` and ``weight_v`` (the old ``weight_norm``), and all
    parameters in ``parametrizations.weight`` (``nn.utils.parametrize`` and the norms that stand on it). A layer that is
    half made has none.
    """
    own: dict[str, nn.Parameter | None] = layer.__dict__.get("_parameters", {})
    weight = own.get("weight")
    if weight is not None:
        return [weight]
    found = [p for name, p in own.copy().items() if name.startswith("weight_") and p is not None]
    modules: dict[str, nn.Module | None] = layer.__dict__.get("_modules", {})
    lists = modules.get("parametrizations")
    if lists is not None:
        found += [p for name, one in lists.named_children() if name.startswith("weight") for p in one.parameters()]
    return found


def adder_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The filters of all adder layers in ``model``, each once: those with a learning rate of their own (Eq. 12, 13).

    They are parameters of the network, frozen or not; where a filter is computed (pruning, ``weight_norm``, ...), those
    that it is computed from, see ``AdderSGD``.

    Keep them out of gradient clipping: the adaptive rate brings their gradients to a fixed norm anyway, and their raw
    norm says nothing::

        adder = set(adder_parameters(model))
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p not in adder], 1.0)
    """
    seen: set[int] = set()
    for module in model.modules():
        if module in LAYERS:
            for filters in filters_of(module):
                if id(filters) not in seen:
                    seen.add(id(filters))
                    yield filters


def is_adder_weight(parameters: Iterable[Tensor]) -> list[bool]:
    """For each of ``parameters``, whether the filters of a living adder layer are it, or are computed from it."""
    filters = {id(p) for layer in LAYERS for p in filters_of(layer)}
    return [id(parameter) in filters for parameter in parameters]
