"""Draws the figures of the pages on the method and on numerics, as SVG beside this file: ``make figures``.

Backgrounds are transparent and lines of a middle tone, so that the figures read well in light and in dark mode.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adder_zoo import adder2d

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BLUE, ORANGE, GREEN, GREY = "#3b82d6", "#e07b2a", "#2fa36b", "#808890"


def figure(panels: int, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    made = Figure(figsize=(3.4 * panels if panels > 1 else 5.6, height), layout="constrained")
    axes = list(np.atleast_1d(made.subplots(1, panels)))
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(colors=GREY, labelsize=8)
        for spine in axis.spines.values():
            spine.set_color(GREY)
        for part in (axis.xaxis.label, axis.yaxis.label, axis.title):
            part.set_color(GREY)
            part.set_fontsize(9)
    return made, axes


def legend(axis: Axes, **kwargs: Any) -> None:
    axis.legend(frameon=False, fontsize=8, labelcolor=GREY, **kwargs)


def save(made: Figure, name: str) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "adder_zoo"}):
        made.savefig(HERE / name, transparent=True, metadata={"Date": None})


def gradients() -> None:
    """What one term of the sum answers, and what the surrogate gradients put instead of its derivative."""
    z = np.linspace(-2.5, 2.5, 501)
    made, (response, weight, image) = figure(3)
    response.plot(z, -np.abs(z), color=BLUE)
    response.set(title="one term of the sum: −|x − w|", xlabel="x − w")
    weight.plot(z, z, color=BLUE, label="full, x − w (default)")
    weight.plot(z, np.sign(z), color=ORANGE, linestyle="--", label="sign (Eq. 4)")
    weight.set(title="gradient of the filter", xlabel="x − w")
    image.plot(z, np.clip(z, -1, 1), color=BLUE, label="clipped (default)")
    image.plot(z, z, color=GREEN, linestyle=":", label="full")
    image.plot(z, np.sign(z), color=ORANGE, linestyle="--", label="sign")
    image.set(title="gradient of the input", xlabel="w − x")
    legend(weight)
    legend(image)
    save(made, "gradients.svg")


def batch_norm_lag() -> None:
    """Accuracy of LeNet-5-BN on MNIST while it trains, with both kinds of batch norm statistics."""
    with (ROOT / "src/adder_zoo/weights/adder_lenet5_bn.mnist/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    made, (axis,) = figure(1)
    axis.plot(epochs, [float(row["test_accuracy"]) for row in rows], color=BLUE, label="re-estimated over 20 batches")
    running = [float(row["test_accuracy_running_statistics"]) for row in rows]
    axis.plot(epochs, running, color=ORANGE, linestyle="--", label="running averages")
    axis.set(xlabel="epoch", ylabel="test accuracy, %", title="the same weights, two sets of batch norm statistics")
    legend(axis, loc="lower right")
    save(made, "batch_norm_lag.svg")


def output_range() -> None:
    """The outputs of a layer with 4,608 terms a sum, and the numbers that half precision has there."""
    torch.manual_seed(0)
    y = adder2d(torch.randn(8, 512, 10, 10).relu(), torch.randn(64, 512, 3, 3)).flatten().numpy()
    made, (axis,) = figure(1)
    axis.hist(y, bins=120, color=BLUE, label="outputs of one layer")
    steps = np.arange(32 * np.floor(y.min() / 32), y.max() + 32, 32)
    for i, step in enumerate(steps):
        label = "the numbers that bfloat16 has" if i == 0 else None
        axis.axvline(step, color=ORANGE, linewidth=0.9, linestyle="--", label=label)
    axis.set(xlabel="y", ylabel="outputs")
    legend(axis, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(made, "output_range.svg")


if __name__ == "__main__":
    gradients()
    batch_norm_lag()
    output_range()
