"""The adder operator in Triton (AdderNet, arXiv 1912.13200): y = -Σ|x - w| instead of a convolution.

``adder2d`` is the differentiable function, for ``torch.compile`` too; ``layers`` holds a layer for ``kernelize``. The
others launch the bare kernels, which know nothing of autograd: ``kernels/`` has them, one file for each direction.
"""

from . import layers
from ._ops import ops as ops  # the operators, for opcheck; not of the public functions
from .kernels import (
    Requantise,
    adder2d_forward,
    adder2d_forward_fused,
    adder2d_grad_input,
    adder2d_grad_weight,
    adder2d_int8_forward,
    adder2d_int8_forward_fused,
)
from .operator import adder2d

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
