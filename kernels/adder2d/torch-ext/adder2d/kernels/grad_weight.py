"""Weight gradient of the adder operator (AdderNet, arXiv 1912.13200, Eq. 5, or Eq. 4).

    dw[k, c, r, s] = Σ_{n,p,q} dy[n, k, p, q]·(x[n, c, p·stride_h + r·dilation_h - pad_top, ...] - w[k, c, r, s])

"full" (Eq. 5, a surrogate) is linear in x: Σ dy·x, which is the library's own convolution weight gradient, less w·Σ dy.
The convolution takes TF32 on a GPU where ``torch.backends.cudnn.allow_tf32`` lets it (torch's default): x and dy are
then rounded to 11 bits, and dw is off by up to 2^-10·Σ |dy·x| instead of some 2^-24 of it. As Σ dy·x and w·Σ dy cancel
where x is close to w, that may be much of a small dw; the adaptive learning rate only sees dw's direction.

"sign" (Eq. 4) puts sgn(x - w) instead of x - w, and is summed tap by tap by the kernel below, as the derivative is for
1 < p < 2, with p·|x - w|^(p-1)·sgn(x - w) (``_power.py``). So is "full" where
the two sums met as ∞ - ∞ or 0·∞: the kernel looks at what the convolution left and computes again only the tiles that
are not finite, so that nobody waits for the device.

    x [N, C, H, W]    w, dw [K, Cg, R, S]    dy [N, K, P, Q]    G groups, Cg = C / G, Kg = K / G
    M = N·P·Q pixels, cut into `splits` parts that are added up afterwards, in one order
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._launch import HIP, Geometry, Launch, check, interpreting, power_of_2, strides, transfer, wide
from ._power import term

MODES = ("full", "sign")

# BLOCK_K x BLOCK_C filters elements, BLOCK_M pixels at a time: 2,048 products, 16 for each of 128 threads.
_BLOCK_M, _BLOCK_K, _BLOCK_C = 8, 16, 16
_POWERS = 8192  # products at a time for 1 < p < 2, of which none should be idle: the tile is as large as a group
_PROGRAMS = 1024  # to cut the pixels for, so that a card has work even for few filters
_PIXELS = 256  # the fewest that are worth a part


_INTEGERS = [
    *("M", "H", "W", "P", "Q", "K", "C", "Kg", "Cg", "R", "S", "stride_h", "stride_w", "pad_top", "pad_left"),
    *("dilation_h", "dilation_w", "stride_yn", "stride_yk", "stride_yp", "stride_yq"),
    *("stride_xn", "stride_xc", "stride_xh", "stride_xw", "stride_wk", "stride_wc", "stride_wr", "stride_ws"),
    *("tiles_k", "tiles_c", "pixels_per_split", "exponent"),
]


@triton.jit(do_not_specialize=_INTEGERS)
def _adder2d_bwd_dw_kernel(
    dy_ptr, x_ptr, w_ptr, dw_ptr,
    M, H, W, P, Q, K, C, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_yn, stride_yk, stride_yp, stride_yq,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    tiles_k, tiles_c, pixels_per_split, exponent,
    MODE: tl.constexpr, REPAIR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pid_c = pid % tiles_c
    pid_k = pid // tiles_c % tiles_k
    rs = pid // tiles_c // tiles_k % (R * S)
    group = pid // tiles_c // tiles_k // (R * S) % (C // Cg)
    split = pid // tiles_c // tiles_k // (R * S) // (C // Cg)
    r = rs // S
    s = rs % S
    if WIDE:
        split = split.to(tl.int64)
        group = group.to(tl.int64)

    k = pid_k * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K], of the group
    c = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C], of the group
    k_inside = k < Kg
    c_inside = c < Cg
    tile = k_inside[:, None] & c_inside[None, :]
    k = group * Kg + k
    w_offset = (k * stride_wk)[:, None] + (c * stride_wc)[None, :] + r * stride_wr + s * stride_ws
    wv = tl.load(w_ptr + w_offset, tile, 0.0).to(tl.float32)  # [BLOCK_K, BLOCK_C]
    # dw is contiguous, one [K, Cg, R, S] for each split
    dw_offset = ((split * K + k)[:, None] * Cg + c[None, :]) * (R * S) + rs
    first = split * pixels_per_split
    last = tl.minimum(first + pixels_per_split, M)
    keep = tile
    if REPAIR:
        found = tl.load(dw_ptr + dw_offset, tile, 0.0)
        # z - z is 0 for finite z and NaN for all others
        keep = tile & (found - found != 0.0)
        if tl.max(keep.to(tl.int32)) == 0:
            last = first

    acc = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for m0 in range(first, last, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        m_inside = m < last
        n = m // (P * Q)
        p = m // Q % P
        q = m % Q
        h = p * stride_h - pad_top + r * dilation_h
        w = q * stride_w - pad_left + s * dilation_w
        inside = m_inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        dy_offset = n * stride_yn + p * stride_yp + q * stride_yq
        x_offset = n * stride_xn + h * stride_xh + w * stride_xw
        dy_mask = m_inside[:, None] & k_inside[None, :]
        dy = tl.load(dy_ptr + dy_offset[:, None] + (k * stride_yk)[None, :], dy_mask, 0.0)  # [BLOCK_M, BLOCK_K]
        x_mask = inside[:, None] & c_inside[None, :]
        x = tl.load(x_ptr + x_offset[:, None] + ((group * Cg + c) * stride_xc)[None, :], x_mask, 0.0)
        t = transfer(x.to(tl.float32)[:, None, :] - wv[None, :, :], exponent, MODE)  # [BLOCK_M, BLOCK_K, BLOCK_C]
        term = tl.where(m_inside[:, None, None], dy.to(tl.float32)[:, :, None] * t, 0.0)
        acc += tl.sum(term, 0)

    if MODE == "power" or MODE == "approximate power":
        acc = (exponent + 1.0) * acc
    tl.store(dw_ptr + dw_offset, acc, keep)


def plan(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    dw: Tensor,
    geometry: Geometry,
    mode: str,
    repair: bool,
    splits: int,
    hip: bool = HIP,
    p: float = 1.0,
) -> Launch:
    """The launch that computes ``dw`` [splits, K, Cg, R, S], or of dw with splits = 1 what is not finite (repair).

    ``mode`` is not read for p > 1.
    """
    g = geometry
    M = g.N * g.P * g.Q
    block_m, block_k, block_c = blocks(g, p)
    if interpreting():  # a program costs the same whatever its size
        block_k, block_c = power_of_2(g.Kg, 1, 64), power_of_2(g.Cg, 1, 64)
        block_m = power_of_2(M, 1, max(1, (1 << 20) // (block_k * block_c)))
    tiles_k, tiles_c = triton.cdiv(g.Kg, block_k), triton.cdiv(g.Cg, block_c)
    return Launch(
        _adder2d_bwd_dw_kernel,
        lambda meta: splits * g.G * g.R * g.S * tiles_k * tiles_c,
        {
            "dy_ptr": dy, "x_ptr": x, "w_ptr": weight, "dw_ptr": dw, "M": M, **g.scalars(), "K": g.K, "C": g.C,
            **strides("y", "nkpq", dy), **strides("x", "nchw", x), **strides("w", "kcrs", weight),
            "tiles_k": tiles_k, "tiles_c": tiles_c, "pixels_per_split": triton.cdiv(M, splits),
            "exponent": p - 1.0,
        },
        {
            "MODE": term(p, mode, hip or interpreting()), "REPAIR": repair,
            "BLOCK_M": block_m, "BLOCK_K": block_k, "BLOCK_C": block_c,
            "WIDE": wide(dy, x, weight, dw),
        },
        4,
        2,
    )  # fmt: skip


def blocks(geometry: Geometry, p: float) -> tuple[int, int, int]:
    """BLOCK_M, BLOCK_K and BLOCK_C."""
    if p == 1:
        return _BLOCK_M, _BLOCK_K, _BLOCK_C
    block_k, block_c = power_of_2(geometry.Kg, 1, 32), power_of_2(geometry.Cg, 1, 32)
    return min(1024, _POWERS // (block_k * block_c)), block_k, block_c


def splits_for(geometry: Geometry, p: float = 1.0) -> int:
    """Into how many parts the pixels are cut; by the sizes alone, so that a call always adds up in the same order."""
    g = geometry
    _, block_k, block_c = blocks(g, p)
    tiles = g.G * g.R * g.S * triton.cdiv(g.Kg, block_k) * triton.cdiv(g.Cg, block_c)
    return max(1, min(triton.cdiv(_PROGRAMS, tiles), g.N * g.P * g.Q // _PIXELS))


def adder2d_grad_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight_grad: str = "full",
    p: float = 1.0,
) -> Tensor:
    """dw = Σ dy·(x - w) (Eq. 5), or Σ dy·sgn(x - w) (Eq. 4); for p > 1 the derivative Σ dy·p·|x - w|^(p-1)·sgn(x - w).

    Args:
        dy: [N, K, P, Q], any strides.
        x, weight, stride, padding, dilation, groups, p: As in ``adder2d_forward``.
        weight_grad: "full" or "sign"; both the same for p > 1.

    Returns:
        [K, C/groups, R, S], in the dtype of weight, accumulated in float32.
    """
    check(x, weight, dy)
    if weight_grad not in MODES:
        raise ValueError(f"weight_grad must be one of {MODES}, got {weight_grad!r}")
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    if weight_grad == "full" and p == 1:
        dw = _linear(dy.float(), x.float(), weight.float(), geometry)
        plan(dy, x, weight, dw, geometry, weight_grad, repair=True, splits=1).run()
        return dw.to(weight.dtype)
    splits = splits_for(geometry, p)
    parts = torch.empty((splits, *weight.shape), dtype=torch.float32, device=x.device)
    plan(dy, x, weight, parts, geometry, weight_grad, repair=False, splits=splits, p=p).run()
    return parts.sum(0).to(weight.dtype)


def _linear(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Σ dy·x - w·Σ dy, contiguous."""
    top, bottom, left, right = geometry.padding
    pads = [top, left]
    if top != bottom or left != right:  # a convolution pads both sides alike
        x = F.pad(x, (left, right, top, bottom))
        pads = [0, 0]
    stride = geometry.stride
    if geometry.R * geometry.S == 1 and x.device.type == "cpu" and max(stride) > 1:
        # oneDNN (to 3.12, its issue 6035) writes behind its workspace for some: hand it the pixels met, stride 1
        x = F.pad(x, (pads[1], pads[1], pads[0], pads[0]))[:, :, :: stride[0], :: stride[1]]
        x, stride, pads = x[:, :, : dy.shape[2], : dy.shape[3]], [1, 1], [0, 0]
    dy, x, weight = _usual_strides(dy), _usual_strides(x), _usual_strides(weight)
    _, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, pads, geometry.dilation, False, [0, 0], geometry.G, [False, True, False]
    )
    return (dw - weight * dy.sum((0, 2, 3)).view(-1, 1, 1, 1)).contiguous()


def _usual_strides(t: Tensor) -> Tensor:
    """The same memory. A dimension of size 1 may have any stride, and torch 2.14 gives a wrong dw for some (groups)."""
    for layout in (torch.contiguous_format, torch.channels_last):
        if t.is_contiguous(memory_format=layout):
            return t.as_strided(t.shape, torch.empty(t.shape, device="meta", memory_format=layout).stride())
    return t
