"""Table 1 of arXiv 1912.13200 under every setting that the paper leaves open: is there one that gives its numbers?

    python recipes/paper/gradient_norm_settings.py --data-dir FOLDER

The norms of `gradient_norms.py`, with each combination of: how filters are drawn, how images are scaled, how batch
norm's weights begin (torch drew them from U(0, 1) until version 1.1), batch norm behind the last layer or not, which
pooling, ReLU or no activation, the loss's mean or sum over the batch, and what is called a norm. How far a setting is
from the paper is the root mean square, over the three layers, of log10(here / paper).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from _runs import arguments, write
from gradient_norms import PAPER
from torch import Tensor, nn

BATCH = 256
FILTERS: dict[str, Callable[[Tensor], Any]] = {
    "N(0, 1)": nn.init.normal_,
    "torch's default": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
    "He": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "Xavier": nn.init.xavier_uniform_,
    "N(0, 0.01)": lambda w: nn.init.normal_(w, std=0.01),
}
IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean 0, deviation 1": lambda x: (x - 0.1307) / 0.3081,
    "0 to 1": lambda x: x,
    "-1 to 1": lambda x: 2 * x - 1,
    "0 to 255": lambda x: 255 * x,
}
WEIGHTS: dict[str, Callable[[Tensor], Any]] = {"1": nn.init.ones_, "U(0, 1)": nn.init.uniform_}
POOLING: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}
REDUCTION = {"mean": 1, "sum": BATCH}
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "Euclidean": lambda g: g.norm(),
    "Euclidean by the root of the count": lambda g: g.square().mean().sqrt(),
    "mean magnitude": lambda g: g.abs().mean(),
    "sum of magnitudes": lambda g: g.abs().sum(),
}
NAMES = ("filters", "images", "batch norm's weights", "last batch norm", "pooling", "activation", "loss", "norm")


def changed(model: nn.Module, filters: str, weights: str, last_norm: str, pooling: str, activation: str) -> nn.Module:
    """LeNet-5-BN with these settings."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d):
                setattr(parent, name, POOLING[pooling](2))
            elif isinstance(module, nn.ReLU) and activation == "none":
                setattr(parent, name, nn.Identity())
    if last_norm == "no":
        model.get_submodule("head").bn = nn.Identity()  # type: ignore[union-attr]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            (FILTERS[filters] if weight.dim() > 1 else WEIGHTS[weights])(weight.data)
    return model.train()


def gradients(similarity: str, x: Tensor, labels: Tensor, *settings: str) -> list[Tensor]:
    """Of the first three layers' filters."""
    import timm

    torch.manual_seed(0)
    model = changed(timm.create_model("adder_lenet5_bn", similarity=similarity), *settings)
    F.cross_entropy(model(x), labels).backward()
    weights = [p.grad for p in model.parameters() if p.dim() > 1 and p.grad is not None]
    return weights[:3]


def distance(here: list[float], paper: tuple[float, ...]) -> float:
    if not all(0 < value < math.inf for value in here):
        return math.inf
    return math.sqrt(sum(math.log10(a / b) ** 2 for a, b in zip(here, paper, strict=True)) / len(paper))


def measured(similarity: str, images: Tensor, labels: Tensor) -> Iterator[dict[str, Any]]:
    """Each combination of settings: its names, its three norms and how far they are from the paper's."""
    grid = itertools.product(FILTERS, IMAGES, WEIGHTS, ("yes", "no"), POOLING, ("ReLU", "none"))
    for filters, scale, *rest in grid:
        found = gradients(similarity, IMAGES[scale](images), labels, filters, *rest)
        for (loss, factor), (norm, of) in itertools.product(REDUCTION.items(), NORMS.items()):
            norms = [factor * of(g).item() for g in found]
            yield {
                "settings": dict(zip(NAMES, (filters, scale, *rest, loss, norm), strict=True)),
                "norms": norms,
                "distance": distance(norms, PAPER[similarity]),
            }


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| " + " | ".join(NAMES) + " | layer 1 | layer 2 | layer 3 | off |", "|---" * (len(NAMES) + 4) + "|"]
    for row in rows:
        norms = " | ".join(f"{value:.2g}" for value in row["norms"])
        lines.append("| " + " | ".join(row["settings"].values()) + f" | {norms} | {row['distance']:.2f} |")
    return lines


def together(found: dict[str, list[dict[str, Any]]]) -> list[tuple[float, dict[str, Any], dict[str, Any]]]:
    """Pairs of an adder network and a CNN that differ in how filters are drawn alone, the closest first."""
    by_rest: dict[Any, list[dict[str, Any]]] = {}
    for row in found["conv"]:
        by_rest.setdefault(tuple(row["settings"].values())[1:], []).append(row)
    pairs = [
        (math.hypot(row["distance"], other["distance"]) / math.sqrt(2), row, other)
        for row in found["adder"]
        for other in by_rest[tuple(row["settings"].values())[1:]]
    ]
    return sorted(pairs, key=lambda pair: pair[0])


def main() -> None:
    from mnist import find, load

    args = arguments((__doc__ or "").splitlines()[0]).parse_args()
    pixels, classes = load("mnist", find("mnist", args.data_dir))[0]["train"]
    chosen = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[:BATCH]
    images, labels = F.pad(pixels[chosen].float() / 255, (2, 2, 2, 2)).view(BATCH, 1, 32, 32), classes[chosen]
    found = {similarity: list(measured(similarity, images, labels)) for similarity in PAPER}
    nearest = {s: sorted(rows, key=lambda row: row["distance"])[:5] for s, rows in found.items()}
    rises = [row for row in found["adder"] if row["norms"][2] > 10 * row["norms"][1] > 0]
    off, adder, conv = together(found)[0]
    lines = [
        "# Which setting gives the paper's Table 1?",
        "",
        f"{len(found['adder']):,} combinations of what the paper leaves open, for each of the two networks: LeNet-5-BN "
        "as it is drawn, one batch of 256 images of MNIST, one seed. `python recipes/paper/gradient_norm_settings.py`. "
        "\"Off\": root mean square of log10(here / paper) over the three layers. 1.0 is a factor of ten, 0.1 one of "
        "1.26.",
        "",
        "The paper's adder network: 0.0009, 0.0012, 0.0146. The nearest:",
        "",
        *table(nearest["adder"]),
        "",
        "The paper's CNN: 0.2261, 0.2990, 0.4646. The nearest:",
        "",
        *table(nearest["conv"]),
        "",
        "Both networks under the same settings, but for how filters are drawn. The nearest pair is off by "
        f"{off:.2f}, adder network first:",
        "",
        *table([adder, conv]),
        "",
        "In the paper the adder network's third layer has twelve times the gradient of its second. "
        f"{len(rises)} of the {len(found['adder']):,} combinations give ten times or more"
        + ("; the nearest of them:" if rises else "."),
    ]  # fmt: skip
    if rises:
        lines += ["", *table(sorted(rises, key=lambda row: row["distance"])[:3])]
    write(args.report_dir, "gradient_norm_settings", {"nearest": nearest, "pair": [adder, conv], "rising": len(rises)},
          lines)  # fmt: skip


if __name__ == "__main__":
    main()
