"""Fig. 3 and sec. 4.5 of arXiv 1912.13200: which gradient, and which learning rate, LeNet-5-BN learns MNIST with.

    python recipes/paper/ablation.py --data-dir FOLDER

Six runs of `recipes/mnist.py`: {full, sign} gradient of the filters x {no change, ILR x100, ALR} of their rate.
"""

from pathlib import Path

from _runs import arguments, rows, run, write
from matplotlib.figure import Figure

PAPER = {
    ("full", "none"): 54.91, ("full", "increased"): 98.99, ("full", "adaptive"): 99.40,
    ("sign", "none"): 29.26, ("sign", "increased"): 97.72, ("sign", "adaptive"): 97.99,
}  # fmt: skip
NAMES = {"none": "no change", "increased": "ILR x100", "adaptive": "ALR"}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "ablation", 50)
    args, flags = parser.parse_known_args()
    flags += ["--dataset", "mnist", "--epochs", str(args.epochs)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    results, logs = {}, {}
    # Those first that the other experiments look at, too.
    for grad, rate in sorted(PAPER, key=lambda setting: -PAPER[setting]):
        folder = Path(args.output_dir) / f"{grad}-{rate}"
        results[grad, rate] = run("mnist.py", folder, [*flags, "--weight-grad", grad, "--adder-lr", rate])
        logs[grad, rate] = rows(folder)

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (grad, rate), log in logs.items():
        style = {"linestyle": "-" if grad == "full" else "--", "label": f"{grad} gradient, {NAMES[rate]}"}
        epochs = [row["epoch"] for row in log]
        left.plot(epochs, [row["train_loss"] for row in log], **style)
        right.plot(epochs, [row["test_accuracy"] for row in log], **style)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy [%]")
    right.legend()
    ours = {setting: result["test_accuracy"] for setting, result in results.items()}
    order = [sorted(figures, key=lambda setting: figures[setting]) for figures in (ours, PAPER)]
    lines = [
        "# Which gradient and which learning rate (Fig. 3, sec. 4.5)",
        "",
        f"LeNet-5-BN on MNIST, {args.epochs} epochs, one seed: test accuracy in percent, in brackets with the running "
        "statistics of batch norm. `python recipes/paper/ablation.py`",
        "",
        "| gradient of the filters | learning rate | here | paper |",
        "|---|---|---|---|",
    ]
    for (grad, rate), paper in PAPER.items():
        running = results[grad, rate]["test_accuracy_running_statistics"]
        lines.append(f"| {grad} | {NAMES[rate]} | {ours[grad, rate]:.2f} ({running:.2f}) | {paper:.2f} |")
    same = "the same" if order[0] == order[1] else "not the same"
    lines += ["", f"The order of the six settings is {same} as the paper's."]
    record = {f"{grad}-{rate}": result for (grad, rate), result in results.items()}
    write(args.report_dir, "ablation", record, lines, figure)


if __name__ == "__main__":
    main()
