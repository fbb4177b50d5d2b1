"""Handles by which fvcore counts adder layers; it passes over operators that it does not know.

To use them::

    from adder_zoo.fvcore import HANDLES
    from fvcore.nn import FlopCountAnalysis

    FlopCountAnalysis(model, images).set_op_handle(**HANDLES).total()

fvcore counts one for a multiplication with its addition, so a tap of an adder layer, a subtraction with its addition,
is one too: a network and its convolutional twin have the same total. ``adder_zoo.report`` tells multiplications from
additions. fvcore itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

__all__ = ["HANDLES"]


def _taps(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Taps of a call in a traced graph: outputs [N, K, P, Q], each a sum over a filter, [K, C/groups, R, S]."""
    weight = inputs[1].type().sizes()
    # The fused int8 operator gives what is wanted of two forms of y, and nothing of the other.
    return max(prod(y.type().sizes()) for y in outputs) * prod(weight[1:])


HANDLES: dict[str, Callable[[Sequence[Any], Sequence[Any]], int]] = {
    "adder_zoo::adder2d": _taps,
    "adder_zoo::adder2d_fused": _taps,
    "adder_zoo::adder2d_int8": _taps,
    "adder_zoo::adder2d_int8_fused": _taps,
}
