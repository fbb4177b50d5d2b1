"""What a run leaves for people to read: the environment that its figures depend on, and its learning curves."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
from accelerate import Accelerator

import adder_zoo

from .. import paths
from ..atomic import replace_file


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a figure depends on beside its settings: versions, commit, device, processes and date."""
    device = accelerator.device
    cpu = adder_zoo.implementations()["cpu"]
    return {
        "adder_zoo": adder_zoo.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "kernels": cpu.detail if device.type == "cpu" else "triton",
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def commit() -> str | None:
    """The commit of this source tree, with "+" where tracked files differ from it; None for an installed package."""
    found = paths.commit()
    return found and found[0] + ("+" if found[1] else "")


def plot_curves(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draws loss and accuracy by epoch into the file ``path``; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["train_loss"] for row in rows], label="training")
    for name in [n for n in rows[0] if n.endswith("accuracy")]:
        measured = [(row["epoch"], row[name]) for row in rows if row[name] == row[name]]
        accuracy.plot(*zip(*measured, strict=True), label=name.replace("_", " "))
    for axes, label in ((loss, "loss"), (accuracy, "accuracy [%]")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    with replace_file(path) as part:
        figure.savefig(part, format="png", dpi=100)
    return True
