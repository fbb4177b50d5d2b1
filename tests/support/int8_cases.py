"""Writes the cases of int8_driver.cpp: shapes, operands, and the exact answers.

python tests/support/int8_cases.py FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import int8_truth
import numpy as np
from shapes import DEPTHWISE, NAMED, Case, case, random_cases

OWN = [
    case("channels_16", "whole words: nothing is masked", (2, 16, 9, 9), (16, 16, 3, 3), 1, 1),
    case("channels_64", "as in the networks that matter", (1, 64, 8, 8), (64, 64, 3, 3), 1, 1),
    case("channels_24_1x1", "in place", (2, 24, 7, 7), (48, 24, 1, 1)),
    case("channels_24_1x1_stride2", "in place, pixels apart", (2, 24, 7, 7), (48, 24, 1, 1), 2),
    case("groups_of_8", "a word a tap", (1, 32, 7, 7), (32, 8, 3, 3), 1, 1, groups=4),
    case("groups_of_4", "half a vector's filters in each group", (2, 16, 7, 7), (16, 4, 3, 3), 1, 1, groups=4),
    case("groups_of_4_stride2", "the same, pixels apart", (1, 12, 9, 9), (12, 4, 3, 3), 2, 1, groups=3),
    case(
        "four_filters_of_17", "groups of four filters, and words with a mask", (1, 51, 5, 5), (12, 17, 3, 3), 1, 1, 1, 3
    ),
    case("four_filters_dilated", "a piece for each tap", (2, 32, 9, 9), (16, 8, 3, 3), 1, 2, 2, 4),
    *(
        case(f"filters_{K}", "some of a vector's filters", (1, 8, 5, 5), (K, 8, 3, 3), 1, 1)
        for K in (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 15, 20)
    ),
    case("many_taps", "more words than NEON's lanes hold", (1, 130, 5, 5), (5, 130, 3, 3), 1, 1),
    case("depthwise_17x17", "more taps than 16 bits hold", (1, 34, 18, 18), (34, 1, 17, 17), 1, 8, groups=34),
    case("depthwise_twice", "two filters a channel", (2, 12, 7, 7), (24, 1, 3, 3), 2, 1, groups=12),
    case("depthwise_whole_vectors", "in place", (1, 64, 6, 6), (64, 1, 3, 3), 1, 0, groups=64),
]


def last(a: np.ndarray) -> bytes:
    """[N, C, H, W] with channels last."""
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1)).tobytes()


def record(case: Case, number: int) -> bytes:
    (N, C, H, W), (K, _, R, S), (_, _, P, Q) = case.x, case.weight, case.output
    rng = np.random.default_rng(number)
    x, weight = (rng.integers(0, 256, shape).astype(np.uint8) for shape in (case.x, case.weight))
    if number % 7 == 5:  # the extremes
        x[:], weight[:] = (0, 255) if number % 2 else (255, 0)
    pad, zero_point, relu = (int(rng.integers(0, 256)) for _ in range(3))
    top = max(zero_point, int(rng.choice([15, 63, 255, 255])))
    y = int8_truth.distance(x, weight, pad, *case.geometry)
    spread = max(1.0, float(np.abs(y).max(initial=1)))
    scale, shift = (rng.normal(size=K) * 8 / spread).astype(np.float32), (rng.normal(size=K) * 4).astype(np.float32)
    residual = rng.normal(size=case.output).astype(np.float32)
    inverse_step = np.float32(rng.uniform(2, 30))
    v = int8_truth.epilogue(y, scale, shift, residual, bool(relu % 2))
    shape = (N, C, H, W, K, R, S, P, Q, case.groups, *case.stride, case.padding[0], case.padding[2], *case.dilation)
    return b"".join(
        (
            np.array((*shape, pad, zero_point, relu % 2, top), np.int64).tobytes(),
            *(last(t) for t in (x, weight, y.astype(np.int32))),
            *(t.tobytes() for t in (scale, shift, np.array([inverse_step], np.float32))),
            *(last(t) for t in (residual, v, int8_truth.levels(v, inverse_step, zero_point, top))),
        )
    )


def write(path: str | Path) -> int:
    cases = [case for case in NAMED + DEPTHWISE + OWN + random_cases(400, seed=8, work=60_000) if 0 not in case.x]
    with open(path, "wb") as file:
        for number, case in enumerate(cases):
            file.write(record(case, number))
    return len(cases)


if __name__ == "__main__":
    print(write(sys.argv[1]), "cases")
