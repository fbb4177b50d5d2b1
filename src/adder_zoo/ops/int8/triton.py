"""The int8 operator on a GPU: the launchers of the Triton kernels' ``int8.py``. Shapes as in ``reference.py``."""

from __future__ import annotations

from torch import Tensor

from ..geometry import Geometry
from ..triton import kernels
from .reference import Epilogue


def forward(x: Tensor, weight: Tensor, zero_point: int, geometry: Geometry) -> Tensor:
    """y as int32, [N, K, P, Q]."""
    return kernels().adder2d_int8_forward(x, weight, zero_point, *geometry.arguments)


def forward_fused(
    x: Tensor, weight: Tensor, zero_point: int, after: Epilogue, geometry: Geometry
) -> tuple[Tensor | None, Tensor | None]:
    """v, float32, and levels, uint8, both [N, K, P, Q]; None where not wanted."""
    package = kernels()
    epilogue = package.Requantise(
        after.scale.contiguous(), after.shift.contiguous(), after.residual, after.relu, after.wide, after.inverse_step,
        after.next_zero_point, after.top, after.narrow,
    )  # fmt: skip
    return package.adder2d_int8_forward_fused(x, weight, zero_point, epilogue, *geometry.arguments)
