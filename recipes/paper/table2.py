"""Table 2 of arXiv 1912.13200: adder network, CNN and binary network on CIFAR-10 or CIFAR-100, one schedule for all.

python recipes/paper/table2.py --model adder_resnet20 --epochs 60 --data-dir FOLDER
python recipes/paper/table2.py --model adder_resnet32 --dataset cifar100 --epochs 400 --data-dir FOLDER
"""

from pathlib import Path

from _runs import arguments, flags_of, rows, run, write
from matplotlib.figure import Figure

# model: CIFAR-10 and CIFAR-100 of the CNN, the adder network and the binary network
PAPER = {
    "adder_vgg_small": {"conv": (93.80, 72.73), "adder": (93.72, 72.64), "xnor": (89.80, 65.41)},
    "adder_resnet20": {"conv": (92.25, 68.14), "adder": (91.84, 67.60), "xnor": (84.87, 54.14)},
    "adder_resnet32": {"conv": (93.29, 69.74), "adder": (93.01, 69.02), "xnor": (86.74, 56.21)},
}
NAMES = {"adder": "adder network", "conv": "CNN", "xnor": "binary network"}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "table2", 400)
    parser.add_argument("--model", choices=tuple(PAPER), default="adder_resnet20")
    parser.add_argument("--dataset", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--similarity", nargs="+", choices=list(NAMES), default=list(NAMES), help="which networks")
    args, flags = parser.parse_known_args()
    flags += ["--model", args.model, "--dataset", args.dataset, "--epochs", str(args.epochs)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    record, logs = {}, {}
    for similarity in args.similarity:
        folder = Path(args.output_dir) / f"{args.model}.{args.dataset}-{similarity}"
        record[similarity] = run("cifar.py", folder, [*flags, "--similarity", similarity])
        logs[similarity] = rows(folder)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for similarity, log in logs.items():
        left.plot([row["epoch"] for row in log], [row["train_loss"] for row in log], label=NAMES[similarity])
        measured = [row for row in log if row["test_accuracy"] == row["test_accuracy"]]
        right.plot([row["epoch"] for row in measured], [row["test_accuracy"] for row in measured])
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="test accuracy [%]")
    left.legend()
    first = record[args.similarity[0]]
    config = first["config"]
    only = "" if args.similarity == list(NAMES) else f" --similarity {' '.join(args.similarity)}"
    command = f"python recipes/paper/table2.py --model {args.model} --dataset {args.dataset} --epochs {args.epochs}"
    command += flags_of("cifar.py", first, "model", "dataset", "epochs", "similarity") + only
    lines = [
        f"# {args.model} on {args.dataset} (Table 2)",
        "",
        f"{first['epochs']} epochs (the paper: 400) of batch {config['batch_size']} (256), {config['sched']} decay, "
        f"seed {config['seed']}; test accuracy in percent after the last epoch, {first['test_images']:,} images. "
        f"`{command}`",
        "",
        "| network | here | paper |",
        "|---|---|---|",
    ]
    for similarity in args.similarity:
        paper = PAPER[args.model][similarity][args.dataset == "cifar100"]
        lines.append(f"| {NAMES[similarity]} | {record[similarity]['test_accuracy']:.2f} | {paper:.2f} |")
    write(args.report_dir, f"table2_{args.model}_{args.dataset}", record, lines, figure)


if __name__ == "__main__":
    main()
