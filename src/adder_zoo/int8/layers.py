"""``QuantizedAdder2d``, ``QuantizedAdderLinear``: fused adder layers in bytes, as ``adder_zoo.quantize`` makes them."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import get_same_padding
from torch import Tensor

from ..functional import adder2d
from ..fuse import FusedAdder2d, FusedAdderLinear
from ..inference import LayerInBytes
from ..layers import Adder2dSame
from ..norms import PartlyFloat32, cast
from ..ops.geometry import Geometry
from ..ops.int8.library import adder2d_int8, adder2d_int8_fused, int8_levels
from ..ops.int8.reference import levels

REFUSED_TRAINING = (
    "this network was quantised for inference and cannot be trained. Train the network that was given to "
    "adder_zoo.quantize(), and quantise it again."
)
REFUSED_FLOAT64 = (
    "a quantised network has no float64 form: behind its exact sums it computes in float32. Leave it in float32 (or go "
    "to half precision), or use the network that was given to adder_zoo.quantize()."
)


BITS = range(2, 9)


@dataclass(frozen=True)
class Range:
    """What the bytes of a layer's input and filters stand for: ``value = step·(level - zero_point)``.

    Attributes:
        step: Distance between two levels, above 0.
        zero_point: The level that stands for 0, exactly, as padding needs it; 0 to ``top``.
        top: The highest level, 2^bits - 1.
    """

    step: float
    zero_point: int
    top: int

    @classmethod
    def covering(cls, low: float, high: float, bits: int) -> Range:
        """The range of 2^bits levels from ``low`` <= 0 to ``high`` >= 0, moved so that 0 is one of them."""
        top = 2**bits - 1
        step = (high - low) / top
        return cls(step, round(-low / step), top)

    @property
    def bits(self) -> int:
        return self.top.bit_length()

    @property
    def low(self) -> float:
        return -self.zero_point * self.step

    @property
    def high(self) -> float:
        return (self.top - self.zero_point) * self.step

    def levels(self, x: Tensor) -> Tensor:
        """``x``, float32, as bytes."""
        compiles = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        as_bytes = levels if compiles else int8_levels  # a compiler makes its own pass of it
        return as_bytes(x, 1 / self.step, self.zero_point, self.top)

    def level(self, value: float) -> int:
        """The level that a value is rounded to, as ``levels`` rounds it, in float32."""
        with np.errstate(over="ignore"):
            level = np.rint(np.float32(value) * np.float32(1 / self.step)) + np.float32(self.zero_point)
        return int(np.clip(level, 0, self.top))


class QuantizedAdder2d(LayerInBytes, PartlyFloat32):
    """A fused adder layer whose input and filters are bytes; for inference only.

        y = act(scale[k]·(-Σ|x - w|) + shift[k] + shortcut)

    over levels x and w, where ``scale`` and ``shift`` hold the step between levels, batch norm, and what clipping the
    filters to the range took from each sum::

        |x - w| = |x - clip(w, low, high)| + relu(low - w) + relu(w - high)        for low <= x <= high

    Where no batch norm follows the layer, scale and shift are the step between levels and the layer's bias.

    Shapes: input [N, C, H, W], floating point (made bytes here) or, where ``takes_bytes``, uint8 levels of
    ``input_range``, and the shortcut that is added, [N, K, P, Q]; output [N, K, P, Q]: float32 (half precision where
    the network is in it), or what ``emit`` asked for.

    ``ranges`` is in the state dict, for bytes mean nothing without them; int64, which no ``half()`` rounds.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    ranges: Tensor
    takes_bytes = False  # whether the layer before it hands on bytes in its range
    ceiling = math.inf  # what the ReLU lets through; 6 for ReLU6, and then bytes alone are emitted

    def __init__(self, layer: FusedAdder2d, input_range: Range) -> None:
        super().__init__()
        self.geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
        self.same, self.relu = layer.same, layer.relu
        self.normed, self.casts, self.precision = layer.normed, layer.casts, layer.precision
        self.impl = layer.impl if layer.impl in ("reference", "cpu") else None
        self.input_range = input_range
        self.register_buffer("weight", input_range.levels(layer.weight.detach().float()))
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("shift", torch.empty(0))
        self.set_line(layer, *clipped_line(layer, input_range))
        self.wide, self.next_range = True, None  # type: bool, Range | None
        self.top = self._top()
        self.register_buffer("ranges", self._ranges())
        self.eval()

    def set_line(self, layer: FusedAdder2d, slope: Tensor, offset: Tensor) -> None:
        """Takes ``slope[k]·(sum over levels) + offset[k]`` for the sum over values, with batch norm behind it."""
        scale = layer.scale.double()
        self.scale = (scale * slope).float()
        self.shift = (scale * offset + layer.shift.double()).float()

    def emit(self, wide: bool, next_range: Range | None) -> None:
        """What ``forward`` returns: float32, bytes in the next layer's range, or both as a pair."""
        self.wide, self.next_range = wide, next_range
        self.top = self._top()
        self.ranges = self._ranges()

    def activate(self, ceiling: float) -> None:
        """Takes in a ReLU that follows the layer and lets ``ceiling`` through at most."""
        self.relu, self.ceiling = True, min(self.ceiling, ceiling)
        self.top = self._top()

    def _top(self) -> int:
        """The highest level that is emitted. ``forward`` does not compute it: an exported program would, too."""
        out = self.next_range
        return 255 if out is None else out.top if self.ceiling == math.inf else out.level(self.ceiling)

    def take_bytes(self) -> None:
        """Lets ``forward`` take uint8 levels of ``input_range``."""
        self.takes_bytes = True
        self.ranges = self._ranges()

    def _ranges(self) -> Tensor:
        """[3, 3]: the input's range, the next layer's (0 where there is none), and how the layer is connected."""
        rows = [range_integers(self.input_range), range_integers(self.next_range), self._connection()]
        return torch.tensor(rows, device=self.weight.device)

    def _connection(self) -> list[int]:
        return [int(self.wide), int(self.takes_bytes), 0]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        """Takes the ranges with the bytes; refuses float filters, other bits, and bytes that go other ways."""
        ranges = state_dict.get(f"{prefix}ranges")
        problem = self._unlike(state_dict, prefix)
        if problem is not None:
            lists[-1].append(f"{prefix}{problem}")
            return
        if ranges is not None and ranges.shape == self.ranges.shape:
            rows = ranges.tolist()
            self.input_range = range_of(rows[0])
            self.next_range = range_of(rows[1]) if rows[1][2] else None
            self.top = self._top()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)  # type: ignore[no-untyped-call]

    def _unlike(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """Why a state dict is not of such a layer; None if it is, or has nothing for it."""
        own = {name: state_dict.get(f"{prefix}{name}") for name in ("weight", "scale", "shift", "ranges")}
        weight, ranges = own["weight"], own["ranges"]
        if weight is not None and (weight.dtype != torch.uint8 or ranges is None):
            return (
                "weight: this layer holds bytes, and what is loaded are float filters (or bytes without their "
                "ranges). Load them into the float network, and call adder_zoo.quantize()."
            )
        missing = [name for name, tensor in own.items() if tensor is None]
        if missing and len(missing) < len(own):
            return f"{missing[0]} is missing: bytes, their ranges, scale and shift mean nothing without each other."
        if ranges is None or ranges.shape != self.ranges.shape or ranges.is_meta or self.ranges.is_meta:
            return None  # what is missing or of another shape is told by torch
        rows = ranges.tolist()
        if not all(_sound(row) for row in rows[: 2 if rows[1][2] else 1]):
            return "ranges are damaged: a range has a step above 0, and its zero point is one of its levels."
        if rows[2] != self._connection() or (rows[1][2] > 0) != (self.next_range is not None):
            return (
                "ranges: the bytes go from layer to layer in another way in the network that was saved. "
                "Load it as a whole: timm.create_model('local-dir:FOLDER', pretrained=True) builds what "
                "adder_zoo.save_pretrained() wrote."
            )
        for row, own_range in ((rows[0], self.input_range), (rows[1], self.next_range)):
            if own_range is not None and row[2] != own_range.top:
                return (
                    f"ranges: what is loaded has {range_of(row).bits} bits, and this network {own_range.bits}. Load it "
                    "by its own tag, or timm.create_model('local-dir:FOLDER', pretrained=True)."
                )
        return None

    def _float32_tensors(self) -> list[Tensor]:
        return [self.scale, self.shift]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Raises TypeError where ``fn`` makes float64 of float32."""
        refuse_float64(fn, self.scale.device)
        return super()._apply(fn, recurse)

    def _filters(self) -> Tensor:
        return self.weight

    def sums(self, x: Tensor) -> Tensor:
        """The bare -Σ|x - w| over levels, int32 [N, K, P, Q]."""
        x, geometry = self._operands(x)
        return adder2d_int8(x, self._filters(), self.input_range.zero_point, *geometry.arguments, self.impl or "auto")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        x, geometry = self._operands(x)
        out = self.next_range or Range(1.0, 0, 255)
        later = None  # a shortcut that the output is broadcast to
        if residual is not None:
            shape, residual = geometry.output_shape(x, self._filters()), residual.float()
            if list(residual.shape) == shape:
                pass  # nearly always, and broadcast_shapes takes as long as a small layer
            elif list(torch.broadcast_shapes(residual.shape, shape)) == shape:
                residual = residual.expand(shape)
            else:
                later, residual = residual, None
        wide, narrow = adder2d_int8_fused(
            x, self._filters(), self.input_range.zero_point, self.scale, self.shift, residual,
            self.relu and later is None, self.wide or later is not None, 1 / out.step, out.zero_point, self.top,
            self.next_range is not None, *geometry.arguments, self.impl or "auto",
        )  # fmt: skip
        if later is not None:
            wide = (wide + later).relu_() if self.relu else wide + later
            narrow = out.levels(wide.clamp(max=self.ceiling))
        # Bare sums stay float32 whatever the network is in, as a float layer's do.
        if self.normed and (self.casts or self.precision) and (self.wide or later is not None):
            wide = cast(wide, wide, None, self.precision)
        if self.next_range is None:
            return wide
        return (wide, narrow) if self.wide else narrow

    def _operands(self, x: Tensor) -> tuple[Tensor, Geometry]:
        if x.is_floating_point():
            x = self.input_range.levels(x.float())
        elif not self.takes_bytes:
            name = type(self).__name__
            raise TypeError(f"{name}: x must be floating point, as the float network takes it, got {x.dtype}")
        _, stride, padding, dilation, groups = self.geometry
        if self.same:
            return x, Geometry.of(stride, self._same_padding(x), dilation, groups)
        filters = self._filters()
        if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return x, Geometry.checked(x, filters, stride, padding, dilation, groups, (torch.uint8,))
        if x.device != filters.device:
            raise ValueError(f"{type(self).__name__}: x is on {x.device} and the filters on {filters.device}")
        return x, _geometry(x.shape, filters.shape, *self.geometry[1:])

    def _same_padding(self, x: Tensor) -> list[int]:
        """TensorFlow's SAME padding for this input, (top, bottom, left, right)."""
        kernel, stride, _, dilation, _ = self.geometry
        totals = [get_same_padding(x.shape[2 + i], kernel[i], stride[i], dilation[i]) for i in (0, 1)]
        return [totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2]

    def train(self, mode: bool = True) -> QuantizedAdder2d:
        """Raises RuntimeError for ``mode = True``: bytes have no gradient."""
        if mode:
            raise RuntimeError(REFUSED_TRAINING)
        return super().train(False)

    def extra_repr(self) -> str:
        r = self.input_range
        return f"{list(self.weight.shape)}, input from {r.low:.4g} to {r.high:.4g} in {r.top + 1} levels"


class QuantizedAdderLinear(QuantizedAdder2d):
    """The same of a fully connected layer, computed as a 1x1 kernel: input [..., C], shortcut and output [..., K].

    ``weight`` is [K, C]. Behind it stands batch norm over features, for input [N, C], or nothing.
    """

    def _filters(self) -> Tensor:
        return self.weight[:, :, None, None]

    def sums(self, x: Tensor) -> Tensor:
        """The bare -Σ|x - w| over levels, int32 [M, K, 1, 1] for M vectors."""
        return super().sums(x.reshape(-1, x.shape[-1], 1, 1))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """Raises ValueError for sequences, [N, L, C], where batch norm, which takes L for features, is behind it."""
        shape = [*x.shape[:-1], len(self.weight)]
        if self.normed and len(shape) != 2:
            raise ValueError(f"QuantizedAdderLinear: with batch norm behind it x must be [N, C], got {list(x.shape)}")
        if residual is not None:
            residual = residual.expand(shape).reshape(-1, shape[-1], 1, 1)
        y = super().forward(x.reshape(-1, x.shape[-1], 1, 1), residual)
        return tuple(t.reshape(shape) for t in y) if isinstance(y, tuple) else y.reshape(shape)


def refuse_float64(fn: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Raises TypeError if ``fn``, which ``nn.Module._apply`` calls on tensors, makes float64 of float32."""
    if fn(torch.empty(0, device=device)).dtype == torch.float64:
        raise TypeError(REFUSED_FLOAT64)


def quantized_layer(layer: FusedAdder2d, input_range: Range) -> QuantizedAdder2d:
    """``layer`` in bytes, whose input covers ``input_range``."""
    return (QuantizedAdderLinear if isinstance(layer, FusedAdderLinear) else QuantizedAdder2d)(layer, input_range)


@functools.lru_cache(4096)  # a network asks the same again with each batch
def _geometry(x: torch.Size, filters: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    """``Geometry.checked`` of tensors of these shapes."""
    x_like, filters_like = (torch.empty(shape, dtype=torch.uint8, device="meta") for shape in (x, filters))
    return Geometry.checked(x_like, filters_like, stride, padding, dilation, groups, (torch.uint8,))


def range_integers(covered: Range | None) -> list[int]:
    """A range as integers: the bits of its step in float64, zero point and top; zeros for None."""
    if covered is None:
        return [0, 0, 0]
    return [*struct.unpack("<q", struct.pack("<d", covered.step)), covered.zero_point, covered.top]


def range_of(integers: list[int]) -> Range:
    """The range that ``range_integers`` wrote."""
    (step,) = struct.unpack("<d", struct.pack("<q", integers[0]))
    return Range(step, *integers[1:])


def _sound(integers: list[int]) -> bool:
    """Whether ``range_integers`` may have written this."""
    covered = range_of(integers)
    levels = 0 <= covered.zero_point <= covered.top and covered.top in (2**bits - 1 for bits in BITS)
    return levels and math.isfinite(covered.step) and covered.step > 0


def float_sums(layer: FusedAdder2d, x: Tensor) -> Tensor:
    """The layer's bare -Σ|x - w| over values, [N, K, P, Q]; of a fully connected one [M, K, 1, 1], for M vectors."""
    weight: Tensor = layer.weight
    padding: Any = layer.padding
    if isinstance(layer, FusedAdderLinear):
        x, weight = x.reshape(-1, x.shape[-1], 1, 1), weight[:, :, None, None]
    else:
        x, padding = Adder2dSame.padded(layer, x) if layer.same else layer.padded(x)  # type: ignore[arg-type]
    return adder2d(x, weight, None, layer.stride, padding, layer.dilation, layer.groups, impl=layer.impl)


def clipped_line(layer: FusedAdder2d, input_range: Range) -> tuple[Tensor, Tensor]:
    """Slope and offset, [K], that make the sum over values of the sum over levels, if no input is beyond the range.

    The slope is the step; the offset is what clipping the filters to the range took from the sum, see the class.
    """
    w = layer.weight.detach().double()
    cut_off = (input_range.low - w).clamp_min(0) + (w - input_range.high).clamp_min(0)
    return torch.full_like(layer.scale, input_range.step, dtype=torch.float64), -cut_off.flatten(1).sum(1)
