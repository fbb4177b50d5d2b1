"""1 < p < 2 on a CPU: the native kernels for y = -Σ|x - w|^p and its derivatives (arXiv 2105.14202).

The library computes |d|^r, r = p or p - 2, for d = ±m·2^e as a polynomial of m, 1 <= m < 2, times 2^(e·r): see
``kernels/cpu/power.h``, which also has the error. The polynomial is fitted here. Shapes as in ``reference.py``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import cpu, reference
from .cpu import NOT_FINITE, check_status, dense, empty, library, native_shape
from .geometry import Geometry

DEGREE, FORWARD_DEGREE = 9, 6  # ADDER_POWER_DEGREE and ADDER_POWER_FORWARD_DEGREE in adder.h


class _Power(ctypes.Structure):
    """adder_power in adder.h."""

    _fields_ = (("exponent", ctypes.c_double), ("coefficients", ctypes.c_float * (DEGREE + 1)))


@functools.lru_cache(maxsize=64)
def _power(exponent: float, factor: float, degree: int) -> _Power:
    """``factor``·m^exponent for 1 <= m < 2, by powers of m - 1.5; at most 1.8 · 2^-24 of it off for the derivative,
    3.7 for the power.

    It is interpolated at Chebyshev's points, which is nearly the best that a polynomial can do.
    """
    import numpy as np  # here, to keep `import adder_zoo` quick
    from numpy.polynomial import chebyshev

    points = chebyshev.chebpts1(degree + 1)
    fitted = chebyshev.chebfit(points, factor * (1.5 + points / 2) ** exponent, degree)
    coefficients = chebyshev.cheb2poly(fitted) * 2.0 ** np.arange(degree + 1)
    return _Power(exponent, (ctypes.c_float * (DEGREE + 1))(*coefficients))


def _itself(p: float) -> Any:
    return ctypes.byref(_power(p, 1.0, FORWARD_DEGREE))


def _derivative(p: float) -> Any:
    return ctypes.byref(_power(p - 2, p, DEGREE))


def forward(x: Tensor, weight: Tensor, geometry: Geometry, *, p: float) -> Tensor:
    """y = -Σ|x - w|^p, [N, K, P, Q], float32, channels_last."""
    a, b = dense(x), dense(weight)
    shape = native_shape(x.shape, weight.shape, geometry)
    y = empty((shape.N, shape.K, shape.P, shape.Q))
    status = library().power_forward(shape, a.data_ptr(), b.data_ptr(), _itself(p), y.data_ptr())
    if status == NOT_FINITE:
        return reference.forward(x, weight, geometry, p)
    check_status(status)
    return y


def grad_input(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, input_grad: str, *, p: float) -> Tensor:
    """dx = Σ dy·p·|w - x|^(p-1)·sgn(w - x), [N, C, H, W], in the dtype of x, whatever ``input_grad``."""
    dx = _gradient(library().power_grad_input, x, dy, x, weight, geometry, p)
    return reference.grad_input(dy, x, weight, geometry, input_grad, p) if dx is None else dx


def grad_weight(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, weight_grad: str, *, p: float) -> Tensor:
    """dw = Σ dy·p·|x - w|^(p-1)·sgn(x - w), [K, C/G, R, S], in the dtype of weight, whatever ``weight_grad``."""
    dw = _gradient(library().power_grad_weight, weight, dy, x, weight, geometry, p)
    return reference.grad_weight(dy, x, weight, geometry, weight_grad, p) if dw is None else dw


def gradients(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *, p: float) -> tuple[Tensor, Tensor] | None:
    """dx and dw of ``grad_input`` and ``grad_weight`` in one pass; None where they have to do it."""
    return cpu.gradients(dy, x, weight, geometry, _derivative(p))


def _gradient(
    kernel: Callable[..., int], of: Tensor, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, p: float
) -> Tensor | None:
    """What ``kernel`` writes, in the shape and dtype of ``of``; None for numbers that it does not take."""
    operands = dense(dy), dense(x), dense(weight)  # held while the library reads them
    shape, answer = native_shape(x.shape, weight.shape, geometry), empty(of.shape)
    status = kernel(shape, *(t.data_ptr() for t in operands), _derivative(p), answer.data_ptr())
    if status == NOT_FINITE:
        return None
    check_status(status)
    return answer.to(of.dtype)
