"""1 < p < 2 in Triton: under the interpreter against the truth in float64, and what is compiled for GPUs.

Under the interpreter numpy computes logarithms and powers, nearly exactly: there these tests hold the arithmetic and
the addresses. That the bound holds for the instructions of a GPU is what their documentation promises; ``test_gpu.py``
holds them to it where there is one. ``interpreted.py`` says how a file runs twice.
"""

import collections
import json
import sys
from pathlib import Path

import pytest
import torch
from compiled import LAYERS, outside
from interpreted import INTERPRETING, QUICK_AND_ALL, run_again
from power_checks import check_powers, roundings
from shapes import NAMED, case, random_cases

from adder_zoo import adder2d
from adder_zoo.ops import backends
from adder_zoo.ops.triton import kernels as load_kernels

EXPONENTS = (1.001, 1.25, 1.5, 1.75, 1.999)
SHAPES = [
    case("ragged", "phases, padding", (2, 5, 7, 6), (7, 5, 3, 3), 2, 1),
    case("even", "steps without a rest", (1, 32, 4, 5), (18, 32, 1, 1), layout="channels_last"),
    case("dilated", "groups", (1, 6, 8, 9), (8, 3, 2, 3), (1, 2), (1, 2), (2, 1), groups=2),
    case("depthwise", "several groups in a tile", (2, 5, 6, 6), (5, 1, 3, 2), 1, 1, groups=5),
    case("gaps", "pixels that no output takes", (1, 3, 8, 8), (4, 3, 2, 2), 3),
]
HALF = [
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
]


def part(name):
    """A module of the kernels."""
    return sys.modules[f"{load_kernels().__name__}.{name}"]


