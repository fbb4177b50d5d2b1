"""Our ONNX functions: a node of the domain ``ai.adder_zoo``, and what it means in standard operators.

    Adder2d           x, w                            -> y                 adder_zoo::adder2d with p = 1
    Adder2dPower      x, w                            -> y                 any p, and float64
    Adder2dFused      x, w, scale, shift, residual    -> y                 adder_zoo::adder2d_fused
    Adder2dInt8       x, w                            -> y                 adder_zoo::adder2d_int8
    Adder2dInt8Fused  x, w, scale, shift, residual    -> wide, narrow      adder_zoo::adder2d_int8_fused

Shapes: x [N, H, W, C], w [K, R, S, C/group], scale and shift [K], residual and the results [N, P, Q, K]. What is
absent has no elements. Each layer's function has a body for its own sizes; ``overload`` tells them apart. A runtime
with a native kernel of the same name takes that in the function's place and reads the attributes.

A runtime that does not look at ``overload`` (ONNX Runtime before 1.27, ONNX's reference) would run one layer's body for
all of them, and where their shapes agree give a wrong answer. ``guarded`` makes that an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ops.geometry import Geometry
from ..ops.int8.reference import Epilogue
from ._bodies import Builder, Layer, distance

DOMAIN, VERSION = "ai.adder_zoo", 1
OPSET = 18  # of ONNX: what the bodies are written in, and torch writes in at first
FLOAT_NODES = ("Adder2d", "Adder2dFused")
INT8_NODES = ("Adder2dInt8", "Adder2dInt8Fused")
# What such a runtime says that it does not have.
IGNORES_OVERLOADS = "ThisRuntimeIgnoresOverloadsOfFunctions_OnnxRuntimeSince1_27_KnowsThem"


def geometry_attributes(geometry: Geometry) -> dict[str, int]:
    """A geometry as attributes of a node: a number each, as ONNX Runtime hands them to a kernel."""
    names = (
        "stride_h", "stride_w", "pad_top", "pad_bottom", "pad_left", "pad_right", "dilation_h", "dilation_w", "group",
    )  # fmt: skip
    values = (*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups)
    return dict(zip(names, values, strict=True))


def plain(layer: Layer) -> ir.Function:
    """``Adder2d``, ``Adder2dPower`` or ``Adder2dInt8``."""

    def body(b: Builder, x: ir.Value, w: ir.Value) -> list[ir.Value]:
        return [b.Transpose(b.Neg(distance(b, x, w, layer)), perm=[0, 2, 3, 1])]

    attributes: dict[str, Any] = {**geometry_attributes(layer.geometry)}
    name = "Adder2d"
    if layer.dtype == ir.DataType.INT32:
        name, attributes = "Adder2dInt8", {**attributes, "zero_point": layer.pad_value}
    elif layer.p != 1 or layer.dtype == ir.DataType.DOUBLE:
        name, attributes = "Adder2dPower", {**attributes, "p": layer.p}
    return _function(name, layer.key, ("x", "w"), attributes, body)


def fused(layer: Layer, relu: bool, residual: bool) -> ir.Function:
    """``Adder2dFused``."""

    def body(b: Builder, x: ir.Value, w: ir.Value, scale: ir.Value, shift: ir.Value, added: ir.Value) -> list[ir.Value]:
        y = b.Transpose(distance(b, x, w, layer), perm=[0, 2, 3, 1])
        y = b.Add(b.Mul(y, b.Neg(scale)), shift)
        y = b.Add(y, added) if residual else y
        return [b.Relu(y) if relu else y]

    key = layer.key + "_relu" * relu + "_residual" * residual
    attributes = {**geometry_attributes(layer.geometry), "relu": int(relu)}
    return _function("Adder2dFused", key, ("x", "w", "scale", "shift", "residual"), attributes, body)


def int8_fused(layer: Layer, after: Epilogue, residual: bool) -> ir.Function:
    """``Adder2dInt8Fused``; of ``after`` only the numbers count."""

    def body(b: Builder, x: ir.Value, w: ir.Value, scale: ir.Value, shift: ir.Value, added: ir.Value) -> list[ir.Value]:
        y = b.Transpose(b.Neg(distance(b, x, w, layer)), perm=[0, 2, 3, 1])
        v = b.Add(b.Mul(b.Cast(y, to=ir.DataType.FLOAT), scale), shift)
        v = b.Add(v, added) if residual else v
        zero = b.constant(0, np.float32)
        if after.relu:
            v = b.Where(b.Greater(v, zero), v, zero)  # a NaN becomes 0
        return [
            v if after.wide else _nothing(b, np.float32),
            levels(b, v, after.inverse_step, after.next_zero_point, after.top)
            if after.narrow
            else _nothing(b, np.uint8),
        ]

    attributes: dict[str, Any] = {
        **geometry_attributes(layer.geometry),
        "zero_point": layer.pad_value,
        "relu": int(after.relu),
        "wide": int(after.wide),
        "narrow": int(after.narrow),
        "inverse_step": float(np.float32(after.inverse_step)),
        "next_zero_point": after.next_zero_point,
        "top": after.top,
    }
    own = [f"{name}{attributes[name]}" for name in ("relu", "wide", "narrow", "next_zero_point", "top")]
    step = f"step{np.float32(after.inverse_step).view(np.uint32):08x}"  # all of its bits
    key = "_".join([layer.key, *own, step, *["residual"] * residual])
    return _function("Adder2dInt8Fused", key, ("x", "w", "scale", "shift", "residual"), attributes, body, 2)


def levels(b: Builder, v: ir.Value, inverse_step: float, zero_point: int, top: int) -> ir.Value:
    """``clamp(round(v·inverse_step) + zero_point, 0, top)`` as uint8, halves to even; a NaN becomes 0."""
    lowest, highest, shift = (b.constant(n, np.float32) for n in (0, top, zero_point))
    level = b.Add(b.Round(b.Mul(v, b.constant(inverse_step, np.float32))), shift)
    level = b.Where(b.IsNaN(level), lowest, level)
    return b.Cast(b.Clip(level, lowest, highest), to=ir.DataType.UINT8)


def _nothing(b: Builder, dtype: Any) -> ir.Value:
    return b.constant([], dtype)


def _function(
    name: str,
    key: str,
    inputs: Sequence[str],
    attributes: Mapping[str, Any],
    body: Callable[..., list[ir.Value]],
    outputs: int = 1,
) -> ir.Function:
    """A function with its node's attributes, which the body does not read: it is made for them."""
    b = Builder(f"t{i}" for i in itertools.count())
    values = [ir.Value(name=given) for given in inputs]
    results = body(b, *values)
    names = ("y",) if outputs == 1 else ("wide", "narrow")
    for given, result in zip(names, results, strict=True):
        result.name = given
    graph = ir.Graph(values, results, nodes=b.nodes, opset_imports={"": OPSET}, name=key)
    declared = [ir.AttrFloat32(k, v) if isinstance(v, float) else ir.AttrInt64(k, v) for k, v in attributes.items()]
    function = ir.Function(DOMAIN, name, key, graph=graph, attributes=declared)
    return function


