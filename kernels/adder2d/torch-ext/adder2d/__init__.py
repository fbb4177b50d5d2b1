"""The adder operator in Triton (AdderNet, arXiv 1912.13200): y = -Σ|x - w| instead of a convolution.

``adder2d`` is the differentiable function. ``adder2d_forward``, ``adder2d_forward_fused``, ``adder2d_grad_input`` and
``adder2d_grad_weight`` are the bare kernels' launchers; ``layers`` holds a layer for ``kernelize``. One file for each
direction: equation, configurations, kernel, launcher; ``small_groups.py`` has both for depthwise and its like.
``adder2d_int8_forward`` and ``adder2d_int8_forward_fused`` compute with bytes (``int8.py``).
"""

from . import layers
from .autograd import adder2d
from .forward import adder2d_forward, adder2d_forward_fused
from .grad_input import adder2d_grad_input
from .grad_weight import adder2d_grad_weight
from .int8 import Requantise, adder2d_int8_forward, adder2d_int8_forward_fused

__all__ = [
    "Requantise",
    "adder2d",
    "adder2d_forward",
    "adder2d_forward_fused",
    "adder2d_grad_input",
    "adder2d_grad_weight",
    "adder2d_int8_forward",
    "adder2d_int8_forward_fused",
    "layers",
]
