"""The operator on a GPU: the launchers of the Triton kernels in ``kernels/adder2d/torch-ext/adder2d/kernels/``.

``kernels/adder2d`` is a project of its own for Hugging Face's ``kernels``; that folder of it is part of the wheel, as
``adder_zoo.kernels``. It is imported at the first call, and Triton with it: ``import adder_zoo`` works without. Shapes
as in ``reference.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from torch import Tensor

from .geometry import Geometry

NAME = "adder_zoo.kernels"


def forward(x: Tensor, weight: Tensor, geometry: Geometry, *, p: float = 1.0) -> Tensor:
    """y = -Σ|x - w|^p (Eq. 2 for p = 1), [N, K, P, Q], float32: the launcher in the kernels' ``forward.py``."""
    return kernels().adder2d_forward(x, weight, *geometry.arguments, p)


def forward_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    geometry: Geometry,
    relu: bool,
) -> Tensor:
    """act(scale·y + shift + residual) in one pass, [N, K, P, Q], float32: also in the kernels' ``forward.py``."""
    return kernels().adder2d_forward_fused(x, weight, scale, shift, residual, *geometry.arguments, relu)


def grad_input(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, input_grad: str, *, p: float = 1.0) -> Tensor:
    """dx (Eq. 6 and 7, a variant, or for p > 1 the derivative), [N, C, H, W], in the dtype of x: ``grad_input.py``."""
    return kernels().adder2d_grad_input(dy, x, weight, *geometry.arguments, input_grad, p)


def grad_weight(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, weight_grad: str, *, p: float = 1.0
) -> Tensor:
    """dw (Eq. 5 or 4, or the derivative for p > 1), [K, C/G, R, S], in the dtype of weight: ``grad_weight.py``."""
    return kernels().adder2d_grad_weight(dy, x, weight, *geometry.arguments, weight_grad, p)


def kernels() -> ModuleType:
    """``adder_zoo.kernels``: from ``kernels/`` beside this file's source tree, or installed with the package.

    The tree goes first: another checkout may be installed, and its kernels are not this one's.
    """
    if NAME in sys.modules:
        return sys.modules[NAME]
    folder = Path(__file__).parents[3] / "kernels" / "adder2d" / "torch-ext" / "adder2d" / "kernels"
    if not folder.is_dir():
        return importlib.import_module(NAME)
    spec = importlib.util.spec_from_file_location(NAME, folder / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{NAME} cannot be read from {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 has the kernels interpreted, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on", "yes")
