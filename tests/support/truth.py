"""The adder operator in float64, written from the equations alone, and the error that rounding explains.

Nothing here imports ``adder_zoo``: the tests hold every implementation against this file.

Shapes: x [N, C, H, W], weight [K, C/G, R, S], dy and y [N, K, P, Q]; ``padding`` is (top, bottom, left, right).

    y  = -sum_{c,r,s} |x - w|                       Eq. 2
    dw = sum_{n,p,q} dy * (x - w)                   Eq. 5, "full"     (Eq. 4, "sign": sgn(x - w))
    dx = sum_{k,r,s} dy * HT(w - x)                 Eq. 6 and 7, "clipped", HT = clamp to [-1, 1]
                                                    ("full": w - x, "sign": sgn(w - x))

Image padding is x = 0 and takes part in y and dw; its own gradient is dropped.
For 1 < p <= 2, y = -sum |x - w|^p and both gradients are the derivative p |x - w|^(p-1) sgn.

Each function returns ``(value, magnitude, terms)``: ``magnitude`` is the sum of the absolute values of what is added
and ``terms`` how many there are, so that a sum in a precision with unit roundoff u is off by at most
``gamma(terms, u) * magnitude`` (Higham, Accuracy and Stability of Numerical Algorithms, Eq. 3.4).
"""

from __future__ import annotations

import numpy as np

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def gamma(terms: float, u: float) -> float:
    """Bound on the relative error of ``terms`` roundings in a row."""
    assert terms * u < 1
    return terms * u / (1 - terms * u)


def output_size(x, weight, stride, padding, dilation):
    (H, W), (R, S) = x.shape[2:], weight.shape[2:]
    P = (H + padding[0] + padding[1] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + padding[2] + padding[3] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    return P, Q


def _sgn(z):
    return np.where(np.isnan(z), z, np.sign(z))  # a NaN stays one


def _taps(x, weight, stride, padding, dilation, groups):
    """For each (r, s): the x under that tap [N, G, 1, C/G, P, Q], its weight [G, K/G, C/G, 1, 1], and where it lies."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    N, C, H, W = x.shape
    K, Cg, R, S = weight.shape
    P, Q = output_size(x, weight, stride, padding, dilation)
    xp = np.pad(x, ((0, 0), (0, 0), padding[:2], padding[2:]))
    w = weight.reshape(groups, K // groups, Cg, R, S)
    for r in range(R):
        for s in range(S):
            rows = slice(r * dilation[0], r * dilation[0] + (P - 1) * stride[0] + 1, stride[0])
            cols = slice(s * dilation[1], s * dilation[1] + (Q - 1) * stride[1] + 1, stride[1])
            yield r, s, xp[:, :, rows, cols].reshape(N, groups, 1, Cg, P, Q), w[..., r, s, None, None], rows, cols


def forward(x, weight, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, p=1.0):
    """Eq. 2: y [N, K, P, Q]."""
    N, K = x.shape[0], weight.shape[0]
    P, Q = output_size(x, weight, stride, padding, dilation)
    total = np.zeros((N, groups, K // groups, P, Q))
    with np.errstate(invalid="ignore"):
        for _, _, xt, wt, _, _ in _taps(x, weight, stride, padding, dilation, groups):
            total += (np.abs(xt - wt) ** p).sum(3)
    total = total.reshape(N, K, P, Q)
    return -total, total, int(np.prod(weight.shape[1:]))


def grad_input(dy, x, weight, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, mode="clipped", p=1.0):
    """Eq. 6 and 7: dx [N, C, H, W]."""
    dy = np.asarray(dy, np.float64)
    (N, C, H, W), (K, _, R, S) = x.shape, weight.shape
    d = dy.reshape(N, groups, K // groups, 1, *dy.shape[2:])
    shape = (N, C, H + padding[0] + padding[1], W + padding[2] + padding[3])
    total, magnitude = np.zeros(shape), np.zeros(shape)
    with np.errstate(invalid="ignore"):
        for _, _, xt, wt, rows, cols in _taps(x, weight, stride, padding, dilation, groups):
            z = wt - xt
            if p > 1:
                t = p * np.abs(z) ** (p - 1) * _sgn(z)
            else:
                t = {"clipped": lambda z: np.clip(z, -1, 1), "full": lambda z: z, "sign": _sgn}[mode](z)
            total[:, :, rows, cols] += (d * t).sum(2).reshape(N, C, *dy.shape[2:])
            magnitude[:, :, rows, cols] += np.abs(d * t).sum(2).reshape(N, C, *dy.shape[2:])
    inside = (slice(None), slice(None), slice(padding[0], padding[0] + H), slice(padding[2], padding[2] + W))
    return total[inside], magnitude[inside], K // groups * R * S


def grad_weight(dy, x, weight, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, mode="full", p=1.0):
    """Eq. 5 (or Eq. 4): dw [K, C/G, R, S].

    The magnitude is taken of ``sum dy*x - w * sum dy``, the form in which every fast implementation adds it up.
    """
    dy = np.asarray(dy, np.float64)
    K, Cg, R, S = weight.shape
    N, _, P, Q = dy.shape
    d = dy.reshape(N, groups, K // groups, 1, P, Q)
    total, magnitude = np.zeros(weight.shape), np.zeros(weight.shape)
    with np.errstate(invalid="ignore"):
        for r, s, xt, wt, _, _ in _taps(x, weight, stride, padding, dilation, groups):
            z = xt - wt
            if p > 1:
                t = p * np.abs(z) ** (p - 1) * _sgn(z)
                m = np.abs(t)
            else:
                t = z if mode == "full" else _sgn(z)
                m = np.abs(xt) + np.abs(wt) if mode == "full" else np.abs(t)
            total[:, :, r, s] = (d * t).sum((0, 4, 5)).reshape(K, Cg)
            magnitude[:, :, r, s] = (np.abs(d) * m).sum((0, 4, 5)).reshape(K, Cg)
    return total, magnitude, N * P * Q
