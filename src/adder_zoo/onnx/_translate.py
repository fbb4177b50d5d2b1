"""How the exporter of torch writes our operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
import torch

from ..ops.geometry import Geometry
from ..ops.int8.reference import Epilogue
from . import _functions
from ._bodies import Builder, Layer

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class Translator:
    """Writes the package's operators while torch exports a network.

    Args:
        functions: Collects the functions that the nodes call. None gives them to torch, which puts their bodies in the
            nodes' place at once.
    """

    def __init__(self, functions: dict[Any, ir.Function] | None = None) -> None:
        self.functions = functions

    def table(self) -> dict[Any, Callable[..., Any]]:
        """What writes each operator, as ``custom_translation_table`` of ``torch.onnx.export`` takes it."""
        ops = torch.ops.adder_zoo
        methods: dict[Any, Callable[..., Any]] = {
            ops.adder2d: self.adder2d,
            ops.adder2d_fused: self.adder2d_fused,
            ops.adder2d_int8: self.adder2d_int8,
            ops.adder2d_int8_fused: self.adder2d_int8_fused,
            ops.int8_levels: self.int8_levels,
        }
        return {operator.default: _function(method) for operator, method in methods.items()}

    def adder2d(self, x, weight, stride, padding, dilation, groups, weight_grad, input_grad, p, impl):  # type: ignore[no-untyped-def]
        b = Builder()
        x, weight = _widened(b, x), _widened(b, weight)
        layer = _layer(x, weight, Geometry.of(stride, padding, dilation, groups), float(p))
        return _record(b, self._call(b, _functions.plain(layer), x, weight))

    def adder2d_fused(self, x, weight, scale, shift, residual, stride, padding, dilation, groups, relu, impl):  # type: ignore[no-untyped-def]
        b = Builder()
        x, weight = _widened(b, x), _widened(b, weight)
        layer = _layer(x, weight, Geometry.of(stride, padding, dilation, groups))
        scale, shift, residual = (_cast(b, t, layer.dtype) for t in (scale, shift, residual))
        if layer.dtype == ir.DataType.DOUBLE:  # no native kernel would take it
            (y,) = self._call(b, _functions.plain(layer), x, weight)
            y = b.Add(b.Mul(y, b.reshape(scale, [-1, 1, 1])), b.reshape(shift, [-1, 1, 1]))
            y = y if residual is None else b.Add(y, residual)
            return _record(b, [b.Relu(y) if relu else y])
        function = _functions.fused(layer, relu, residual is not None)
        return _record(b, self._call(b, function, x, weight, scale, shift, residual))

    def adder2d_int8(self, x, weight, zero_point, stride, padding, dilation, groups, impl="auto"):  # type: ignore[no-untyped-def]
        b = Builder()
        layer = _layer(x, weight, Geometry.of(stride, padding, dilation, groups), zero_point=zero_point)
        return _record(b, self._call(b, _functions.plain(layer), x, weight))

    def adder2d_int8_fused(  # type: ignore[no-untyped-def]
        self, x, weight, zero_point, scale, shift, residual, relu, wide, inverse_step, next_zero_point, top, narrow,
        stride, padding, dilation, groups, impl="auto",
    ):  # fmt: skip
        b = Builder()
        layer = _layer(x, weight, Geometry.of(stride, padding, dilation, groups), zero_point=zero_point)
        after = Epilogue(scale, shift, residual, relu, wide, inverse_step, next_zero_point, top, narrow)
        function = _functions.int8_fused(layer, after, residual is not None)
        return _record(b, self._call(b, function, x, weight, scale, shift, residual, images=(wide, narrow)))

    def int8_levels(self, x, inverse_step, zero_point, top, impl="auto"):  # type: ignore[no-untyped-def]
        b = Builder()
        return _record(b, [_functions.levels(b, x, inverse_step, zero_point, top)])

    def _call(
        self,
        b: Builder,
        function: ir.Function,
        x: ir.Value,
        weight: ir.Value,
        *others: ir.Value | None,
        images: Sequence[bool] = (True,),
    ) -> list[ir.Value]:
        """The node that calls ``function``, with x, the filters and the residual channels last, as it takes them.

        ``images`` says which of its results are images, and brought back to [N, K, P, Q].
        """
        functions = _tracer().functions if self.functions is None else self.functions
        functions.setdefault(function.identifier(), function)
        inputs = [_transposed(b, x, TO_LAST), _transposed(b, weight, TO_LAST), *others[:2]]
        if others:
            residual = others[2]
            inputs.append(b.constant([], np.float32) if residual is None else _transposed(b, residual, TO_LAST))
        attributes = {name: attribute.value for name, attribute in function.attributes.items()}
        results = b.op_multi_out(
            function.name, inputs, attributes, num_outputs=len(images), domain=function.domain,
            overload=function.overload, version=_functions.VERSION,
        )  # fmt: skip
        return [b.Transpose(y, perm=TO_FIRST) if image else y for y, image in zip(results, images, strict=True)]


def _function(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method as a function, on which torch notes something; a method takes no attributes."""

    @functools.wraps(method)
    def translate(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return translate


def _layer(x: ir.Value, weight: ir.Value, geometry: Geometry, p: float = 1.0, zero_point: int = 0) -> Layer:
    assert x.shape is not None
    assert weight.shape is not None
    K, Cg, R, S = (int(n) for n in weight.shape)  # type: ignore[arg-type]
    N, _, H, W = x.shape
    size = (H, W) if isinstance(H, int) and isinstance(W, int) else None
    dtype = ir.DataType.INT32 if x.dtype == ir.DataType.UINT8 else x.dtype
    assert dtype is not None
    return Layer(size, N == 1, (K, R, S, Cg), geometry, p, dtype, zero_point)


def _transposed(b: Builder, t: ir.Value, perm: list[int]) -> ir.Value:
    y = b.Transpose(t, perm=perm)
    y.type, y.shape = t.type, None if t.shape is None else ir.Shape([t.shape[i] for i in perm])
    return y


def _cast(b: Builder, t: ir.Value | None, dtype: ir.DataType) -> ir.Value | None:
    if t is None or t.dtype == dtype:
        return t
    cast = b.Cast(t, to=dtype)
    cast.dtype, cast.shape = dtype, t.shape
    return cast


def _widened(b: Builder, t: ir.Value) -> ir.Value:
    """Half precision in float32, which the operator computes in."""
    wide = _cast(b, t, ir.DataType.FLOAT) if t.dtype in HALF else t
    assert wide is not None
    return wide


def _tracer() -> Any:
    """torch's exporter at work: it takes the nodes and functions that an operator is made of."""
    return onnxscript.evaluator.default()  # type: ignore[attr-defined]


def _record(b: Builder, results: Sequence[ir.Value]) -> Any:
    _tracer().nodes.extend(b.nodes)
    return results[0] if len(results) == 1 else tuple(results)
