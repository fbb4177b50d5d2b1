"""Normalisation that stays in float32 when the network around it goes to half precision, and casts once behind it.

    adder layer --float32--> normalisation in float32 --one cast--> the network's precision --> next adder layer

Adder layers answer in float32 for every input type (see ``adder_zoo.adder2d``). What follows has to take float32, and
needs their mean precisely, since the mean is large and the spread around it small. The classes here have the names,
arguments and state-dict keys of their base classes. ``half()``, ``bfloat16()`` and ``to(dtype)`` leave their
parameters and statistics in float32 and set the precision of their output; ``float()`` resets it. Under autocast the
output has autocast's precision. The zoo's networks use them, and ``convert_to_adder`` puts them in; for a network in
which you placed adder layers yourself there is ``float32_norms``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozen

from .layers import AdderLayer
from .ops.registration import has_autocast
from .precision import ADVICE, HALF, STATISTICS, half_statistics


class PartlyFloat32(nn.Module):
    """A module with tensors that stay in float32 when ``half()`` and its like convert the rest.

    Attributes:
        precision: float16 or bfloat16, if the module was converted to it: it then answers in it. Otherwise None.
    """

    precision: torch.dtype | None = None

    def _float32_tensors(self) -> list[Tensor]:
        """The tensors that stay in float32: all of the module's own, by default."""
        return [t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A gradient has the dtype of its parameter.
        in_float32 = {id(t) for own in self._float32_tensors() for t in (own, own.grad) if t is not None}
        if self.precision is not None:  # only a tensor in half precision shows whether fn widens
            device = next((t.device for t in self._float32_tensors()), None)
            if fn(torch.empty(0, dtype=self.precision, device=device)).dtype not in HALF:
                self.precision = None

        def convert(t: Tensor) -> Tensor:
            changed = fn(t)
            if id(t) not in in_float32 or changed.dtype not in HALF:
                return changed
            self.precision = changed.dtype
            return t.to(changed.device, torch.float32 if t.is_floating_point() else t.dtype)

        return super()._apply(convert, recurse)  # type: ignore[no-untyped-call]


class InFloat32(PartlyFloat32):
    """A normalisation in float32: see the module. Mixed into one of torch's, timm's or torchvision's classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._widen()

    def _widen(self) -> None:
        """Brings what is in half precision (``dtype=`` of the constructor) to float32, and remembers the precision."""
        for t in self._float32_tensors():
            if t.dtype in HALF:
                self.precision = t.dtype
                t.data = t.data.float()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        lost = half_statistics({f"{prefix}{name}": state_dict.get(f"{prefix}{name}") for name in STATISTICS})  # type: ignore[misc]
        if lost:
            if not any(ADVICE in message for message in error_msgs):  # once for all layers
                error_msgs.append(f"{lost[0]} and maybe others are in half precision. {ADVICE}")
            return
        args = (state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(*args)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", precision={self.precision}" if self.precision else "")

    def forward(self, x: Tensor) -> Tensor:
        return cast(super().forward(widened(x)), x, None, self.precision)  # type: ignore[misc]


class _BatchNormInFloat32(InFloat32):
    """Batch norm that also takes parameters in half precision, as FSDP's mixed precision passes them."""

    _dims: Sequence[int]
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    momentum: float | None
    eps: float
    track_running_stats: bool

    def forward(self, x: Tensor) -> Tensor:
        tracks = self.training and self.track_running_stats
        use = tracks or not self.training
        mean, var = (self.running_mean, self.running_var) if use else (None, None)
        counter = self.num_batches_tracked if tracks else None
        training = self.training or mean is None
        y = batch_norm(x, mean, var, self.weight, self.bias, counter, training, self.momentum, self.eps, self._dims)
        act = getattr(self, "act", None)
        if act is not None:
            y = act(self.drop(y))  # type: ignore[operator]
        return cast(y, x, self.weight, self.precision)


@fx.wrap
def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    counter: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    dims: Sequence[int],
) -> Tensor:
    """What the forward of torch's batch norm layers does, in float32 where x, weight or bias are in half precision.

    Args:
        counter: ``num_batches_tracked``, which is counted up here; None where nothing is tracked.
        momentum: None for the plain average over all batches.
        dims: How many dimensions x may have.

    Raises:
        ValueError: x has another number of dimensions.
        TypeError: the running statistics are in half precision.
    """
    if x.dim() not in dims:
        raise ValueError(f"expected {' or '.join(map(str, dims))}D input (got {x.dim()}D input)")
    if mean is not None and mean.dtype in HALF:
        raise TypeError(f"batch norm: the running statistics are in {mean.dtype}. {ADVICE}")
    if counter is not None:
        counter.add_(1)
    if momentum is None:
        momentum = 0.0 if counter is None else 1.0 / float(counter)
    weight, bias = (None if t is None else widened(t) for t in (weight, bias))
    return F.batch_norm(widened(x), mean, var, weight, bias, training, momentum, eps)


@fx.wrap
def widened(x: Tensor) -> Tensor:
    """x in float32 if it is in half precision."""
    return x.float() if x.dtype in HALF else x


@fx.wrap
def cast(y: Tensor, x: Tensor, weight: Tensor | None, precision: torch.dtype | None) -> Tensor:
    """y, computed in float32 of x, in the precision that the network wants: the one cast behind a normalisation.

    The first of these that is set: autocast's precision, the one that the layer was converted to, half precision of its
    weights, the precision of x. float64 stays.
    """
    if y.dtype == torch.float64:
        return y
    device = y.device.type
    if has_autocast(device) and torch.is_autocast_enabled(device):
        return y.to(torch.get_autocast_dtype(device))
    return y.to(precision or half_of(weight) or x.dtype)


