"""The C source of one network: its constants, and the order of its steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..fixed_point import signed_powers
from ..network import IntegerNetwork
from ..steps import AveragePool, Lookup, MaxPool, Narrow, Placed, Rescale, Step, Weighted
from .plan import BYTES, Plan, patch_words

NO_TERM = 0x40
ROW = 96  # characters of numbers in a line


def header(name: str, network: IntegerNetwork, plan: Plan) -> str:
    """NAME.h."""
    height, width, channels = network.image
    return f"""/* {name}: images are {height} x {width} x {channels} bytes, as decoded from a file. */
#ifndef {name.upper()}_H
#define {name.upper()}_H

#include <stdint.h>

#define {name.upper()}_IMAGE_BYTES {height * width * channels}
#define {name.upper()}_CLASSES {network.logits.elements}
#define {name.upper()}_BUFFER_BYTES {plan.size} /* static memory for all that lies between image and logits */

/* Integer logits of one image; the largest is the class. One at a time: all calls share the buffer. */
void {name}_run(const uint8_t *image, int32_t *logits);

#ifdef NETWORK_TRACE
/* Yours to write: called with every tensor, of elements of 1 (uint8), 2 (int16) or 4 bytes (int32). */
void {name}_trace(const char *tensor, const void *values, uint32_t pixels, uint32_t channels, int bytes);
#endif

