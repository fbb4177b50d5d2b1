"""The adder operator in Triton (AdderNet, arXiv 1912.13200): y = -Σ|x - w| instead of a convolution.

``adder2d`` is the differentiable function. ``adder2d_forward``, ``adder2d_forward_fused``, ``adder2d_grad_input`` and
``adder2d_grad_weight`` are the bare kernels' launchers; ``layers`` holds a layer for ``kernelize``. One file for each
direction: equation, configurations, kernel, launcher; ``small_groups.py`` has both for depthwise and its like.
"""

from . import layers
from .autograd import adder2d
from .forward import adder2d_forward, adder2d_forward_fused
from .grad_input import adder2d_grad_input
from .grad_weight import adder2d_grad_weight

__all__ = ["adder2d", "adder2d_forward", "adder2d_forward_fused", "adder2d_grad_input", "adder2d_grad_weight", "layers"]
