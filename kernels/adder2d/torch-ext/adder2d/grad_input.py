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

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    SMALL_GROUP,
    Geometry,
    Launch,
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
    "small groups": (64, 32, 1, 4, 2),  # dy is no outer operand here: nothing to reuse but w
}


@triton.jit
def _adder2d_bwd_dx_kernel(
    dy_ptr, x_ptr, w_ptr, dx_ptr,
    N, H, W, P, Q, K, C, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_yn, stride_yk, stride_yp, stride_yq,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_dxn, stride_dxc, stride_dxh, stride_dxw,
    tiles_m, tiles_n, tiles_per_group, phases_w,
    MODE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FILTERS: tl.constexpr,
    SMALL_GROUPS: tl.constexpr, WIDE: tl.constexpr,
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
        k_first = k_first.to(tl.int64)
    tile = m_inside[:, None] & c_inside[None, :]

    x_offset = n * stride_xn + h * stride_xh + w * stride_xw
    x = tl.load(x_ptr + x_offset[:, None] + (c * stride_xc)[None, :], tile, 0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for r in range(R):
        # The same for all pixels of the phase: does this row of taps meet any output at all?
        if (phase_h + pad_top - r * dilation_h) % stride_h == 0:
            p_times_stride = h + pad_top - r * dilation_h
            p = p_times_stride // stride_h
            p_inside = m_inside & (p_times_stride >= 0) & (p < P)
            for s in range(S):
                if (phase_w + pad_left - s * dilation_w) % stride_w == 0:
                    q_times_stride = w + pad_left - s * dilation_w
                    q = q_times_stride // stride_w
                    inside = p_inside & (q_times_stride >= 0) & (q < Q)
                    dy_offset = n * stride_yn + p * stride_yp + q * stride_yq
                    w_offset = c_of_group * stride_wc + r * stride_wr + s * stride_ws
                    for k0 in range(0, Kg, FILTERS):
                        for j in tl.static_range(FILTERS):
                            k = k_first + k0 + j
                            real = k0 + j < Kg
                            if SMALL_GROUPS:
                                met = inside[:, None] & (c_inside & real)[None, :]
                                dy = tl.load(dy_ptr + dy_offset[:, None] + (k * stride_yk)[None, :], met, 0.0)
                            else:
                                met = (inside & real)[:, None]
                                dy = tl.load(dy_ptr + dy_offset + k * stride_yk, inside & real, 0.0)[:, None]
                            wv = tl.load(w_ptr + w_offset + k * stride_wk, c_inside & real, 0.0)
                            t = transfer(wv[None, :].to(tl.float32) - x, MODE)  # [BLOCK_M, BLOCK_N]
                            acc += tl.where(met, dy.to(tl.float32) * t, 0.0)

    dx_offset = n * stride_dxn + h * stride_dxh + w * stride_dxw
    tl.store(dx_ptr + dx_offset[:, None] + (c * stride_dxc)[None, :], acc.to(dx_ptr.dtype.element_ty), tile)


def plan(dy: Tensor, x: Tensor, weight: Tensor, dx: Tensor, geometry: Geometry, mode: str) -> Launch:
    """The launch that computes ``dx``."""
    g = geometry
    phases_h, phases_w = min(g.stride[0], g.H), min(g.stride[1], g.W)
    pixels = g.N * triton.cdiv(g.H, g.stride[0]) * triton.cdiv(g.W, g.stride[1])  # of the largest phase
    small_groups = g.G > 1 and g.Cg <= SMALL_GROUP
    if small_groups:
        kind = "small groups"
    else:
        kind = "many channels" if g.Cg > 64 else "few channels" if g.Cg > 16 else "very few channels"
    block_m, block_n, filters, warps, stages = _CONFIGS[kind]
    if interpreting():  # a program costs the same whatever its size
        block_m, block_n = power_of_2(pixels, 1, 4096), power_of_2(g.C if small_groups else g.Cg, 1, 128)
    filters = power_of_2(g.Kg, 1, filters)
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
        },
        {
            "MODE": mode, "BLOCK_M": block_m, "BLOCK_N": block_n, "FILTERS": filters, "SMALL_GROUPS": small_groups,
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
    plan(dy, x, weight, dx, geometry, input_grad).run()
    return dx.to(x.dtype)
