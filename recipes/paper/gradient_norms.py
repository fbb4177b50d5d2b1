"""Table 1 of arXiv 1912.13200: norms of the filters' gradients in the first iteration, adder network and CNN.

    python recipes/paper/gradient_norms.py --data-dir FOLDER

LeNet-5-BN as it is initialised, one batch of 256 images of MNIST, for each of some seeds: ‖ΔL(w_l)‖₂ by layer.
"""

import statistics

import torch
import torch.nn.functional as F
from _runs import arguments, write

PAPER = {"adder": (0.0009, 0.0012, 0.0146), "conv": (0.2261, 0.2990, 0.4646)}
SEEDS = 10


def main() -> None:
    import timm
    from mnist import find, load, preprocessed

    args = arguments(__doc__.splitlines()[0]).parse_args()
    images, labels = load("mnist", find("mnist", args.data_dir))[0]["train"]
    norms: dict[str, list[list[float]]] = {"adder": [], "conv": []}
    for similarity, measured in norms.items():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            model = timm.create_model("adder_lenet5_bn", similarity=similarity).train()
            batch = torch.randperm(len(labels))[:256]
            F.cross_entropy(model(preprocessed(images[batch], model)), labels[batch]).backward()
            weights = [p for name, p in model.named_parameters() if p.dim() > 1]
            measured.append([w.grad.norm().item() for w in weights if w.grad is not None])
    layers = len(norms["adder"][0])
    median = {s: [statistics.median(seed[i] for seed in norms[s]) for i in range(layers)] for s in norms}
    lines = [
        "# Norms of the gradients in the first iteration (Table 1)",
        "",
        f"LeNet-5-BN, batch 256 of MNIST, median of {SEEDS} seeds. `python recipes/paper/gradient_norms.py`",
        "",
        "| | " + " | ".join(f"layer {i + 1}" for i in range(layers)) + " |",
        "|---" * (layers + 1) + "|",
    ]
    for similarity, name in (("adder", "adder network"), ("conv", "CNN")):
        lines.append(f"| {name}, here | " + " | ".join(f"{v:.4f}" for v in median[similarity]) + " |")
        paper = [f"{v:.4f}" for v in PAPER[similarity]]
        lines.append(f"| {name}, paper | " + " | ".join(paper + [""] * (layers - len(paper))) + " |")
    ratios = [c / a for a, c in zip(median["adder"], median["conv"], strict=True)]
    lines.append("| CNN over adder, here | " + " | ".join(f"{r:.1f}" for r in ratios) + " |")
    paper_ratios = [c / a for a, c in zip(PAPER["adder"], PAPER["conv"], strict=True)]
    lines.append(
        "| CNN over adder, paper | " + " | ".join([f"{r:.0f}" for r in paper_ratios] + [""] * (layers - 3)) + " |"
    )
    lines += [
        "",
        "The paper does not say how filters are drawn, how images are scaled, and more. "
        "[Which setting gives its numbers](gradient_norm_settings.md) tries them all.",
    ]
    write(args.report_dir, "gradient_norms", {"norms": norms, "median": median}, lines)


if __name__ == "__main__":
    main()
