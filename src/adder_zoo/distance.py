"""``cdist`` and ``nearest``: L1 distances between points, on the kernels of adder layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .ops.backends import IMPLEMENTATIONS
from .ops.geometry import DTYPES, shape_of
from .ops.pairs import cdist as _cdist_operator

DISTANCES_AT_A_TIME = 1 << 22  # that ``nearest`` holds: 16 MiB


def cdist(x1: Tensor, x2: Tensor, *, impl: str | None = None) -> Tensor:
    """L1 distance of each pair of points, as ``torch.cdist(x1, x2, p=1)``::

        d[..., n, m] = Σ_i |x1[..., n, i] - x2[..., m, i]|

    The backward is the derivative, with sgn(0) = 0, and holds nothing larger than inputs and output. It has no second
    derivative.

    Args:
        x1: [..., N, D]; float32, float16, bfloat16 or float64. x2: [..., M, D]; float64 goes with float64 only.
            Dimensions before the last two broadcast.
        impl: None chooses: "cpu" on a CPU and "triton" on a GPU. Where these cannot run, and for float64,
            ``torch.cdist`` computes. A name asks for that implementation, see ``adder_zoo.implementations()``.

    Returns:
        The distances, [..., N, M], in float32 (float64 for float64). Half precision would round them to 3 digits.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: shapes that do not fit, or an unknown ``impl``.
        RuntimeError: ``impl`` cannot run here; or a second derivative was asked for.

    Example:
        >>> import torch, adder_zoo
        >>> adder_zoo.cdist(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([[2.],
                [1.]])
    """
    if has_torch_function((x1, x2)):
        return handle_torch_function(cdist, (x1, x2), x1, x2, impl=impl)
    _check("cdist", x1, x2, impl)
    batch = _batch(x1, x2)
    N, M, D = x1.shape[-2], x2.shape[-2], x1.shape[-1]
    if x2.dim() == 2:  # one set of points for all
        x, y = x1.reshape(1, math.prod(batch) * N, D), x2.unsqueeze(0)
    else:
        x, y = (t.expand(*batch, *t.shape[-2:]).reshape(math.prod(batch), *t.shape[-2:]) for t in (x1, x2))
    return _cdist_operator(x, y, impl or "auto").view(*batch, N, M)


@torch.no_grad()
def nearest(x: Tensor, points: Tensor, k: int, *, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` of ``points`` that are nearest to each row of ``x`` in L1 distance.

    At most 16 MiB of distances are held at a time (or one row of them), never the whole matrix.

    Args:
        x: [N, D]. points: [M, D]. Dtypes and ``impl`` as in ``cdist``.
        k: How many, 1 to M.

    Returns:
        The distances, [N, k], ascending, and their indices into ``points``, int64 [N, k]. Neither has a gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as ``cdist``; k is out of range; x or points has other than 2 dimensions.

    Example:
        >>> import torch
        >>> from adder_zoo import nearest
        >>> distances, indices = nearest(torch.zeros(1, 2), torch.tensor([[3.0, 0.0], [1.0, 1.0]]), k=1)
        >>> indices
        tensor([[1]])
    """
    _check("nearest", x, points, impl)
    if x.dim() != 2 or points.dim() != 2:
        raise ValueError(f"nearest: expected [N, D] and [M, D], got {shape_of(x)} and {shape_of(points)}")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"nearest: k must be an int, got {k!r}")
    if not 1 <= k <= len(points):
        raise ValueError(f"nearest: k must be between 1 and the number of points, {len(points)}, got {k}")
    rows = max(1, DISTANCES_AT_A_TIME // len(points))
    found = [cdist(part, points, impl=impl).topk(k, largest=False) for part in x.split(rows)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _batch(x1: Tensor, x2: Tensor) -> torch.Size:
    try:
        return torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    except RuntimeError as error:
        shapes = f"{shape_of(x1)} and {shape_of(x2)}"
        raise ValueError(f"cdist: the dimensions before the last two do not broadcast, got {shapes}") from error


def _check(caller: str, x1: Tensor, x2: Tensor, impl: str | None) -> None:
    for name, t in (("the first argument", x1), ("the second argument", x2)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{caller}: {name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in DTYPES or t.layout != torch.strided:
            raise TypeError(f"{caller}: {name} must be dense and floating point, got {t.dtype} with layout {t.layout}")
        if t.dim() < 2:
            raise ValueError(f"{caller}: {name} must have at least 2 dimensions, [points, D], got {shape_of(t)}")
    if x1.device != x2.device:
        raise ValueError(f"{caller}: one argument is on {x1.device} and one on {x2.device}; move one of them")
    if (x1.dtype == torch.float64) != (x2.dtype == torch.float64):
        raise TypeError(f"{caller}: got {x1.dtype} and {x2.dtype}; float64 goes with float64 only")
    if x1.shape[-1] != x2.shape[-1]:
        raise ValueError(f"{caller}: points must have as many coordinates, got {shape_of(x1)} and {shape_of(x2)}")
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ValueError(f"{caller}: impl must be None or one of {IMPLEMENTATIONS}, got {impl!r}")
