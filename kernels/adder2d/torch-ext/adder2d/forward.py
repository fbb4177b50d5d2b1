"""Forward of the adder operator (AdderNet, arXiv 1912.13200, Eq. 2), as a whole convolution.

    y[n, k, p, q] = -Σ_{c,r,s} |x[n, c, p·stride_h + r·dilation_h - pad_top, q·stride_w + ...] - w[k, c, r, s]|

    x [N, C, H, W]    w [K, Cg, R, S]    y [N, K, P, Q]    G groups, Cg = C / G, Kg = K / G
    M = N·P·Q output pixels; a program has BLOCK_M of them and BLOCK_N filters

Two zeros are kept apart: padding of the image is x = 0 and adds -|w|; the tail of a tile adds nothing.
"""

from __future__ import annotations

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
    wide,
)

# (BLOCK_M, BLOCK_N, columns of the reduction a step, warps, stages)
_CONFIGS = {
    "many filters": (128, 128, 8, 8, 3),  # 8x8 sums a thread: 16 values serve 64 differences
    "few filters": (256, 64, 8, 8, 3),  # the same number of sums, for K up to 64
    "very few filters": (256, 16, 8, 4, 3),  # LeNet and the first layers
    "small groups": (512, 1, 1, 4, 1),  # x is no outer operand here: lanes go along the pixels, neighbours in NCHW,
    "small groups, channels last": (32, 64, 1, 4, 1),  # or along the filters, whose channels are neighbours there
}


@triton.jit(do_not_specialize=["never"])
def _adder2d_fwd_kernel(
    x_ptr, w_ptr, y_ptr,
    M, H, W, P, Q, K, C, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_yn, stride_yk, stride_yp, stride_yq,
    tiles_n, tiles_per_group, never,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr, SMALL_GROUPS: tl.constexpr,
    ANCHORED: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_m = pid // tiles_n
    if WIDE:
        pid_m = pid_m.to(tl.int64)

    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    m_inside = m < M
    n = m // (P * Q)
    p = m // Q % P
    q = m % Q
    h_first = p * stride_h - pad_top
    w_first = q * stride_w - pad_left

    if SMALL_GROUPS:  # filters of several groups side by side
        k = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        k_inside = k < K
        c_first = k // Kg * Cg
    else:
        group = pid_n // tiles_per_group
        k_of_group = pid_n % tiles_per_group * BLOCK_N + tl.arange(0, BLOCK_N)
        k_inside = k_of_group < Kg
        k = group * Kg + k_of_group
        c_first = group * Cg
    if WIDE:
        k = k.to(tl.int64)
        c_first = c_first.to(tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if ANCHORED:
        acc = anchor(acc, never, BLOCK_M, BLOCK_N)
    x_offset = n * stride_xn + h_first * stride_xh + w_first * stride_xw
    w_offset = k * stride_wk
    steps = tl.cdiv(Cg, COLUMNS)
    for i in tl.range(0, R * S * steps, num_stages=STAGES):
        rs = i // steps
        c0 = i % steps * COLUMNS
        r = rs // S
        s = rs % S
        h = h_first + r * dilation_h
        w = w_first + s * dilation_w
        if WIDE:
            c0 = c0.to(tl.int64)
            r = r.to(tl.int64)
            s = s.to(tl.int64)
        inside = m_inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        # What moves with the tap is a scalar: the offsets of the tile's pixels and filters stay what they are.
        x_tap = x_ptr + (r * dilation_h * stride_xh + s * dilation_w * stride_xw)
        w_tap = w_ptr + (r * stride_wr + s * stride_ws)
        for j in tl.static_range(COLUMNS):
            c = c0 + j
            real = EVEN or c < Cg
            if SMALL_GROUPS:
                x_mask = inside[:, None] & (k_inside & real)[None, :]
                x = tl.load(x_tap + (x_offset[:, None] + ((c_first + c) * stride_xc)[None, :]), x_mask, 0.0)
            else:
                x = tl.load(x_tap + (c_first + c) * stride_xc + x_offset, inside & real, 0.0)[:, None]
            wv = tl.load(w_tap + c * stride_wc + w_offset, k_inside & real, 0.0)[None, :]
            acc += tl.abs(x.to(tl.float32) - wv.to(tl.float32))  # [BLOCK_M, BLOCK_N]

    y_offset = n * stride_yn + p * stride_yp + q * stride_yq
    tl.store(y_ptr + y_offset[:, None] + (k * stride_yk)[None, :], -acc, m_inside[:, None] & k_inside[None, :])


def small(geometry: Geometry) -> bool:
    """Whether a group has so few filters that a tile of its own would be mostly empty."""
    return geometry.G > 1 and geometry.Kg <= SMALL_GROUP


def plan(x: Tensor, weight: Tensor, y: Tensor, geometry: Geometry, hip: bool = HIP) -> Launch:
    """The launch that computes ``y``."""
    g = geometry
    M = g.N * g.P * g.Q
    small_groups = small(g)
    if small_groups:
        kind = "small groups" if x.stride(1) > x.stride(3) else "small groups, channels last"
    else:
        kind = "many filters" if g.Kg > 64 else "few filters" if g.Kg > 16 else "very few filters"
    block_m, block_n, columns, warps, stages = _CONFIGS[kind]
    if interpreting():  # a program costs the same whatever its size
        block_m, block_n = power_of_2(M, 1, 4096), power_of_2(g.K if small_groups else g.Kg, 1, 128)
    columns = power_of_2(g.Cg, 1, columns)
    staged = not (small_groups or hip or interpreting())  # on AMD both cost hundreds of spilled registers
    tiles_per_group = triton.cdiv(g.Kg, block_n)
    tiles_n = triton.cdiv(g.K, block_n) if small_groups else g.G * tiles_per_group
    return Launch(
        _adder2d_fwd_kernel,
        triton.cdiv(M, block_m) * tiles_n,
        {
            "x_ptr": x, "w_ptr": weight, "y_ptr": y, "M": M, **g.scalars(),
            **strides("x", "nchw", x), **strides("w", "kcrs", weight), **strides("y", "nkpq", y),
            "tiles_n": tiles_n, "tiles_per_group": tiles_per_group, "never": 0,
        },
        {
            "BLOCK_M": block_m, "BLOCK_N": block_n, "COLUMNS": columns, "SMALL_GROUPS": small_groups,
            "ANCHORED": staged, "STAGES": stages if staged else 1, "EVEN": g.Cg % columns == 0,
            "WIDE": wide(x, weight, y),
        },
        warps,
        stages,
    )  # fmt: skip


def adder2d_forward(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y = -Σ|x - w| (Eq. 2).

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16, any strides.
        weight: [K, C/groups, R, S], likewise; its dtype may be another one.
        stride, dilation: (height, width).
        padding: (top, bottom, left, right).
        groups: Divides C and K.

    Returns:
        [N, K, P, Q], float32 whatever the input's precision, channels_last where x is.
    """
    check(x, weight)
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    shape = (geometry.N, geometry.K, geometry.P, geometry.Q)
    y = torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=memory_format(x))
    if not small(geometry):  # two bytes are too few to be staged asynchronously: the loop would wait for each column
        x, weight = x.float(), weight.float()
    plan(x, weight, y, geometry).run()
    return y
