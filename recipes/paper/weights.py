"""Fig. 2 and 4 of arXiv 1912.13200: filters of LeNet-5-BN's first layer, and how the third layer's weights are spread.

    python recipes/paper/weights.py --data-dir FOLDER

The paper finds the adder network's weights Laplace-distributed, the CNN's normal. In numbers: the log-likelihood of
each distribution with its best parameters, in nats for each weight.
"""

import math
from pathlib import Path
from typing import Any

import torch
from _runs import arguments, run, write
from matplotlib.figure import Figure
from safetensors.torch import load_file


def fits(w: torch.Tensor) -> dict[str, float]:
    """Maximum likelihood: Laplace (median, mean distance from it) and normal (mean, standard deviation)."""
    w = w.double().flatten()
    median, mean = w.median(), w.mean()
    scale, deviation = (w - median).abs().mean(), w.std(correction=0)
    return {
        "laplace_location": median.item(),
        "laplace_scale": scale.item(),
        "laplace_nats": -(1 + torch.log(2 * scale)).item(),
        "normal_mean": mean.item(),
        "normal_deviation": deviation.item(),
        "normal_nats": -(0.5 + 0.5 * math.log(2 * math.pi) + torch.log(deviation)).item(),
        "excess_kurtosis": (((w - mean) / deviation) ** 4).mean().item() - 3,  # normal 0, Laplace 3
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "seeds/mnist", 50)
    args, flags = parser.parse_known_args()
    flags += ["--dataset", "mnist", "--epochs", str(args.epochs)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    figure = Figure(figsize=(11, 7), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    pictures, histograms = parts
    record: dict[str, dict[str, float]] = {}
    names = (("adder", "adder network"), ("conv", "CNN"))
    for part, axes, (similarity, name) in zip(pictures.subfigures(1, 2), histograms.subplots(1, 2), names, strict=True):
        folder = Path(args.output_dir) / f"{similarity}-0"
        run("mnist.py", folder, [*flags, "--similarity", similarity, "--seed", "0"])
        weights = [w for w in load_file(folder / "model.safetensors").values() if w.dim() > 1]
        by_size = {tuple(w.shape): w for w in weights}
        first, third = by_size[6, 1, 5, 5], next(w for s, w in by_size.items() if s[0] == 120)
        part.suptitle(f"{name}: first layer")
        for cell, image in zip(part.subplots(1, 6), first, strict=True):
            cell.imshow(image[0], cmap="gray")
            cell.axis("off")
        fit = record[similarity] = fits(third)
        axes.hist(third.flatten(), bins=100, density=True, alpha=0.5)
        x = torch.linspace(third.min(), third.max(), 400).double()
        laplace = torch.exp(-(x - fit["laplace_location"]).abs() / fit["laplace_scale"]) / (2 * fit["laplace_scale"])
        normal = torch.exp(-(((x - fit["normal_mean"]) / fit["normal_deviation"]) ** 2) / 2)
        axes.plot(x, laplace, label="Laplace")
        axes.plot(x, normal / (fit["normal_deviation"] * math.sqrt(2 * math.pi)), label="normal")
        axes.set(title=f"{name}: third layer", xlabel="weight", ylabel="density")
        axes.legend()
    lines = [
        "# Filters and weights of LeNet-5-BN (Fig. 2 and 4)",
        "",
        f"MNIST, {args.epochs} epochs, seed 0; log-likelihood of the third layer's weights in nats for each, the "
        "higher the better the fit. `python recipes/paper/weights.py`",
        "",
        "| network | Laplace | normal | better | excess kurtosis (normal 0, Laplace 3) | paper |",
        "|---|---|---|---|---|---|",
    ]
    for (similarity, name), paper in zip(names, ("Laplace", "normal"), strict=True):
        f = record[similarity]
        better = "Laplace" if f["laplace_nats"] > f["normal_nats"] else "normal"
        figures = f"{f['laplace_nats']:.4f} | {f['normal_nats']:.4f} | {better} | {f['excess_kurtosis']:.2f}"
        lines.append(f"| {name} | {figures} | {paper} |")
    write(args.report_dir, "weights", record, lines, figure)


if __name__ == "__main__":
    main()
