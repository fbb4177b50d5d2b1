"""``adder-zoo predict``."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import click

from ..images import find_images
from ._common import Failure, ModelName, json_option, write_json
from ._images import (
    ImageFiles,
    answers_of,
    class_labels,
    image_options,
    load_network,
    report_skipped,
    say_what_is_assumed,
    transform_of,
)


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo predict adder_lenet5_bn.mnist seven.png
      adder-zoo predict adder_lenet5_bn.mnist digits/ --top-k 3 --format csv > answers.csv
      find photos -name '*.jpg' | adder-zoo predict runs/resnet50 - --format json

    \b
    Status: 0 if every image was read, 1 if one was not (the others are answered), 2 for a wrong command line.
    """,
)
@click.argument("model", type=ModelName())
@click.argument("images", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@click.option("--format", "form", type=click.Choice(["text", "csv", "json"]), default="text", show_default=True)
@json_option
@image_options
def predict(
    model: str,
    images: tuple[str, ...],
    top_k: int,
    form: str,
    as_json: bool,
    batch_size: int,
    device: str,
    impl: str | None,
    class_map: Path | None,
    random_weights: bool,
) -> None:
    """Classifies images: the most likely classes of each, with their probabilities.

    MODEL is a network of the zoo or of timm, a folder that a recipe wrote, or hf-hub:ORG/NAME. IMAGES are files or
    folders; - reads paths from standard input, one in a line.
    """
    form = "json" if as_json else form
    network = load_network(model, device, impl, random_weights)
    names = class_labels(network, class_map).shown()
    say_what_is_assumed(model, network)
    top_k = min(top_k, len(names))
    paths = [line.rstrip("\n") for arg in images for line in (sys.stdin if arg == "-" else [arg]) if line.strip()]
    found = list(find_images(paths))
    report_skipped([path for path, may_be in found if not may_be])
    files = [path for path, may_be in found if may_be]
    if not files:
        raise Failure(f"there is no image in {', '.join(map(str, paths)) or 'standard input'}")

    transform, channels = transform_of(network)
    answers: list[dict[str, Any]] = []
    failed: list[str] = []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(["image", "rank", "class", "label", "probability"])
    data = ImageFiles(files, transform, channels)
    progress = not sys.stdout.isatty()  # or it would stand among the answers
    for indices, logits in answers_of(network, data, batch_size, device, failed, progress=progress):
        probabilities, classes = logits.softmax(1).topk(top_k)
        for i, best, which in zip(indices, probabilities.tolist(), classes.tolist(), strict=True):
            answer = [
                {"class": c, "label": names[c], "probability": round(p, 6)} for p, c in zip(best, which, strict=True)
            ]
            if form == "json":
                answers.append({"image": str(files[i]), "predictions": answer})
            elif form == "csv":
                rows = [(files[i], rank, *a.values()) for rank, a in enumerate(answer, 1)]
                writer.writerows(rows)
            else:
                shown = ", ".join(f"{a['label']} {a['probability']:.1%}" for a in answer)
                click.echo(f"{files[i]}: {shown}")
    if form == "json":
        write_json(answers)
    if failed:
        raise Failure(f"{len(failed)} of {len(files)} images could not be read")
