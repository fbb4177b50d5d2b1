"""Fig. 1 of arXiv 1912.13200: the features of LeNet++ on MNIST in their two dimensions, adder network and CNN.

    python recipes/paper/features.py --data-dir FOLDER

The CNN's classes lie in sectors, as an inner product tells directions apart; the adder network's in clusters, as an L1
distance tells places apart. In numbers: how well a nearest centre, by distance or by angle, finds the class.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _runs import arguments, flags_of, run, write
from matplotlib.figure import Figure


@torch.no_grad()
def features_of(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """The two features of each image, [N, 2]."""
    import timm
    from mnist import preprocessed

    import adder_zoo  # noqa: F401 - registers the network

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    inputs = preprocessed(images, model).to(memory_format=torch.channels_last)
    parts = [model.forward_head(model.forward_features(part), pre_logits=True) for part in inputs.split(500)]
    return torch.cat(parts).flatten(1)


def share_found(features: torch.Tensor, labels: torch.Tensor, by: str) -> float:
    """Percent of the images whose nearest class centre is their own class's."""
    if by == "angle":
        features = F.normalize(features)
    centres = torch.stack([features[labels == c].mean(0) for c in range(10)])
    distances = -features @ F.normalize(centres).T if by == "angle" else torch.cdist(features, centres, p=1)
    return 100 * (distances.argmin(1) == labels).float().mean().item()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "features", 50)
    args, flags = parser.parse_known_args()
    flags += ["--dataset", "mnist", "--model", "adder_lenetpp", "--epochs", str(args.epochs)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    from mnist import find, load

    images, labels = load("mnist", find("mnist", args.data_dir))[0]["test"]
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    record: dict[str, dict[str, Any]] = {}
    for axes, (similarity, name) in zip(
        figure.subplots(1, 2), (("adder", "adder network"), ("conv", "CNN")), strict=True
    ):
        folder = Path(args.output_dir) / similarity
        results = run("mnist.py", folder, [*flags, "--similarity", similarity])
        features = features_of(folder, images)
        record[similarity] = {
            "results": results,
            "found_by_distance": share_found(features, labels, "distance"),
            "found_by_angle": share_found(features, labels, "angle"),
        }
        for digit in range(10):
            axes.scatter(*features[labels == digit][:500].T, s=3, label=str(digit))
        axes.set(title=f"{name}, {results['test_accuracy']:.2f} %", xlabel="feature 1", ylabel="feature 2")
    axes.legend(markerscale=4)
    results = record["adder"]["results"]
    command = f"python recipes/paper/features.py --epochs {args.epochs}"
    command += flags_of("mnist.py", results, "model", "dataset", "epochs", "similarity")
    lines = [
        "# Features of LeNet++ (Fig. 1)",
        "",
        f"MNIST, {args.epochs} epochs, η {results['config']['eta']:g}, the test set's images (500 of each digit in the "
        f"picture). `{command}`",
        "",
        "| network | accuracy | nearest centre by L1 distance | by angle |",
        "|---|---|---|---|",
    ]
    for similarity, name in (("adder", "adder network"), ("conv", "CNN")):
        r = record[similarity]
        figures = (r["results"]["test_accuracy"], r["found_by_distance"], r["found_by_angle"])
        lines.append(f"| {name} | " + " | ".join(f"{v:.2f} %" for v in figures) + " |")
    write(args.report_dir, "features", record, lines, figure)


if __name__ == "__main__":
    main()
