"""The Triton kernels for 1 < p < 2 against the truth, within the error that ``_power.py`` of the kernels derives."""

import sys

import numpy as np
import torch
import truth
from checks import PER_TERM, assert_within, bound
from operator_checks import dtype_name, run
from shapes import Case, tensors

from adder_zoo.ops.triton import kernels


def roundings(p: float, log2: float) -> float:
    """Relative error of a term as the kernels' documentation has it, in units of 2^-24."""
    return sys.modules[f"{kernels().__name__}._power"].roundings(p, log2)


def farthest_from_one(x: np.ndarray, weight: np.ndarray) -> float:
    """The largest |log2|x - w|| of finite numbers that differ; x may be padding, 0, too."""
    x, weight = (np.unique(t[np.isfinite(t)]) for t in (np.append(x, 0.0), weight))
    at, after = np.searchsorted(weight, x, "left"), np.searchsorted(weight, x, "right")
    below, above = at > 0, after < len(weight)
    differences = [(x[below] - weight[at[below] - 1]), (weight[after[above]] - x[above])]
    differences.append([x[-1] - weight[0], weight[-1] - x[0]])
    sizes = np.abs(np.concatenate(differences))
    return float(np.abs(np.log2(sizes[sizes > 0])).max(initial=0.0))


def check_powers(
    shape: Case,
    p: float,
    x_dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    scale: float = 1.0,
    special: tuple[str, str] | None = None,
) -> None:
    """Forward, dx and dw of ``tensors(shape)`` times ``scale``; ``special``: an operand and what two of it become."""
    named = dict(zip(("x", "weight", "dy"), tensors(shape, x_dtype, weight_dtype or x_dtype), strict=True))
    named = {name: t * scale if name != "dy" else t for name, t in named.items()}
    if special is not None:
        t = named[special[0]]
        at = (0,) * t.dim(), tuple(size // 2 for size in t.shape)
        for place in at:
            t[place] = float(special[1])
    numbers = [named[name].double().numpy() for name in ("x", "weight", "dy")]
    x, weight, dy = (t.to(device) for t in named.values())
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = run(shape, x, weight, p=p, impl="triton")
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.float32, x.dtype, weight.dtype)
    more = roundings(p, farthest_from_one(*numbers[:2])) - PER_TERM
    with np.errstate(invalid="ignore"):
        for got, true, name in (
            (y, truth.forward(*numbers[:2], *shape.geometry, p=p), "y"),
            (dx, truth.grad_input(numbers[2], *numbers[:2], *shape.geometry, p=p), "dx"),
            (dw, truth.grad_weight(numbers[2], *numbers[:2], *shape.geometry, p=p), "dw"),
        ):
            error = bound(true, stored=dtype_name(got), chain=true[2] + more)
            assert_within(got, true, error, f"{name} of {shape}, p = {p}, {x_dtype}, {weight_dtype}, {special}")