if not INTERPRETING:
    triton = pytest.importorskip("triton")

    @QUICK_AND_ALL
    def test_powers_under_the_interpreter(quick):
        run_again(Path(__file__), quick)

    class OnAGpu:  # all that is asked of a tensor
        device, dtype = torch.device("cuda"), torch.float32

    @pytest.mark.parametrize("p", [1.0, 1.5, 1.999])
    def test_a_gpu_takes_them_by_itself(p, monkeypatch):
        found = backends.Implementation("triton", True, "")
        monkeypatch.setattr(backends, "TRITON", backends.dataclasses.replace(backends.TRITON, probe=lambda: found))
        chosen = backends.resolve("auto", OnAGpu, p)
        assert chosen.name == "triton"
        for function in (chosen.forward, chosen.grad_input, chosen.grad_weight):
            assert getattr(function, "func", function).__module__ == "adder_zoo.ops.triton"
        assert backends.resolve("auto", OnAGpu, 2.0).name == "convolution"

    def test_no_p_compiles_again(monkeypatch):
        """What Triton takes for one and the same kernel: its own key, of a launch on a GPU that is not there."""
        load_kernels()

        class Driver:
            get_current_device = get_current_stream = staticmethod(lambda *_: 0)
            get_current_target = staticmethod(lambda: triton.backends.compiler.GPUTarget("cuda", 90, 32))

        asked = collections.defaultdict(set)
        kind = triton.runtime.jit.JITFunction
        monkeypatch.setattr(kind, "_do_compile", lambda self, key, *_, **__: asked[self.fn.__name__].add(str(key)))
        monkeypatch.setattr(triton.runtime.driver, "_active", Driver)
        launched = []
        for name in ("forward", "grad_input", "grad_weight"):
            monkeypatch.setattr(part(name), "check", lambda *_: None)
        run = part("_launch").Launch.run
        monkeypatch.setattr(part("_launch").Launch, "run", lambda launch: launched.append(launch) or run(launch))
        found = []
        for exponents in ((1.0,), (1.0, 1.1, 1.25, 1.5, 1.999)):
            for p in exponents:
                for groups in (1, 20):
                    x, w = torch.randn(2, 20, 6, 6), torch.randn(20, 20 // groups, 3, 3)
                    dy, geometry = torch.randn(2, 20, 6, 6), ((1, 1), (1,) * 4, (1, 1), groups)
                    load_kernels().adder2d_forward(x, w, *geometry, p)
                    load_kernels().adder2d_grad_input(dy, x, w, *geometry, "sign", p)
                    load_kernels().adder2d_grad_weight(dy, x, w, *geometry, "sign", p)
            found.append({name: len(keys) for name, keys in asked.items()})
        for launch in launched:
            launch.kernel.device_caches.clear()  # of the driver that is not there
        assert found[0] == dict.fromkeys(found[0], 1) | {"_adder2d_bwd_dw_kernel": 1}
        # dw's tile is as large as a group: one for all channels together, one for each alone
        assert found[1] == dict.fromkeys(found[0], 2) | {"_adder2d_bwd_dw_kernel": 3}
        assert len(found[1]) == 5

    def test_the_bound_that_is_documented():
        """4.2 e L + e + 9 units of 2^-24, where lg2.approx is 4 of them off and ex2.approx 5."""
        assert roundings(1.5, 0.3) == pytest.approx(0.5 * 5.2 + 9, rel=0.01)
        assert roundings(2.0, 8.0) * 2**-24 == pytest.approx(2.6e-6, rel=0.03)
        assert load_kernels().adder2d_forward.__doc__.count("_power.py") == 1

    # kernel.configuration: instructions for each tap, at most. No spills in the loop. A logarithm and a power of two
    # take as long as 16 additions on an H100, so they decide, and not these.
    LIMITS = {
        "sm_80": {
            "power-forward.64x64x8-nchw-float32": 5.45,
            "power-dx.64x64x16-nchw-float32": 6.35,
            "power-dw.8x32x32-float32": 11.3,
        },
        "sm_90": {
            "power-forward.64x64x8-nchw-float32": 5.45,
            "power-forward.64x64x8-channels_last-float32": 5.35,
            "power-forward.64x64x8-channels_last-bfloat16": 5.55,
            "power-dx.64x64x16-nchw-float32": 6.35,
            "power-dx.64x64x16-channels_last-float32": 6.35,
            "power-dw.8x32x32-float32": 11.5,
        },
        "sm_100": {
            "power-forward.64x64x8-nchw-float32": 5.0,
            "power-dx.64x64x16-nchw-float32": 5.9,
            "power-dw.8x32x32-float32": 11.5,
        },
        "gfx942": {
            "power-forward.128x128x8-nchw-float32": 10.7,
            "power-dx.128x64x8-nchw-float32": 10.7,
            "power-dw.8x32x32-float32": 15.5,
        },
    }
    COUNT = """
import json, sys, sass
arch, wanted = sys.argv[1], set(json.loads(sys.argv[2]))
found = {".".join(n): (n, l) for n, l in sass.distinct(arch.startswith("gfx"), p=sass.POWER).items()}
print(json.dumps({name: vars(sass.count(*found[name], arch)) for name in wanted if name in found}))
"""

    OTHERS = """
import json, sys, torch, sass
from adder_zoo.ops.triton import kernels
from compiled import operands
names = ("forward", "grad_input", "grad_weight", "small_groups", "_launch")
forward, grad_input, grad_weight, small, launch = (sys.modules[f"{kernels().__name__}.{n}"] for n in names)
hip = sys.argv[1].startswith("gfx")
sizes = {}
for name, x, w, y, dw, g in operands(launch.Geometry):
    plans = {"dw": grad_weight.plan(y, x, w, dw, g, "full", False, 1, hip, 1.5)}
    if small.fits(g.G, g.Kg):
        plans["forward"] = small.plan_forward(x, w, y, g, None, hip, 1.5)
        plans["dx"] = small.plan_grad_input(y, x, w, x, g, "full", hip, 1.5)
    else:
        packed = forward.packed(w, g, forward.variant(x, False, g.C, hip, 1.5), False)
        plans["forward"] = forward.plan(x, packed, y, g, None, hip, 1.5)
        packed = grad_input.packed(w, g, grad_input.variant(y, g.K, hip, 1.5), False)
        plans["dx"] = grad_input.plan(y, x, packed, x, w, packed, packed, g, "full", hip, 1.5)
    for what, plan in plans.items():
        binary = sass.compile_for(plan, sys.argv[1])
        text = binary.asm.get("ptx") or binary.asm["amdgcn"]
        sizes[f"{name}, {what}"] = text.count("lg2.approx.ftz.f32" if not hip else "v_log_f32")
print(json.dumps(sizes))
"""

    @pytest.mark.slow
    @pytest.mark.parametrize("arch", LIMITS)
    def test_every_kernel_compiles(arch):
        logarithms = outside(OTHERS, arch)
        assert len(logarithms) == len(LAYERS) * 3
        assert min(logarithms.values()) > 0, logarithms

    @pytest.mark.slow
    @pytest.mark.skipif(
        tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8), reason="the limits are of newer compilers"
    )
    @pytest.mark.parametrize("contracts", ["1", "0"])
    @pytest.mark.parametrize("arch", LIMITS)
    def test_machine_code(arch, contracts):
        """With Triton's default of contracting products and sums, and with that of 3.10."""
        counts = outside(COUNT, arch, json.dumps(list(LIMITS[arch])), TRITON_DEFAULT_FP_FUSION=contracts)
        assert counts.keys() == LIMITS[arch].keys(), "a configuration was renamed: name it here too"
        for name, c in counts.items():
            assert c["spills_in_loop"] == 0, f"{name} on {arch} keeps registers in memory: {c}"
            assert c["slots"] <= LIMITS[arch][name], f"{name} on {arch} takes {c['slots']:.3f}: {c['mix']}"
            if arch.startswith("sm"):  # one logarithm and one power for each tap, and what divides addresses
                assert c["mix"]["MUFU"] <= 2.07 * c["taps"]
                assert c["registers"] <= 128

