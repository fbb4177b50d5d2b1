"""Shapes that an implementation of the operator may stumble over, by name and reason, and random ones of every kind.

x [N, C, H, W], weight [K, C/groups, R, S]; padding is (top, bottom, left, right), as the operators take it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    id: str
    reason: str
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layout: str = "contiguous"  # of x, weight and dy: see `arrange`

    @property
    def geometry(self):
        """What the truth and the operators take after the tensors."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def output(self) -> tuple[int, int, int, int]:
        sizes = []
        for i in range(2):
            padded = self.x[2 + i] + self.padding[2 * i] + self.padding[2 * i + 1]
            sizes.append((padded - self.dilation[i] * (self.weight[2 + i] - 1) - 1) // self.stride[i] + 1)
        return self.x[0], self.weight[0], sizes[0], sizes[1]

    @property
    def work(self) -> int:
        """Taps times outputs."""
        return math.prod(self.output) * math.prod(self.weight[1:])

    def __str__(self):
        return (
            f"{self.id} ({self.reason}): x {self.x}, weight {self.weight}, stride {self.stride}, padding "
            f"{self.padding}, dilation {self.dilation}, groups {self.groups}, {self.layout}"
        )


def case(id, reason, x, weight, stride=1, padding=0, dilation=1, groups=1, layout="contiguous") -> Case:
    def pair(v):
        return (v, v) if isinstance(v, int) else v

    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(pair(dilation), weight[2:], strict=True)]
        padding = (totals[0] // 2, totals[0] - totals[0] // 2, totals[1] // 2, totals[1] - totals[1] // 2)
    elif len(pair(padding)) == 2:
        padding = (pair(padding)[0],) * 2 + (pair(padding)[1],) * 2
    return Case(id, reason, x, weight, pair(stride), padding, pair(dilation), groups, layout)


NAMED = [
    case("plain", "the shape everything is written for", (2, 16, 8, 8), (32, 16, 3, 3), padding=1),
    case("no_padding", "every tap lies inside", (2, 8, 7, 7), (9, 8, 3, 3)),
    case("stride2", "dx has four kinds of pixel; most public kernels lose three", (2, 16, 9, 9), (16, 16, 3, 3), 2, 1),
    case("stride2_even", "the last row and column of x meet fewer taps", (1, 8, 8, 8), (8, 8, 3, 3), 2, 1),
    case("stride3", "nine kinds of pixel", (2, 5, 11, 10), (7, 5, 3, 3), 3, 1),
    case("stride_pair", "height and width not mixed up", (1, 4, 9, 13), (6, 4, 3, 3), (2, 3), (0, 1)),
    case("kernel4_stride2_phases", "4x4 kernel, 2x2 stride: all phases have taps", (1, 6, 10, 10), (5, 6, 4, 4), 2, 1),
    case("kernel2_stride2", "patches side by side", (2, 3, 8, 8), (16, 3, 2, 2), 2),
    case("stride_beyond_kernel", "pixels that no output takes: dx = 0", (2, 3, 11, 11), (4, 3, 2, 2), 5),
    case("stride_beyond_image", "one output, most of x unused", (1, 3, 4, 4), (4, 3, 1, 1), 7),
    case("1x1", "a matrix product", (2, 24, 7, 5), (40, 24, 1, 1)),
    case("1x1_stride2_wide", "pixels are gathered first", (2, 40, 5, 12), (20, 40, 1, 1), 2, layout="channels_last"),
    case("1x1_stride31", "gathered from some rows", (2, 33, 7, 7), (9, 33, 1, 1), (3, 1), layout="channels_last"),
    case("1x1_stride14_groups", "and from some columns", (1, 64, 3, 9), (18, 32, 1, 1), (1, 4), groups=2),
    case("1x1_stride2", "a shortcut: three quarters of dx are 0", (2, 12, 8, 8), (24, 12, 1, 1), 2),
    *(
        case(f"1x1_stride{h}{w}_{c}", "oneDNN writes behind its workspace", x, (k, c, 1, 1), (h, w), pad, layout=layout)
        for x, c, k, h, w, pad, layout in (
            ((2, 3, 28, 18), 3, 2, 1, 3, (0, 4, 4, 2), "channels_last"),
            ((2, 5, 20, 13), 5, 1, 1, 2, (0, 4, 2, 3), "channels_last"),
            ((2, 2, 20, 28), 2, 4, 2, 1, (0, 0), "transposed"),
            ((2, 12, 9, 9), 12, 6, 2, 2, (0, 0), "channels_last"),
            ((3, 4, 9, 8), 4, 11, 2, 3, (1, 2), "channels_last"),
        )
    ),
    case("1x1_padded", "outputs made of padding alone", (1, 3, 4, 4), (5, 3, 1, 1), 1, 2),
    case("1x1_one_row_over", "63 pixels: a flattened row of 60 and a rest", (1, 17, 7, 9), (16, 17, 1, 1)),
    case("1x1_one_pixel", "a linear layer", (5, 33, 1, 1), (10, 33, 1, 1)),
    case("depthwise", "one channel for each group", (2, 19, 8, 8), (19, 1, 3, 3), 1, 1, groups=19),
    case("depthwise_stride2", "and phases", (1, 16, 9, 9), (16, 1, 3, 3), 2, 1, groups=16),
    case("depthwise_multiplier", "several filters for each channel", (2, 6, 6, 6), (18, 1, 3, 3), 1, 1, groups=6),
    case("depthwise_1x1", "more pixels than a row of a matrix product", (2, 19, 7, 9), (19, 1, 1, 1), groups=19),
    case("groups_1x1", "the same with a few channels", (1, 12, 13, 16), (24, 3, 1, 1), groups=4),
    case("groups", "groups as wide as a vector", (1, 64, 6, 6), (32, 32, 3, 3), 1, 1, groups=2),
    case("groups_few_channels", "ResNeXt: lanes over many groups", (2, 24, 7, 7), (48, 3, 3, 3), 1, 1, groups=8),
    case("groups_wide_filters", "few channels in, many out", (1, 4, 6, 6), (80, 2, 3, 3), 2, 1, groups=2),
    case("groups_wide_input", "many channels in, few out", (1, 80, 6, 6), (4, 40, 3, 3), 2, 1, groups=2),
    case("groups_ragged", "groups that end within a vector", (1, 51, 5, 5), (57, 17, 3, 3), 1, 1, groups=3),
    case("1x7", "a row kernel with its own padding", (2, 8, 5, 12), (8, 8, 1, 7), 1, (0, 3)),
    case("7x1", "a column kernel with its own padding", (2, 8, 12, 5), (8, 8, 7, 1), 1, (3, 0)),
    case("7x7_stride2", "a network's first layer", (1, 3, 20, 20), (24, 3, 7, 7), 2, 3),
    case("5x5_first", "LeNet's first layer: one channel in", (2, 1, 14, 14), (20, 1, 5, 5)),
    case("dilation2", "taps apart", (1, 8, 11, 11), (8, 8, 3, 3), 1, 2, 2),
    case("dilation_stride", "phases that have no taps", (1, 5, 13, 13), (6, 5, 3, 3), 2, 2, 2),
    case("dilation3_stride2", "taps alternate between phases", (1, 5, 13, 14), (6, 5, 3, 3), 2, 3, 3),
    case("dilation_pair", "height and width not mixed up", (1, 4, 9, 13), (3, 4, 3, 2), 1, (1, 2), (1, 4)),
    case("dilation_depthwise", "both", (1, 12, 9, 9), (12, 1, 3, 3), 2, 2, 2, 12),
    case("same_even", "an even kernel pads one more below and right", (1, 6, 7, 7), (6, 6, 4, 2), 1, "same"),
    case("same_tensorflow", "stride 2 padded below and right only", (1, 6, 8, 8), (6, 6, 3, 3), 2, (0, 1, 0, 1)),
    case("four_paddings", "no side like another", (1, 3, 5, 6), (4, 3, 3, 3), 1, (0, 1, 2, 3)),
    case("left_only", "padding on one side of one dimension", (1, 3, 5, 6), (4, 3, 3, 3), 1, (0, 0, 2, 0)),
    case("padding_beyond_kernel", "patches of padding alone", (2, 3, 4, 4), (20, 3, 3, 3), 1, 4),
    case("empty_batch", "no images: dw = 0, not NaN", (0, 8, 6, 6), (8, 8, 3, 3), 2, 1),
    case("empty_batch_1x1", "no pixels in the flattened row", (0, 8, 6, 6), (8, 8, 1, 1)),
    case("one_channel", "C = 1", (2, 1, 6, 6), (20, 1, 3, 3), 1, 1),
    case("one_filter", "K = 1", (2, 20, 6, 6), (1, 20, 3, 3), 1, 1),
    case("one_of_all", "every size 1", (1, 1, 1, 1), (1, 1, 1, 1)),
    case("kernel_is_image", "one output: a linear layer in disguise", (3, 5, 4, 6), (17, 5, 4, 6)),
    case("kernel_is_padded_image", "one output, with padding", (2, 5, 3, 3), (6, 5, 5, 5), 1, 1),
    case("kernel_beyond_image", "more padding than image", (1, 2, 2, 3), (3, 2, 7, 7), 1, 3),
    case("wide", "one very long row", (1, 3, 2, 701), (4, 3, 2, 3), 1, (0, 1)),
    case("tall", "very many rows: many tasks", (1, 3, 701, 2), (4, 3, 3, 2), 1, (1, 0)),
    case("wide_stride", "a long row in phases", (1, 3, 1, 503), (4, 3, 1, 3), (1, 2), (0, 1)),
    case("deep", "4608 taps: chains are cut, y is large", (1, 512, 4, 4), (8, 512, 3, 3), 1, 1),
    case("deep_1x1", "more taps than a chain", (1, 1030, 3, 3), (12, 1030, 1, 1)),
    case("deep_grouped", "more taps than a chain in small groups", (1, 140, 4, 4), (4, 70, 3, 3), 1, 1, groups=2),
    case("many_filters", "dx has more terms than a chain", (1, 4, 4, 4), (600, 4, 3, 3), 1, 1),
    *(
        case(f"channels_{c}_{k}", "around the widths of vectors", (1, c, 5, 6), (k, c, 3, 3), 1, 1)
        for c, k in ((3, 33), (5, 31), (15, 17), (16, 16), (17, 15), (31, 5), (33, 3), (8, 65), (65, 8), (47, 48))
    ),
    *(
        case(f"pixels_{q}", "rows that tiles do not divide", (1, 8, 2, q), (40, 8, 1, 3), 1, (0, 1))
        for q in (1, 2, 5, 7, 11, 13, 15, 29)
    ),
    *(
        case(f"layout_{layout}", reason, (2, 18, 6, 7), (20, 18, 3, 3), 2, 1, layout=layout)
        for layout, reason in (
            ("channels_last", "the fast order"),
            ("sliced", "gaps in every dimension"),
            ("transposed", "height and width exchanged in memory"),
            ("permuted", "batch innermost"),
            ("expanded", "stride 0: many elements in one place"),
            ("offset", "storage that begins elsewhere, unaligned"),
        )
    ),
    case("layout_sliced_1x1", "a matrix product with gaps", (2, 18, 4, 4), (9, 18, 1, 1), layout="sliced"),
    case("layout_sizes_of_1", "their strides say nothing", (1, 12, 1, 8), (12, 3, 1, 1), groups=4, layout="permuted"),
    case("layout_depthwise", "filters in both orders", (2, 9, 6, 6), (9, 1, 3, 3), 1, 1, 1, 9, "channels_last"),
]

# Depthwise layers, which have tiles of their own on a CPU.
DEPTHWISE = [
    case("depthwise_7x7", "runs of taps and what is left of them", (1, 21, 9, 11), (21, 1, 7, 7), 1, 3, groups=21),
    case("depthwise_5x5_stride2", "runs by phases", (2, 24, 11, 10), (24, 1, 5, 5), 2, 2, groups=24),
    case("depthwise_dilated", "columns of a row that are apart", (1, 20, 9, 9), (20, 1, 3, 3), 1, 2, 2, groups=20),
    case("depthwise_dilated_stride2", "and meet again", (1, 20, 9, 9), (20, 1, 3, 5), 2, 2, 2, groups=20),
    case("depthwise_stride3", "pixels without taps", (1, 33, 10, 13), (33, 1, 2, 2), 3, 0, groups=33),
    case("depthwise_narrow", "fewer channels than a vector of 16", (1, 12, 5, 30), (12, 1, 3, 3), 1, 1, groups=12),
    case("depthwise_wider_than_image", "mostly padding", (1, 17, 2, 3), (17, 1, 5, 7), 1, (2, 2, 3, 3), groups=17),
]

# For dx of the CPU kernels, which has a lane for each of eight images: more work than others need.
IMAGES = [
    case("images8", "a lane for each image", (8, 6, 5, 7), (10, 6, 3, 3), 1, 1),
    case("images11_stride2", "eight images and three more, in phases", (11, 9, 6, 7), (5, 9, 3, 3), 2, 1),
    case("images17_dilation", "rows of dy apart", (17, 4, 9, 6), (3, 4, 3, 2), (1, 2), (1, 2), (2, 1)),
    case("images8_stride_beyond_kernel", "pixels that no output takes", (8, 3, 7, 7), (4, 3, 2, 2), 5),
    case("images8_many_filters", "dy in parts, the last one smaller", (8, 3, 2, 3), (300, 3, 3, 3), 1, 1),
    case("images8_1x1_many_filters", "parts of a row of pixels", (2, 9, 3, 4), (530, 9, 1, 1)),
    case("images8_1x1_rest", "pixels that fill no lanes are filled up", (1, 9, 10, 23), (7, 9, 1, 1)),
    case("images8_1x1_wide", "rows of six pixels", (2, 4, 29, 31), (3, 4, 1, 1)),
    case("images8_1x1_stride2", "three quarters of dx are 0", (8, 10, 5, 4), (7, 10, 1, 1), 2),
    case("images8_padded", "columns of zeros on both sides", (8, 5, 3, 2), (9, 5, 5, 5), 1, 4),
    case("images9_one_column", "tiles of one pixel", (9, 7, 4, 1), (18, 7, 3, 3), 1, 1),
]


def random_cases(count: int, seed: int = 0, work: int = 200_000) -> list[Case]:
    """Shapes of all kinds, each with at most `work` taps times outputs."""
    rng = np.random.default_rng(seed)
    layouts = ["contiguous"] * 3 + ["channels_last"] * 3 + ["sliced", "transposed", "permuted", "expanded", "offset"]

    def pick(*values):
        return int(rng.choice(values))

    cases: list[Case] = []
    while len(cases) < count:
        groups = pick(1, 1, 1, 1, 2, 3, 4, 16)
        if groups > 4 or rng.random() < 0.1:
            groups, Cg, Kg = int(rng.integers(2, 40)), pick(1, 1, 2, 3), pick(1, 1, 2, 4)
        else:
            Cg, Kg = (pick(1, 2, 3, 4, 7, 8, 9, 15, 16, 17, int(rng.integers(1, 80))) for _ in range(2))
        kernel = [pick(1, 1, 2, 3, 3, 3, 4, 5, 7) for _ in range(2)]
        if rng.random() < 0.5:
            kernel[1] = kernel[0]
        stride = [pick(1, 1, 1, 2, 2, 3, 4) for _ in range(2)]
        dilation = [pick(1, 1, 1, 2, 3) for _ in range(2)]
        padding = [int(p) for p in rng.integers(0, 5, 4) * (rng.random() < 0.7)]
        size = [int(n) for n in rng.integers(1, 30, 2)]
        drawn = Case(
            f"random_{seed}_{len(cases)}", "drawn at random",
            (pick(0, *[1] * 8, *[2] * 8, 3, 8, 11), groups * Cg, *size), (groups * Kg, Cg, *kernel),
            tuple(stride), tuple(padding), tuple(dilation), groups,
            layouts[rng.integers(len(layouts))],
        )  # fmt: skip
        N, K, P, Q = drawn.output
        if P > 0 and Q > 0 and N * K * P * Q * Cg * kernel[0] * kernel[1] <= work:
            cases.append(drawn)
    return cases


def arrange(t: Tensor, layout: str) -> Tensor:
    """The values of t (for "expanded": of its first image) in another order in memory."""
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "permuted":
        return t.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    if layout == "expanded":
        return t[:1].contiguous().expand(t.shape)
    if layout == "offset":
        return torch.cat([t.new_full((1,), torch.nan), t.flatten()])[1:].view(t.shape)
    assert layout == "sliced"
    N, C, H, W = t.shape
    home = t.new_full((2 * N, C + 2, 2 * H, W + 3), torch.nan)
    home[1::2, 1 : C + 1, ::2, 2 : W + 2] = t
    return home[1::2, 1 : C + 1, ::2, 2 : W + 2]


def tensors(
    case: Case, x_dtype=torch.float32, weight_dtype=None, seed: int = 0, device="cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and dy, the same on every device.

    Half of all values lie on a grid of 1/4, so that x = w and |x - w| = 1 occur.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(shape):
        t = torch.randn(shape, generator=g, dtype=torch.float64)
        return torch.where(torch.rand(shape, generator=g) < 0.5, (t * 4).round() / 4, t)

    x, weight, dy = draw(case.x), draw(case.weight), draw(case.output)
    x, weight = x.to(x_dtype), weight.to(weight_dtype or x_dtype)
    dy = dy.to(torch.float64 if x_dtype == torch.float64 else torch.float32)
    x, weight, dy = (arrange(t.to(device), case.layout) for t in (x, weight, dy))
    return x, weight, dy
