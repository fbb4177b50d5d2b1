"""Writes the cases of driver.cpp: shapes, operands, what the truth answers, and how far off that may be.

python tests/support/native_cases.py FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import truth
from checks import bound, clipped_bound
from shapes import DEPTHWISE, IMAGES, NAMED, Case, random_cases, tensors

CANCELLATION = 4  # of forward_tile.h


def last(a: np.ndarray, kind: type) -> bytes:
    """[N, C, H, W] with channels last."""
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1).astype(kind)).tobytes()


def record(case: Case) -> bytes:
    x, weight, dy = (t.double().numpy() for t in tensors(case))
    (N, C, H, W), (K, _, R, S), (_, _, P, Q) = case.x, case.weight, case.output
    rng = np.random.default_rng(0)
    scale, shift, residual = rng.normal(size=K) / 8, rng.normal(size=K) * 4, rng.normal(size=case.output)
    scale, shift, residual = (a.astype(np.float32).astype(np.float64) for a in (scale, shift, residual))
    shape = (N, C, H, W, K, R, S, P, Q, case.groups, *case.stride, case.padding[0], case.padding[2], *case.dilation)
    parts = [np.array(shape, np.int64).tobytes(), *(last(t, np.float32) for t in (x, weight, dy))]
    parts += [scale.astype(np.float32).tobytes(), shift.astype(np.float32).tobytes(), last(residual, np.float32)]

    def expect(value: np.ndarray, error: np.ndarray) -> None:
        parts.extend([last(value, np.float64), last(np.broadcast_to(error, value.shape), np.float64)])

    y = truth.forward(x, weight, *case.geometry)
    expect(y[0], bound(y))
    expect(y[0], bound(y) * (2 * CANCELLATION + 1))
    a, b = scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)
    sums = np.abs(a * y[0]) + np.abs(b) + np.abs(residual)
    error = np.abs(a) * bound(y) * (2 * CANCELLATION + 1) + 4 * truth.UNIT_ROUNDOFF["float32"] * sums
    expect(np.maximum(a * y[0] + b + residual, 0), error)
    results = [truth.grad_input(dy, x, weight, *case.geometry, mode=mode) for mode in ("clipped", "full", "sign")]
    expect(results[0][0], clipped_bound(results[0], dy, x, case.weight, case.geometry))
    for dx in (*results[1:], results[0]):
        expect(dx[0], bound(dx))
    for mode in ("full", "sign"):
        dw = truth.grad_weight(dy, x, weight, *case.geometry, mode=mode)
        expect(dw[0], bound(dw))
    return b"".join(parts)


def write(path: str | Path) -> int:
    cases = [case for case in NAMED + IMAGES + DEPTHWISE + random_cases(60, seed=7, work=60_000) if 0 not in case.x]
    with open(path, "wb") as file:
        for case in cases:
            file.write(record(case))
    return len(cases)


if __name__ == "__main__":
    print(f"{write(sys.argv[1])} cases")
