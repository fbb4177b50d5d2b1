"""Forward of the adder operator over bytes (AdderNet, arXiv 1912.13200, Eq. 2): exact integers.

    y[n, k, p, q] = -Σ_{c,r,s} |x[n, c, p·stride_h + r·dilation_h - pad_top, q·stride_w + ...] - w[k, c, r, s]|

    x [N, C, H, W] uint8    w [K, Cg, R, S] uint8    y [N, K, P, Q] int32    G groups, Cg = C / G, Kg = K / G
    M = N·P·Q output pixels; a program has BLOCK_M of them and BLOCK_N filters
    four channels are one word of 32 bits; a group of channels is padded to words

x and w share one scale and one zero point. A padded pixel is the zero point's byte, and so is a channel that fills a
word, in x and in w: there the difference is 0.

FORM "vabsdiff4" is PTX's vabsdiff4: four absolute differences of bytes and their sum, added to a fifth number. ptxas
makes one instruction of it (VABSDIFF4.U8.ACC) for sm_80, sm_90 and sm_100. FORM "plain" is what every backend compiles
and the interpreter runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._launch import HIP, Geometry, Launch, interpreting, power_of_2, wide

WORD = 4  # bytes
ROUNDING = tl.constexpr(12582912.0)  # 1.5·2^23: what is added to it and taken away again is rounded, halves to even
FAR = tl.constexpr(1024.0)  # beyond every level


@dataclass(frozen=True)
class Requantise:
    """What follows the sums: v = act(scale[k]·y + shift[k] + residual), and levels = round(v·inverse) + zero point.

    Attributes:
        scale, shift: [K], float32.
        residual: [N, K, P, Q], float32, or None.
        relu: Whether act is a ReLU, which makes a NaN 0.
        wide, narrow: Whether v and the levels are wanted.
        inverse_step, zero_point, top: Of the levels.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    relu: bool
    wide: bool
    inverse_step: float
    zero_point: int
    top: int
    narrow: bool


