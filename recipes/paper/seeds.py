"""LeNet-5-BN over several seeds: MNIST (sec. 4.1 of arXiv 1912.13200: 99.40 %) or Fashion-MNIST, adder network and CNN.

python recipes/paper/seeds.py --dataset fashion_mnist --data-dir FOLDER
"""

from pathlib import Path

from _runs import arguments, mean_and_deviation, run, write

NAMES = {"adder": "adder network", "conv": "CNN"}
PAPER = {("mnist", "adder"): "99.40", ("mnist", "conv"): "99.40"}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "seeds", 50)
    parser.add_argument("--dataset", choices=("mnist", "fashion_mnist"), default="mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--similarity", nargs="+", choices=list(NAMES), default=list(NAMES), help="which networks")
    args, flags = parser.parse_known_args()
    flags += ["--dataset", args.dataset, "--epochs", str(args.epochs)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    only = "" if args.similarity == list(NAMES) else f" --similarity {' '.join(args.similarity)}"
    record = {}
    lines = [
        f"# LeNet-5-BN on {args.dataset} over {args.seeds} seeds",
        "",
        f"{args.epochs} epochs, the paper's settings, test accuracy in percent after the last one. "
        f"`python recipes/paper/seeds.py --dataset {args.dataset}{only}`",
        "",
        "| network | here | paper |",
        "|---|---|---|",
    ]
    for similarity in args.similarity:
        results = []
        for seed in range(args.seeds):
            folder = Path(args.output_dir) / args.dataset / f"{similarity}-{seed}"
            results.append(run("mnist.py", folder, [*flags, "--similarity", similarity, "--seed", str(seed)]))
        record[similarity] = results
        accuracies = [result["test_accuracy"] for result in results]
        lines.append(
            f"| {NAMES[similarity]} | {mean_and_deviation(accuracies)} | {PAPER.get((args.dataset, similarity), '')} |"
        )
    write(args.report_dir, f"seeds_{args.dataset}", record, lines)


if __name__ == "__main__":
    main()