def half_of(weight: Tensor | None) -> torch.dtype | None:
    """The dtype of ``weight`` where that is half precision."""
    return weight.dtype if weight is not None and weight.dtype in HALF else None


# ---- the classes: torch's, timm's and torchvision's, by their names


class BatchNorm1d(_BatchNormInFloat32, nn.BatchNorm1d):  # type: ignore[misc]
    """``nn.BatchNorm1d`` in float32."""

    _dims = (2, 3)


class BatchNorm2d(_BatchNormInFloat32, nn.BatchNorm2d):  # type: ignore[misc]
    """``nn.BatchNorm2d`` in float32."""

    _dims = (4,)


class BatchNormAct2d(_BatchNormInFloat32, timm.layers.BatchNormAct2d):  # type: ignore[misc]
    """timm's batch norm with an activation, in float32."""

    _dims = (4,)


class SyncBatchNorm(InFloat32, nn.SyncBatchNorm):  # type: ignore[misc]
    """``nn.SyncBatchNorm`` in float32."""


class SyncBatchNormAct(InFloat32, timm.layers.SyncBatchNormAct):  # type: ignore[misc]
    """timm's synchronised batch norm with an activation, in float32."""


class SplitBatchNorm2d(InFloat32, timm.layers.SplitBatchNorm2d):  # type: ignore[misc]
    """timm's batch norm in parts, in float32."""


class FrozenBatchNorm2d(InFloat32, TorchvisionFrozen):  # type: ignore[misc]
    """torchvision's batch norm as a constant, in float32."""


class FrozenBatchNormAct2d(InFloat32, timm.layers.FrozenBatchNormAct2d):  # type: ignore[misc]
    """timm's batch norm as a constant with an activation, in float32."""


class GroupNorm(InFloat32, nn.GroupNorm):  # type: ignore[misc]
    """``nn.GroupNorm`` in float32."""


class TimmGroupNorm(InFloat32, timm.layers.GroupNorm):  # type: ignore[misc]
    """timm's ``GroupNorm`` in float32."""


class GroupNorm1(InFloat32, timm.layers.GroupNorm1):  # type: ignore[misc]
    """timm's ``GroupNorm`` with one group, in float32."""


class GroupNormAct(InFloat32, timm.layers.GroupNormAct):  # type: ignore[misc]
    """timm's ``GroupNorm`` with an activation, in float32."""


class LayerNorm(InFloat32, nn.LayerNorm):  # type: ignore[misc]
    """``nn.LayerNorm`` in float32."""


class TimmLayerNorm(InFloat32, timm.layers.LayerNorm):  # type: ignore[misc]
    """timm's ``LayerNorm`` in float32."""


class LayerNorm2d(InFloat32, timm.layers.LayerNorm2d):  # type: ignore[misc]
    """timm's ``LayerNorm`` over channels, in float32."""


class LayerNormAct2d(InFloat32, timm.layers.LayerNormAct2d):  # type: ignore[misc]
    """timm's ``LayerNorm`` over channels with an activation, in float32."""


class InstanceNorm2d(InFloat32, nn.InstanceNorm2d):  # type: ignore[misc]
    """``nn.InstanceNorm2d`` in float32."""


IN_FLOAT32: dict[type[nn.Module], type[InFloat32]] = {
    kind.__bases__[1]: kind
    for kind in (
        BatchNorm1d, BatchNorm2d, BatchNormAct2d, SyncBatchNorm, SyncBatchNormAct, SplitBatchNorm2d, FrozenBatchNorm2d,
        FrozenBatchNormAct2d, GroupNorm, TimmGroupNorm, GroupNorm1, GroupNormAct, LayerNorm, TimmLayerNorm, LayerNorm2d,
        LayerNormAct2d, InstanceNorm2d,
    )
}  # fmt: skip

for _kind in IN_FLOAT32.values():  # timm's fx feature extraction takes them whole, as it does those they derive from
    register_notrace_module(_kind)


def float32_norms(model: nn.Module) -> nn.Module:
    """Makes the normalisations of a network stay in float32 when the network goes to half precision. Works in place.

    The zoo's networks, and those from ``convert_to_adder``, have this already. Use it for a network in which you
    placed adder layers yourself, before ``half()`` or ``bfloat16()``, and again after tools that insert
    their own layers (``SyncBatchNorm.convert_sync_batchnorm``, timm's ``freeze_batch_norm_2d``).

    Args:
        model: Any network. Its batch, group, layer and instance norms from torch and timm (not your own classes) get a
            class that derives from theirs. The layer objects, their parameters, keys, hooks and mode stay.

    Returns:
        ``model``.

    Raises:
        ValueError: running statistics are in half precision already: their digits are lost.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from adder_zoo import Adder2d, float32_norms
        >>> model = nn.Sequential(Adder2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> float32_norms(model).bfloat16()(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """
    lost = half_statistics(dict(model.named_buffers()))
    if lost:
        raise ValueError(f"float32_norms: {lost[0]} is in half precision. {ADVICE}")
    return put_in_float32(model)


def put_in_float32(model: nn.Module) -> nn.Module:
    """``float32_norms`` for a network whose statistics will be replaced, so that it does not matter what they are."""
    for module in model.modules():
        kind = IN_FLOAT32.get(type(module))
        if kind is not None:
            module.__class__ = kind  # type: ignore[assignment]
            module._widen()  # type: ignore[operator]
        elif isinstance(module, AdderLayer):
            module.float32_behind = True
    return model
