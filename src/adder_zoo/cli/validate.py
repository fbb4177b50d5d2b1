"""``adder-zoo validate``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .. import datasets
from ..datasets.profiles import profile
from ..images import find_images
from ..labels import LabelError, Labels
from ._common import Failure, ModelName, json_option, significant, write_json
from ._images import (
    ImageFiles,
    answers_of,
    class_labels,
    data_set_options,
    image_options,
    load_network,
    report_skipped,
    say_what_is_assumed,
    transform_of,
)


class InMemory(Dataset):
    """The small data sets, through the same transform as files."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Any, channels: int) -> None:
        self.images = images.numpy()
        self.targets = labels.tolist()
        self.transform = transform
        self.mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None, str]:
        pixels = self.images[i]
        image = Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0))
        return i, self.transform(image.convert(self.mode)), ""


def labelled_folder(root: Path, labels: Labels) -> tuple[list[Path], list[int], list[Path]]:
    """Files, labels and other files of <root>/<class>/*; see ``Labels.positions`` for which folder is which class."""
    for split in ("val", "validation", "test"):
        if (root / split).is_dir():
            root = root / split
            break
    # Hidden folders and what macOS leaves in archives are not classes, and would shift those behind them.
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))
    if not folders:
        raise Failure(f"{root} holds no folders of images, one for each class")
    try:
        index, note = labels.positions([folder.name for folder in folders])
    except LabelError as error:
        raise Failure(
            f"{root} holds {error} Give --class-map with the folders' names in the network's order."
        ) from error
    if note:
        click.echo(f"note: {note}; --class-map says otherwise", err=True)
    files, targets, skipped = [], [], []
    for folder in folders:
        for path, may_be in find_images([folder]):
            if may_be:
                files.append(path)
                targets.append(index[folder.name])
            else:
                skipped.append(path)
    return files, targets, skipped


def small(dataset: str, data_dir: Path | None, labels: Labels) -> tuple[Tensor, Tensor]:
    """The test images of a small data set, and their classes in the network's order."""
    try:
        folder = datasets.find(dataset, str(data_dir) if data_dir else None)
        images, targets = datasets.load(dataset, folder, quiet=not sys.stderr.isatty())["test"]
    except datasets.DataError as error:
        raise Failure(str(error)) from error
    known = profile(dataset)
    try:
        if labels.names is None and labels.count != len(known.classes):
            raise LabelError(f"{len(known.classes)} classes, and the network has {labels.count}.")
        if labels.names is None:
            return images, targets
        index, note = labels.positions(known.classes, "classes")
    except LabelError as error:
        raise Failure(
            f"{known.title} has {error} Give --class-map with its classes' names in the network's order: "
            f"{', '.join(known.classes[:10])}{', ...' if len(known.classes) > 10 else ''}."
        ) from error
    if note:
        click.echo(f"note: {note}; --class-map says otherwise", err=True)
    return images, torch.tensor([index[name] for name in known.classes])[targets]


def score(answers: Iterable[tuple[list[int], Tensor]], labels: list[int]) -> tuple[int, int, int]:
    """How many images the first class is right of, how many one of the first five, and how many there are."""
    right1 = right5 = count = 0
    target = torch.tensor(labels)
    for indices, logits in answers:
        hits = logits.topk(min(5, logits.shape[1])).indices == target[indices, None]
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.sum())
        count += len(indices)
    return right1, right5, count


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo validate runs/resnet20 --dataset cifar10 --data-dir data
      adder-zoo validate adder_lenet5_bn.mnist --dataset mnist --data-dir data/mnist
      adder-zoo validate runs/resnet50 --data-dir imagenet/val
      adder-zoo validate runs/resnet20 --dataset cifar10 --data-dir data --impl reference --json

    \b
    Status: 0 if every image was read, 1 if one was not (the others count), 2 for a wrong command line.
    """,
)
@click.argument("model", type=ModelName())
@data_set_options("a folder of images for each class (or val/, test/ with these)")
@click.option("--workers", type=click.IntRange(min=0), default=0, metavar="N", help="Processes that read images.")
@json_option
@image_options
def validate(
    model: str,
    data_dir: Path | None,
    dataset: str,
    workers: int,
    as_json: bool,
    batch_size: int,
    device: str,
    impl: str | None,
    class_map: Path | None,
    random_weights: bool,
) -> None:
    """Measures a network on labelled images: top-1 and top-5 accuracy, and images per second."""
    network = load_network(model, device, impl, random_weights)
    transform, channels = transform_of(network)
    known = class_labels(network, class_map)
    say_what_is_assumed(model, network)
    data: Dataset
    if dataset == "folder":
        if data_dir is None:
            raise click.UsageError("give --data-dir, a folder with one folder of images for each class")
        files, labels, skipped = labelled_folder(data_dir, known)
        report_skipped(skipped)
        data = ImageFiles(files, transform, channels)
    else:
        images, targets = small(dataset, data_dir, known)
        labels = targets.tolist()
        data = InMemory(images, targets, transform, channels)
    if not labels:
        raise Failure(f"there is no image in {data_dir}")

    failed: list[str] = []
    began = time.monotonic()
    right1, right5, count = score(answers_of(network, data, batch_size, device, failed, workers), labels)
    seconds = time.monotonic() - began
    if not count:
        raise Failure(f"none of the {len(labels)} images could be read")
    result = {
        "model": model,
        "dataset": dataset if dataset != "folder" else str(data_dir),
        "images": count,
        "unreadable": len(failed),
        "top1": round(100 * right1 / count, 4),
        "top5": round(100 * right5 / count, 4),
        "images_per_second": significant(count / seconds),
    }
    if as_json:
        write_json(result)
    else:
        click.echo(
            f"{model}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of {count} images, "
            f"{result['images_per_second']:,.0f} images per second, loading included"
        )
    if failed:
        raise Failure(f"{len(failed)} of {len(labels)} images could not be read")
