"""``adder_zoo::adder2d_fused``: the operator and what follows it in a network at inference, in one pass.

    y = act(scale[k]·(-Σ|x - w|) + shift[k] + residual)

Batch norm in eval mode is a scale and a shift for each filter. It cannot fold into the filters, for a distance is not
linear in them, but it can be applied while a tile's sums are still at hand, and so can a shortcut and a ReLU.

A backend with a ``forward_fused`` of its own computes it in one pass; the others do what
``reference.forward_then_epilogue`` says, which is the definition: their ``forward``, then the rest in eager torch.
``adder_zoo.fuse`` rewrites a whole network in terms of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import batching
from .autograd import register_autograd
from .backends import resolve
from .geometry import Geometry, numbers
from .reference import compute_dtype
from .registration import LIBRARY, memory_format, operator


def _fake(x, weight, scale, shift, residual, stride, padding, dilation, groups, relu, impl):
    shape = Geometry.of(stride, padding, dilation, groups).output_shape(x, weight)
    _check_shapes(shape, scale, shift, residual)
    y = x.new_empty(shape, dtype=compute_dtype(x))
    return y.contiguous(memory_format=memory_format(x, weight))


@operator(_fake, batching.fused)
def adder2d_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    impl: str,
) -> Tensor:
    """``act(scale[k]·(-Σ|x - w|) + shift[k] + residual)``: Eq. 2 of arXiv 1912.13200 and eval-mode batch norm.

    Args:
        x, weight: [N, C, H, W] and [K, C/groups, R, S], dtypes as in ``adder_zoo.adder2d``.
        scale, shift: [K], any floating dtype; applied in float32 (float64 for float64).
        residual: Added before the activation, [N, K, P, Q], any floating dtype and memory format; or None.
        stride, dilation: Pairs (height, width). padding: (top, bottom, left, right).
        relu: Whether act is a ReLU; otherwise there is none.
        impl: A name of ``adder_zoo.implementations()``, or "auto".

    Returns:
        [N, K, P, Q], float32 (float64 for float64), channels_last where x or weight is. It has no gradient: asking for
        one raises.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    geometry.check_operands(x, weight)
    _check_shapes(geometry.output_shape(x, weight), scale, shift, residual)
    y = resolve(impl, x, 1.0).forward_fused(x, weight, scale, shift, residual, geometry, relu)
    return y.contiguous(memory_format=memory_format(x, weight))


def adder2d_and_rest(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    *,
    relu: bool,
    impl: str | None,
) -> Tensor:
    """``adder2d_fused`` with arguments as ``adder_zoo.adder2d`` takes them, and a residual that may be broadcast."""
    tensors = (x, weight, scale, shift, residual)
    if has_torch_function(tensors):
        return handle_torch_function(
            adder2d_and_rest, tensors, *tensors, stride, padding, dilation, groups, relu=relu, impl=impl
        )
    geometry = Geometry.checked(x, weight, stride, padding, dilation, groups)
    whole = residual is None or numbers(residual.shape) == numbers(geometry.output_shape(x, weight))
    inside = residual if whole else None
    y = adder2d_fused(x, weight, scale, shift, inside, *geometry.arguments, relu and whole, impl or "auto")
    if whole:
        return y
    y = y + residual
    return y.relu() if relu else y


def _check_shapes(output: list, scale: Tensor, shift: Tensor, residual: Tensor | None) -> None:
    wanted_shapes = (("scale", scale, output[1:2]), ("shift", shift, output[1:2]), ("residual", residual, output))
    for name, t, wanted in wanted_shapes:
        if t is not None and list(t.shape) != wanted:
            raise ValueError(f"adder2d_fused: {name} must have shape {wanted}, got {list(t.shape)}")


def _no_gradient(ctx, dy):
    raise RuntimeError(
        "adder2d_fused is for inference and has no gradient: train the network before adder_zoo.fuse(), and run the "
        "fused one under torch.no_grad()"
    )


register_autograd(LIBRARY, "adder2d_fused", _no_gradient)
