"""The int8 operator in exact integers, straight from Eq. 2, and what follows it in float32, rounded step by step."""

from __future__ import annotations

import numpy as np


def distance(x: np.ndarray, weight: np.ndarray, zero_point: int, stride, padding, dilation, groups: int) -> np.ndarray:
    """-Σ|x - w| as int64, [N, K, P, Q]; x [N, C, H, W] and weight [K, C/groups, R, S] uint8, padding = zero_point."""
    (N, C, H, W), (K, Cg, R, S) = x.shape, weight.shape
    top, bottom, left, right = padding
    padded = np.full((N, C, H + top + bottom, W + left + right), zero_point, np.int64)
    padded[:, :, top : top + H, left : left + W] = x
    P = (padded.shape[2] - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (padded.shape[3] - dilation[1] * (S - 1) - 1) // stride[1] + 1
    y = np.zeros((N, groups, K // groups, P, Q), np.int64)
    filters = weight.reshape(groups, K // groups, Cg, R, S).astype(np.int64)
    for r in range(R):
        for s in range(S):
            rows = slice(r * dilation[0], r * dilation[0] + (P - 1) * stride[0] + 1, stride[0])
            columns = slice(s * dilation[1], s * dilation[1] + (Q - 1) * stride[1] + 1, stride[1])
            taps = padded[:, :, rows, columns].reshape(N, groups, 1, Cg, P, Q)
            y -= np.abs(taps - filters[None, :, :, :, r, s, None, None]).sum(3)
    return y.reshape(N, K, P, Q)


def epilogue(y, scale, shift, residual, relu: bool) -> np.ndarray:
    """act(scale·y + shift + residual) in float32, each operation rounded by itself; scale and shift are [K]."""
    one_each = (1, -1, 1, 1)
    v = scale.astype(np.float32).reshape(one_each) * y.astype(np.float32) + shift.astype(np.float32).reshape(one_each)
    if residual is not None:
        v = v + residual.astype(np.float32)
    return np.maximum(v, np.float32(0)) if relu else v


def levels(v: np.ndarray, inverse_step: float, zero_point: int, top: int = 255) -> np.ndarray:
    """The bytes of the next layer's input: rounded half to even, and clipped to 0 to top."""
    return np.clip(np.rint(v * np.float32(inverse_step)) + np.float32(zero_point), 0, top).astype(np.uint8)
