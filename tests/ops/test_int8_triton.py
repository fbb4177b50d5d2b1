"""The Triton kernel over bytes, under the interpreter: every integer and every rounding as the definition has it."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from interpreted import INTERPRETING, QUICK_AND_ALL, run_again

from adder_zoo.ops import triton
from adder_zoo.ops.geometry import Geometry
from adder_zoo.ops.int8 import library, reference

HERE = Path(__file__)

# name: x, filters, stride, padding (top, bottom, left, right), dilation, groups
CASES = {
    "3x3": ((2, 8, 4, 5), (7, 8, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "1x1": ((1, 12, 4, 4), (5, 12, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "channels that fill no word": ((1, 5, 4, 5), (3, 5, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "stride, uneven padding": ((1, 4, 7, 6), (4, 4, 3, 2), (2, 3), (0, 2, 1, 0), (1, 1), 1),
    "dilation": ((1, 4, 7, 7), (3, 4, 3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    "groups": ((1, 6, 4, 4), (4, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "depthwise": ((1, 5, 5, 5), (5, 1, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 5),
    "more filters than a tile": ((1, 4, 3, 3), (70, 4, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "more pixels than a tile": ((2, 4, 9, 9), (3, 4, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "no images": ((0, 4, 3, 3), (2, 4, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
}

if not INTERPRETING:

    @QUICK_AND_ALL
    @pytest.mark.long
    def test_under_the_interpreter(quick):
        pytest.importorskip("triton")
        run_again(HERE, quick)

    def test_asked_for_by_name_without_a_gpu():
        x, w = torch.zeros(1, 4, 2, 2, dtype=torch.uint8), torch.zeros(1, 4, 1, 1, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="impl='triton' cannot run on cpu: "):
            library.adder2d_int8(x, w, 0, [1, 1], [0, 0, 0, 0], [1, 1], 1, "triton")

    def test_the_kernels_describe_the_epilogue_as_the_operator_does():
        """The kernels are a project of their own, so they have a description of their own."""
        pytest.importorskip("triton")
        theirs = [field.name for field in fields(triton.kernels().Requantise)]
        assert theirs == [field.name.removeprefix("next_") for field in fields(reference.Epilogue)]

else:

    def operands(name, values):
        x_shape, w_shape, *geometry = CASES[name]
        draw = torch.Generator().manual_seed(0)
        if values == "random":
            return *(torch.randint(256, s, dtype=torch.uint8, generator=draw) for s in (x_shape, w_shape)), geometry
        first, second = values
        return torch.full(x_shape, first, dtype=torch.uint8), torch.full(w_shape, second, dtype=torch.uint8), geometry

    def check_sums(name, values, zero_point):
        x, w, geometry = operands(name, values)
        got = library.adder2d_int8(x, w, zero_point, *geometry, "triton")
        assert got.dtype == torch.int32
        assert torch.equal(got, reference.forward(x, w, zero_point, Geometry.of(*geometry)))

    @pytest.mark.parametrize("name", CASES)
    def test_sums(name):
        check_sums(name, "random", 77)

    @pytest.mark.parametrize("zero_point", [0, 255])
    @pytest.mark.parametrize("values", ["random", (0, 255), (255, 0), (255, 255)])
    def test_sums_at_the_ends_of_the_range(values, zero_point):
        check_sums("stride, uneven padding", values, zero_point)

    def test_operands_in_any_layout():
        x, w, geometry = operands("3x3", "random")
        wanted = reference.forward(x, w, 9, Geometry.of(*geometry))
        padded = torch.zeros(2, 8, 4, 9, dtype=torch.uint8)
        padded[..., 1:6] = x
        shifted = torch.zeros(x.numel() + 1, dtype=torch.uint8)[1:].view(2, 4, 5, 8).permute(0, 3, 1, 2)
        shifted.copy_(x)  # in channels_last, and no word is aligned
        for other in (x.contiguous(memory_format=torch.channels_last), padded[..., 1:6], shifted):
            assert torch.equal(library.adder2d_int8(other, w, 9, *geometry, "triton"), wanted)

    @pytest.mark.parametrize("relu", [True, False])
    @pytest.mark.parametrize("residual", [True, False])
    @pytest.mark.parametrize(
        ("name", "wide", "narrow"), [("1x1", True, True), ("groups", True, False), ("depthwise", False, True)]
    )
    def test_what_follows_rounds_as_the_definition(name, wide, narrow, residual, relu):
        x, w, geometry = operands(name, "random")
        y = reference.forward(x, w, 3, Geometry.of(*geometry))
        draw = torch.Generator().manual_seed(1)
        scale = torch.randn(y.shape[1], generator=draw) / 300
        shift = -scale * y.float().mean((0, 2, 3)) + torch.randn(y.shape[1], generator=draw) / 3
        added = torch.randn(y.shape, generator=draw) if residual else None
        if residual:
            added[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
        arguments = (x, w, 3, scale, shift, added, relu, wide, 37.3, 5, 200, narrow, *geometry)
        wanted = library.adder2d_int8_fused(*arguments, "reference")
        got = library.adder2d_int8_fused(*arguments, "triton")
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

    def test_halves_go_to_the_even_level():
        x = torch.arange(64, dtype=torch.uint8).view(1, 4, 4, 4)
        w, one = torch.zeros(1, 4, 1, 1, dtype=torch.uint8), torch.ones(1)
        arguments = (
            x,
            w,
            0,
            one,
            torch.zeros(1),
            None,
            False,
            False,
            0.125,
            100,
            255,
            True,
            [1, 1],
            [0] * 4,
            [1, 1],
            1,
        )
        levels = library.adder2d_int8_fused(*arguments, "triton")[1]
        assert torch.equal(levels, library.adder2d_int8_fused(*arguments, "reference")[1])
        sums = reference.forward(x, w, 0, Geometry.of([1, 1], [0] * 4, [1, 1], 1))
        assert (sums % 8 == 4).any()
