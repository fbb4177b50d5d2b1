"""The Triton kernels under the interpreter, against the truth in float64: shapes. ``interpreted.py`` says how."""

from pathlib import Path

import pytest
import torch
from interpreted import INTERPRETING, QUICK_AND_ALL, run_again
from operator_checks import MODES, check
from shapes import NAMED, random_cases

HERE = Path(__file__)


def taps(shape):
    """Of forward and dx, and programs of dw: the interpreter's time goes with them, 3 ms each."""
    K, Cg, R, S = shape.weight
    return R * S * (Cg + K // shape.groups + shape.groups - 1)


DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RANDOM = [c for c in random_cases(700, seed=7, work=30_000) if taps(c) <= 60][:64]
SLOW_RANDOM = [c for c in random_cases(140, seed=8, work=100_000) if taps(c) > 60][:60]

if not INTERPRETING:

    @QUICK_AND_ALL
    @pytest.mark.long
    def test_shapes_under_the_interpreter(quick):
        pytest.importorskip("triton")
        run_again(HERE, quick)

else:
    # Shapes whose reason a quicker one shares.
    SLOW = {f"layout_{name}" for name in ("expanded", "offset", "permuted", "transposed")}
    SLOW |= {f"channels_{c}_{k}" for c, k in ((5, 31), (31, 5), (3, 33), (16, 16), (17, 15))}
    SLOW |= {f"pixels_{q}" for q in (2, 5, 11, 13, 15)}
    SLOW |= {"depthwise", "depthwise_stride2", "groups_ragged", "kernel4_stride2_phases", "kernel_beyond_image"}

    def named():
        for i, shape in enumerate(NAMED):
            slow = taps(shape) > 400 or shape.id in SLOW
            yield pytest.param(i, shape, id=shape.id, marks=[pytest.mark.slow] * slow)

    @pytest.mark.parametrize(("i", "shape"), list(named()))
    def test_named_shapes(i, shape):
        check(shape, "triton", torch.float32, modes=[MODES[i % 3]])
        if i % 3 == 0 and taps(shape) < 250:
            check(shape, "triton", DTYPES[1 + i % 2], modes=[MODES[i // 3 % 3]])

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", SLOW_RANDOM, ids=lambda c: c.id)
    def test_large_shapes(shape):
        check(shape, "triton", torch.float32)

    @pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))])
    def test_random_shapes(part):
        shapes = RANDOM[part::8]
        assert len(shapes) == 8
        for i, shape in enumerate(shapes):
            check(shape, "triton", DTYPES[i % 4 % 3], modes=[MODES[i % 3]])
