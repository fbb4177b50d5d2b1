"""Which layers of a MobileNet lose accuracy as adder layers, and what closes the gap to its convolutional twin.

    python recipes/paper/mobilenet.py --data-dir FOLDER

``adder_mobilenetv1_cifar`` and ``adder_mobilenetv2_cifar`` on CIFAR-10. Each line of the report is one short run,
judged on training images that were held out; the test images are not looked at. A run that the report's JSON already
has, with as many epochs, is not done again, so the table grows over several calls (``--only NAME ...`` chooses). An
accuracy on 5,000 images is known to about 0.7 percent, a difference between two runs on the same images to about as
much.
"""

import timm
from _runs import screen, write

import adder_zoo

V1 = ["--model", "adder_mobilenetv1_cifar"]
V2 = ["--model", "adder_mobilenetv2_cifar"]
TWIN = ["--similarity", "conv"]
DEPTHWISE = "*.conv_dw"
EXPANSIONS = "blocks.[1-9].*.conv_pw"
PROJECTIONS = "*.conv_pwl,blocks.0.*.conv_pw"
HEAD = "conv_head"


def leaving(*convolutions: str) -> list[str]:
    return ["--convolutions", ",".join(convolutions)]


UNCLIPPED = ["--clip-grad", "0"]
# For each run: what are adder layers, another setting than the baseline's, and the flags.
VARIANTS = {
    "v1 twin": ("none: the twin", "", [*V1, *TWIN]),
    "v1 twin unclipped": ("none: the twin", "gradients are not clipped", [*V1, *TWIN, *UNCLIPPED]),
    "v1 all": ("all", "", [*V1, "--convolutions", "none"]),
    "v1": ("all but depthwise", "", V1),
    "v1 unclipped": ("all but depthwise", "gradients are not clipped", [*V1, *UNCLIPPED]),
    "v1 eta 0.1": ("all but depthwise", "η 0.1", [*V1, "--eta", "0.1"]),
    "v1 eta 0.4": ("all but depthwise", "η 0.4", [*V1, "--eta", "0.4"]),
    "v2 twin": ("none: the twin", "", [*V2, *TWIN]),
    "v2 twin unclipped": ("none: the twin", "gradients are not clipped", [*V2, *TWIN, *UNCLIPPED]),
    "v2 all": ("all", "", [*V2, "--convolutions", "none"]),
    "v2": ("all but depthwise", "", V2),
    "v2 unclipped": ("all but depthwise", "gradients are not clipped", [*V2, *UNCLIPPED]),
    "v2 depthwise": ("depthwise", "", [*V2, *leaving(EXPANSIONS, PROJECTIONS, HEAD)]),
    "v2 expansions": ("expansions", "", [*V2, *leaving(DEPTHWISE, PROJECTIONS, HEAD)]),
    "v2 projections": ("projections", "", [*V2, *leaving(DEPTHWISE, EXPANSIONS, HEAD)]),
    "v2 head": ("the last 1x1 layer", "", [*V2, *leaving(DEPTHWISE, EXPANSIONS, PROJECTIONS)]),
}
BASELINE = ["--batch-size", "64", "--clip-grad", "1"]


def main() -> None:
    runs = {name: [*BASELINE, *flags] for name, (_, _, flags) in VARIANTS.items()}
    screen("mobilenet", __doc__.splitlines()[0], 4, runs, report)


def share_of_multiplications(config: dict) -> float:
    """Of the twin's multiplications, in percent: those that the network still has; batch norm's are left out."""
    stay = "" if config["convolutions"] == "none" else config["convolutions"] or None
    network = timm.create_model(config["model"], similarity=config["similarity"], convolutions=stay)
    twin = timm.create_model(config["model"], similarity="conv")
    counts = [adder_zoo.report(model).without_norm.multiplications for model in (network, twin)]
    return 100 * counts[0] / counts[1]


def report(folder: str, record: dict) -> None:
    lines = [
        "# Which layers of a MobileNet lose as adder layers",
        "",
        "CIFAR-10, batches of 64, the gradient of all but adder filters clipped to a norm of 1, one seed. Accuracy in "
        "percent on training images that were held out, after the last epoch. Multiplications are those that are left "
        "of the twin's. `python recipes/paper/mobilenet.py`",
        "",
        "| network | adder layers | setting | epochs | accuracy | against the better twin | multiplications |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (known for known in VARIANTS if known in record):
        results, (layers, setting, _) = record[name], VARIANTS[name]
        twins = [
            record[twin]["test_accuracy"]
            for twin in (f"{name[:2]} twin", f"{name[:2]} twin unclipped")
            if twin in record and "twin" not in name and record[twin]["epochs"] == results["epochs"]
        ]
        gap = f"{results['test_accuracy'] - max(twins):+.2f}" if twins else ""
        lines.append(
            f"| {name[:2].upper()} | {layers} | {setting} | {results['epochs']} | {results['test_accuracy']:.2f} | "
            f"{gap} | {share_of_multiplications(results['config']):.1f} % |"
        )
    write(folder, "mobilenet", record, lines)


if __name__ == "__main__":
    main()
