"""The native library on shapes and values drawn at random, against the truth; once under the sanitizers."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import truth
from checks import assert_within, bound, clipped_bound
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from shapes import Case, arrange

from adder_zoo.ops import cpu, library, reference
from adder_zoo.ops.geometry import Geometry

FLT_MAX = float(torch.finfo(torch.float32).max)
ROOT = Path(__file__).parents[2]
SPECIAL = {
    "none": [],
    "zeros": [0.0, -0.0],
    "denormal": [1e-42, -1e-42, 1.2e-38, 1e-45],
    "huge": [1.5e38, -1.5e38, 1e30, -1e20],
    "inf": [np.inf, -np.inf],
    "nan": [np.nan],
    "all": [0.0, 1e-42, 1e30, np.inf, -np.inf, np.nan, 1.0, -1.0],
}
sizes = st.one_of(st.integers(1, 8), st.sampled_from([15, 16, 17, 31, 32, 33, 64, 65, 130]))


@st.composite
def cases(draw):
    few = st.integers(1, 4)
    groups = draw(st.one_of(st.just(1), few, st.integers(1, 40)))
    Cg, Kg = (draw(sizes if groups < 5 else few) for _ in range(2))
    N = draw(st.one_of(st.integers(0, 4), st.sampled_from([8, 9, 16])))
    H, W = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1), (4, 4), (5, 3), (12, 40)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (5, 2)]))
    padding = tuple(draw(st.sampled_from([0, 0, 1, 2, 3, 9])) for _ in range(4))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "permuted", "expanded"]))
    case = Case(
        "drawn", "by hypothesis", (N, groups * Cg, H, W), (groups * Kg, Cg, *kernel), stride, padding, dilation, groups,
        layout,
    )  # fmt: skip
    P, Q = case.output[2:]
    assume(P > 0 and Q > 0 and N * P * Q * groups * Kg * Cg * kernel[0] * kernel[1] <= 100_000)
    return case


def fill(rng, shape, special, scale, layout):
    values = rng.standard_normal(shape) * scale
    if SPECIAL[special]:
        places = rng.random(shape) < rng.choice([0.02, 0.3])
        values = np.where(places, rng.choice(SPECIAL[special], shape), values)
    return arrange(torch.from_numpy(values.astype(np.float32)), layout)


def finite(a):
    return np.where(np.isfinite(a), a, 0)


@settings(
    max_examples=int(os.environ.get("ADDER_ZOO_FUZZ_EXAMPLES", "500")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    case=cases(),
    seed=st.integers(0, 2**32 - 1),
    specials=st.tuples(*[st.sampled_from(list(SPECIAL))] * 3),
    scale=st.sampled_from([1.0, 1.0, 1e-3, 1e4]),
    modes=st.tuples(st.sampled_from(["full", "sign"]), st.sampled_from(["clipped", "full", "sign"])),
    isa=st.integers(0, 2),
)
@pytest.mark.long
def test_fuzz(native, case, seed, specials, scale, modes, isa):
    """Within the bound where a sum fits into float32; NaN and infinities exactly where the equations have them."""
    isas = cpu.library().isas
    native(isas[isa % len(isas)])
    rng = np.random.default_rng(seed)
    x, weight = (fill(rng, s, v, scale, case.layout) for s, v in zip((case.x, case.weight), specials, strict=False))
    dy = fill(rng, case.output, specials[2], 1, case.layout)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    weight_grad, input_grad = modes
    y = library.adder2d(x, weight, *case.geometry, *modes, 1.0, "cpu")
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    exact = cpu.forward(x.detach(), weight.detach(), Geometry.of(*case.geometry), exact=True)
    what = f"{case}, {specials}, {cpu.library().isa}"
    x, weight, dy = (t.detach().double().numpy() for t in (x, weight, dy))
    with np.errstate(all="ignore"):
        for got, function, operands, mode, factor in (
            (y, truth.forward, (x, weight), {}, 9),
            (exact, truth.forward, (x, weight), {}, 1),
            (dx, truth.grad_input, (dy, x, weight), {"mode": input_grad}, 1),
            (dw, truth.grad_weight, (dy, x, weight), {"mode": weight_grad}, 1),
        ):
            true = function(*operands, *case.geometry, **mode)
            # Where float32 overflows on the way depends on the order of the sum. Only what is finite in operands can
            # overflow, and where t(x - w) is at most 1 only dy can.
            parts = [finite(t) for t in operands]
            if mode.get("mode") in ("clipped", "sign"):
                parts, mode = [parts[0], -np.ones(case.x), np.ones(case.weight)], {"mode": "sign"}
            overflows = function(*parts, *case.geometry, **mode)[1] > FLT_MAX / 8
            error = bound(true) * factor
            if function is truth.grad_input and input_grad == "clipped":
                error = clipped_bound(true, dy, x, case.weight, case.geometry)
            assert_within(got, true, error, f"{function.__name__}, {modes}, of {what}", skip=overflows)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("groups", [1, 6])
def test_difference_that_overflows(groups, isa, native):
    """w - x beyond float32: infinite where an output takes the tap, and nothing (not 0·inf) where none does."""
    native(isa)
    x, weight, dy = torch.full((1, 6, 7, 7), -3e38), torch.full((6, 6 // groups, 3, 3), 3e38), torch.ones(1, 6, 5, 5)
    where = Geometry((1, 1), (0, 0, 0, 0), (1, 1), groups)
    got = cpu.grad_input(dy, x, weight, where, "full")
    assert torch.equal(got, torch.full_like(x, torch.inf))
    assert torch.equal(got, reference.grad_input(dy, x, weight, where, "full"))


@pytest.mark.slow
def test_fuzz_under_sanitizers(tmp_path):
    """The same under AddressSanitizer and UBSan: no byte read or written that is not the caller's or its own."""
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs g++ on x86-64")
    runtimes = [
        subprocess.run([compiler, f"-print-file-name={name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip("needs libasan and libubsan")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    folder = tmp_path / "src" / "adder_zoo"
    kernels = ROOT / "kernels/cpu"
    build = json.loads((kernels / "sources.json").read_text())
    flags = [*build["flags"], "-O2", "-g1", "-fPIC", "-DADDER_X86", f'-DADDER_INTERFACE="{cpu.INTERFACE}"']
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = []
    for name, isa in build["x86_64"]["sources"].items():
        objects.append(str(tmp_path / f"{name}.o"))
        subprocess.run([compiler, *flags, *sanitize, *isa, "-c", str(kernels / name), "-o", objects[-1]], check=True)
    subprocess.run([compiler, "-shared", *sanitize, *objects, "-o", str(folder / "_native.so")], check=True)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "src"),
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "ADDER_ZOO_FUZZ_EXAMPLES": "2000",
    }
    tests = [
        f"{ROOT}/tests/{name}.py" for name in ("native/test_fuzz", "ops/test_operator", "ops/test_operator_memory")
    ]
    program = (
        "import sys, pytest, adder_zoo, adder_zoo.ops.cpu as cpu\n"
        f"assert adder_zoo.__file__.startswith({str(tmp_path)!r}) and cpu.library()\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "-x", "-q", "-s", "-m", "not slow", "-k", "not reference", *tests],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
