"""The operator and its gradients as ``torch.library`` operators, so that compile, export and opcheck see them.

    adder_zoo::adder2d              forward, Eq. 2; its autograd calls the other two
    adder_zoo::adder2d_grad_input   Eq. 6 and 7
    adder_zoo::adder2d_grad_weight  Eq. 5 (or 4)
    adder_zoo::adder2d_gradients    both at once, where both are derivatives: Eq. 4 with its counterpart, or p > 1

``functional.adder2d`` checks what a user hands in; these take normalised arguments: stride and dilation as pairs,
padding as (top, bottom, left, right), ``impl`` a name or "auto".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import batching
from .autograd import register_autograd
from .backends import resolve
from .geometry import Geometry
from .reference import compute_dtype
from .registration import LIBRARY, memory_format, operator


def _fake_adder2d(x, weight, stride, padding, dilation, groups, weight_grad, input_grad, p, impl):
    shape = Geometry.of(stride, padding, dilation, groups).output_shape(x, weight)
    y = x.new_empty(shape, dtype=compute_dtype(x))
    return y.contiguous(memory_format=memory_format(x, weight))


@operator(_fake_adder2d, batching.forward)
def adder2d(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_grad: str,
    input_grad: str,
    p: float,
    impl: str,
) -> Tensor:
    geometry = Geometry.of(stride, padding, dilation, groups)
    geometry.check_operands(x, weight)
    y = resolve(impl, x, p).forward(x, weight, geometry)
    return y.contiguous(memory_format=memory_format(x, weight))


def _fake_grad_input(dy, x, weight, stride, padding, dilation, groups, input_grad, p, impl):
    return x.new_empty(x.shape).contiguous(memory_format=memory_format(x))


@operator(_fake_grad_input, batching.grad_input)
def adder2d_grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_grad: str,
    p: float,
    impl: str,
) -> Tensor:
    geometry = Geometry.of(stride, padding, dilation, groups)
    geometry.check_operands(x, weight, dy)
    dx = resolve(impl, x, p).grad_input(dy, x, weight, geometry, input_grad)
    return dx.contiguous(memory_format=memory_format(x))


def _fake_grad_weight(dy, x, weight, stride, padding, dilation, groups, weight_grad, p, impl):
    return weight.new_empty(weight.shape).contiguous(memory_format=memory_format(weight))


@operator(_fake_grad_weight, batching.grad_weight)
def adder2d_grad_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_grad: str,
    p: float,
    impl: str,
) -> Tensor:
    geometry = Geometry.of(stride, padding, dilation, groups)
    geometry.check_operands(x, weight, dy)
    dw = resolve(impl, x, p).grad_weight(dy, x, weight, geometry, weight_grad)
    return dw.contiguous(memory_format=memory_format(weight))


def _fake_gradients(dy, x, weight, stride, padding, dilation, groups, p, impl):
    where = stride, padding, dilation, groups, "sign", p, impl
    return _fake_grad_input(dy, x, weight, *where), _fake_grad_weight(dy, x, weight, *where)


@operator(_fake_gradients, batching.gradients)
def adder2d_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    p: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    geometry = Geometry.of(stride, padding, dilation, groups)
    geometry.check_operands(x, weight, dy)
    backend = resolve(impl, x, p)
    both = backend.gradients and backend.gradients(dy, x, weight, geometry)
    if both is None:
        both = backend.grad_input(dy, x, weight, geometry, "sign"), backend.grad_weight(dy, x, weight, geometry, "sign")
    dx, dw = both
    return dx.contiguous(memory_format=memory_format(x)), dw.contiguous(memory_format=memory_format(weight))


def _setup_context(ctx, inputs, output):
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy):
    x, weight = ctx.saved_tensors
    *geometry, weight_grad, input_grad, p, impl = ctx.options
    dx = dw = None
    derivatives = 1 < p < 2 or (p == 1 and (weight_grad, input_grad) == ("sign", "sign"))
    if derivatives and all(ctx.needs_input_grad[:2]):
        dx, dw = adder2d_gradients(dy, x, weight, *geometry, p, impl)
        return dx, dw, *[None] * len(ctx.options)
    if ctx.needs_input_grad[0]:
        dx = adder2d_grad_input(dy, x, weight, *geometry, input_grad, p, impl)
    if ctx.needs_input_grad[1]:
        dw = adder2d_grad_weight(dy, x, weight, *geometry, weight_grad, p, impl)
    return dx, dw, *[None] * len(ctx.options)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "adder2d has no second derivative: for p = 1 its gradient is a surrogate (arXiv 1912.13200, Eq. 5 to 7), and "
        "differentiating that would not give a derivative of anything; for p > 1 none is implemented. Use "
        "create_graph=False."
    )


register_autograd(LIBRARY, "adder2d", _backward, _setup_context)
register_autograd(LIBRARY, "adder2d_grad_input", _no_second_derivative)
register_autograd(LIBRARY, "adder2d_grad_weight", _no_second_derivative)
register_autograd(LIBRARY, "adder2d_gradients", _no_second_derivative)