else:

    @pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("shape", SHAPES, ids=lambda c: c.id)
    def test_the_equations(shape, quick):
        """Quick: each p with one of the shapes."""
        for p in EXPONENTS:
            if (EXPONENTS.index(p) == SHAPES.index(shape)) == quick:
                check_powers(shape, p)

    @pytest.mark.parametrize(("x_dtype", "weight_dtype"), HALF)
    def test_half_precision(x_dtype, weight_dtype):
        """In float32, also where both are float16: a chain of float16 would be 0.05 % off."""
        check_powers(SHAPES[1], 1.5, x_dtype, weight_dtype)

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", SHAPES, ids=lambda c: c.id)
    def test_half_precision_of_every_shape(shape):
        for x_dtype, weight_dtype in HALF:
            check_powers(shape, 1.25, x_dtype, weight_dtype)

    @pytest.mark.parametrize("where", ["x", "weight", "dy"])
    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_special_values(value, where):
        check_powers(SHAPES[1], 1.5, special=(where, value))

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", SHAPES, ids=lambda c: c.id)
    def test_special_values_of_every_shape(shape):
        for where in ("x", "weight", "dy"):
            for value in ("nan", "inf", "-inf"):
                check_powers(shape, 1.25, special=(where, value))

    @pytest.mark.parametrize(
        ("exponent", "exponents"),
        [
            (-40, [1.999]),
            (60, [1.5]),
            *(pytest.param(e, EXPONENTS, marks=pytest.mark.slow) for e in (-75, -20, 25, 50)),
        ],
    )
    def test_any_size_of_numbers(exponent, exponents):
        for p in exponents:
            if abs(exponent * p) < 118:
                check_powers(SHAPES[1], p, scale=2.0**exponent)

    def test_no_difference_is_exactly_zero():
        x = torch.tensor([0.0, -0.0, 3.0, -1e-30]).view(1, 4, 1, 1)
        for groups in (1, 4):
            a, b = x.clone().requires_grad_(), x.view(4 // (4 // groups), -1, 1, 1).clone().requires_grad_()
            y = adder2d(a, b, groups=groups, p=1.001, impl="triton")
            assert y.count_nonzero() == 0
            for gradient in torch.autograd.grad(y.sum(), (a, b)):
                assert gradient.count_nonzero() == 0

    def test_float32_is_not_left_where_a_difference_is_rounded_to_zero():
        """d = 2^-120 is a normal number yet: its small power is 0.92."""
        x, w = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0**-120).requires_grad_()
        (dw,) = torch.autograd.grad(adder2d(x, w, p=1.001, impl="triton"), w)
        assert dw.item() == pytest.approx(-1.001 * 2**-0.12, rel=1e-6)

    def test_small_tiles_64_bit_offsets_and_parts(monkeypatch):
        """As on a card: several programs each way, a reduction in parts, dw's pixels too."""
        for name in ("forward", "grad_input", "grad_weight", "small_groups"):
            monkeypatch.setattr(part(name), "wide", lambda *tensors: True)
        for name in ("forward", "grad_input"):
            monkeypatch.setattr(part(name), "parts", lambda *sizes: 3)
        monkeypatch.setattr(part("forward"), "interpreting", lambda: False)
        monkeypatch.setattr(part("forward"), "term", lambda p, of_one, plain: "power")
        monkeypatch.setattr(part("grad_weight"), "splits_for", lambda *sizes: 3)
        check_powers(SHAPES[2], 1.5)
        check_powers(SHAPES[1], 1.5)

    @pytest.mark.slow
    @pytest.mark.parametrize("turn", range(4))
    def test_named_and_random_shapes(turn):
        shapes = [s for s in NAMED if s.work < 40_000] + random_cases(60, seed=22, work=8_000)
        for i, shape in enumerate(shapes[turn::4]):
            check_powers(shape, EXPONENTS[i % 5], HALF[i % 4][0] if i % 3 == 0 else torch.float32)

    def test_repeated_runs_and_layouts_give_the_same_bits():
        x, w = torch.randn(2, 9, 4, 4), torch.randn(5, 9, 2, 2)
        runs = []
        for layout in (torch.contiguous_format, torch.contiguous_format, torch.channels_last):
            a, b = x.to(memory_format=layout).requires_grad_(), w.clone().requires_grad_()
            y = adder2d(a, b, None, 2, 0, p=1.5, impl="triton")
            assert y.is_contiguous(memory_format=layout)
            runs.append((y, *torch.autograd.grad(y.square().sum(), (a, b))))
        for other in runs[1:]:
            assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))

    def test_compile_autocast_and_vmap():
        """What p = 1 has: gradients through torch.compile, float32 under autocast, a batch of filters by vmap."""
        x, w = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 4, 2, 2)
        want = torch.stack([adder2d(x, one, padding=1, p=1.5, impl="triton") for one in w])
        many = torch.vmap(lambda one: adder2d(x, one, padding=1, p=1.5, impl="triton"))(w)
        torch.testing.assert_close(many, want, rtol=1e-5, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(adder2d(x, w[0], padding=1, p=1.5, impl="triton"), want[0])
        step = torch.compile(lambda x, w: adder2d(x, w, padding=1, p=1.5, impl="triton"), backend="aot_eager")
        a, b = x.clone().requires_grad_(), w[0].clone().requires_grad_()
        y = step(a, b)
        assert torch.equal(y, want[0])
        found = torch.autograd.grad(y.sum(), (a, b))
        wanted = torch.autograd.grad(adder2d(a, b, padding=1, p=1.5, impl="triton").sum(), (a, b))
        assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))

    def test_errors():
        x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
        with pytest.raises(RuntimeError, match="impl='triton' cannot compute p = 2"):
            adder2d(x, w, p=2, impl="triton")
        with pytest.raises(RuntimeError, match="float64"):
            adder2d(x.double(), w.double(), p=1.5, impl="triton")
        for p in (0.5, 2.0, float("nan")):
            with pytest.raises(ValueError, match="1 <= p < 2"):
                load_kernels().adder2d_forward(x, w, (1, 1), (0, 0, 0, 0), (1, 1), 1, p)
