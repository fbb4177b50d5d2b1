"""Eq. 8 and 9 of arXiv 1912.13200: the variance of a layer's outputs, predicted and measured.

    python recipes/paper/variance.py

For normal x and w that know nothing of each other, a convolution's outputs have the variance n·Var[x]·Var[w] and an
adder layer's (1 - 2/π)·n·(Var[x] + Var[w]), n = taps: with Var[w] small, as it is, the adder layer's are far larger,
which is why batch norm must follow and why its gradients are so small.
"""

import math

import torch
import torch.nn.functional as F
from _runs import arguments, write

from adder_zoo import adder2d

SHAPES = ((16, 3), (64, 3), (256, 1), (256, 3))  # channels, kernel


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    generator = torch.Generator().manual_seed(0)
    record = []
    lines = [
        "# Variance of the outputs (Eq. 8 and 9)",
        "",
        "x of variance 1, w of the standard deviation given; 64 filters on 16 images. "
        "`python recipes/paper/variance.py`",
        "",
        "| channels | kernel | deviation of w | adder, predicted | measured | convolution, predicted | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for channels, kernel in SHAPES:
        for deviation in (0.05, 1.0):
            x = torch.randn(16, channels, 12, 12, generator=generator)
            w = deviation * torch.randn(64, channels, kernel, kernel, generator=generator)
            taps = channels * kernel**2
            row = {
                "channels": channels,
                "kernel": kernel,
                "deviation": deviation,
                "adder_predicted": (1 - 2 / math.pi) * taps * (1 + deviation**2),
                "adder_measured": adder2d(x, w).var().item(),
                "conv_predicted": taps * deviation**2,
                "conv_measured": F.conv2d(x, w).var().item(),
            }
            record.append(row)
            lines.append("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    write(args.report_dir, "variance", record, lines)


if __name__ == "__main__":
    main()
