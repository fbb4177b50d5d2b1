"""The Triton kernels compiled ahead of time, without a GPU: their machine code, so that what costs speed fails.

What ``Launch.source`` gives is what ``Launch.run`` launches, so a kernel that compiles here compiles on the card.
``benchmarks/sass.py`` counts; the limits lie a little beyond what is reached, see ``benchmarks/README.md``.
"""

import collections
import json
from pathlib import Path

import pytest
import timm
from compiled import outside

from adder_zoo import Adder2d

triton = pytest.importorskip("triton")
HERE = Path(__file__)

# kernel.configuration: slots for each tap, registers, at most. No spills in the loop, ever. 2.222 slots are a share of
# 90 % of all instructions, 2.272 are 88 %.
LIMITS = {
    "sm_80": {
        "forward.128x128x16-nchw-float32": (2.18, 128),
        "dx.64x64x16-nchw-float32": (2.30, 128),
    },
    "sm_80, more": {
        "forward.64x64x32-nchw-float32": (2.222, 128),
        "forward.64x64x16-channels_last-bfloat16": (2.24, 128),
        "dx.128x128x32-nchw-float32": (2.23, 128),
    },
    "sm_90": {
        "forward.128x128x16-nchw-float32": (2.18, 128),
        "forward.128x128x16-channels_last-float32": (2.17, 128),
        "forward.64x64x32-nchw-float32": (2.222, 128),
        "forward.64x64x16-channels_last-bfloat16": (2.24, 128),
        "dx.128x128x32-nchw-float32": (2.23, 128),
        "dx.128x128x32-channels_last-float32": (2.20, 128),
        "dx.64x64x16-nchw-float32": (2.30, 128),
        "dx.64x64x32-channels_last-float32": (2.22, 128),
        "forward.64x64x32-channels_last-float16": (1.25, 128),
    },
    "sm_100": {
        "forward.128x128x16-nchw-float32": (1.73, 128),
        "forward.64x64x32-channels_last-float32": (1.72, 128),
    },
    "gfx942": {"forward.128x128x8-nchw-float32": (2.52, 256)},
}
# Triton 3.10 contracts no product and sum unless asked to. The second forbids it even then; Triton 3.9 knows it.
UNFUSED = {"TRITON_DEFAULT_FP_FUSION": "0", "TRITON_FORCE_DISABLE_FP_FUSION": "1"}
RECENT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)  # the limits are its compiler's

GATE = """
import json, sys, sass
arch, wanted = sys.argv[1], set(json.loads(sys.argv[2]))
found = {".".join(n): (n, l) for n, l in sass.distinct(arch.startswith("gfx")).items() if ".".join(n) in wanted}
counts = [sass.count(*found[name], arch) for name in sorted(found)]
print(json.dumps({c.name: vars(c) for c in counts}))
"""

# Every kernel, also those that no ResNet needs.
ALL = """
import json, sys, torch, sass
from adder_zoo.ops.triton import kernels
from compiled import operands
arch = sys.argv[1]
hip = arch.startswith("gfx")
names = ("forward", "grad_input", "grad_weight", "small_groups", "_launch")
forward, grad_input, grad_weight, small, launch = (sys.modules[f"{kernels().__name__}.{n}"] for n in names)
sizes = {}
for name, x, w, y, dw, g in operands(launch.Geometry):
    scale = torch.empty(g.K, device="meta")
    fused = launch.Epilogue(scale, scale, y, True)
    plans = {}
    if small.fits(g.G, g.Kg):
        plans["forward"] = small.plan_forward(x, w, y, g)
        plans["forward fused"] = small.plan_forward(x, w, y, g, fused)
        plans |= {f"dx {mode}": small.plan_grad_input(y, x, w, x, g, mode) for mode in ("clipped", "sign")}
    else:
        packed = forward.packed(w, g, forward.variant(x, False, g.C, hip), False)
        plans["forward"] = forward.plan(x, packed, y, g, None, hip)
        plans["forward fused"] = forward.plan(x, packed, y, g, fused, hip)
        packed = grad_input.packed(w, g, grad_input.variant(y, g.K, hip), True)
        for mode in ("saturated", "clipped", "sign") if name == "3x3" else ("saturated",):
            plans[f"dx {mode}"] = grad_input.plan(y, x, packed, x, w, packed, packed, g, mode, hip)
    if name in ("3x3", "depthwise"):
        plans["dw sign"] = grad_weight.plan(y, x, w, dw, g, "sign", False, 1)
        plans["dw repair"] = grad_weight.plan(y, x, w, dw, g, "full", True, 1)
    for what, plan in plans.items():
        assembly = sass.compile_for(plan, arch).asm
        text = assembly.get("amdgcn") or assembly["ptx"]
        sizes[f"{name}, {what}"] = len(assembly.get("cubin") or assembly["hsaco"])
print(json.dumps(sizes))
"""

