"""Which kernel of the native library a layer takes: the answer of the function that runs them, too."""

import pytest
import torch

from adder_zoo.ops import cpu
from adder_zoo.ops.geometry import Geometry

# id: x, weight, groups, and what forward, dx and dw take with AVX2
LAYERS = {
    "3x3": ((1, 64, 8, 8), (64, 64, 3, 3), 1, ("identity", "medians", "outer products")),
    "images that fill lanes": ((8, 64, 8, 8), (64, 64, 3, 3), 1, ("identity", "medians over images", "outer products")),
    "few taps": ((1, 16, 8, 8), (64, 16, 1, 1), 1, ("differences", "medians", "outer products")),
    "few filters": ((1, 16, 8, 8), (4, 16, 3, 3), 1, ("identity, narrow", "medians", "outer products")),
    "few channels": ((1, 3, 8, 8), (64, 3, 3, 3), 1, ("differences", "differences, narrow", "convolution")),
    "1x1": ((1, 256, 16, 16), (64, 256, 1, 1), 1, ("identity", "medians over images", "convolution")),
    "groups": ((1, 32, 8, 8), (32, 4, 3, 3), 8, ("lanes over groups", "lanes over groups", "convolution")),
    "few groups": ((1, 4, 8, 8), (4, 2, 3, 3), 2, (*["lanes over groups, narrow"] * 2, "convolution")),
    "depthwise": ((1, 64, 8, 8), (64, 1, 3, 3), 64, ("depthwise",) * 3),
    "few depthwise": ((1, 6, 8, 8), (6, 1, 3, 3), 6, ("depthwise, narrow",) * 3),
}


def kernels(layer):
    x, weight, groups, _ = LAYERS[layer]
    pad = weight[2] // 2
    return cpu.kernels(torch.empty(x), torch.empty(weight), Geometry((1, 1), (pad,) * 4, (1, 1), groups))


@pytest.mark.parametrize("layer", LAYERS)
def test_avx2(layer, native):
    native("avx2")
    assert tuple(kernels(layer).values()) == LAYERS[layer][3]


@pytest.mark.parametrize("layer", LAYERS)
def test_generic(layer, native):
    """Has one width of vectors, and neither medians nor lanes over images."""
    native("generic")
    got = kernels(layer)
    assert not [name for name in got.values() if "narrow" in name]
    assert not [name for name in got.values() if "medians" in name]
