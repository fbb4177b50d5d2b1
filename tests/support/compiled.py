"""The Triton kernels compiled for GPUs that are not here: a process that compiles, and layers that all kernels get."""

import json
import os
import subprocess
import sys
from pathlib import Path

import preloaded
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# x, weight, stride, padding, groups
LAYERS = {
    "3x3": ((8, 128, 28, 28), (128, 128, 3, 3), 1, 1, 1),
    "7x7 stride 2, three channels": ((8, 3, 64, 64), (64, 3, 7, 7), 2, 3, 1),
    "5x5, one channel": ((256, 1, 32, 32), (6, 1, 5, 5), 1, 0, 1),
    "groups": ((8, 96, 28, 28), (96, 32, 3, 3), 1, 1, 3),
    "depthwise": ((8, 96, 28, 28), (96, 1, 3, 3), 2, 1, 96),
}


def outside(code, *arguments, **variables):
    """Runs ``code`` beside ``benchmarks`` in a process without the interpreter; its last line is JSON."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), *sys.path])
    command = [*preloaded.python(), "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def operands(Geometry):
    """(name, x, weight, y, dw, geometry) of each of LAYERS, tensors without memory; ``Geometry`` is the kernels'."""
    for name, (x_shape, w_shape, stride, padding, groups) in LAYERS.items():
        x, w = torch.empty(x_shape, device="meta"), torch.empty(w_shape, device="meta")
        g = Geometry.of(x, w, (stride,) * 2, (padding,) * 4, (1, 1), groups)
        y, dw = torch.empty(g.N, g.K, g.P, g.Q, device="meta"), torch.empty(1, *w_shape, device="meta")
        yield name, x, w, y, dw, g