def guarded(functions: Sequence[ir.Function]) -> list[ir.Function]:
    """``functions``, and where several have one name, a first and a last one of that name, which no node calls.

    A runtime that keeps one function for each name keeps one of these two, and then asks for an operator that nobody
    has. The operator's name is the message.
    """
    named: dict[str, list[ir.Function]] = {}
    for function in functions:
        named.setdefault(function.name, []).append(function)
    several = [group[0] for group in named.values() if len(group) > 1]
    first, last = ([_guard(function, end) for function in several] for end in ("guard_first", "guard_last"))
    return [*first, *functions, *last]


def _guard(like: ir.Function, overload: str) -> ir.Function:
    inputs = [ir.Value(name=value.name) for value in like.inputs]
    b = Builder(f"t{i}" for i in itertools.count())
    unknown = b.op(IGNORES_OVERLOADS, inputs, domain=DOMAIN)
    results = [b.Cast(unknown, to=_type(like.name, value.name)) for value in like.outputs]  # or types are at fault
    for result, named in zip(results, like.outputs, strict=True):
        result.name = named.name
    graph = ir.Graph(inputs, results, nodes=b.nodes, opset_imports={"": OPSET, DOMAIN: VERSION}, name=overload)
    return ir.Function(DOMAIN, like.name, overload, graph=graph, attributes=list(like.attributes.values()))


def _type(function: str, output: str | None) -> ir.DataType:
    if output == "narrow":
        return ir.DataType.UINT8
    return ir.DataType.INT32 if function == "Adder2dInt8" else ir.DataType.FLOAT
