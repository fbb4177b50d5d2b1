"""Input gradient of the adder operator (AdderNet, arXiv 1912.13200, Eq. 6 and 7), as a whole convolution.

    dx[n, c, h, w] = Σ_{k,r,s} dy[n, k, p, q]·HT(w[k, c, r, s] - x[n, c, h, w])
    for the (p, q) with p·stride_h + r·dilation_h - pad_top = h and q·stride_w + s·dilation_w - pad_left = w

HT clamps to [-1, 1]: a surrogate for the sign, which the derivative would be. Also w - x itself ("full") and the sign;
for 1 < p < 2 the derivative, with p·|w - x|^(p-1)·sgn(w - x) for HT (``_power.py``).

    x, dx [N, C, H, W]    w [K, Cg, R, S]    dy [N, K, P, Q]    G groups, Cg = C / G, Kg = K / G
    a column of the reduction is one (r, s, k); a step has COLUMNS of them, of one tap (r, s)

It is a gather, without atomics: the pixels of one *phase* (h mod stride_h, w mod stride_w) meet the same taps, so a
program has BLOCK_M pixels of one phase and skips the other taps as a whole. A tap that meets no output adds nothing,
not even where 0·NaN would make it NaN.

The clamp to [-1, 1] would take two instructions that a GPU issues at half its rate, and the clamp to [0, 1] is part of
an addition. So "clipped" is computed as

    HT(z) = 2·sat(z/2 + 1/2) - 1    Σ dy·HT(w - x) = 2·(Σ dy·sat((w + 1)/2 - x/2) - Σ dy/2)

with (w + 1)/2 prepared, x/2 in registers and Σ dy/2 taken once for each pixel, not for each channel. Its error is that
of Σ |dy|, whatever HT is: at most (4·terms + 8)·2^-24·Σ |dy|. The saturation makes a NaN 0; where x or w has one, or
the sum has become one, a tile is summed once more, tap by tap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import small_groups
from ._launch import (
    HIP,
    Geometry,
    Launch,
    anchor,
    channels_last,
    check,
    columns,
    interpreting,
    memory_format,
    pack,
    parts,
    power_of_2,
    processors,
    strides,
    transfer,
    vector,
    wide,
)
from ._power import term
from .small_groups import phase_pixels, phase_taps, phases

MODES = ("clipped", "full", "sign")

# (BLOCK_M, BLOCK_N, COLUMNS, warps, stages, registers). A thread keeps x beside its sums.
_CONFIGS = {
    "many channels": (128, 128, 32, 16, 2, 128),  # 32 sums, 32 x: 512 threads share a multiprocessor
    "few channels": (64, 64, 16, 4, 2, 128),  # up to 64; as many of each: four blocks of 128 threads share one
    "very few channels": (128, 16, 16, 4, 3, None),  # up to 16: LeNet and the first layers
    "many channels, channels last": (128, 128, 32, 16, 2, 128),
    "few channels, channels last": (64, 64, 32, 4, 2, 128),
    "very few channels, channels last": (128, 16, 16, 4, 3, None),
    "many channels, power": (64, 64, 16, 4, 2, 128),  # 1 < p < 2, as in forward.py
    "few channels, power": (64, 64, 16, 4, 2, 128),
    "very few channels, power": (128, 16, 16, 4, 3, None),
    # AMD has no asynchronous copies to hide, and spills with 64 of each.
    "many channels, AMD": (128, 64, 8, 8, 2, None),
    "few channels, AMD": (128, 64, 8, 8, 2, None),
    "very few channels, AMD": (128, 16, 8, 4, 2, None),
}
# What ADDER2D_AUTOTUNE=1 tries for each shape, as in forward.py.
_TUNED = [
    triton.Config({"BLOCK_M": m, "STAGES": s}, num_warps=w, num_stages=s, maxnreg=None if HIP else r)
    for m, w in ((64, 4), (64, 8), (128, 8), (128, 16))
    for s in (2, 3)
    for r in ((128,) if HIP else (128, 168, 255))
]

_INTEGERS = [
    *("N", "H", "W", "P", "Q", "Kg", "Cg", "R", "S", "stride_h", "stride_w", "pad_top", "pad_left"),
    *("dilation_h", "dilation_w", "stride_yn", "stride_yk", "stride_yp", "stride_yq"),
    *("stride_xn", "stride_xc", "stride_xh", "stride_xw", "stride_wk", "stride_wc", "stride_wr", "stride_ws"),
    *("stride_dxn", "stride_dxc", "stride_dxh", "stride_dxw", "stride_split", "pixels", "tiles_n", "tiles_per_group"),
    *("phases_h", "phases_w", "step_r", "step_s", "splits", "never", "exponent"),
]


@triton.jit(do_not_specialize=_INTEGERS)
def _adder2d_bwd_dx_kernel(
    dy_ptr, x_ptr, w_ptr, dx_ptr, raw_ptr, total_ptr, nan_ptr,
    N, H, W, P, Q, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_yn, stride_yk, stride_yp, stride_yq,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_dxn, stride_dxc, stride_dxh, stride_dxw, stride_split,
    pixels, tiles_n, tiles_per_group, phases_h, phases_w, step_r, step_s, splits, never, exponent,
    MODE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    DEPTH: tl.constexpr, LAST: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    SATURATED: tl.constexpr = MODE == "saturated"
    EXACT: tl.constexpr = "clipped" if SATURATED else MODE
    POWER: tl.constexpr = MODE == "power" or MODE == "approximate power"
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    tiles_m = tl.cdiv(pixels, BLOCK_M)
    pid_m = pid // tiles_n % tiles_m
    phase = pid // tiles_n // tiles_m % (phases_h * phases_w)
    split = pid // tiles_n // tiles_m // (phases_h * phases_w)
    if WIDE:
        pid_m = pid_m.to(tl.int64)
        split = split.to(tl.int64)
    group = pid_n // tiles_per_group
    groups = tiles_n // tiles_per_group
    # The taps of the phase: every step_r-th row of the filter from r_first on, every step_s-th column from s_first on.
    r_first, r_count = phase_taps(phase // phases_w + pad_top, R, stride_h, dilation_h, step_r)
    s_first, s_count = phase_taps(phase % phases_w + pad_left, S, stride_w, dilation_w, step_s)
    # From one of them to the next it is so many output rows up, and columns left.
    up = step_r * dilation_h // stride_h
    left = step_s * dilation_w // stride_w

    # The tile of dy, pixels along the dimension whose elements are neighbours in memory.
    if LAST:
        m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]  # [BLOCK_M, 1]
        j = tl.arange(0, COLUMNS)[None, :]
    else:
        m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]  # [1, BLOCK_M]
        j = tl.arange(0, COLUMNS)[:, None]
    n, h, w = phase_pixels(m, phase // phases_w, phase % phases_w, H, W, stride_h, stride_w)
    p_first = (h + pad_top - r_first * dilation_h) // stride_h
    q_first = (w + pad_left - s_first * dilation_w) // stride_w
    y_offset = n * stride_yn + p_first * stride_yp + q_first * stride_yq  # >= 0 where a tap meets an output
    if LAST:
        if VECTOR > 1:
            y_offset = tl.multiple_of(y_offset, [VECTOR, 1])
        y_offset = y_offset + j
    else:
        y_offset = y_offset + j * stride_yk
    if not WIDE:
        y_offset = y_offset.to(tl.uint32)  # takes no registers for upper halves
    if BITS:  # a bit for each tap of the phase, whether it meets an output
        bits = tl.zeros(m.shape, tl.int32)
        for i in range(r_count * s_count):
            p = p_first - i // s_count * up
            q = q_first - i % s_count * left
            bits |= ((n < N) & (p >= 0) & (p < P) & (q >= 0) & (q < Q)).to(tl.int32) << i

    # The tile of x and dx.
    m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]
    nx, h, w = phase_pixels(m, phase // phases_w, phase % phases_w, H, W, stride_h, stride_w)
    c_of_group = (pid_n % tiles_per_group * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    c = group * Cg + c_of_group
    if WIDE:
        c = c.to(tl.int64)
    tile = (nx < N) & (c_of_group < Cg)
    x = tl.load(x_ptr + nx * stride_xn + h * stride_xh + w * stride_xw + c * stride_xc, tile, 0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if SATURATED:
        x = x * 0.5
        total = tl.zeros(m.shape, tl.float32)
        p0 = (h + pad_top - r_first * dilation_h) // stride_h
        q0 = (w + pad_left - s_first * dilation_w) // stride_w
        for i in range(r_count * s_count):
            p = p0 - i // s_count * up
            q = q0 - i % s_count * left
            met = (nx < N) & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
            total += tl.load(total_ptr + ((nx * groups + group) * P + p) * Q + q, met, 0.0)
        acc = acc - 0.5 * total
    acc = anchor(acc, never, BLOCK_N, BLOCK_M, DEPTH)
    x = anchor(x, never, BLOCK_N, BLOCK_M, DEPTH)

    steps = tl.cdiv(Kg, COLUMNS)  # of a tap
    per_split = tl.cdiv(r_count * s_count * steps, splits)
    first = (split * per_split).to(tl.int32)
    last = tl.minimum(first + per_split, r_count * s_count * steps)
    tap = first // steps
    k0 = first % steps * COLUMNS
    row = tap // tl.maximum(s_count, 1)
    column = tap % tl.maximum(s_count, 1)
    w_tile = w_ptr + pid_n.to(tl.int64) * (R * S * steps) * (COLUMNS * BLOCK_N)
    w_offset = tl.arange(0, COLUMNS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    for _ in tl.range(first, last, num_stages=STAGES):
        if BITS:
            y_mask = (bits & (1 << tap)) != 0
        else:
            p = p_first - row * up
            q = q_first - column * left
            y_mask = (n < N) & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
        if not EVEN:
            y_mask = y_mask & (k0 + j < Kg)
        at_p = -row * up
        at_q = -column * left
        at_k = group * Kg + k0
        if WIDE:
            at_p = at_p.to(tl.int64)
            at_q = at_q.to(tl.int64)
            at_k = at_k.to(tl.int64)
        y_tap = at_p * stride_yp + at_q * stride_yq + at_k * (1 if LAST else stride_yk)
        if VECTOR > 1:
            y_tap = tl.multiple_of(y_tap, VECTOR)
        dy = tl.load(dy_ptr + y_tap + y_offset, y_mask, 0.0)
        if LAST:
            dy = tl.trans(dy)
        rs = (r_first + row * step_r) * S + s_first + column * step_s
        wv = tl.load(w_tile + (rs * (steps * COLUMNS) + k0) * BLOCK_N + w_offset)
        dys = columns(dy, COLUMNS, BLOCK_M)
        ws = columns(wv, COLUMNS, BLOCK_N)
        for u in tl.static_range(COLUMNS):  # [BLOCK_N, BLOCK_M]
            ht = tl.clamp(ws[u][:, None] - x, 0.0, 1.0) if SATURATED else transfer(ws[u][:, None] - x, exponent, EXACT)
            # By name: from 3.10 on Triton makes no fma of a product and a sum by itself.
            acc = tl.fma(tl.broadcast_to(dys[u][None, :], (BLOCK_N, BLOCK_M)), ht, acc)
        k0 += COLUMNS
        done = k0 >= Kg
        k0 = tl.where(done, 0, k0)
        tap += done.to(tl.int32)
        column += done.to(tl.int32)
        over = column == s_count
        column = tl.where(over, 0, column)
        row += over.to(tl.int32)
    if SATURATED:
        acc = 2.0 * acc

    # A tap that meets no output came in with dy = 0, which adds nothing, but 0 times NaN or infinity is NaN; and a
    # saturated NaN is 0. Instead of a selection at every tap, such a tile is summed once more, with the selection.
    again = tl.max((acc != acc).to(tl.int32)) > 0
    if SATURATED:
        filters = tl.load(nan_ptr)
        again = again | (tl.max((x != x).to(tl.int32)) > 0) | (filters - filters != 0.0)
    if again:
        if SATURATED:
            x = tl.load(x_ptr + nx * stride_xn + h * stride_xh + w * stride_xw + c * stride_xc, tile, 0.0)
            x = x.to(tl.float32)
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        p0 = (h + pad_top - r_first * dilation_h) // stride_h
        q0 = (w + pad_left - s_first * dilation_w) // stride_w
        raw_tile = raw_ptr + (group * Kg).to(tl.int64) * stride_wk + c_of_group * stride_wc
        for i in range(first * COLUMNS, last * COLUMNS):
            t = i // (steps * COLUMNS)
            k = i % (steps * COLUMNS)
            p = p0 - t // s_count * up
            q = q0 - t % s_count * left
            filled = k + c_of_group * 0 < Kg  # not a scalar: Triton 3.9's interpreter makes integers of those in a mask
            met = tile & (p >= 0) & (p < P) & (q >= 0) & (q < Q) & filled
            kk = group * Kg + k
            if WIDE:
                k = k.to(tl.int64)
                kk = kk.to(tl.int64)
            dy_offset = nx * stride_yn + kk * stride_yk + p * stride_yp + q * stride_yq
            dy = tl.load(dy_ptr + dy_offset + c_of_group * 0, met, 0.0)
            r = r_first + t // s_count * step_r
            s = s_first + t % s_count * step_s
            wv = tl.load(raw_tile + k * stride_wk + r * stride_wr + s * stride_ws, (c_of_group < Cg) & filled, 0.0)
            acc += tl.where(met, dy * transfer(wv - x, exponent, EXACT), 0.0)

    if POWER:
        acc = (exponent + 1.0) * acc
    dx_offset = nx * stride_dxn + h * stride_dxh + w * stride_dxw + c * stride_dxc
    tl.store(dx_ptr + split * stride_split + dx_offset, acc.to(dx_ptr.dtype.element_ty), tile)


_tuned = triton.autotune(_TUNED, key=["pixels", "Cg", "Kg", "R", "S", "stride_h", "MODE"], cache_results=True)(
    _adder2d_bwd_dx_kernel
)


def configuration(geometry: Geometry, variant: str) -> tuple[int, int, int, int, int, int | None]:
    """(BLOCK_M, BLOCK_N, COLUMNS, warps, stages, registers) by shape and variant: "", "channels last" or "AMD"."""
    g = geometry
    kind = "many channels" if g.Cg > 64 else "few channels" if g.Cg > 16 else "very few channels"
    block_m, block_n, depth, warps, stages, registers = _CONFIGS[f"{kind}, {variant}" if variant else kind]
    if interpreting():  # a program costs the same whatever its size
        block_m, block_n = power_of_2(phases(g)[2], 1, 4096), power_of_2(g.Cg, 1, 128)
    return block_m, block_n, power_of_2(g.Kg, 1, depth), warps, stages, registers


def variant(dy: Tensor, K: int, hip: bool = HIP, p: float = 1.0) -> str:
    """Which configurations are for this gradient."""
    return "AMD" if hip else "power" if p > 1 else "channels last" if channels_last(dy, K) else ""


def packed(weight: Tensor, geometry: Geometry, variant: str, saturated: bool) -> Tensor:
    """The filters for ``plan``, float32; (w + 1)/2 for the saturated form."""
    g = geometry
    _, block_n, depth, *_ = configuration(g, variant)
    filters = weight.float().mul(0.5).add(0.5) if saturated else weight.float()
    return pack(filters.reshape(g.G, g.Kg, g.Cg, g.R * g.S).permute(0, 3, 1, 2), block_n, depth)


def plan(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    dx: Tensor,
    raw: Tensor,
    total: Tensor,
    nan: Tensor,
    geometry: Geometry,
    mode: str,
    hip: bool = HIP,
    p: float = 1.0,
) -> Launch:
    """The launch that computes ``dx`` [N, C, H, W], or parts [splits, N, C, H, W] of it, from ``packed`` filters.

    Args:
        raw: The filters as they are, float32.
        total: Σ_k dy, [N, G, P, Q], contiguous; mode "saturated" reads it.
        nan: Not finite where a filter is not; mode "saturated" reads it.
        mode: "saturated", or "clipped", "full" and "sign" by the equations; not read for p > 1.
    """
    g = geometry
    block_m, block_n, depth, warps, stages, registers = configuration(g, variant(dy, g.K, hip, p))
    phases_h, phases_w, pixels, step_r, step_s = phases(g)
    tiles_per_group = triton.cdiv(g.Cg, block_n)
    splits = dx.shape[0] if dx.dim() == 5 else 1
    one = dx[0] if dx.dim() == 5 else dx
    last = channels_last(dy, g.K)
    even = g.Kg % depth == 0
    return Launch(
        _adder2d_bwd_dx_kernel,
        lambda meta: phases_h * phases_w * triton.cdiv(pixels, meta["BLOCK_M"]) * g.G * tiles_per_group * splits,
        {
            "dy_ptr": dy, "x_ptr": x, "w_ptr": w, "dx_ptr": dx, "raw_ptr": raw, "total_ptr": total, "nan_ptr": nan,
            "N": g.N, **g.scalars(),
            **strides("y", "nkpq", dy), **strides("x", "nchw", x), **strides("w", "kcrs", raw),
            **strides("dx", "nchw", one), "stride_split": dx.stride(0) if dx.dim() == 5 else 0,
            "pixels": pixels, "tiles_n": g.G * tiles_per_group, "tiles_per_group": tiles_per_group,
            "phases_h": phases_h, "phases_w": phases_w, "step_r": step_r, "step_s": step_s, "splits": splits,
            "never": 0, "exponent": p - 1.0,
        },
        {
            "MODE": term(p, mode, hip or interpreting()),
            "BLOCK_M": block_m, "BLOCK_N": block_n, "COLUMNS": depth, "STAGES": stages, "DEPTH": 1 if hip else 16,
            "LAST": last, "VECTOR": vector(dy, g.Kg) if last and even else 1,
            "BITS": g.R * g.S <= 31, "EVEN": even, "WIDE": wide(dy, x, dx),
        },
        warps,
        stages,
        registers,
        _tuned,
    )  # fmt: skip


def adder2d_grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_grad: str = "clipped",
    p: float = 1.0,
) -> Tensor:
    """dx = Σ dy·HT(w - x) (Eq. 6 and 7), or its variants; for p > 1 the derivative Σ dy·p·|w - x|^(p-1)·sgn(w - x).

    Args:
        dy: [N, K, P, Q], any strides.
        x, weight, stride, padding, dilation, groups: As in ``adder2d_forward``.
        input_grad: "clipped", "full" or "sign"; all the same for p > 1.

    Returns:
        [N, C, H, W], in the dtype of x, accumulated in float32, channels_last where x is. "clipped" is off by at most
        (4·terms + 8)·2^-24·Σ |dy|, over the K/groups·R·S terms of an element at most.
    """
    check(x, weight, dy)
    if input_grad not in MODES:
        raise ValueError(f"input_grad must be one of {MODES}, got {input_grad!r}")
    geometry = g = Geometry.of(x, weight, stride, padding, dilation, groups)
    dy, weight = dy.float(), weight.float()
    dtype = torch.float32 if interpreting() else x.dtype  # the interpreter cuts bfloat16 off instead of rounding it
    dx = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format(x))
    if small_groups.fits(g.G, g.Cg):
        small_groups.plan_grad_input(dy, x, weight, dx, geometry, input_grad, p=p).run()
        return dx.to(x.dtype)
    kind = variant(dy, g.K, p=p)
    block_m, block_n, depth, *_ = configuration(geometry, kind)
    phases_h, phases_w, pixels, step_r, step_s = phases(g)
    programs = phases_h * phases_w * triton.cdiv(pixels, block_m) * g.G * triton.cdiv(g.Cg, block_n)
    steps = triton.cdiv(g.R, step_r) * triton.cdiv(g.S, step_s) * triton.cdiv(g.Kg, depth)  # of the longest phase
    splits = parts(programs, steps, processors(x.device))
    # A part knows only its own terms, so it cannot take Σ dy from outside; few tiles leave time for the plain clamp.
    saturated = input_grad == "clipped" and splits == 1 and p == 1
    w = packed(weight, geometry, kind, saturated)
    if saturated:
        total, nan = dy.unflatten(1, (g.G, g.Kg)).sum(2).contiguous(), w.sum()
    else:
        total = nan = w
    mode = "saturated" if saturated else input_grad
    if splits == 1:
        plan(dy, x, w, dx, weight, total, nan, geometry, mode, p=p).run()
        return dx.to(x.dtype)
    partial = torch.empty((splits, *dx.shape), dtype=torch.float32, device=dx.device).as_strided(
        (splits, *dx.shape), (dx.numel(), *dx.stride())
    )
    plan(dy, x, w, partial, weight, total, nan, geometry, mode, p=p).run()
    return partial.sum(0).to(x.dtype)
