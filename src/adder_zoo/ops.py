"""The operator and its two gradients as ``torch.library`` operators, so that compile, export and opcheck see them.

    adder_zoo::adder2d              forward, Eq. 2; its autograd calls the other two
    adder_zoo::adder2d_grad_input   Eq. 6 and 7
    adder_zoo::adder2d_grad_weight  Eq. 5 (or 4)

``functional.adder2d`` checks what a user hands in; these take normalised arguments: stride and dilation as pairs,
padding as (top, bottom, left, right), ``impl`` a name or "auto". Implementations run with autocast off: they compute in
float32 whatever comes in. Whatever one returns is laid out here as the fake kernels promise: channels_last where the
input or the filters are, as ``conv2d`` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import batching
from .autograd import register_autograd
from .implementations import resolve
from .reference import compute_dtype

_library = torch.library.Library("adder_zoo", "FRAGMENT")  # what it registers lives as long as it does


def operator(fake: Callable[..., Tensor], vmap: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Makes an operator ``adder_zoo::<name>`` of a function: ``fake`` says how the result is laid out.

    ``vmap(operator, B, in_dims, *args)``, if given, computes it for B samples at once and returns (result, dimension).
    """

    def define(function: Callable[..., Tensor]) -> Any:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, without_autocast(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"adder_zoo::{name}", fake, lib=_library)
        overload = getattr(torch.ops.adder_zoo, name).default
        if vmap is not None:

            def rule(info: Any, in_dims: tuple, *args: Any) -> Any:
                return vmap(overload, info.batch_size, in_dims, *args)

            torch.library.register_vmap(f"adder_zoo::{name}", rule, lib=_library)
        return overload

    return define


def without_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function``, whose first argument is a tensor, run with autocast off for that tensor's kind of device."""

    @functools.wraps(function)
    def run(x: Tensor, *args: Any) -> Tensor:
        device = x.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(x, *args)
        with torch.autocast(device, enabled=False):
            return function(x, *args)

    return run


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if one of the tensors is that and nothing else; like ``conv2d``, the filters have a say."""
    for t in tensors:
        if t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def _output_shape(x: Tensor, weight: Tensor, stride, padding, dilation) -> list:
    P = (x.shape[2] + padding[0] + padding[1] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    Q = (x.shape[3] + padding[2] + padding[3] - dilation[1] * (weight.shape[3] - 1) - 1) // stride[1] + 1
    return [x.shape[0], weight.shape[0], P, Q]


def _check_operands(
    x: Tensor, weight: Tensor, groups: int, dy: Tensor | None = None, output: list | None = None
) -> None:
    """The kernels believe what they are told; what does not fit would be read beyond its end."""
    if x.dim() != 4 or weight.dim() != 4 or groups < 1:
        raise ValueError(f"adder_zoo: expected 4 dimensions and groups, got {x.shape}, {weight.shape}, {groups}")
    if weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise ValueError(
            f"adder_zoo: filters {list(weight.shape)} in {groups} group(s) do not fit {x.shape[1]} channels of x"
        )
    if dy is not None and list(dy.shape) != output:
        raise ValueError(f"adder_zoo: dy must have shape {output}, got {list(dy.shape)}")


def _fake_adder2d(x, weight, stride, padding, dilation, groups, weight_grad, input_grad, p, impl):
    shape = _output_shape(x, weight, stride, padding, dilation)
    y = x.new_empty(shape, dtype=compute_dtype(x))
    return y.contiguous(memory_format=_memory_format(x, weight))


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
    _check_operands(x, weight, groups)
    module = resolve(impl, x, p)
    power = {} if p == 1 else {"p": p}
    y = module.forward(x, weight, stride, padding, dilation, groups, **power)
    return y.contiguous(memory_format=_memory_format(x, weight))


def _fake_grad_input(dy, x, weight, stride, padding, dilation, groups, input_grad, p, impl):
    return x.new_empty(x.shape).contiguous(memory_format=_memory_format(x))


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
    _check_operands(x, weight, groups, dy, _output_shape(x, weight, stride, padding, dilation))
    module = resolve(impl, x, p)
    power = {} if p == 1 else {"p": p}
    dx = module.grad_input(dy, x, weight, stride, padding, dilation, groups, input_grad, **power)
    return dx.contiguous(memory_format=_memory_format(x))


def _fake_grad_weight(dy, x, weight, stride, padding, dilation, groups, weight_grad, p, impl):
    return weight.new_empty(weight.shape).contiguous(memory_format=_memory_format(weight))


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
    _check_operands(x, weight, groups, dy, _output_shape(x, weight, stride, padding, dilation))
    module = resolve(impl, x, p)
    power = {} if p == 1 else {"p": p}
    dw = module.grad_weight(dy, x, weight, stride, padding, dilation, groups, weight_grad, **power)
    return dw.contiguous(memory_format=_memory_format(weight))


def _setup_context(ctx, inputs, output):
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy):
    x, weight = ctx.saved_tensors
    *geometry, weight_grad, input_grad, p, impl = ctx.options
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = adder2d_grad_input(dy, x, weight, *geometry, input_grad, p, impl)
    if ctx.needs_input_grad[1]:
        dw = adder2d_grad_weight(dy, x, weight, *geometry, weight_grad, p, impl)
    return dx, dw, *[None] * len(ctx.options)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "adder2d has no second derivative: its gradient is a surrogate (arXiv 1912.13200, Eq. 5 to 7), and "
        "differentiating that would not give a derivative of anything. Use create_graph=False."
    )


register_autograd(_library, "adder2d", _backward, _setup_context)
register_autograd(_library, "adder2d_grad_input", _no_second_derivative)
register_autograd(_library, "adder2d_grad_weight", _no_second_derivative)
