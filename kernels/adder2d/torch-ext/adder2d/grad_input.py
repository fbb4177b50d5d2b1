"""Input gradient of the adder operator (AdderNet, arXiv 1912.13200, Eq. 6 and 7), as a whole convolution.

    dx[n, c, h, w] = Σ_{k,r,s} dy[n, k, p, q]·HT(w[k, c, r, s] - x[n, c, h, w])
    for the (p, q) with p·stride_h + r·dilation_h - pad_top = h and q·stride_w + s·dilation_w - pad_left = w

HT clamps to [-1, 1]: a surrogate for the sign, which the derivative would be. Also w - x itself ("full") and the sign.

    x, dx [N, C, H, W]    w [K, Cg, R, S]    dy [N, K, P, Q]    G groups, Cg = C / G, Kg = K / G

It is a gather, without atomics: the pixels of one *phase* (h mod stride_h, w mod stride_w) meet the same taps, so a
program has BLOCK_M pixels of one phase and skips the other taps as a whole. A tap that meets no output adds nothing,
not even where 0·NaN would make it NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    HIP,
    SMALL_GROUP,
    Geometry,
    Launch,
    anchor,
    check,
    interpreting,
    memory_format,
    power_of_2,
    strides,
    transfer,
    wide,
)

MODES = ("clipped", "full", "sign")

# (BLOCK_M, BLOCK_N, filters a step, warps, stages); a tile keeps x beside its sums, so it is half as large as forward's
_CONFIGS = {
    "many channels": (64, 128, 8, 8, 3),
    "few channels": (128, 64, 8, 8, 3),  # C up to 64
    "very few channels": (256, 16, 8, 4, 3),  # LeNet and the first layers
    "small groups": (512, 1, 1, 4, 1),  # dy is no outer operand here: lanes go along the pixels, neighbours in NCHW,
    "small groups, channels last": (32, 64, 1, 4, 1),  # or along the channels, which are neighbours there
}


@triton.jit(do_not_specialize=["never"])
def _adder2d_bwd_dx_kernel(
    dy_ptr, x_ptr, w_ptr, dx_ptr,
    N, H, W, P, Q, K, C, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_yn, stride_yk, stride_yp, stride_yq,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_dxn, stride_dxc, stride_dxh, stride_dxw,
    tiles_m, tiles_n, tiles_per_group, phases_w, step_r, step_s, never,
    MODE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FILTERS: tl.constexpr,
    SMALL_GROUPS: tl.constexpr, ANCHORED: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_m = pid // tiles_n % tiles_m
    phase = pid // tiles_n // tiles_m
    phase_h = phase // phases_w
    phase_w = phase % phases_w
    if WIDE:
        pid_m = pid_m.to(tl.int64)

    # Pixels of the phase, counted as if its rows were an image of their own.
    rows = (H - phase_h + stride_h - 1) // stride_h
    columns = (W - phase_w + stride_w - 1) // stride_w
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = m // (rows * columns)
    h = phase_h + m // columns % rows * stride_h
    w = phase_w + m % columns * stride_w
    m_inside = n < N

    if SMALL_GROUPS:  # channels of several groups side by side
        c = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        c_inside = c < C
        k_first = c // Cg * Kg
        c_of_group = c % Cg
    else:
        group = pid_n // tiles_per_group
        c_of_group = pid_n % tiles_per_group * BLOCK_N + tl.arange(0, BLOCK_N)
        c_inside = c_of_group < Cg
        c = group * Cg + c_of_group
        k_first = group * Kg
    if WIDE:
        c = c.to(tl.int64)
        c_of_group = c_of_group.to(tl.int64)
        k_first = k_first.to(tl.int64)
    tile = m_inside[:, None] & c_inside[None, :]

    # The taps of the phase: every step_r-th row of the filter from r_first on, every step_s-th column from s_first on.
    r_first, r_count = _taps(phase_h + pad_top, R, stride_h, dilation_h, step_r)
    s_first, s_count = _taps(phase_w + pad_left, S, stride_w, dilation_w, step_s)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    x_offset = n * stride_xn + h * stride_xh + w * stride_xw
    x = tl.load(x_ptr + x_offset[:, None] + (c * stride_xc)[None, :], tile, 0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    if ANCHORED:
        acc = anchor(acc, never, BLOCK_M, BLOCK_N)
        x = anchor(x, never, BLOCK_M, BLOCK_N)
    y_offset = n * stride_yn
    w_offset = c_of_group * stride_wc
    steps = tl.cdiv(Kg, FILTERS)
    for i in tl.range(0, r_count * s_count * steps, num_stages=STAGES):
        r = r_first + i // steps // s_count * step_r
        s = s_first + i // steps % s_count * step_s
        k0 = i % steps * FILTERS
        if WIDE:
            r = r.to(tl.int64)
            s = s.to(tl.int64)
        ph = h + (pad_top - r * dilation_h)  # p * stride_h
        qw = w + (pad_left - s * dilation_w)
        p = ph // stride_h
        q = qw // stride_w
        met = m_inside & (ph >= 0) & (p < P) & (qw >= 0) & (q < Q)
        dy_offset = y_offset + p * stride_yp + q * stride_yq
        w_tap = w_ptr + (r * stride_wr + s * stride_ws)
        for j in tl.static_range(FILTERS):
            k = k_first + (k0 + j)
            real = EVEN or k0 + j < Kg
            if SMALL_GROUPS:
                mask = met[:, None] & (c_inside & real)[None, :]
                dy = tl.load(dy_ptr + (dy_offset[:, None] + (k * stride_yk)[None, :]), mask, 0.0)
            else:
                dy = tl.load(dy_ptr + k * stride_yk + dy_offset, met & real, 0.0)[:, None]
            wv = tl.load(w_tap + k * stride_wk + w_offset, c_inside & real, 0.0)[None, :]
            acc += dy.to(tl.float32) * transfer(wv.to(tl.float32) - x, MODE)  # [BLOCK_M, BLOCK_N]

    # A tap that meets no output came in with dy = 0, which adds nothing, except that 0 times NaN or infinity is NaN.
    # Instead of a selection at every tap, what has become NaN is summed once more, now with the selection.
    if tl.max((acc != acc).to(tl.int32)) > 0:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in range(r_count * s_count * Kg):
            r = r_first + i // Kg // s_count * step_r
            s = s_first + i // Kg % s_count * step_s
            k = k_first + i % Kg
            if WIDE:
                r = r.to(tl.int64)
                s = s.to(tl.int64)
            ph = h + (pad_top - r * dilation_h)
            qw = w + (pad_left - s * dilation_w)
            p = ph // stride_h
            q = qw // stride_w
            met = tile & (m_inside & (ph >= 0) & (p < P) & (qw >= 0) & (q < Q))[:, None]
            dy_offset = (y_offset + p * stride_yp + q * stride_yq)[:, None]
            if SMALL_GROUPS:
                dy = tl.load(dy_ptr + (dy_offset + (k * stride_yk)[None, :]), met, 0.0)
            else:
                dy = tl.load(dy_ptr + k * stride_yk + dy_offset + tl.zeros((1, BLOCK_N), tl.int32), met, 0.0)
            wv = tl.load(w_ptr + (r * stride_wr + s * stride_ws) + k * stride_wk + w_offset, c_inside, 0.0)[None, :]
            acc += tl.where(met, dy.to(tl.float32) * transfer(wv.to(tl.float32) - x, MODE), 0.0)

    dx_offset = n * stride_dxn + h * stride_dxh + w * stride_dxw
    tl.store(dx_ptr + dx_offset[:, None] + (c * stride_dxc)[None, :], acc.to(dx_ptr.dtype.element_ty), tile)


@triton.jit
def _taps(offset, R, stride, dilation, step):
    """The r with (offset - r·dilation) divisible by stride: the first, how many; they are ``step`` apart."""
    first = R
    for i in range(tl.minimum(R, step)):
        r = tl.minimum(R, step) - 1 - i
        if (offset - r * dilation) % stride == 0:
            first = r
    return first, (R - first + step - 1) // step


def plan(dy: Tensor, x: Tensor, weight: Tensor, dx: Tensor, geometry: Geometry, mode: str, hip: bool = HIP) -> Launch:
    """The launch that computes ``dx``."""
    g = geometry
    phases_h, phases_w = min(g.stride[0], g.H), min(g.stride[1], g.W)
    pixels = g.N * triton.cdiv(g.H, g.stride[0]) * triton.cdiv(g.W, g.stride[1])  # of the largest phase
    small_groups = g.G > 1 and g.Cg <= SMALL_GROUP
    if small_groups:
        kind = "small groups" if x.stride(1) > x.stride(3) else "small groups, channels last"
    else:
        kind = "many channels" if g.Cg > 64 else "few channels" if g.Cg > 16 else "very few channels"
    block_m, block_n, filters, warps, stages = _CONFIGS[kind]
    if interpreting():  # a program costs the same whatever its size
        block_m, block_n = power_of_2(pixels, 1, 4096), power_of_2(g.C if small_groups else g.Cg, 1, 128)
    filters = power_of_2(g.Kg, 1, filters)
    step_r, step_s = (g.stride[i] // math.gcd(g.stride[i], g.dilation[i]) for i in range(2))
    staged = not (small_groups or hip or interpreting())  # on AMD both cost hundreds of spilled registers
    tiles_per_group = triton.cdiv(g.Cg, block_n)
    tiles_n = triton.cdiv(g.C, block_n) if small_groups else g.G * tiles_per_group
    tiles_m = triton.cdiv(pixels, block_m)
    return Launch(
        _adder2d_bwd_dx_kernel,
        phases_h * phases_w * tiles_m * tiles_n,
        {
            "dy_ptr": dy, "x_ptr": x, "w_ptr": weight, "dx_ptr": dx, "N": g.N, **g.scalars(),
            **strides("y", "nkpq", dy), **strides("x", "nchw", x), **strides("w", "kcrs", weight),
            **strides("dx", "nchw", dx),
            "tiles_m": tiles_m, "tiles_n": tiles_n, "tiles_per_group": tiles_per_group, "phases_w": phases_w,
            "step_r": step_r, "step_s": step_s, "never": 0,
        },
        {
            "MODE": mode, "BLOCK_M": block_m, "BLOCK_N": block_n, "FILTERS": filters, "SMALL_GROUPS": small_groups,
            "ANCHORED": staged, "STAGES": stages if staged else 1, "EVEN": g.Kg % filters == 0,
            "WIDE": wide(dy, x, weight, dx),
        },
        warps,
        stages,
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
) -> Tensor:
    """dx = Σ dy·HT(w - x) (Eq. 6 and 7), or its variants.

    Args:
        dy: [N, K, P, Q], any strides.
        x, weight, stride, padding, dilation, groups: As in ``adder2d_forward``.
        input_grad: "clipped", "full" or "sign".

    Returns:
        [N, C, H, W], in the dtype of x, accumulated in float32, channels_last where x is.
    """
    check(x, weight, dy)
    if input_grad not in MODES:
        raise ValueError(f"input_grad must be one of {MODES}, got {input_grad!r}")
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    dtype = torch.float32 if interpreting() else x.dtype  # the interpreter cuts bfloat16 off instead of rounding it
    dx = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format(x))
    # Two bytes are too few to be staged asynchronously: the loop would wait for each filter.
    plan(dy.float(), x, weight.float(), dx, geometry, input_grad).run()
    return dx.to(x.dtype)