def adder2d_int8_forward(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y, int32, [N, K, P, Q] in channels_last."""
    g = Geometry.of(x, weight, stride, padding, dilation, groups)
    y = _output(x, g, torch.int32)
    plan(*_words(x, weight, zero_point, g), zero_point, g, y, None, None, None).run()
    return y


def adder2d_int8_forward_fused(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    after: Requantise,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor | None, Tensor | None]:
    """v, float32, and levels, uint8, both [N, K, P, Q] in channels_last; None where not wanted."""
    g = Geometry.of(x, weight, stride, padding, dilation, groups)
    v = _output(x, g, torch.float32) if after.wide else None
    levels = _output(x, g, torch.uint8) if after.narrow else None
    plan(*_words(x, weight, zero_point, g), zero_point, g, None, v, levels, after).run()
    return v, levels


def _output(x: Tensor, g: Geometry, dtype: torch.dtype) -> Tensor:
    return torch.empty(g.N, g.K, g.P, g.Q, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _words(x: Tensor, weight: Tensor, zero_point: int, g: Geometry) -> tuple[Tensor, Tensor]:
    """x as [N, H, W, G, words] and filters as [G, R, S, words, Kg], int32, four channels a word."""
    for t in (x, weight):
        if t.dtype != torch.uint8:
            raise TypeError(f"the int8 kernels take uint8, got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"tensors are on {x.device} and {t.device}; move one of them")
    if x.device.type != "cuda" and not interpreting():
        raise RuntimeError(f"the Triton kernels cannot run on {x.device}; move the tensors to a GPU")
    fill = -g.Cg % WORD
    pixels = x.permute(0, 2, 3, 1).reshape(g.N, g.H, g.W, g.G, g.Cg)
    filters = weight.reshape(g.G, g.Kg, g.Cg, g.R, g.S).permute(0, 3, 4, 1, 2)  # [G, R, S, Kg, Cg]
    pixels, filters = (F.pad(t, (0, fill), value=zero_point) if fill else t for t in (pixels, filters))
    return _as_words(pixels), _as_words(filters).transpose(3, 4).contiguous()


def _as_words(t: Tensor) -> Tensor:
    """[..., bytes] as [..., words], contiguous."""
    flat = t.contiguous().flatten()
    if flat.data_ptr() % WORD:
        flat = flat.clone()
    return flat.view(torch.int32).view(*t.shape[:-1], t.shape[-1] // WORD)


def plan(
    x: Tensor,
    w: Tensor,
    zero_point: int,
    g: Geometry,
    y: Tensor | None,
    v: Tensor | None,
    levels: Tensor | None,
    after: Requantise | None,
    form: str | None = None,
) -> Launch:
    """The launch for x and w in words; of y, v and levels, what is None is not written."""
    out = next(t for t in (y, v, levels) if t is not None)
    M, words = g.N * g.P * g.Q, w.shape[3]
    tiles_of = _tiles(M, g)
    residual = None if after is None or after.residual is None else after.residual
    if residual is not None:
        residual = residual.expand(g.N, g.K, g.P, g.Q).contiguous(memory_format=torch.channels_last)
    scalars = g.scalars()
    sizes = {name: scalars[name] for name in _SIZES if name in scalars}
    block_n = power_of_2(g.Kg, 1, 64)
    inverse = out if after is None else torch.full_like(after.scale[:1], after.inverse_step)
    return Launch(
        _adder2d_int8_fwd_kernel,
        tiles_of,
        {
            "x_ptr": x, "w_ptr": w, "y_ptr": out if y is None else y, "v_ptr": out if v is None else v,
            "levels_ptr": out if levels is None else levels,
            "scale_ptr": out if after is None else after.scale, "shift_ptr": out if after is None else after.shift,
            "residual_ptr": out if residual is None else residual, "inverse_ptr": inverse,
            "M": M, "K": g.K, "words": words, **sizes, "fill": _repeated(zero_point),
            "next_zero_point": after.zero_point if after else 0, "top": after.top if after else 0,
            "tiles_n": triton.cdiv(g.Kg, block_n),
        },
        {
            "SUMS": y is not None, "V": v is not None, "LEVELS": levels is not None,
            "RESIDUAL": residual is not None, "RELU": bool(after and after.relu),
            "FORM": form or ("plain" if HIP or interpreting() else "vabsdiff4"),
            "WIDE": wide(x, w, out), "BLOCK_M": power_of_2(M, 16, 64), "BLOCK_N": block_n,
        },
        num_warps=4,
        num_stages=2,
        contract=False,  # scale·y + shift is rounded twice, as in the definition
    )  # fmt: skip


def _tiles(M: int, g: Geometry):  # type: ignore[no-untyped-def]
    return lambda meta: triton.cdiv(M, meta["BLOCK_M"]) * triton.cdiv(g.Kg, meta["BLOCK_N"]) * g.G


def _repeated(byte: int) -> int:
    """A word of four such bytes, as a signed integer."""
    word = byte * 0x01010101
    return word - (1 << 32) if word >> 31 else word


@triton.jit
def _byte(t, i: tl.constexpr):
    return (t >> (8 * i)) & 255


@triton.jit
def _add_differences(acc, x, w, FORM: tl.constexpr):
    """acc + Σ|x - w| over the four bytes of the words x [BLOCK_M] and w [BLOCK_N]."""
    if FORM == "vabsdiff4":
        acc = tl.inline_asm_elementwise(
            "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;",
            "=r,r,r,r",
            [x[:, None], w[None, :], acc],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        for i in tl.static_range(4):
            acc += tl.abs(_byte(x, i)[:, None] - _byte(w, i)[None, :])
    return acc


_SIZES = [
    "H", "W", "P", "Q", "Kg", "R", "S", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w"
]  # fmt: skip


@triton.jit(do_not_specialize=["M", "K", "words", *_SIZES, "fill", "next_zero_point", "top", "tiles_n"])
def _adder2d_int8_fwd_kernel(
    x_ptr, w_ptr, y_ptr, v_ptr, levels_ptr, scale_ptr, shift_ptr, residual_ptr, inverse_ptr,
    M, K, words, H, W, P, Q, Kg, R, S, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    fill, next_zero_point, top, tiles_n,
    SUMS: tl.constexpr, V: tl.constexpr, LEVELS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    FORM: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid_m = pid % tiles_m
    pid_n = pid // tiles_m % tiles_n
    group = pid // tiles_m // tiles_n
    groups = K // Kg
    if WIDE:
        pid_m = pid_m.to(tl.int64)
        group = group.to(tl.int64)
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    k = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N], within the group
    n, p, q = m // (P * Q), m // Q % P, m % Q
    inside_m, inside_k = m < M, k < Kg
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for tap in range(R * S):
        h = p * stride_h + tap // S * dilation_h - pad_top
        w = q * stride_w + tap % S * dilation_w - pad_left
        met = inside_m & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        x_tap = x_ptr + (((n * H + h) * W + w) * groups + group) * words
        w_tap = w_ptr + (group * R * S + tap) * words * Kg + k
        for word in range(words):
            pixels = tl.load(x_tap + word, met, fill)
            filters = tl.load(w_tap + word * Kg, inside_k, 0)
            acc = _add_differences(acc, pixels, filters, FORM)
    channel = group * Kg + k
    offset = m[:, None] * K + channel[None, :]
    inside = inside_m[:, None] & inside_k[None, :]
    if SUMS:
        tl.store(y_ptr + offset, -acc, inside)
    if V or LEVELS:
        v = (-acc).to(tl.float32) * tl.load(scale_ptr + channel, inside_k, 0.0)[None, :]
        v = v + tl.load(shift_ptr + channel, inside_k, 0.0)[None, :]
        if RESIDUAL:
            v = v + tl.load(residual_ptr + offset, inside, 0.0)
        if RELU:
            v = tl.where(v > 0, v, 0.0)
        if V:
            tl.store(v_ptr + offset, v, inside)
        if LEVELS:
            level = v * tl.load(inverse_ptr)
            nothing = level != level
            level = tl.where(level > FAR, FAR, tl.where(level < -FAR, -FAR, level))
            level = ((level + ROUNDING) - ROUNDING).to(tl.int32) + next_zero_point
            level = tl.minimum(tl.maximum(level, 0), top)
            tl.store(levels_ptr + offset, tl.where(nothing, 0, level).to(tl.uint8), inside)
