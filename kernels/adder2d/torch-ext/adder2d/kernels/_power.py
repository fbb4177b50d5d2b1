"""|d|^e for 0 < e < 1, of which the kernels for 1 < p < 2 (arXiv 2105.14202) make the term and its derivative.

    |d|^p = |d|·|d|^(p-1)        t(d) = |d|^(p-1)·sgn(d), which dy·p multiplies        d = x - w or w - x, e = p - 1

|d|^e is 2^(e·log2|d|). An NVIDIA GPU has an instruction for each of the two functions, and PTX ISA 9.1 (9.7.3.20 and
9.7.3.21) says how far they are off: ``lg2.approx.f32`` at most 2^-22, absolute for 0.5 < |d| < 2 and relative
elsewhere; ``ex2.approx.f32`` at most 2 units in the last place of the correctly rounded result. So, in units of
u = 2^-24 and with L = max(1, |log2|d||), |d|^e is off, relatively, by at most

    e           of d, which was rounded once
    ln 2·e·4·L  of the logarithm
    ln 2·e·2·L  of e, rounded to float32, and of the product
    5           of the power of two

which is e·(4.2·L + 1) + 5. A term of y has one rounding more, of |d|, besides those of the sum; a gradient has three,
of p, p·Σ and dy·t: (4.2·L + 1)·(p - 1) + 9 is above all of them (``roundings``). For differences between 2^-8 and 2^8
it is at most 44 u = 2.6e-6. That the exponent is p - 1 and not p makes it a third for p = 1.5 and costs nothing: the
last product and the sum are one instruction.

Both instructions flush: where |d| < 2^-126, |d|^e is 0. Zeros, infinities and NaN come out as they should: the
logarithm of 0 is -∞, and 2 to that power 0.

``log2`` is for what has no such instruction: AMD, whose own is exact to one unit in the last place and treats the
smallest numbers apart, and Triton's interpreter, where numpy computes it. Both are within the same bound.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl


def term(p: float, of_one: str, plain: bool) -> str:
    """What the kernels make of a difference, as their constants name it: ``of_one`` for p = 1.

    Args:
        plain: Whether "power" is the logarithm of Triton's library, and not NVIDIA's instruction ("approximate power").

    Raises:
        ValueError: p is not from 1 to below 2.
    """
    if not 1 <= p < 2:
        raise ValueError(f"the Triton kernels compute 1 <= p < 2, got p = {p}")
    return of_one if p == 1 else "power" if plain else "approximate power"


def roundings(p: float, log2: float) -> float:
    """Relative error of a term besides that of the sum, in units of 2^-24, for 2^-log2 <= |d| <= 2^log2."""
    return (6 * math.log(2) * max(1.0, log2) + 1) * (p - 1) + 9


@triton.jit
def power(d, exponent, TERM: tl.constexpr):
    """|d|^exponent, 0 < exponent < 1."""
    if TERM == "approximate power":  # the absolute value becomes part of the next instruction, as only ptxas knows
        log2 = tl.inline_asm_elementwise(
            "{ .reg .f32 a; abs.f32 a, $1; lg2.approx.ftz.f32 $0, a; }", "=f,f", [d], tl.float32, is_pure=True, pack=1
        )
    else:
        log2 = tl.log2(tl.abs(d))
    return tl.exp2(exponent * log2)


@triton.jit
def signed_power(d, exponent, TERM: tl.constexpr):
    """|d|^exponent·sgn(d)."""
    sign = d.to(tl.uint32, bitcast=True) & 0x80000000
    return (power(d, exponent, TERM).to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)
