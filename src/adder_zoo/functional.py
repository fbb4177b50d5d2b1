"""``adder2d`` and ``adder_linear``: the adder operator as functions, called like ``conv2d`` and ``linear`` of torch.

Like those, they hand over to whatever implements ``__torch_function__``: the proxies of ``torch.fx`` among them, for
which a call is a node of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .ops.backends import IMPLEMENTATIONS
from .ops.geometry import Geometry, check_tensor, shape_of
from .ops.library import adder2d as _adder2d_operator

WEIGHT_GRADS = ("full", "sign")
INPUT_GRADS = ("clipped", "full", "sign")


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

    A second derivative is refused. For p = 1 the backward is the paper's surrogate, not the derivative::

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
        weight: Filters [K, C/groups, R, S], K divisible by ``groups``. Its dtype and that of ``x`` may differ among
            float32, float16 and bfloat16 (a half-precision input beside float32 filters is what autocast gives).
        bias: Added after the distance, [K], or None.
        stride, dilation: An int or a pair (height, width), at least 1.
        padding: An int or a pair, at least 0; ``"valid"`` (none) or ``"same"`` (output as large as the input, the odd
            pixel at the bottom and right; stride 1 only).
        groups: Number of groups that C and K are divided into.
        weight_grad, input_grad, p: As above.
        impl: None chooses. For p < 2 by device: on a CPU "cpu", on a GPU "triton", anywhere else and for float64
            "reference"; for p = 2 "convolution". A name asks for that implementation and raises where it cannot
            run; see ``adder_zoo.implementations()``. "exact" is "cpu" without the identities that save operations there
            and cost up to nine times the rounding; for p = 1.

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
    check_tensor("x", x)
    unbatched = x.dim() == 3
    geometry = Geometry.checked(x, weight, stride, padding, dilation, groups)
    x = x.unsqueeze(0) if unbatched else x
    if bias is not None:
        check_tensor("bias", bias)
        if not torch.jit.is_tracing() and bias.shape != weight.shape[:1]:
            raise ValueError(f"adder2d: bias must have shape {shape_of(weight)[:1]}, got {shape_of(bias)}")
        if bias.device != x.device:
            raise ValueError(f"adder2d: x is on {x.device} and bias on {bias.device}; move one of them")
    check_options("adder2d", weight_grad, input_grad, p, impl)
    options = weight_grad, input_grad, float(p), impl or "auto"
    y = _adder2d_operator(x, weight, *geometry.arguments, *options)
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, 1, 1)
    return y.squeeze(0) if unbatched else y


def check_options(caller: str, weight_grad: str, input_grad: str, p: float, impl: str | None) -> None:
    """Raises ValueError for options that ``adder2d`` does not know; ``caller`` begins the message."""
    if weight_grad not in WEIGHT_GRADS:
        raise ValueError(f"{caller}: weight_grad must be one of {WEIGHT_GRADS}, got {weight_grad!r}")
    if input_grad not in INPUT_GRADS:
        raise ValueError(f"{caller}: input_grad must be one of {INPUT_GRADS}, got {input_grad!r}")
    if not isinstance(p, (int, float)) or not 1 <= p <= 2:
        raise ValueError(f"{caller}: p must be a number from 1 to 2, got {p!r}")
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ValueError(f"{caller}: impl must be None or one of {IMPLEMENTATIONS}, got {impl!r}")


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
    check_tensor("x", x)
    check_tensor("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"adder_linear: weight must have 2 dimensions [K, C], got shape {shape_of(weight)}")
    K, C = weight.shape
    if x.dim() == 0 or (not torch.jit.is_tracing() and x.shape[-1] != C):
        raise ValueError(f"adder_linear: expects {C} features in the last dimension, got shape {shape_of(x)}")
    y = adder2d(
        x.reshape(-1, C, 1, 1), weight[:, :, None, None], bias,
        weight_grad=weight_grad, input_grad=input_grad, p=p, impl=impl,
    )  # fmt: skip
    return y.view(*x.shape[:-1], K)
