"""``report``: how many multiplications, additions and XNORs a network computes for one image, layer by layer.

    tap of                    multiplications    additions    XNORs
    a convolution, Σ x·w             1               1
    an adder layer, Σ|x - w|                         2
    Σ|x - w|^p, p > 1                1               2
    a binary layer, Σ x_b·w_b                        1           1

A tap is one term of the sum, so C/groups·R·S of them make one output; a bias is one more addition. Batch norm in
evaluation is 1 multiplication and 1 addition for each element, any other normalisation 3 and 4 (mean, centring, square,
sum of squares, scale, weight, bias). Activations, pooling and residual sums are left out, as everywhere in the
literature. The AdderNet paper (arXiv 1912.13200, sec. 4) says that it leaves out normalisation and the first and the
last layer too: ``Report.paper`` does that.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .binary import BinaryConv2d, BinaryLinear
from .int8.layers import QuantizedAdder2d
from .ops import fused, library  # noqa: F401, they register the operators that are counted

# pJ for an operation in 45 nm (Horowitz, ISSCC 2014, "Computing's energy problem"): (multiplication, addition).
PICOJOULES = {"fp32": (3.7, 0.9), "fp16": (1.1, 0.4), "int32": (3.1, 0.1), "int8": (0.2, 0.03)}

aten = torch.ops.aten
_CONVOLUTIONS = {aten.convolution, aten.convolution_overrideable, aten.mkldnn_convolution, aten.cudnn_convolution}
_BATCH_NORMS = {
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten._batch_norm_no_update, aten.cudnn_batch_norm, aten.miopen_batch_norm, aten.batch_norm_elemt,
}  # fmt: skip
_OTHER_NORMS = {aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm}


@register_flop_formula([torch.ops.adder_zoo.adder2d, torch.ops.adder_zoo.adder2d_fused])
def _adder2d_flops(x_shape: Any, w_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(w_shape[1:])  # the subtraction and the sum


@register_flop_formula([torch.ops.adder_zoo.adder2d_grad_input, torch.ops.adder_zoo.adder2d_grad_weight])
def _adder2d_grad_flops(dy_shape: Any, x_shape: Any, w_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(dy_shape) * prod(w_shape[1:])


@register_flop_formula(torch.ops.adder_zoo.adder2d_gradients)
def _adder2d_both_grads_flops(dy_shape: Any, x_shape: Any, w_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _adder2d_grad_flops(dy_shape, x_shape, w_shape)


@dataclass(frozen=True)
class Layer:
    """One operation of a network on one image.

    Attributes:
        name: The module that computed it, as in ``named_modules``.
        kind: "convolution", "adder", "binary", "linear", "matmul" or "norm"; adder and binary layers that are fully
            connected count as "adder" and "binary".
        input_shape: For one image, with its batch dimension of 1.
        output_shape: The same.
        parameters: Of that module alone.
        taps: Terms of all its sums; 0 for normalisation.
        multiplications: On one image.
        additions: On one image.
        xnors: On one image.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    taps: int
    multiplications: int
    additions: int
    xnors: int


@dataclass(frozen=True)
class Count:
    """Sums over layers; ``taps`` and the operations for one image."""

    taps: int = 0
    multiplications: int = 0
    additions: int = 0
    xnors: int = 0

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Count:
        return cls(*(sum(getattr(layer, f.name) for layer in layers) for f in dataclasses.fields(cls)))

    def energy(self, precision: str = "fp32", accumulator: str | None = None) -> float:
        """Energy of the arithmetic in µJ, by the table of Horowitz (45 nm).

        Arithmetic only: memory traffic is left out, and a GPU gains nothing, since it adds and multiplies at one rate.

        Args:
            precision: "fp32", "fp16", "int32" or "int8", of products and differences.
            accumulator: Precision of the sums, ``precision`` by default; "int32" is the conservative figure for "int8".
        """
        multiplication, addition = PICOJOULES[precision]
        _, accumulation = PICOJOULES[accumulator or precision]
        others = self.additions - self.taps
        return 1e-6 * (self.multiplications * multiplication + others * addition + self.taps * accumulation)


