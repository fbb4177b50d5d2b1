"""Which layers of a MobileNet lose accuracy as adder layers, and what closes the gap to its convolutional twin.

    python recipes/paper/mobilenet.py --data-dir FOLDER

MobileNetV2 at half width on CIFAR-10 (``adder_mobilenetv2_cifar``). Each line of the report is one short run, judged on
training images that were held out; the test images are not looked at. A run that the report's JSON already has, with as
many epochs, is not done again, so the table grows over several calls (``--only NAME ...`` chooses). An accuracy on
5,000 images is known to about half a percent, differences between two runs on the same images to about 0.5.
"""

import json
from pathlib import Path

import timm
from _runs import arguments, rows, run, write

import adder_zoo

MODEL = "adder_mobilenetv2_cifar"
DEPTHWISE = "*.conv_dw"
EXPANSIONS = "blocks.[1-9].*.conv_pw"
PROJECTIONS = "*.conv_pwl,blocks.0.*.conv_pw"
HEAD = "conv_head"
# By the layers that are adder layers; the others are left as convolutions.
LAYERS = {
    "none: the twin": ["--similarity", "conv"],
    "all": ["--convolutions", "none"],
    "all but depthwise": ["--convolutions", DEPTHWISE],
    "only depthwise": ["--convolutions", ",".join((EXPANSIONS, PROJECTIONS, HEAD))],
    "only expansions": ["--convolutions", ",".join((DEPTHWISE, PROJECTIONS, HEAD))],
    "only projections": ["--convolutions", ",".join((DEPTHWISE, EXPANSIONS, HEAD))],
}
# All but the depthwise layers are adder layers in these.
SETTINGS = {
    "eta 0.1": ["--eta", "0.1"],
    "eta 0.4": ["--eta", "0.4"],
    "batch 32": ["--batch-size", "32"],
    "full gradient of the input": ["--input-grad", "full"],
}
VARIANTS = {**LAYERS, **{name: ["--convolutions", DEPTHWISE, *flags] for name, flags in SETTINGS.items()}}
BASELINE = ["--model", MODEL, "--batch-size", "64"]
TWIN = next(iter(LAYERS))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "mobilenet", 8)
    parser.add_argument("--held-out", type=int, default=5000, help="training images to judge by")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="do these runs and no others")
    args, flags = parser.parse_known_args()
    flags += ["--epochs", str(args.epochs), "--eval-every", str(args.epochs), "--held-out", str(args.held_out)]
    flags += ["--data-dir", args.data_dir] if args.data_dir else []
    found = Path(args.report_dir) / "mobilenet.json"
    for name in args.only or VARIANTS:
        record = json.loads(found.read_text()) if found.exists() else {}
        if name not in record or record[name]["epochs"] != args.epochs:
            folder = Path(args.output_dir) / name.replace(" ", "_").replace(":", "")
            results = run("cifar.py", folder, [*BASELINE, *VARIANTS[name], *flags])
            hours = sum(row["seconds"] for row in rows(folder)) / 3600
            record = json.loads(found.read_text()) if found.exists() else {}  # another call may have added to it
            record[name] = {**results, "hours": round(hours, 2)}
        report(args.report_dir, record)


def share_of_multiplications(config: dict) -> float:
    """Of the twin's multiplications, in percent: those that the network still has; batch norm's are left out."""
    stay = "" if config["convolutions"] == "none" else config["convolutions"] or None
    network = timm.create_model(MODEL, similarity=config["similarity"], convolutions=stay)
    twin = timm.create_model(MODEL, similarity="conv")
    counts = [adder_zoo.report(model).without_norm.multiplications for model in (network, twin)]
    return 100 * counts[0] / counts[1]


def report(folder: str, record: dict) -> None:
    twin = record.get(TWIN, {}).get("test_accuracy")
    lines = [
        "# Which layers of a MobileNet lose as adder layers",
        "",
        "`adder_mobilenetv2_cifar`, MobileNetV2 at half width, on CIFAR-10 with batches of 64. Accuracy in percent on "
        "training images that were held out, after the last epoch; one seed. Multiplications are those that are left "
        "of the twin's. `python recipes/paper/mobilenet.py`",
        "",
        "| adder layers | setting | epochs | accuracy | against the twin | multiplications | hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (known for known in VARIANTS if known in record):
        results = record[name]
        accuracy = results["test_accuracy"]
        gap = "" if twin is None or name == TWIN else f"{accuracy - twin:+.2f}"
        layers, setting = (name, "") if name in LAYERS else ("all but depthwise", name)
        left = share_of_multiplications(results["config"])
        lines.append(
            f"| {layers} | {setting} | {results['epochs']} | {accuracy:.2f} | {gap} | {left:.1f} % | "
            f"{results['hours']} |"
        )
    write(folder, "mobilenet", record, lines)


if __name__ == "__main__":
    main()
