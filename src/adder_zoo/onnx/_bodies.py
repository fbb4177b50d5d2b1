"""Bodies of our ONNX functions: the distance in standard operators, in pieces that fit into a processor's cache.

ONNX has no operator for a distance. A node of our own domain calls a function of the file instead, and the function's
body is what is here: patches of one image are laid side by side, then Sub, Abs and ReduceSum go over a few filters at
a time in a Scan. The number of images and the size of a layer do not change how much memory a piece needs.

Shapes in a body: x [N, H, W, C], w [K, R, S, C/groups], y [N, P, Q, K], as the native kernels have them.
D = R·S·C/groups is the number of taps, M = P·Q the number of output pixels, G the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..ops.geometry import Geometry

PIECE = 1 << 18  # differences held at a time, 1 MiB; more leave the cache and take longer
FEW_PIXELS = 128  # with fewer, taps lie innermost: ONNX Runtime's loops want a long last dimension
MANY_TAPS = 32


@dataclass(frozen=True)
class Layer:
    """All that the body of a distance depends on.

    Attributes:
        size: (H, W), or None where it may change.
        single: Whether a batch is one image.
        filters: (K, R, S, C/groups).
        geometry: See ``Geometry``.
        p: The exponent.
        dtype: Of the sums: FLOAT, DOUBLE, or INT32 for x and w in UINT8.
        pad_value: What a padded pixel is.
    """

    size: tuple[int, int] | None
    single: bool
    filters: tuple[int, int, int, int]
    geometry: Geometry
    p: float
    dtype: ir.DataType
    pad_value: int = 0

    @property
    def key(self) -> str:
        """A name for the body, readable, and different where a body is."""
        K, R, S, Cg = self.filters
        g = self.geometry
        size = "x".join(map(str, self.size)) if self.size else "any"
        parts = [
            size, f"k{K}x{R}x{S}x{Cg}", f"s{_dots(g.stride)}", f"p{_dots(g.padding)}", f"d{_dots(g.dilation)}",
            f"g{g.groups}", self.dtype.name.lower(),
        ]  # fmt: skip
        parts += [f"e{self.p!r}"] if self.p != 1 else []
        parts += [f"z{self.pad_value}"] if self.pad_value else []
        parts += ["single"] if self.single else []
        return "_".join(parts)


class Builder(ir.tape.Tape):
    """Nodes in the order that they were asked for; ``b.Sub(x, y)`` is a node's output.

    Args:
        names: Names for the outputs. A function needs them, for a subgraph may not use a name from around it again.
    """

    def __init__(self, names: Iterator[str] | None = None) -> None:
        super().__init__()
        self.names = names

    def op(self, *args: Any, **kwargs: Any) -> ir.Value:
        output = super().op(*args, **kwargs)
        if self.names is not None:
            output.name = next(self.names)
        return output

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.op(op_type, list(inputs), attributes)

    def constant(self, values: Any, dtype: Any = np.int64) -> ir.Value:
        return self.Constant(value=ir.tensor(np.asarray(values, dtype)))

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.Reshape(x, self.constant(shape))

    def scan(self, body: Callable[..., ir.Value], *inputs: ir.Value) -> ir.Value:
        """``body(builder, slices)`` for each slice of ``inputs`` along their first dimension, its results stacked."""
        assert self.names is not None
        inner = Builder(self.names)
        slices = [ir.Value(name=next(self.names)) for _ in inputs]
        result = inner.Identity(body(inner, *slices))
        graph = ir.Graph(slices, [result], nodes=inner.nodes, name="piece")
        return self.op("Scan", list(inputs), {"body": graph, "num_scan_inputs": len(inputs)})


def distance(b: Builder, x: ir.Value, w: ir.Value, layer: Layer) -> ir.Value:
    """Σ|x - w|^p over each patch, [N, K, P, Q]: x [N, H, W, C], w [K, R, S, C/groups]."""
    K = layer.filters[0]
    x = b.Transpose(x, perm=[0, 3, 1, 2])
    if layer.dtype == ir.DataType.INT32:
        x, w = (b.Cast(t, to=ir.DataType.INT32) for t in (x, w))
    top, bottom, left, right = layer.geometry.padding
    if any(layer.geometry.padding):
        value = b.constant(layer.pad_value, layer.dtype.numpy())
        x = b.Pad(x, b.constant([0, 0, top, left, 0, 0, bottom, right]), value)

    def image(b: Builder, x: ir.Value) -> ir.Value:
        patches = _patches(b, x, layer)
        size = b.Slice(b.Shape(patches), b.constant([2]), b.constant([4]))
        y = _sums(b, patches, w, layer)
        return b.Reshape(y, b.Concat(b.constant([K]), size, axis=0))

    if layer.single:
        return b.Unsqueeze(image(b, b.Squeeze(x, b.constant([0]))), b.constant([0]))
    return b.scan(image, x)


def _patches(b: Builder, x: ir.Value, layer: Layer) -> ir.Value:
    """The padded image [C, H, W] as patches [G, D, P, Q]."""
    _, R, S, Cg = layer.filters
    g = layer.geometry
    shape = b.Concat(b.constant([g.groups, Cg]), b.Slice(b.Shape(x), b.constant([1]), b.constant([3])), axis=0)
    x = b.Reshape(x, shape)
    if (R, S, g.stride) == (1, 1, (1, 1)):
        return x
    taps = []
    for r in range(R):
        for s in range(S):
            starts = [r * g.dilation[0], s * g.dilation[1]]
            # As far as the last place of the kernel lets this tap go: it does not depend on the image's size.
            ends = [
                (i + 1 - n) * d or np.iinfo(np.int64).max for i, n, d in zip((r, s), (R, S), g.dilation, strict=True)
            ]
            taps.append(b.Slice(x, *map(b.constant, (starts, ends, [2, 3], g.stride))))
    return b.Concat(*taps, axis=1) if len(taps) > 1 else taps[0]


def _sums(b: Builder, patches: ir.Value, w: ir.Value, layer: Layer) -> ir.Value:
    """Σ|x - w|^p of patches [G, D, P, Q] and all filters, a piece of them at a time, [..., M] in the filters' order."""
    K, R, S, Cg = layer.filters
    G, Kg, D = layer.geometry.groups, K // layer.geometry.groups, R * S * Cg
    M = _pixels(layer)
    by_taps = K == 1 or (M is not None and M <= FEW_PIXELS and D >= MANY_TAPS)
    patches = b.reshape(patches, [G, 1, D, -1])
    patch, filters = [1, D, -1], [D, 1]
    if by_taps:
        patches = b.Transpose(patches, perm=[0, 1, 3, 2])
        patch, filters = [1, -1, D], [1, D]

    def difference(b: Builder, patches: ir.Value, w: ir.Value) -> ir.Value:
        d = b.Sub(patches, w)
        if layer.p == 2:
            d = b.Mul(d, d)
        else:
            d = b.Abs(d)
            if layer.p != 1:
                d = b.Pow(d, b.constant(layer.p, layer.dtype.numpy()))
        return b.ReduceSum(d, b.constant([-1 if by_taps else -2]), keepdims=0)

    one = D * (M or PIECE)  # differences of one filter
    if one * K <= PIECE or K == 1:
        return difference(b, patches, b.reshape(w, [G, Kg, *filters]))
    together = _piece(G, Kg * one)
    if together > 1 and (Kg == 1 or together * Kg * one <= PIECE):
        patches = b.reshape(patches, [G // together, together, *patch])
        return b.scan(difference, patches, b.reshape(w, [G // together, together, Kg, *filters]))
    together = _piece(Kg, one)

    def group(b: Builder, patches: ir.Value, w: ir.Value) -> ir.Value:
        pieces = b.reshape(w, [Kg // together, together, *filters])
        return b.scan(lambda inner, piece: difference(inner, patches, piece), pieces)

    if G == 1:
        return group(b, b.reshape(patches, patch), w)
    return b.scan(group, patches, b.reshape(w, [G, Kg, *filters]))


def _pixels(layer: Layer) -> int | None:
    """M, where it is known."""
    if layer.size is None:
        return None
    P, Q = layer.geometry.output_size(layer.size, layer.filters[1:3])
    return P * Q


def _piece(count: int, size: int) -> int:
    """The divisor of ``count`` with which pieces of ``size`` fill PIECE; 2 or more, as single ones reduce slowly."""
    divisors = [n for n in range(2, count + 1) if count % n == 0]
    return max([n for n in divisors if n * size <= PIECE], default=min(divisors, default=1))


def _dots(values: Sequence[int]) -> str:
    return ".".join(map(str, values if len(set(values)) > 1 else values[:1]))
