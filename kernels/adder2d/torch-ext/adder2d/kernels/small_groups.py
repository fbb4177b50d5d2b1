"""Forward and input gradient where a group has few channels, depthwise above all (AdderNet, arXiv 1912.13200).

    y[n, k, p, q]  = -Σ_{c,r,s} |x[n, c, h, w] - w[k, c, r, s]|                        Eq. 2
    dx[n, c, h, w] = Σ_{k,r,s} dy[n, k, p, q]·HT(w[k, c, r, s] - x[n, c, h, w])        Eq. 6 and 7

For 1 < p < 2 see ``_power.py``.

Shapes and names as in ``forward.py`` and ``grad_input.py``. A tile spans several groups, so its channels meet channels
of x of their own: nothing is shared between the rows of a tile, and memory decides the time. Lanes go along what is
neighbours in memory.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._launch import (
    EPILOGUE_INTEGERS,
    HIP,
    Epilogue,
    Geometry,
    Launch,
    finish,
    interpreting,
    power_of_2,
    strides,
    transfer,
    wide,
)
from ._power import power, term

SMALL_GROUP = 8  # channels of a group up to which a tile of its own would be mostly empty

# (pixels, channels, warps): neighbours are pixels in NCHW, and channels in channels_last
_CONFIGS = {"NCHW": (512, 1, 4), "channels last": (32, 64, 4)}

_SIZES = ["H", "W", "P", "Q", "K", "C", "Kg", "Cg", "R", "S", "stride_h", "stride_w", "pad_top", "pad_left"]
_SIZES += ["dilation_h", "dilation_w", "stride_xn", "stride_xc", "stride_xh", "stride_xw"]
_SIZES += ["stride_wk", "stride_wc", "stride_wr", "stride_ws", "stride_yn", "stride_yk", "stride_yp", "stride_yq"]


def fits(G: int, channels: int) -> bool:
    """Whether these kernels take G groups with this many channels each (filters; for dx channels of x)."""
    return G > 1 and channels <= SMALL_GROUP


@triton.jit(do_not_specialize=[*_SIZES, *EPILOGUE_INTEGERS, "M", "tiles_n", "exponent"])
def _adder2d_fwd_small_kernel(
    x_ptr, w_ptr, y_ptr, scale_ptr, shift_ptr, residual_ptr,
    M, H, W, P, Q, K, C, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_yn, stride_yk, stride_yp, stride_yq,
    stride_en, stride_ek, stride_ep, stride_eq,
    tiles_n, exponent,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FUSED: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, TERM: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_m = pid // tiles_n
    if WIDE:
        pid_m = pid_m.to(tl.int64)
    m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]  # [BLOCK_M, 1]
    k = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]  # [1, BLOCK_N]
    if WIDE:
        k = k.to(tl.int64)
    tile = (m < M) & (k < K)
    n = m // (P * Q)
    p = m // Q % P
    q = m % Q
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(R * S):
        h = p * stride_h - pad_top + i // S * dilation_h
        w = q * stride_w - pad_left + i % S * dilation_w
        inside = tile & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        x_offset = n * stride_xn + h * stride_xh + w * stride_xw + k // Kg * Cg * stride_xc
        w_offset = k * stride_wk + i // S * stride_wr + i % S * stride_ws
        for c in range(Cg):
            x = tl.load(x_ptr + x_offset + c * stride_xc, inside, 0.0).to(tl.float32)
            wv = tl.load(w_ptr + w_offset + c * stride_wc, k < K, 0.0).to(tl.float32)
            if TERM == "difference":
                acc += tl.abs(x - wv)
            else:
                acc = tl.fma(tl.abs(x - wv), power(x - wv, exponent, TERM), acc)
    e_offset = n * stride_en + p * stride_ep + q * stride_eq + k * stride_ek
    y = finish(-acc, k, k < K, e_offset, tile, scale_ptr, shift_ptr, residual_ptr, FUSED, RESIDUAL, RELU)
    tl.store(y_ptr + n * stride_yn + p * stride_yp + q * stride_yq + k * stride_yk, y, tile)


@triton.jit(
    do_not_specialize=[
        *_SIZES, "N", "stride_dxn", "stride_dxc", "stride_dxh", "stride_dxw", "tiles_m", "tiles_n", "phases_w",
        "step_r", "step_s", "exponent",
    ]
)  # fmt: skip
def _adder2d_bwd_dx_small_kernel(
    dy_ptr, x_ptr, w_ptr, dx_ptr,
    N, H, W, P, Q, K, C, Kg, Cg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    stride_yn, stride_yk, stride_yp, stride_yq,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_wk, stride_wc, stride_wr, stride_ws,
    stride_dxn, stride_dxc, stride_dxh, stride_dxw,
    tiles_m, tiles_n, phases_w, step_r, step_s, exponent,
    MODE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_m = pid // tiles_n % tiles_m
    phase = pid // tiles_n // tiles_m
    if WIDE:
        pid_m = pid_m.to(tl.int64)
    m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]  # [BLOCK_M, 1]
    n, h, w = phase_pixels(m, phase // phases_w, phase % phases_w, H, W, stride_h, stride_w)
    c = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]  # [1, BLOCK_N]
    if WIDE:
        c = c.to(tl.int64)
    tile = (n < N) & (c < C)
    r_first, r_count = phase_taps(phase // phases_w + pad_top, R, stride_h, dilation_h, step_r)
    s_first, s_count = phase_taps(phase % phases_w + pad_left, S, stride_w, dilation_w, step_s)
    x = tl.load(x_ptr + n * stride_xn + h * stride_xh + w * stride_xw + c * stride_xc, tile, 0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(r_count * s_count):
        r = r_first + i // s_count * step_r
        s = s_first + i % s_count * step_s
        p = (h + pad_top - r * dilation_h) // stride_h
        q = (w + pad_left - s * dilation_w) // stride_w
        met = tile & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
        y_offset = n * stride_yn + p * stride_yp + q * stride_yq + c // Cg * Kg * stride_yk
        w_offset = c // Cg * Kg * stride_wk + c % Cg * stride_wc + r * stride_wr + s * stride_ws
        for k in range(Kg):
            dy = tl.load(dy_ptr + y_offset + k * stride_yk, met, 0.0).to(tl.float32)
            wv = tl.load(w_ptr + w_offset + k * stride_wk, c < C, 0.0).to(tl.float32)
            # A tap that meets no output adds nothing, not even 0 times NaN.
            acc += tl.where(met, dy * transfer(wv - x, exponent, MODE), 0.0)
    if MODE == "power" or MODE == "approximate power":
        acc = (exponent + 1.0) * acc
    dx_offset = n * stride_dxn + h * stride_dxh + w * stride_dxw + c * stride_dxc
    tl.store(dx_ptr + dx_offset, acc.to(dx_ptr.dtype.element_ty), tile)


@triton.jit
def phase_pixels(m, phase_h, phase_w, H, W, stride_h, stride_w):
    """Image, row and column of the pixels ``m``, counted as if the pixels of a phase were images of their own."""
    rows = (H - phase_h + stride_h - 1) // stride_h
    columns = (W - phase_w + stride_w - 1) // stride_w
    return m // (rows * columns), phase_h + m // columns % rows * stride_h, phase_w + m % columns * stride_w


@triton.jit
def phase_taps(offset, R, stride, dilation, step):
    """The r with (offset - r·dilation) divisible by stride: the first, how many; they are ``step`` apart."""
    first = R
    for i in range(tl.minimum(R, step)):
        r = tl.minimum(R, step) - 1 - i
        if (offset - r * dilation) % stride == 0:
            first = r
    return first, (R - first + step - 1) // step


def phases(geometry: Geometry) -> tuple[int, int, int, int, int]:
    """Phases along height and width, pixels in the largest, and the distance of the taps that meet the same phase."""
    g = geometry
    pixels = g.N * triton.cdiv(g.H, g.stride[0]) * triton.cdiv(g.W, g.stride[1])
    step_r, step_s = (g.stride[i] // math.gcd(g.stride[i], g.dilation[i]) for i in range(2))
    return min(g.stride[0], g.H), min(g.stride[1], g.W), pixels, step_r, step_s


def _blocks(pixels: int, channels: int, x: Tensor) -> tuple[int, int, int]:
    if interpreting():  # a program costs the same whatever its size
        return power_of_2(pixels, 1, 4096), power_of_2(channels, 1, 128), 4
    return _CONFIGS["NCHW" if x.stride(1) > x.stride(3) else "channels last"]


def plan_forward(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    geometry: Geometry,
    epilogue: Epilogue | None = None,
    hip: bool = HIP,
    p: float = 1.0,
) -> Launch:
    """The launch that computes ``y`` [N, K, P, Q]."""
    g = geometry
    M = g.N * g.P * g.Q
    block_m, block_n, warps = _blocks(M, g.K, x)
    tiles_n = triton.cdiv(g.K, block_n)
    return Launch(
        _adder2d_fwd_small_kernel,
        lambda meta: triton.cdiv(M, block_m) * tiles_n,
        {
            "x_ptr": x, "w_ptr": weight, "y_ptr": y, **Epilogue.arguments(epilogue, y),
            "M": M, **g.scalars(), "K": g.K, "C": g.C,
            **strides("x", "nchw", x), **strides("w", "kcrs", weight), **strides("y", "nkpq", y), "tiles_n": tiles_n,
            "exponent": p - 1.0,
        },
        {
            "BLOCK_M": block_m, "BLOCK_N": block_n, **Epilogue.constants(epilogue),
            "WIDE": wide(x, weight, y, *([epilogue.residual] if epilogue and epilogue.residual is not None else [])),
            "TERM": term(p, "difference", hip or interpreting()),
        },
        warps,
        1,
    )  # fmt: skip


def plan_grad_input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    dx: Tensor,
    geometry: Geometry,
    mode: str,
    hip: bool = HIP,
    p: float = 1.0,
) -> Launch:
    """The launch that computes ``dx`` [N, C, H, W]; ``mode`` is not read for p > 1."""
    g = geometry
    phases_h, phases_w, pixels, step_r, step_s = phases(g)
    block_m, block_n, warps = _blocks(pixels, g.C, x)
    tiles_m, tiles_n = triton.cdiv(pixels, block_m), triton.cdiv(g.C, block_n)
    return Launch(
        _adder2d_bwd_dx_small_kernel,
        lambda meta: phases_h * phases_w * tiles_m * tiles_n,
        {
            "dy_ptr": dy, "x_ptr": x, "w_ptr": weight, "dx_ptr": dx, "N": g.N, **g.scalars(), "K": g.K, "C": g.C,
            **strides("y", "nkpq", dy), **strides("x", "nchw", x), **strides("w", "kcrs", weight),
            **strides("dx", "nchw", dx), "tiles_m": tiles_m, "tiles_n": tiles_n, "phases_w": phases_w,
            "step_r": step_r, "step_s": step_s, "exponent": p - 1.0,
        },
        {
            "MODE": term(p, mode, hip or interpreting()), "BLOCK_M": block_m, "BLOCK_N": block_n,
            "WIDE": wide(dy, x, weight, dx),
        },
        warps,
        1,
    )  # fmt: skip
