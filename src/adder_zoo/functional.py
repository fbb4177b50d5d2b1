"""``adder2d`` and ``adder_linear``: the adder operator as functions, called like ``conv2d`` and ``linear`` of torch.

Like those, they hand over to whatever implements ``__torch_function__``: the proxies of ``torch.fx`` among them, for
which a call is a node of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .implementations import IMPLEMENTATIONS
from .ops import adder2d as _adder2d_op

WEIGHT_GRADS = ("full", "sign")
INPUT_GRADS = ("clipped", "full", "sign")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def adder2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    weight_grad: str = "full",
    input_grad: str = "clipped",
    p: float = 1.0,
    impl: str | None = None,
) -> Tensor:
    """Negative L1 distance between each patch of ``x`` and each filter of ``weight``::

        y[n, k, i, j] = bias[k] - Σ_{c,r,s} |x[n, c, i·stride + r·dilation, j·stride + s·dilation]
                                             - weight[k, c, r, s]|

    (AdderNet, arXiv 1912.13200, Eq. 2.) Padding counts as x = 0, so a padded tap adds ``-|weight|``.

    The backward is the paper's surrogate, not the derivative, and therefore has no second derivative: asking for one
    raises. For p = 1::

        weight_grad  "full"     dw = Σ dy·(x - w)           Eq. 5
                     "sign"     dw = Σ dy·sgn(x - w)        Eq. 4
        input_grad   "clipped"  dx = Σ dy·HT(w - x)         Eq. 6 and 7, HT clamps to [-1, 1]
                     "full"     dx = Σ dy·(w - x)
                     "sign"     dx = Σ dy·sgn(w - x)

    For 1 < p <= 2 the distance is Σ|x - w|^p (the l2-to-l1 method, arXiv 2105.14202); it is differentiable, both
    gradients are its derivative ``p·|x - w|^(p-1)·sgn``, and ``weight_grad`` and ``input_grad`` do not apply.

    Args:
        x: Input [N, C, H, W] or [C, H, W]; float32, float16, bfloat16 or float64. channels_last is the fast format
            on a CPU, and the output keeps it.
        weight: Filters [K, C/groups, R, S], K divisible by ``groups``. Its dtype may differ from that of ``x`` among
            float32, float16 and bfloat16 (a half-precision input beside float32 filters is what autocast gives).
        bias: Added after the distance, [K], or None.
        stride, dilation: An int or a pair (height, width), at least 1.
        padding: An int or a pair, at least 0; ``"valid"`` (none) or ``"same"`` (output as large as the input, the odd
            pixel at the bottom and right; stride 1 only).
        groups: Number of groups that C and K are divided into.
        weight_grad, input_grad, p: As above.
        impl: None chooses. For p = 1 by device: on a GPU "triton", on a CPU "cpu", anywhere else and for float64
            "reference"; for p = 2 "convolution", between them "reference". A name asks for that implementation and
            raises where it cannot run; see ``adder_zoo.implementations()``. "exact" is "cpu" without the identities
            that save operations there and cost up to nine times the rounding.

    Returns:
        y, [N, K, P, Q] or [K, P, Q]. **float32 whatever the precision of the input** (float64 for float64), because y
        is large with a small spread, about -5000 ± 40 for 4608 taps, where bfloat16 steps by 32.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: wrong shapes or option values.
        RuntimeError: ``impl`` cannot run here; or a second derivative was asked for.

    Example:
        >>> import torch
        >>> from adder_zoo import adder2d
        >>> x, w = torch.zeros(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
        >>> adder2d(x, w, padding=1)[0, 0, 0, 0]
        tensor(-27.)
    """
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(
            adder2d, (x, weight, bias), x, weight, bias, stride, padding, dilation, groups,
            weight_grad=weight_grad, input_grad=input_grad, p=p, impl=impl,
        )  # fmt: skip
    _check_tensor("x", x)
    unbatched = x.dim() == 3
    stride, pads, dilation = checked_geometry(x, weight, stride, padding, dilation, groups)
    x = x.unsqueeze(0) if unbatched else x
    if bias is not None:
        _check_tensor("bias", bias)
        if not torch.jit.is_tracing() and bias.shape != weight.shape[:1]:
            raise ValueError(f"adder2d: bias must have shape {_shape(weight)[:1]}, got {_shape(bias)}")
        if bias.device != x.device:
            raise ValueError(f"adder2d: x is on {x.device} and bias on {bias.device}; move one of them")
    if weight_grad not in WEIGHT_GRADS:
        raise ValueError(f"adder2d: weight_grad must be one of {WEIGHT_GRADS}, got {weight_grad!r}")
    if input_grad not in INPUT_GRADS:
        raise ValueError(f"adder2d: input_grad must be one of {INPUT_GRADS}, got {input_grad!r}")
    if not isinstance(p, (int, float)) or not 1 <= p <= 2:
        raise ValueError(f"adder2d: p must be a number from 1 to 2, got {p!r}")
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ValueError(f"adder2d: impl must be None or one of {tuple(IMPLEMENTATIONS)}, got {impl!r}")

    y = _adder2d_op(x, weight, stride, pads, dilation, groups, weight_grad, input_grad, float(p), impl or "auto")
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, 1, 1)
    return y.squeeze(0) if unbatched else y


def adder_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_grad: str = "full",
    input_grad: str = "clipped",
    p: float = 1.0,
    impl: str | None = None,
) -> Tensor:
    """y[..., k] = bias[k] - Σ_c |x[..., c] - weight[k, c]|, as ``adder2d`` with a 1x1 kernel.

    Args:
        x: [..., C]. weight: [K, C]. bias: [K] or None. Dtypes and the options as in ``adder2d``.

    Returns:
        y, [..., K], float32 (float64 for float64).

    Raises:
        TypeError, ValueError, RuntimeError: as ``adder2d``.
    """
    if has_torch_function((x, weight, bias)):
        return handle_torch_function(
            adder_linear, (x, weight, bias), x, weight, bias,
            weight_grad=weight_grad, input_grad=input_grad, p=p, impl=impl,
        )  # fmt: skip
    _check_tensor("x", x)
    _check_tensor("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"adder_linear: weight must have 2 dimensions [K, C], got shape {_shape(weight)}")
    K, C = weight.shape
    if x.dim() == 0 or (not torch.jit.is_tracing() and x.shape[-1] != C):
        raise ValueError(f"adder_linear: expects {C} features in the last dimension, got shape {_shape(x)}")
    y = adder2d(
        x.reshape(-1, C, 1, 1), weight[:, :, None, None], bias,
        weight_grad=weight_grad, input_grad=input_grad, p=p, impl=impl,
    )  # fmt: skip
    return y.view(*x.shape[:-1], K)


def checked_geometry(
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> tuple[list[int], list[int], list[int]]:
    """stride, padding as (top, bottom, left, right) and dilation, as the operators take them; raises as ``adder2d``."""
    _check_tensor("x", x, dtypes)
    _check_tensor("weight", weight, dtypes)
    if weight.dim() != 4:
        raise ValueError(f"adder2d: weight must have 4 dimensions [K, C/groups, R, S], got shape {_shape(weight)}")
    if x.dim() not in (3, 4):
        raise ValueError(f"adder2d: x must have shape [N, C, H, W] or [C, H, W], got shape {_shape(x)}")
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"adder2d: groups must be an int, got {groups!r}")
    if groups < 1:
        raise ValueError(f"adder2d: groups must be at least 1, got {groups}")
    if x.device != weight.device:
        raise ValueError(f"adder2d: x is on {x.device} and weight on {weight.device}; move one of them")
    if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
        raise TypeError(f"adder2d: x is {x.dtype} and weight {weight.dtype}; float64 goes with float64 only")
    pads = _padding(padding, stride, dilation, numbers(weight.shape[2:]))
    if not torch.jit.is_tracing():  # sizes are tensors there, and each comparison warns that it is not traced
        _check_sizes(x, weight, pads, dilation, groups)
    return stride, pads, dilation


def _check_sizes(x: Tensor, weight: Tensor, pads: list[int], dilation: list[int], groups: int) -> None:
    K, Cg, R, S = weight.shape
    C, H, W = x.shape[-3:]
    if min(K, Cg, R, S) == 0:
        raise ValueError(f"adder2d: weight must not be empty, got shape {_shape(weight)}")
    if K % groups:
        raise ValueError(f"adder2d: groups = {groups} does not divide weight's {K} output channels")
    if Cg * groups != C:
        raise ValueError(
            f"adder2d: weight of shape {_shape(weight)} with groups = {groups} expects {Cg * groups} input channels, "
            f"but x has {C} (shape {_shape(x)})"
        )
    if min(H, W) == 0:
        raise ValueError(f"adder2d: x must have at least one pixel (its batch may be empty), got shape {_shape(x)}")
    for name, size, kernel, d, before, after in (
        ("height", H, R, dilation[0], pads[0], pads[1]),
        ("width", W, S, dilation[1], pads[2], pads[3]),
    ):
        if size + before + after < d * (kernel - 1) + 1:
            raise ValueError(
                f"adder2d: the kernel's {name} {d * (kernel - 1) + 1} (dilation included) is larger than the padded "
                f"input's {size + before + after}"
            )


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def numbers(sizes: Sequence[Any]) -> list[Any]:
    """``sizes`` as numbers, where ``torch.jit.trace`` has tensors: for what may be the same in every run of a trace."""
    if not torch.jit.is_tracing():
        return list(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return [int(size) for size in sizes]


def _check_tensor(name: str, t: object, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"adder2d: {name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"adder2d: {name} must have one of the types {names}, got {t.dtype}")
    if t.layout != torch.strided:
        raise TypeError(f"adder2d: {name} must be a dense tensor, got layout {t.layout}")


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    values: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, (int, torch.SymInt)) for v in values):
        raise TypeError(f"adder2d: {name} must be an int or a pair of ints, got {value!r}")
    if min(values) < least:
        raise ValueError(f"adder2d: {name} must be at least {least}, got {value!r}")
    return values


def _padding(
    padding: int | Sequence[int] | str, stride: list[int], dilation: list[int], kernel: Sequence[int]
) -> list[int]:
    """``padding`` as (top, bottom, left, right)."""
    if isinstance(padding, str):
        if padding == "valid":
            return [0, 0, 0, 0]
        if padding != "same":
            raise ValueError(f"adder2d: padding must be an int, a pair, 'same' or 'valid', got {padding!r}")
        if stride != [1, 1]:
            raise ValueError("adder2d: padding='same' needs stride 1; give the padding as numbers")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2]
    top, left = _pair("padding", padding, 0)
    return [top, top, left, left]
