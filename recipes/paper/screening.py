"""Which settings train ResNet-20 on CIFAR-10 best: short runs, judged on training images that were held out.

    python recipes/paper/screening.py --data-dir FOLDER

The test images are not looked at. Each line of the report is one short run that differs from the baseline in what its
name says. A run that the report's JSON already has, with the same settings, is not done again, so the table grows over
several calls (``--only NAME ...`` chooses). An accuracy on 5,000 images is known to about half a percent, differences
between two runs on the same images to about 0.4: a smaller difference says nothing.
"""

from _runs import screen, write

VARIANTS = {
    "baseline": [],
    "batch 16": ["--batch-size", "16"],
    "batch 32": ["--batch-size", "32"],
    "batch 64": ["--batch-size", "64"],
    "eta 0.1": ["--eta", "0.1"],
    "eta 0.4": ["--eta", "0.4"],
    "label smoothing 0.1": ["--smoothing", "0.1"],
    "weight average": ["--model-ema", "--model-ema-decay", "0.998"],
    "polynomial decay": ["--sched", "poly"],
    "warm-up": ["--warmup-epochs", "1"],
    "weight decay 1e-4": ["--weight-decay", "1e-4"],
    "batch 256": ["--batch-size", "256"],
    "PKKD": ["--distillation", "pkkd"],
}
BASELINE = ["--model", "adder_resnet20", "--batch-size", "128"]


def main() -> None:
    runs = {name: [*BASELINE, *flags] for name, flags in VARIANTS.items()}
    screen("screening", __doc__.splitlines()[0], 10, runs, report)


def report(folder: str, record: dict) -> None:
    base = record.get("baseline", {}).get("test_accuracy")
    lines = [
        "# Settings of ResNet-20 on CIFAR-10, screened by short runs",
        "",
        "Accuracy in percent on training images that were held out, after the last epoch; one seed. The hours are "
        "measured on a machine that did other work beside it. `python recipes/paper/screening.py`",
        "",
        "| run | epochs | accuracy | against the baseline | hours |",
        "|---|---|---|---|---|",
    ]
    for name, results in record.items():
        accuracy = results["test_accuracy"]
        gain = "" if base is None or name == "baseline" else f"{accuracy - base:+.2f}"
        lines.append(f"| {name} | {results['epochs']} | {accuracy:.2f} | {gain} | {results['hours']} |")
    write(folder, "screening", record, lines)


if __name__ == "__main__":
    main()
