"""Forward of the adder operator (AdderNet, arXiv 1912.13200, Eq. 2), as a whole convolution.

    y[n, k, p, q] = -Σ_{c,r,s} |x[n, c, p·stride_h + r·dilation_h - pad_top, q·stride_w + ...] - w[k, c, r, s]|

    x [N, C, H, W]    w [K, Cg, R, S]    y [N, K, P, Q]    G groups, Cg = C / G, Kg = K / G
    M = N·P·Q output pixels; a program has BLOCK_M of them and BLOCK_N filters
    a column of the reduction is one (r, s, c); a step has COLUMNS of them, of one tap (r, s)

The same for Σ|x - w|^p, 1 < p < 2 (arXiv 2105.14202): ``_power.py`` has the term and its error.

Two zeros are kept apart: padding of the image is x = 0 and adds -|w|; the tail of a tile adds nothing.

At inference a scale, a shift (batch norm's), a residual and a ReLU follow while the sums are in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import small_groups
from ._launch import (
    EPILOGUE_INTEGERS,
    HIP,
    RECENT,
    Epilogue,
    Geometry,
    Launch,
    anchor,
    channels_last,
    check,
    columns,
    finish,
    interpreting,
    memory_format,
    pack,
    parts,
    power_of_2,
    processors,
    strides,
    vector,
    wide,
)
from ._power import power, term

# (BLOCK_M, BLOCK_N, COLUMNS, warps, stages, registers). 128 registers let 16 warps share a multiprocessor.
_CONFIGS = {
    # 16x4 or 8x4 sums a thread: 20 or 12 values read serve 64 or 32 differences; many columns a step make up for its
    # fixed cost, and last so long that one step ahead hides the copies.
    "many filters": (128, 128, 16, 8, 2, 128),
    "few filters": (64, 64, 32, 4, 2, 128),  # up to 64
    "very few filters": (128, 16, 16, 4, 3, None),  # up to 16: LeNet
    "many filters, channels last": (128, 128, 16, 8, 2, 128),
    "few filters, channels last": (64, 64, 32, 4, 2, 128),
    "very few filters, channels last": (128, 16, 16, 4, 3, None),
    "many filters, bfloat16": (128, 128, 16, 8, 2, 128),  # widened in registers, so that fewer columns fit into them
    "few filters, bfloat16": (64, 64, 16, 2, 2, 128) if RECENT else (64, 64, 16, 4, 2, 128),
    "very few filters, bfloat16": (128, 16, 16, 4, 3, None),
    # Chains have 16 terms, a float16 sum beside each float32 one; two filters share an instruction.
    "many filters, half": (64, 64, 32, 4, 2, 128) if RECENT else (64, 64, 16, 4, 2, 168),
    "few filters, half": (64, 64, 32, 4, 2, 128) if RECENT else (64, 64, 16, 4, 2, 168),
    "very few filters, half": (128, 16, 16, 4, 3, None),
    # Where 1 < p < 2: logarithms and powers take most of the time, and registers while they are on their way.
    "many filters, power": (64, 64, 8, 4, 2, 128),
    "few filters, power": (64, 64, 8, 4, 2, 128),
    "very few filters, power": (128, 16, 16, 4, 3, None),
    # AMD has no asynchronous copies to hide, and registers enough for 8 columns of each tile.
    "many filters, AMD": (128, 128, 8, 8, 2, None),
    "few filters, AMD": (128, 64, 8, 4, 2, None),
    "very few filters, AMD": (128, 16, 8, 4, 2, None),
}
# What ADDER2D_AUTOTUNE=1 tries for each shape: other tiles of pixels, other depths of the pipeline, other occupancies.
_TUNED = [
    triton.Config({"BLOCK_M": m, "STAGES": s}, num_warps=w, num_stages=s, maxnreg=None if HIP else r)
    for m, w in ((64, 4), (128, 4), (128, 8), (256, 8))
    for s in (2, 3, 4)
    for r in ((128,) if HIP else (128, 168, 255))
]

_INTEGERS = [
    *("M", "H", "W", "P", "Q", "Kg", "Cg", "R", "S", "stride_h", "stride_w", "pad_top", "pad_left"),
    *("dilation_h", "dilation_w", "stride_xn", "stride_xc", "stride_xh", "stride_xw"),
    *("stride_yn", "stride_yk", "stride_yp", "stride_yq", "stride_split", "tiles_n", "tiles_per_group"),
    *("steps_per_split", "never", "exponent"),
    *EPILOGUE_INTEGERS,
]


@triton.jit(do_not_specialize=_INTEGERS)
def _adder2d_fwd_kernel(
    x_ptr, w_ptr, y_ptr, scale_ptr, shift_ptr, residual_ptr,
    M, H, W, P, Q, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yk, stride_yp, stride_yq, stride_split,
    stride_en, stride_ek, stride_ep, stride_eq,
    tiles_n, tiles_per_group, steps_per_split, never, exponent,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, DEPTH: tl.constexpr,
    LAST: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, EVEN: tl.constexpr, HALF: tl.constexpr,
    WIDEN: tl.constexpr, FUSED: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr,
    TERM: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid_m = pid // tiles_n % tiles_m
    split = pid // tiles_n // tiles_m
    if WIDE:
        pid_m = pid_m.to(tl.int64)
        split = split.to(tl.int64)
    group = pid_n // tiles_per_group

    # The tile of x, pixels along the dimension whose elements are neighbours in memory.
    if LAST:
        m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]  # [BLOCK_M, 1]
        j = tl.arange(0, COLUMNS)[None, :]
    else:
        m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]  # [1, BLOCK_M]
        j = tl.arange(0, COLUMNS)[:, None]
    m_inside = m < M
    h_first = m // Q % P * stride_h
    w_first = m % Q * stride_w
    # Of the tap at (pad_top, pad_left), so that no offset is negative.
    x_offset = m // (P * Q) * stride_xn + h_first * stride_xh + w_first * stride_xw
    if LAST:
        if VECTOR > 1:
            x_offset = tl.multiple_of(x_offset, [VECTOR, 1])
        x_offset = x_offset + j
    else:
        x_offset = x_offset + j * stride_xc
    if not WIDE:
        x_offset = x_offset.to(tl.uint32)  # takes no registers for upper halves
    h_first -= pad_top
    w_first -= pad_left
    if BITS:  # a bit for each tap, whether it lies in the image
        bits = tl.zeros(m.shape, tl.int32)
        for i in range(R * S):
            h = h_first + i // S * dilation_h
            w = w_first + i % S * dilation_w
            bits |= (m_inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)).to(tl.int32) << i

    if HALF:  # two neighbouring filters share an instruction
        acc = anchor(tl.zeros((BLOCK_M, BLOCK_N), tl.float32), never, BLOCK_M, BLOCK_N, DEPTH)
    else:
        acc = anchor(tl.zeros((BLOCK_N, BLOCK_M), tl.float32), never, BLOCK_N, BLOCK_M, DEPTH)
    steps = tl.cdiv(Cg, COLUMNS)  # of a tap
    first = (split * steps_per_split).to(tl.int32)
    last = tl.minimum(first + steps_per_split, R * S * steps)
    tap = first // steps
    c0 = first % steps * COLUMNS
    r = tap // S
    s = tap % S
    w_tile = w_ptr + (pid_n.to(tl.int64) * (R * S * steps) + first) * (COLUMNS * BLOCK_N)
    w_offset = tl.arange(0, COLUMNS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    for _ in tl.range(first, last, num_stages=STAGES):
        if BITS:
            x_mask = (bits & (1 << tap)) != 0
        else:
            h = h_first + r * dilation_h
            w = w_first + s * dilation_w
            x_mask = m_inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        if not EVEN:
            x_mask = x_mask & (c0 + j < Cg)
        # What moves with the step is a scalar: the offsets of the tile's pixels stay what they are.
        at_h = r * dilation_h - pad_top
        at_w = s * dilation_w - pad_left
        at_c = group * Cg + c0
        if WIDE:
            at_h = at_h.to(tl.int64)
            at_w = at_w.to(tl.int64)
            at_c = at_c.to(tl.int64)
        x_tap = at_h * stride_xh + at_w * stride_xw + at_c * (1 if LAST else stride_xc)
        if VECTOR > 1:
            x_tap = tl.multiple_of(x_tap, VECTOR)
        x = tl.load(x_ptr + x_tap + x_offset, x_mask, 0.0)
        if WIDEN:  # 16-bit tiles before they are taken apart; compilers before Triton 3.8 spill hundreds of values else
            x = x.to(tl.float32)
        if LAST:
            x = tl.trans(x)
        wv = tl.load(w_tile + w_offset)
        xs = columns(x, COLUMNS, BLOCK_M)
        ws = columns(wv, COLUMNS, BLOCK_N)
        if HALF:  # chains of at most 16 terms in float16
            for chain in tl.static_range((COLUMNS + 15) // 16):
                part = tl.abs(xs[chain * 16][:, None] - ws[chain * 16][None, :])
                for u in tl.static_range(chain * 16 + 1, min(chain * 16 + 16, COLUMNS)):
                    part += tl.abs(xs[u][:, None] - ws[u][None, :])
                acc += part.to(tl.float32)
        elif TERM != "difference":
            for u in tl.static_range(COLUMNS):
                d = ws[u][:, None].to(tl.float32) - xs[u][None, :].to(tl.float32)
                acc = tl.fma(tl.abs(d), power(d, exponent, TERM), acc)
        else:
            for u in tl.static_range(COLUMNS):
                # [BLOCK_N, BLOCK_M]
                acc += tl.abs(ws[u][:, None].to(tl.float32) - xs[u][None, :].to(tl.float32))
        w_tile += COLUMNS * BLOCK_N
        c0 += COLUMNS
        done = c0 >= Cg
        c0 = tl.where(done, 0, c0)
        tap += done.to(tl.int32)
        s += done.to(tl.int32)
        over = s == S
        s = tl.where(over, 0, s)
        r += over.to(tl.int32)

    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k_of_group = pid_n % tiles_per_group * BLOCK_N + tl.arange(0, BLOCK_N)
    m = m[:, None] if HALF else m[None, :]
    k_of_group = k_of_group[None, :] if HALF else k_of_group[:, None]
    k = group * Kg + k_of_group
    if WIDE:
        k = k.to(tl.int64)
    inside = (m < M) & (k_of_group < Kg)
    n = m // (P * Q)
    p = m // Q % P
    q = m % Q
    e_offset = n * stride_en + p * stride_ep + q * stride_eq + k * stride_ek
    y = finish(
        -acc, k, k_of_group < Kg, e_offset, inside, scale_ptr, shift_ptr, residual_ptr, FUSED, RESIDUAL, RELU
    )  # fmt: skip
    y_offset = n * stride_yn + p * stride_yp + q * stride_yq + k * stride_yk
    tl.store(y_ptr + split * stride_split + y_offset, y, inside)


_tuned = triton.autotune(_TUNED, key=["M", "Cg", "Kg", "R", "S", "stride_h", "TERM"], cache_results=True)(
    _adder2d_fwd_kernel
)


def configuration(geometry: Geometry, variant: str) -> tuple[int, int, int, int, int, int | None]:
    """(BLOCK_M, BLOCK_N, COLUMNS, warps, stages, registers) by shape and variant ("", "channels last", ...)."""
    g = geometry
    kind = "many filters" if g.Kg > 64 else "few filters" if g.Kg > 16 else "very few filters"
    block_m, block_n, depth, warps, stages, registers = _CONFIGS[f"{kind}, {variant}" if variant else kind]
    if interpreting():  # a program costs the same whatever its size
        block_m, block_n = power_of_2(g.N * g.P * g.Q, 1, 4096), power_of_2(g.Kg, 1, 128)
    return block_m, block_n, power_of_2(g.Cg, 1, depth), warps, stages, registers


def variant(x: Tensor, half: bool, C: int, hip: bool = HIP, p: float = 1.0) -> str:
    """Which configurations are for this input; ``half``: both operands are float16, and p is 1."""
    if hip or half or p > 1:
        return "AMD" if hip else "half" if half else "power"
    return "bfloat16" if x.dtype == torch.bfloat16 else "channels last" if channels_last(x, C) else ""


def packed(weight: Tensor, geometry: Geometry, variant: str, half: bool) -> Tensor:
    """The filters for ``plan``, float16 or float32."""
    g = geometry
    _, block_n, depth, *_ = configuration(g, variant)
    filters = weight.to(torch.float16 if half else torch.float32)
    return pack(filters.reshape(g.G, g.Kg, g.Cg, g.R * g.S).permute(0, 3, 2, 1), block_n, depth)


def plan(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    geometry: Geometry,
    epilogue: Epilogue | None = None,
    hip: bool = HIP,
    p: float = 1.0,
) -> Launch:
    """The launch that computes ``y`` [N, K, P, Q], or parts [splits, N, K, P, Q] of it, from ``packed`` filters.

    For p > 1 the filters are float32, whatever x is.
    """
    g = geometry
    M = g.N * g.P * g.Q
    half = w.dtype == torch.float16
    block_m, block_n, depth, warps, stages, registers = configuration(g, variant(x, half, g.C, hip, p))
    tiles_per_group = triton.cdiv(g.Kg, block_n)
    splits = y.shape[0] if y.dim() == 5 else 1
    one = y[0] if y.dim() == 5 else y
    last = channels_last(x, g.C)
    even = g.Cg % depth == 0
    return Launch(
        _adder2d_fwd_kernel,
        lambda meta: triton.cdiv(M, meta["BLOCK_M"]) * g.G * tiles_per_group * splits,
        {
            "x_ptr": x, "w_ptr": w, "y_ptr": y, **Epilogue.arguments(epilogue, one), "M": M, **g.scalars(),
            **strides("x", "nchw", x), **strides("y", "nkpq", one), "stride_split": y.stride(0) if y.dim() == 5 else 0,
            "tiles_n": g.G * tiles_per_group, "tiles_per_group": tiles_per_group,
            "steps_per_split": triton.cdiv(g.R * g.S * triton.cdiv(g.Cg, depth), splits), "never": 0,
            "exponent": p - 1.0,
        },
        {
            "BLOCK_M": block_m, "BLOCK_N": block_n, "COLUMNS": depth, "STAGES": stages, "DEPTH": 1 if hip else 16,
            "LAST": last, "VECTOR": vector(x, g.Cg) if last and even else 1, "BITS": g.R * g.S <= 31, "EVEN": even,
            "HALF": half, "WIDEN": not half and not RECENT, **Epilogue.constants(epilogue),
            "WIDE": wide(x, y, *([epilogue.residual] if epilogue and epilogue.residual is not None else [])),
            "TERM": term(p, "difference", hip or interpreting()),
        },
        warps,
        stages,
        registers,
        _tuned,
    )  # fmt: skip


def adder2d_forward(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    p: float = 1.0,
) -> Tensor:
    """y = -Σ|x - w|^p (Eq. 2 for p = 1).

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16, any strides. Half precision is read channels_last, and copied to
            that where it is not: once for each call, 4 bytes for each element.
        weight: [K, C/groups, R, S], likewise; its dtype may be another one.
        stride, dilation: (height, width).
        padding: (top, bottom, left, right).
        groups: Divides C and K.
        p: From 1 to below 2. The kernels take p - 1 at run time: all p above 1 share one compilation.

    Returns:
        [N, K, P, Q], float32 whatever the input's precision, channels_last where x is.

        Where x and weight are both float16, chains of at most 16 terms are added up in float16 and these in float32: y
        is off by at most 17·2^-11 of itself (0.8 %, when all errors add up; some 0.05 % as they fall), and infinite
        where a chain exceeds 65504. All other precisions, and all for p > 1, are widened first, and off by float32's
        rounding alone; ``_power.py`` has that of a power.
    """
    return _forward(x, weight, stride, padding, dilation, groups, None, p)


def adder2d_forward_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    """act(scale[k]·(-Σ|x - w|) + shift[k] + residual), in one pass over the output.

    Args:
        x, weight, stride, padding, dilation, groups: As in ``adder2d_forward``.
        scale, shift: [K], any floating dtype.
        residual: [N, K, P, Q], float32, float16 or bfloat16, any strides; or None.
        relu: Whether act is a ReLU; otherwise there is none.

    Returns:
        [N, K, P, Q], float32, channels_last where x is.
    """
    others = [] if residual is None else [residual]
    for t in (scale, shift, *others):
        if t.device != x.device:
            raise ValueError(f"tensors are on {x.device} and {t.device}; move one of them")
    epilogue = Epilogue(scale.float().contiguous(), shift.float().contiguous(), residual, relu)
    check(x, weight, *others)
    return _forward(x, weight, stride, padding, dilation, groups, epilogue, 1.0)


def _forward(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    epilogue: Epilogue | None,
    p: float,
) -> Tensor:
    check(x, weight)
    geometry = g = Geometry.of(x, weight, stride, padding, dilation, groups)
    y = torch.empty((g.N, g.K, g.P, g.Q), dtype=torch.float32, device=x.device, memory_format=memory_format(x))
    if small_groups.fits(g.G, g.Kg):
        small_groups.plan_forward(x, weight, y, geometry, epilogue, p=p).run()
        return y
    if x.element_size() < 4 and not channels_last(x, g.C):
        x = x.contiguous(memory_format=torch.channels_last)
    half = p == 1 and x.dtype == weight.dtype == torch.float16
    kind = variant(x, half, g.C, p=p)
    w = packed(weight, geometry, kind, half)
    block_m, _, depth, *_ = configuration(geometry, kind)
    programs = triton.cdiv(g.N * g.P * g.Q, block_m) * w.shape[0] * w.shape[1]
    splits = parts(programs, g.R * g.S * triton.cdiv(g.Cg, depth), processors(x.device))
    if splits == 1:
        plan(x, w, y, geometry, epilogue, p=p).run()
        return y
    partial = torch.empty((splits, *y.shape), dtype=y.dtype, device=y.device).as_strided(
        (splits, *y.shape), (y.numel(), *y.stride())
    )
    plan(x, w, partial, geometry, p=p).run()
    torch.sum(partial, 0, out=y)
    return y if epilogue is None else epilogue.apply(y)