#endif
"""


def source(name: str, network: IntegerNetwork, plan: Plan) -> str:
    """NAME.c."""
    return _Source(name, network, plan).text()


class _Source:
    def __init__(self, name: str, network: IntegerNetwork, plan: Plan) -> None:
        self.name, self.network, self.plan = name, network, plan
        self.free = network.multiplier_free
        self.needs = set(self._needs())
        self.constants: list[str] = []
        self.calls: list[str] = []

    def text(self) -> str:
        self._trace(Placed("image", self.network.image, "uint8"))
        for number, step in enumerate(self.network.steps):
            self._step(number, step)
        needs = [f"#define {need}" for need in sorted(self.needs)]
        calls = "\n".join(f"  {call}" for call in self.calls)
        return "\n".join(
            [
                f'#include "{self.name}.h"\n',
                *(["#define MULTIPLIER_FREE"] if self.free else []),
                *needs,
                '#include "layers.h"\n',
                "#ifdef NETWORK_TRACE",
                "#define TRACE(tensor, values, pixels, channels, bytes) \\",
                f"  {self.name}_trace(tensor, values, pixels, channels, bytes)",
                "#else",
                "#define TRACE(tensor, values, pixels, channels, bytes)",
                "#endif\n",
                *self.constants,
                f"static uint32_t buffer[{-(-self.plan.size // 4)}];\n",
                f"void {self.name}_run(const uint8_t *image, int32_t *logits) {{",
                calls,
                "}\n",
            ]
        )

    def _needs(self) -> Iterable[str]:
        kinds: dict[type, str] = {
            MaxPool: "NEEDS_MAX_POOL", AveragePool: "NEEDS_AVERAGE_POOL", Narrow: "NEEDS_NARROW",
            Lookup: "NEEDS_LOOKUP",
        }  # fmt: skip
        for step in self.network.steps:
            if not isinstance(step, Weighted):
                yield kinds[type(step)]
                continue
            yield f"NEEDS_{step.kind.upper()}"
            if not _plain(step):
                yield "NEEDS_GROUPS"
            if step.most is not None:
                yield "NEEDS_RELU6"

    # ---- steps ----

    def _step(self, number: int, step: Step) -> None:
        self.calls.append(f"/* {step.name} */")
        if isinstance(step, Weighted):
            self._weighted(number, step)
            for placed in (step.wide, step.narrow):
                if placed is not None:
                    self._trace(placed)
            return
        assert isinstance(step, (Lookup, MaxPool, AveragePool, Narrow))
        x, y = self._pointer(step.x), self._pointer(step.narrow)
        height, width, channels = step.x.shape
        if isinstance(step, MaxPool):
            self.constants.append(f"static const struct pool pool{number} = {{{self._pool(step)}}};\n")
            self.calls.append(f"max_pool(&pool{number}, {x}, {y}, buffer);")
        elif isinstance(step, Lookup):
            self._array(f"table{number}", "uint8_t", step.table.flatten().tolist())
            self.calls.append(f"lookup({height * width}, {channels}, table{number}, {x}, {y});")
        else:
            rescale = self._rescale(step.rescale)
            self.constants.append(f"static const struct rescale rescale{number} = {rescale};\n")
            if isinstance(step, Narrow):
                self.calls.append(f"narrowed({step.x.elements}, &rescale{number}, {x}, {y});")
            else:
                sources = (x, "0") if step.x.dtype == "uint8" else ("0", x)
                self.calls.append(
                    f"average_pool({height * width}, {channels}, {step.zero_point}, &rescale{number}, "
                    f"{', '.join(sources)}, {y});"
                )
        self._trace(step.narrow)

    def _weighted(self, number: int, step: Weighted) -> None:
        rows = [_packed(self._codes(step, row)) for row in step.weight]
        self._array(f"weight{number}", "uint32_t", [f"0x{word:08x}u" for row in rows for word in row])
        self._array(f"filter{number}", "struct filter", list(self._filters(step)))
        self._array(f"pad{number}", "uint8_t", step.pad.tolist())
        self.constants.append(f"static const struct layer layer{number} = {{{self._layer(number, step)}}};\n")
        is_logits = step.wide is not None and step.wide.name == self.network.logits.name
        outputs = [
            self._pointer(step.shortcut), "logits" if is_logits else "0",
            "0" if is_logits else self._pointer(step.wide), self._pointer(step.narrow),
        ]  # fmt: skip
        self.calls.append("{")
        self.calls.append(f"  const struct output out = {{{', '.join(outputs)}}};")
        self.calls.append(
            f"  {step.kind}s(&layer{number}, {self._pointer(step.x)}, out, buffer + {self.plan.patch // 4});"
        )
        self.calls.append("}")

    def _layer(self, number: int, step: Weighted) -> str:
        K, R, S, _ = step.weight.shape
        H, W, C = step.x.shape
        top, _, left, _ = step.padding
        out = step.wide or step.narrow
        assert out is not None
        # The image is the caller's memory, which may begin anywhere.
        row_words = S * C // 4 if C % 4 == 0 and step.x.name != "image" else 0
        is_logits = out.name == self.network.logits.name
        through_wide = not is_logits and (step.wide is not None or _scales(step.rescale) or step.shortcut is not None)
        fields = [
            f"weight{number}", f"filter{number}", f"pad{number}", K, patch_words(step), H, W, C, R, S, S * C, row_words,
            W * C, top, left, top * W * C + left * C, *step.stride, step.stride[0] * W * C, step.stride[1] * C,
            *out.shape[:2], int(step.relu), int(through_wide), self._rescale(step.rescale),
        ]  # fmt: skip
        if "NEEDS_GROUPS" in self.needs:
            fields.append(_groups(step))
        if "NEEDS_RELU6" in self.needs:
            fields.append(2**31 - 1 if step.most is None else step.most)
        return ", ".join(map(str, fields))

    def _pool(self, step: MaxPool) -> str:
        H, W, C = step.x.shape
        top, _, left, _ = step.padding
        fields = [
            H, W, C, W * C, *step.kernel, *step.stride, top, left, step.stride[0] * W * C, step.stride[1] * C,
            top * W * C + left * C, *step.narrow.shape[:2],
        ]  # fmt: skip
        return ", ".join(map(str, fields))

    def _filters(self, step: Weighted) -> Iterable[str]:
        sums = step.weight.flatten(1).sum(1).tolist() if step.kind == "distance" else [0] * len(step.weight)
        by = step.requantize
        columns = by.offset.tolist(), sums, by.multiplier.tolist(), by.shift.tolist()
        for offset, total, multiplier, shift in zip(*columns, strict=True):
            yield f"{{{offset}, {total}, {self._scale(multiplier, 2)}, {shift}}}"

    def _scale(self, multiplier: int, terms: int) -> str:
        if not self.free:
            return str(multiplier)
        found = signed_powers(multiplier)
        assert len(found) <= terms
        codes = [exponent + (0x80 if sign < 0 else 0) for sign, exponent in found] + [NO_TERM] * (terms - len(found))
        return "{" + ", ".join(map(str, codes)) + "}"

    def _rescale(self, by: Rescale) -> str:
        half = (1 << by.shift) >> 1
        return f"{{{self._scale(by.multiplier, 4)}, {half}, {by.zero_point}, {by.top}, {by.shift}}}"

    def _codes(self, step: Weighted, filters: Tensor) -> list[int]:
        """The bytes of a filter."""
        values = filters.flatten().tolist()
        return [TWO_POWERS[v] for v in values] if self.free and step.kind == "product" else [v & 255 for v in values]

    # ---- text ----

    def _pointer(self, placed: Placed | None) -> str:
        if placed is None:
            return "0"
        if placed.name in ("image", self.network.logits.name):
            return "image" if placed.name == "image" else "logits"
        at = f"(buffer + {self.plan.offsets[placed.name] // 4})"
        return f"({placed.dtype}_t *)(void *){at}" if placed.dtype == "int16" else f"(uint8_t *){at}"

    def _array(self, name: str, kind: str, items: list[object]) -> None:
        lines, line = [], ""
        for item in items:
            text = f"{item}, "
            if len(line) + len(text) > ROW:
                lines.append(line.rstrip())
                line = ""
            line += text
        lines.append(line.rstrip(", "))
        body = "\n    ".join(lines)
        self.constants.append(f"static const {kind} {name}[] = {{\n    {body}}};\n")

    def _trace(self, placed: Placed) -> None:
        height, width, channels = placed.shape
        self.calls.append(
            f'TRACE("{placed.name}", {self._pointer(placed)}, {height * width}, {channels}, {BYTES[placed.dtype]});'
        )


def _plain(step: Weighted) -> bool:
    return step.groups == 1 and step.dilation == (1, 1)


def _groups(step: Weighted) -> str:
    K, _, _, C = step.weight.shape
    _, W, channels = step.x.shape
    filters = K // step.groups
    fields = [
        C, filters, filters * patch_words(step), *step.dilation, step.dilation[0] * W * channels,
        step.dilation[1] * channels, int(_plain(step)),
    ]  # fmt: skip
    return "{" + ", ".join(map(str, fields)) + "}"


def _scales(by: Rescale) -> bool:
    return (by.multiplier, by.shift) != (1, 0)


def _packed(values: list[int]) -> list[int]:
    """Bytes as words, the first lowest, filled up with zeros."""
    filled = values + [0] * (-len(values) % 4)
    return [int.from_bytes(bytes(filled[i : i + 4]), "little") for i in range(0, len(filled), 4)]


# Every ±2^p ± 2^q with p and q from 0 to 7 as a byte: p in bits 0 to 2, its sign in bit 3; q and its sign above them.
TWO_POWERS = {
    (-1 if first & 8 else 1) * 2 ** (first & 7) + (-1 if second & 8 else 1) * 2 ** (second & 7): first | second << 4
    for first in range(16)
    for second in range(16)
}


def as_text(value: Tensor) -> str:
    """A tensor [H, W, C] for people and simulators: a line for each pixel."""
    rows = value.reshape(-1, value.shape[-1]).to(torch.int64).tolist()
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)
