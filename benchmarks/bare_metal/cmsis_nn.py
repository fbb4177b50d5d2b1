"""A convolutional network without shortcuts as calls of CMSIS-NN, whose sources are not part of this project.

The filters and the scales are those of the integer network. CMSIS-NN rounds otherwise, and its logits are int8: they
are the integer network's in a coarser unit, and may be two units off.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from adder_zoo.integer.network import IntegerNetwork
from adder_zoo.integer.steps import MaxPool, Placed, Weighted

SOURCES = (
    "ConvolutionFunctions/arm_convolve_wrapper_s8.c", "ConvolutionFunctions/arm_convolve_s8.c",
    "ConvolutionFunctions/arm_convolve_1x1_s8.c", "ConvolutionFunctions/arm_convolve_1x1_s8_fast.c",
    "ConvolutionFunctions/arm_convolve_1_x_n_s8.c", "ConvolutionFunctions/arm_nn_mat_mult_kernel_s8_s16.c",
    "ConvolutionFunctions/arm_nn_mat_mult_kernel_row_offset_s8_s16.c",
    "NNSupportFunctions/arm_nn_mat_mult_nt_t_s8.c", "NNSupportFunctions/arm_s8_to_s16_unordered_with_offset.c",
    "NNSupportFunctions/arm_q7_to_q15_with_offset.c", "PoolingFunctions/arm_max_pool_s8.c",
)  # fmt: skip
LARGEST_LOGIT = 100
APART = 2  # units of a logit


def write(network: IntegerNetwork, images: torch.Tensor, sources: Path, folder: Path, name: str) -> float:
    """Writes NAME.c and NAME.h; returns how many logits of the integer network are one of CMSIS-NN's.

    Raises:
        ValueError: the network has something else than products and max pooling.
    """
    missing = [name for name in SOURCES if not (sources / "Source" / name).is_file()]
    if missing:
        raise ValueError(f"{sources} does not hold the sources of CMSIS-NN: {missing[0]} is missing")
    coarse = float(network(images).abs().max()) / LARGEST_LOGIT
    lines = [f'#include "{name}.h"', *(f'#include "{sources / "Source" / source}"' for source in SOURCES)]
    lines.append("static int8_t buffers[2][8192];\nstatic int16_t scratch[4096];\n")
    calls = []
    place = {"image": "buffers[0]"}
    for number, step in enumerate(network.steps):
        out = step.wide or step.narrow if isinstance(step, Weighted) else getattr(step, "narrow", None)
        assert isinstance(out, Placed)
        place[out.name] = f"buffers[{(number + 1) % 2}]"
        if isinstance(step, Weighted) and step.kind == "product" and step.shortcut is None:
            is_logits = out.name == network.logits.name
            lines += _constants(number, step, coarse if is_logits else 1.0)
            calls.append(_convolution(number, step, out, is_logits, place))
        elif isinstance(step, MaxPool):
            calls.append(_pool(step, place))
        else:
            raise ValueError(f"{step.name}: only products and max pooling are written for CMSIS-NN")
    elements, last = math.prod(network.image), place[network.logits.name]
    lines += [
        f"void {name}_run(const uint8_t *image, int32_t *logits) {{",
        f"  int i;\n  for (i = 0; i < {elements}; i++) buffers[0][i] = (int8_t)(image[i] - 128);",
        *calls,
        f"  for (i = 0; i < {network.logits.elements}; i++) logits[i] = {last}[i];\n}}\n",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.c").write_text("\n".join(lines))
    (folder / f"{name}.h").write_text(
        f"#include <stdint.h>\n#define {name.upper()}_CLASSES {network.logits.elements}\n"
        f"void {name}_run(const uint8_t *image, int32_t *logits);\n"
    )
    return coarse


def _constants(number: int, step: Weighted, coarse: float) -> list[str]:
    by = step.requantize
    scale = by.multiplier.double() / 2.0**by.shift / coarse
    parts = [math.frexp(float(value)) for value in scale]
    offset = by.offset.double() - 2.0 ** (by.shift - 1)  # without the half that rounds
    columns = {
        f"int8_t filters{number}": step.weight.flatten().tolist(),
        f"int32_t bias{number}": (offset / by.multiplier).round().long().tolist(),
        f"int32_t multiplier{number}": [round(part * 2**31) - (round(part * 2**31) == 2**31) for part, _ in parts],
        f"int32_t shift{number}": [exponent for _, exponent in parts],
    }
    return [f"static const {name}[] = {{{', '.join(map(str, values))}}};" for name, values in columns.items()]


def _dims(n: int, h: int, w: int, c: int) -> str:
    return f"&(cmsis_nn_dims){{{n}, {h}, {w}, {c}}}"


def _convolution(number: int, step: Weighted, out: Placed, is_logits: bool, place: dict[str, str]) -> str:
    K, R, S, C = step.weight.shape
    zero = 0 if is_logits else step.rescale.zero_point - 128
    low, high = (-128, 127) if is_logits else (max(zero if step.relu else -128, -128), step.rescale.top - 128)
    parameters = (
        f"&(cmsis_nn_conv_params){{128, {zero}, {{{step.stride[1]}, {step.stride[0]}}}, "
        f"{{{step.padding[2]}, {step.padding[0]}}}, {{1, 1}}, {{{low}, {high}}}}}"
    )
    scales = f"&(cmsis_nn_per_channel_quant_params){{(int32_t *)multiplier{number}, (int32_t *)shift{number}}}"
    return (
        f"  arm_convolve_wrapper_s8(&(cmsis_nn_context){{scratch, sizeof scratch}}, {parameters}, {scales}, "
        f"{_dims(1, *step.x.shape)}, {place[step.x.name]}, {_dims(K, R, S, C)}, filters{number}, {_dims(1, 1, 1, K)}, "
        f"bias{number}, {_dims(1, *out.shape)}, {place[out.name]});"
    )


def _pool(step: MaxPool, place: dict[str, str]) -> str:
    parameters = (
        f"&(cmsis_nn_pool_params){{{{{step.stride[1]}, {step.stride[0]}}}, {{{step.padding[2]}, {step.padding[0]}}}, "
        "{-128, 127}}"
    )
    return (
        f"  arm_max_pool_s8(&(cmsis_nn_context){{scratch, sizeof scratch}}, {parameters}, {_dims(1, *step.x.shape)}, "
        f"{place[step.x.name]}, {_dims(1, *step.kernel, 1)}, {_dims(1, *step.narrow.shape)}, "
        f"{place[step.narrow.name]});"
    )
