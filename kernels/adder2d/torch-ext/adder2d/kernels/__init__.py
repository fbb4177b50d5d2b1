"""The adder operator in Triton (AdderNet, arXiv 1912.13200): the kernels and what launches them, without autograd.

One file for each direction: equation, configurations, kernel, launcher; ``small_groups.py`` has both for depthwise and
its like, ``int8.py`` computes with bytes. The wheel of adder_zoo has this folder as ``adder_zoo.kernels``; it needs
torch and Triton and nothing else.
"""

from .forward import adder2d_forward, adder2d_forward_fused
from .grad_input import adder2d_grad_input
from .grad_weight import adder2d_grad_weight
from .int8 import Requantise, adder2d_int8_forward, adder2d_int8_forward_fused

__all__ = [
    "Requantise",
    "adder2d_forward",
    "adder2d_forward_fused",
    "adder2d_grad_input",
    "adder2d_grad_weight",
    "adder2d_int8_forward",
    "adder2d_int8_forward_fused",
]