# Kernels with products and sums, by Triton's default and by that of 3.10.
FUSION = """
import json, os, sys, torch, sass
from adder_zoo.ops.triton import kernels
names = ("grad_weight", "small_groups", "_launch")
grad_weight, small, launch = (sys.modules[f"{kernels().__name__}.{n}"] for n in names)
x, w = torch.empty(8, 96, 28, 28, device="meta"), torch.empty(96, 1, 3, 3, device="meta")
g = launch.Geometry.of(x, w, (1, 1), (1,) * 4, (1, 1), 96)
scale = torch.empty(96, device="meta")
plans = {
    "dw": grad_weight.plan(x, x, w, torch.empty(1, 96, 1, 3, 3, device="meta"), g, "full", True, 1),
    "dx": small.plan_grad_input(x, x, w, x, g, "clipped"),
    "fused": small.plan_forward(x, w, x, g, launch.Epilogue(scale, scale, x, True)),
}
same = {}
for name, plan in plans.items():
    codes = set()
    for default in "01":
        os.environ["TRITON_DEFAULT_FP_FUSION"] = default
        codes.add(sass.compile_for(plan, sys.argv[1]).asm["ptx"])
    same[name] = len(codes) == 1
print(json.dumps(same))
"""


# The kernel over bytes: a layer of 128 channels in words of four, sums and what follows them.
BYTES = """
import json, sys, tempfile, torch, sass
from pathlib import Path
from adder_zoo.ops.triton import kernels
int8 = sys.modules[f"{kernels().__name__}.int8"]
def empty(*shape, dtype=torch.int32):
    return torch.empty(*shape, dtype=dtype, device="meta")
image = empty(8, 128, 28, 28, dtype=torch.float32)
g = int8.Geometry.of(image, empty(128, 128, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
x, w, scale = empty(8, 28, 28, 1, 32), empty(1, 3, 3, 32, 128), empty(128, dtype=torch.float32)
after = int8.Requantise(scale, scale, image, True, True, 0.5, 3, 255, True)
levels = empty(8, 128, 28, 28, dtype=torch.uint8)
found = {}
for form in ("vabsdiff4", "plain"):
    launch = int8.plan(x, w, 3, g, None, image, levels, after, form)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(sass.compile_for(launch, sys.argv[1]).asm["cubin"])
        operations, loops, _ = sass._read_nvidia(file)
    first, last = sass._hot(operations, loops)
    words = launch.constants["BLOCK_M"] * launch.constants["BLOCK_N"] // (32 * launch.num_warps)
    body = operations[first : last + 1]
    found[form] = body.count("VABSDIFF4") / words, len(body) / words / 4, operations.count("FFMA")
print(json.dumps(found))
"""


@pytest.mark.skipif(not RECENT, reason="the limits hold for the compilers in Triton 3.8 and later")
@pytest.mark.parametrize("part", [pytest.param(p, marks=[pytest.mark.slow] * (p != "sm_80")) for p in LIMITS])
def test_machine_code(part):
    arch, limits = part.split(",")[0], LIMITS[part]
    counts = outside(GATE, arch, json.dumps(list(limits)), **UNFUSED)
    assert counts.keys() == limits.keys(), "a configuration was renamed: name it here too"
    for name, (slots, registers) in limits.items():
        c = counts[name]
        assert c["spills_in_loop"] == 0, f"{name} on {arch} keeps registers in memory: {c}"
        assert c["slots"] <= slots, f"{name} on {arch} takes {c['slots']:.3f} instructions for a tap: {c['mix']}"
        assert c["registers"] <= registers, f"{name} on {arch}"
        if arch.startswith("sm"):
            assert c["blocks"] * c["threads"] >= 512, f"{name} on {arch}: so many threads are to share a multiprocessor"


def test_a_new_default_of_the_compiler_changes_no_kernel():
    """Whether products and sums are contracted is said at each launch, so Triton 3.10 compiles what 3.9 does."""
    same = outside(FUSION, "sm_80")
    assert len(same) == 3
    assert all(same.values()), same


@pytest.mark.skipif(not RECENT, reason="the limits hold for the compilers in Triton 3.8 and later")
@pytest.mark.parametrize("arch", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
def test_four_bytes_take_one_instruction(arch):
    found = outside(BYTES, arch)
    for form, (differences, slots) in {"vabsdiff4": (1, 1.65), "plain": (0, 4.95)}.items():
        assert found[form][0] == differences
        assert found[form][1] <= slots, f"{form} on {arch} takes {found[form][1]:.3f} instructions for a tap"
        assert found[form][2] == 0, "scale·y + shift has to be rounded twice"


def test_a_resnet_needs_few_compilations():
    code = """
import json, torch, sass
options = {"networks": ("resnet50",), "dtypes": [torch.float32]}
formats = (torch.contiguous_format, torch.channels_last)
for _, _, launch in sass.launches(formats=formats, **options):  # nothing but alignment of tensors is specialised
    for p in launch.kernel.params:
        assert p.is_constexpr or p.name.endswith("_ptr") or p.do_not_specialize, p.name
print(json.dumps([len(sass.distinct(formats=[f], **options)) for f in formats]))
"""
    assert max(outside(code)) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles(arch):
    sizes = outside(ALL, arch)
    assert len(sizes) == 4 * 3 + 2 + 4 + 4
    assert min(sizes.values()) > 1000


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layers_are_those_of_the_zoo(name, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parents[2] / "benchmarks"))
    from layers import NETWORKS

    shapes = collections.Counter()
    for layer in NETWORKS[name]():
        shapes[layer.C, layer.K, layer.R, layer.stride] += layer.count
    model = timm.create_model(f"adder_{name}")
    found = [m for m in model.modules() if isinstance(m, Adder2d)]
    assert shapes == collections.Counter((m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in found)
