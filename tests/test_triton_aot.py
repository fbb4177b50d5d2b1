"""The Triton kernels compiled ahead of time, without a GPU, in the configurations that the launchers choose.

What ``Launch.source`` gives is what ``Launch.run`` launches, so a kernel that compiles here compiles on the card.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}

# x, weight, stride, padding, groups: ResNet's layers, a first layer, a depthwise one, small groups
LAYERS = {
    "3x3": ((8, 128, 28, 28), (128, 128, 3, 3), 1, 1, 1),
    "3x3 stride 2, 64 filters": ((8, 64, 56, 56), (64, 64, 3, 3), 2, 1, 1),
    "1x1": ((8, 1024, 14, 14), (256, 1024, 1, 1), 1, 0, 1),
    "7x7 stride 2, three channels": ((8, 3, 64, 64), (64, 3, 7, 7), 2, 3, 1),
    "5x5, one channel": ((256, 1, 32, 32), (6, 1, 5, 5), 1, 0, 1),
    "depthwise": ((8, 96, 28, 28), (96, 1, 3, 3), 2, 1, 96),
}


def compile_all(arch):
    """Runs in a process of its own, without the interpreter: prints size and spills of every kernel."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adder_zoo.implementations import _kernels

    def stack(binary):
        """Bytes that a thread keeps in memory for want of registers."""
        if backend == "hip":
            return 4 * int(re.search(r"\.vgpr_spill_count:\s+(\d+)", binary.asm["amdgcn"])[1])
        path = Path(os.environ["TRITON_CACHE_DIR"], "measured.cubin")
        path.write_bytes(binary.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
        return int(re.search(r"STACK:(\d+)", usage)[1])

    parts = ("forward", "grad_input", "grad_weight")
    forward, grad_input, grad_weight = (sys.modules[f"{_kernels().__name__}.{part}"] for part in parts)
    backend, version, warp = TARGETS[arch]
    sizes = {}
    for layer, (x_shape, w_shape, stride, padding, groups) in LAYERS.items():
        for dtype in (torch.float32, torch.float16) if layer == "3x3" else (torch.float32,):
            x = torch.empty(x_shape, dtype=dtype, device="meta")
            weight = torch.empty(w_shape, device="meta")
            geometry = forward.Geometry.of(x, weight, (stride,) * 2, (padding,) * 4, (1, 1), groups)
            y = torch.empty(geometry.N, geometry.K, geometry.P, geometry.Q, device="meta")
            dw = torch.empty(1, *w_shape, device="meta")
            plans = {
                "forward": forward.plan(x, weight, y, geometry, hip=backend == "hip"),
                "dx clipped": grad_input.plan(y, x, weight, x, geometry, "clipped", hip=backend == "hip"),
            }
            if layer in ("3x3", "depthwise"):
                plans["dx sign"] = grad_input.plan(y, x, weight, x, geometry, "sign", hip=backend == "hip")
                plans["dw sign"] = grad_weight.plan(y, x, weight, dw, geometry, "sign", False, 1)
                plans["dw repair"] = grad_weight.plan(y, x, weight, dw, geometry, "full", True, 1)
            for direction, launch in plans.items():
                kernel, signature, constants = launch.source()
                source = ASTSource(kernel, signature, constants)
                options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
                binary = triton.compile(source, target=GPUTarget(backend, version, warp), options=options)
                assembly = binary.asm.get("amdgcn") or binary.asm["ptx"]
                sizes[f"{layer} {dtype} {direction}"] = {
                    "binary": len(binary.asm.get("cubin") or binary.asm["hsaco"]),
                    "stack": stack(binary),
                    "64-bit products": len(re.findall(r"mad\.lo\.s64|mul\.lo\.s64", assembly)),
                }
    print(json.dumps(sizes))


@pytest.mark.parametrize("arch", TARGETS)
def test_every_kernel_compiles(arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import test_triton_aot; test_triton_aot.compile_all({arch!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert len(sizes) == 2 * len(LAYERS) + 2 + 3 * 3
    for what, size in sizes.items():
        assert size["binary"] > 1000, what
        # Some stay before and after the loop. In the loop it would be thousands. Triton 3.6 spills more for gfx942.
        limit = 512 if arch != "gfx942" or tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 2048
        assert size["stack"] <= limit, f"{what}: registers spilled"
        assert size["64-bit products"] == 0, f"{what}: offsets below 2^31 are to be cheap"