@dataclass(frozen=True)
class Report:
    """What ``report`` found.

    Attributes:
        input_size: [C, H, W] of the image.
        parameters: Of the whole network, each once.
        layers: In the order of execution.
    """

    input_size: tuple[int, ...]
    parameters: int
    layers: tuple[Layer, ...]

    @property
    def total(self) -> Count:
        """All layers."""
        return Count.of(self.layers)

    @property
    def paper(self) -> Count:
        """The paper's count, without the first and the last layer and without normalisation, as it says."""
        return Count.of([layer for layer in self.layers if layer.kind != "norm"][1:-1])

    @property
    def without_norm(self) -> Count:
        """All layers but normalisation, as most other papers count, and some of this one's figures."""
        return Count.of([layer for layer in self.layers if layer.kind != "norm"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the counts, the energy in µJ, and each layer."""
        counts = {}
        for name in ("total", "without_norm", "paper"):
            count: Count = getattr(self, name)
            counts[name] = {
                **dataclasses.asdict(count),
                "energy_uj": {
                    "fp32": round(count.energy("fp32"), 3),
                    "fp16": round(count.energy("fp16"), 3),
                    "int8": round(count.energy("int8"), 3),
                    "int8_sums_int32": round(count.energy("int8", "int32"), 3),
                },
            }
        return {
            "input_size": list(self.input_size),
            "parameters": self.parameters,
            **counts,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        columns = ("layer", "kind", "input", "output", "parameters", "multiplications", "additions", "XNORs")
        rows: list[tuple[str, ...]] = [
            (x.name or "(model)", x.kind, _shape(x.input_shape), _shape(x.output_shape), f"{x.parameters:,}",
             f"{x.multiplications:,}", f"{x.additions:,}", f"{x.xnors:,}")
            for x in self.layers
        ]  # fmt: skip
        for label, count in (
            ("all layers", self.total),
            ("without normalisation", self.without_norm),
            ("and without first and last", self.paper),
        ):
            counts = tuple(f"{v:,}" for v in (count.multiplications, count.additions, count.xnors))
            rows.append((label, "", "", "", f"{self.parameters:,}" if count == self.total else "", *counts))
        return table(columns, rows, right=(4, 5, 6, 7), rule_before=len(rows) - 3)


def report(model: nn.Module, input_size: Sequence[int] | None = None) -> Report:
    """Counts the operations of ``model`` on one image.

    Nothing is computed: the network runs on torch's meta device, or, where its code does not allow that, once on its
    own. Its weights, mode and device stay what they are.

    Args:
        model: Any network.
        input_size: [C, H, W]; by default as the network's ``pretrained_cfg`` says.

    Returns:
        A ``Report``: ``print`` it, or see ``total``, ``paper`` and ``to_dict``.

    Raises:
        ValueError: no input size is known.

    Example:
        >>> import adder_zoo, timm
        >>> counts = adder_zoo.report(timm.create_model("adder_resnet20")).without_norm
        >>> f"{counts.multiplications:,} multiplications and {counts.additions:,} additions"
        '443,008 multiplications and 81,183,360 additions'
    """
    if input_size is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        input_size = cfg.get("input_size")
        if input_size is None:
            raise ValueError("report: give input_size=(C, H, W); the model has no pretrained_cfg that says it")
        input_size = (getattr(model, "in_chans", None) or input_size[0], *input_size[1:])
    if len(input_size) != 3:
        raise ValueError(f"report: input_size must be (C, H, W), got {tuple(input_size)}")
    parameter = next(model.parameters(), torch.empty(0))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    shape = (1, *(int(size) for size in input_size))
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            try:
                meta = {name: torch.empty_like(t, device="meta") for name, t in _tensors(model)}
                with _Counter(model) as counter:
                    x = torch.empty(shape, device="meta", dtype=dtype)
                    torch.func.functional_call(model, meta, (x,), tie_weights=False)
            except Exception:  # whatever looking at values that are not there raises; what is really wrong comes again
                with _Counter(model) as counter:
                    model(torch.zeros(shape, device=parameter.device, dtype=dtype))
    finally:
        for m, training in modes.items():
            m.training = training
    parameters = sum(p.numel() for p in model.parameters())
    parameters += sum(_filters_in_bytes(module) for module in model.modules())
    return Report(shape[1:], parameters, tuple(counter.layers))


def _filters_in_bytes(module: nn.Module) -> int:
    """How many filter values a quantised layer holds. They are buffers, not parameters."""
    return module.weight.numel() if isinstance(module, QuantizedAdder2d) else 0


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


class _Counter(TorchDispatchMode):
    """Sees every operator that the network calls, and knows which module is running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers: list[Layer] = []
        self.running: list[tuple[str, nn.Module]] = [("", model)]
        self.cleanup = contextlib.ExitStack()

    def __enter__(self) -> _Counter:
        for name, module in self.model.named_modules():
            enter = module.register_forward_pre_hook(lambda m, _, name=name: self.running.append((name, m)))
            leave = module.register_forward_hook(lambda *_: self.running.pop() and None, always_call=True)
            self.cleanup.callback(enter.remove)
            self.cleanup.callback(leave.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self.cleanup.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        y = out[0] if isinstance(out, (tuple, list)) else out
        if packet in _CONVOLUTIONS:
            x, weight, transposed = args[0], args[1], len(args) > 6 and args[6]
            sums = x if transposed else y
            self._add("convolution", x, y, sums.numel() * weight[0].numel(), bias=args[2] is not None)
        elif packet is torch.ops.adder_zoo.adder2d:
            x, weight, p = args[0], args[1], args[8]
            self._add("adder", x, y, y.numel() * weight[0].numel(), p=p)
        elif packet is torch.ops.adder_zoo.adder2d_fused:
            self._add("adder", args[0], y, y.numel() * args[1][0].numel(), per_element=(1, 1))
        elif packet is torch.ops.adder_zoo.adder2d_int8_fused:
            y = out[0] if out[0].numel() else out[1]  # float32, bytes, or both
            self._add("adder", args[0], y, y.numel() * args[1][0].numel(), per_element=(1, 1))
        elif packet in _BATCH_NORMS:
            self._add("norm", args[0], y, 0, per_element=(1, 1))
        elif packet in _OTHER_NORMS:
            self._add("norm", args[0], y, 0, per_element=(3, 4))
        elif packet in flop_registry:
            taps = flop_registry[packet](*args, **kwargs, out_val=out) // 2
            bias = packet in (aten.addmm, aten.addmv)
            self._add("matmul", args[1] if bias else args[0], y, taps, bias=bias)
        return out

    def _add(
        self,
        kind: str,
        x: Tensor,
        y: Tensor,
        taps: int,
        bias: bool = False,
        p: float = 1.0,
        per_element: tuple[int, int] = (0, 0),
    ) -> None:
        name, module = self.running[-1]
        if isinstance(module, (BinaryConv2d, BinaryLinear)):
            kind = "binary"
        elif kind == "matmul" and isinstance(module, nn.Linear):
            kind = "linear"
        if kind in ("adder", "linear") or isinstance(module, BinaryLinear):
            # These add it by an operator of its own, always or for some layouts of x.
            bias = getattr(module, "bias", None) is not None
        multiplications = per_element[0] * y.numel()
        additions = per_element[1] * y.numel() + bias * y.numel()
        xnors = 0
        if kind == "adder":
            multiplications += taps * (p != 1)
            additions += 2 * taps
        elif kind == "binary":
            additions += taps
            xnors = taps
        else:
            multiplications += taps
            additions += taps
        parameters = sum(t.numel() for t in module.parameters(recurse=False)) + _filters_in_bytes(module)
        self.layers.append(
            Layer(name, kind, tuple(x.shape), tuple(y.shape), parameters, taps, multiplications, additions, xnors)
        )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape[1:])


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), rule_before: int | None = None
) -> str:
    """Text in columns, as wide as its content; ``right``: the columns that are set flush right."""
    widths = [max(len(str(line[i])) for line in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            str(c).rjust(w) if i in right else str(c).ljust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [line(columns), rule]
    for i, row in enumerate(rows):
        if i == rule_before:
            lines.append(rule)
        lines.append(line(row))
    return "\n".join(lines)
