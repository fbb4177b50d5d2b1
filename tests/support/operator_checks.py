"""Runs the operator, or a direction of it, on a shape of ``shapes.py`` and holds it against the truth."""

import functools

import numpy as np
import torch
import truth
from checks import assert_within, bound, clipped_bound
from shapes import Case, case, random_cases, tensors

from adder_zoo import adder2d
from adder_zoo.ops import library

INPUT_GRADS = ("clipped", "full", "sign")
WEIGHT_GRADS = ("full", "sign")
CHAIN = 256  # kernels/cpu/plan.h cuts longer sums
CANCELLATION = 4  # kernels/cpu/forward_tile.h takes 2 Σ max - Σ x - Σ w only up to here
RANDOM = random_cases(240)
HALF = [torch.float16, torch.bfloat16]


def dtype_name(value):
    return str(getattr(value, "dtype", value)).removeprefix("torch.")


def run(case: Case, x, weight, weight_grad="full", input_grad="clipped", p=1.0, impl=None):
    """The public function, or the operator beneath it where the padding differs by side."""
    top, bottom, left, right = case.padding
    if top == bottom and left == right:
        modes = {"weight_grad": weight_grad, "input_grad": input_grad}
        return adder2d(x, weight, None, case.stride, (top, left), case.dilation, case.groups, **modes, p=p, impl=impl)
    return library.adder2d(x, weight, *case.geometry, weight_grad, input_grad, p, impl or "auto")


@functools.lru_cache(maxsize=1000)
def expected(case: Case, x_dtype, weight_dtype, p=1.0):
    """The truth by direction and mode, for what `tensors` gives."""
    x, weight, dy = (t.double().numpy() for t in tensors(case, x_dtype, weight_dtype))
    answer = {"y": truth.forward(x, weight, *case.geometry, p=p)}
    for mode in INPUT_GRADS if p == 1 else INPUT_GRADS[:1]:
        answer["dx", mode] = truth.grad_input(dy, x, weight, *case.geometry, mode=mode, p=p)
    if p == 1:
        stored = dtype_name(x_dtype)
        answer["clipped"] = clipped_bound(answer["dx", "clipped"], dy, x, case.weight, case.geometry, stored)
    for mode in WEIGHT_GRADS if p == 1 else WEIGHT_GRADS[:1]:
        answer["dw", mode] = truth.grad_weight(dy, x, weight, *case.geometry, mode=mode, p=p)
    return answer


def longest_chain(case: Case) -> int:
    """Additions in a row that the native forward makes at the most."""
    K, Cg, R, S = case.weight
    if case.groups > 1 and K // case.groups <= 8:  # lanes over groups: the sums are not cut
        return Cg * R * S
    taps = Cg * R * S
    return min(taps, CHAIN) + taps // CHAIN + R * S + 20  # 20: the rest of a vector, and its lanes


def saturated_bound(dy, x, weight, case: Case) -> np.ndarray:
    """What 2·(Σ dy·sat((w + 1)/2 - x/2) - Σ dy/2) costs, the Triton kernels' form of dx: rounding in sums of |dy|."""
    dy, x, weight = (t.detach().cpu().double().numpy() for t in (dy, x, weight))
    x, weight = np.full(x.shape, -1.0), np.zeros(weight.shape)  # HT(w - x) = 1
    _, magnitude, terms = truth.grad_input(np.where(np.isfinite(dy), dy, 0), x, weight, *case.geometry)
    return truth.gamma(4 * terms + 8, truth.UNIT_ROUNDOFF["float32"]) * magnitude


MODES = [("full", "clipped"), ("sign", "full"), ("sign", "sign")]  # of weight_grad and input_grad


def check(case: Case, impl, x_dtype, weight_dtype=None, p=1.0, modes=MODES, device="cpu"):
    """Forward, dx and dw in the given modes."""
    weight_dtype = weight_dtype or x_dtype
    x, weight, dy = tensors(case, x_dtype, weight_dtype, device=device)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    true = expected(case, x_dtype, weight_dtype, p)
    computed = "float64" if x_dtype == torch.float64 else "float32"
    what = f"{case}, x {x_dtype}, weight {weight_dtype}, {impl}, p = {p}"
    for weight_grad, input_grad in modes[: None if p == 1 else 1]:
        y = run(case, x, weight, weight_grad, input_grad, p, impl)
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
        assert (dtype_name(y), dx.dtype, dw.dtype) == (computed, x.dtype, weight.dtype)
        error = bound(true["y"], computed)
        if impl == "cpu":
            error = bound(true["y"], chain=longest_chain(case)) * (2 * CANCELLATION + 1)
        if impl == "triton" and x_dtype == weight_dtype == torch.float16:  # chains of 16 terms in float16
            error = error + truth.gamma(17, truth.UNIT_ROUNDOFF["float16"]) * true["y"][1]
        assert_within(y, true["y"], error, f"y of {what}")
        error = bound(true["dx", input_grad], computed, dtype_name(x))
        if impl == "triton" and input_grad == "clipped":
            error = error + saturated_bound(dy, x, weight, case)
        if impl == "cpu" and input_grad == "clipped":
            error = true["clipped"]
        assert_within(dx, true["dx", input_grad], error, f"dx {input_grad} of {what}")
        error = bound(true["dw", weight_grad], computed, dtype_name(weight))
        assert_within(dw, true["dw", weight_grad], error, f"dw {weight_grad} of {what}")


def extras(shape, seed=0):
    """scale, shift and a residual as batch norm and a shortcut would hand them over."""
    g = torch.Generator().manual_seed(seed)
    K = shape.output[1]
    scale = torch.randn(K, generator=g) / 8
    return scale, torch.randn(K, generator=g) * 4, torch.randn(shape.output, generator=g)


SPECIAL_SHAPES = [
    case("plain", "tiles", (2, 18, 7, 7), (20, 18, 3, 3), 1, 1),
    case("stride2", "phases", (1, 5, 8, 9), (6, 5, 3, 3), 2, 1),
    case("gaps", "pixels that no output takes", (1, 3, 9, 9), (4, 3, 2, 2), 3),
    case("1x1", "flattened rows", (2, 20, 5, 5), (33, 20, 1, 1)),
    case("kernel_is_image", "one output", (2, 3, 4, 4), (5, 3, 4, 4)),
    case("depthwise", "in place", (1, 18, 6, 6), (18, 1, 3, 3), 2, 1, groups=18),
    case("groups", "few channels in a group", (1, 12, 6, 6), (24, 3, 3, 3), 1, 1, groups=4),
    case("wide_groups", "groups of vectors", (1, 34, 5, 5), (40, 17, 3, 3), 1, 1, groups=2),
]  # fmt: skip
