"""``adder-zoo predict`` and ``adder-zoo validate``."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import datasets
from ..images import ImageError, find_images, open_image
from ..implementations import IMPLEMENTATIONS
from ..layers import AdderLayer
from ._common import Failure, ModelName, config_of, create, has_weights, json_option, significant, write_json

SHOWN = 5  # file names in a message


def _options(command: Any) -> Any:
    for option in (
        click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N"),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
        click.option(
            "--impl", type=click.Choice(list(IMPLEMENTATIONS)), help="Who computes adder layers, if not the fastest."
        ),
        click.option(
            "--class-map",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Text file with the name of each class, one in a line, in the network's order.",
        ),
        click.option("--random-weights", is_flag=True, help="Run a network that has no weights: to try a pipeline."),
    ):
        command = option(command)
    return command


def _load(model: str, device: str, impl: str | None, random_weights: bool) -> nn.Module:
    if not has_weights(model) and not random_weights:
        raise Failure(
            f"{model} has no weights, so its answers would mean nothing. Train it with a recipe, `adder-zoo import` a "
            "checkpoint and name the folder, or try the pipeline with --random-weights."
        )
    network = create(model, pretrained=not random_weights)
    for module in network.modules():
        if isinstance(module, AdderLayer):
            module.impl = impl
    try:
        return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError) as error:
        raise Failure(f"--device {device}: {error}") from error


def _class_names(network: nn.Module, class_map: Path | None) -> list[str]:
    classes: int = network.num_classes  # type: ignore[assignment]
    if class_map is not None:
        names = class_map.read_text().split("\n")
        names = [name.strip() for name in names[: -1 if names[-1] == "" else None]]
        if len(names) != classes:
            raise Failure(f"{class_map} names {len(names)} classes, and the network has {classes}")
        return names
    names = list(config_of(network).get("label_names") or ())
    if len(names) == classes:
        return names
    if classes == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(classes)]
    return [str(i) for i in range(classes)]


def _report_skipped(skipped: list[Path]) -> None:
    if skipped:
        names = ", ".join(map(str, skipped[:SHOWN])) + (", ..." if len(skipped) > SHOWN else "")
        click.echo(f"skipped {len(skipped)} file(s) that are no images by their name: {names}", err=True)


class _Files(Dataset):
    """Images from files; a file that cannot be read gives its error in the place of pixels."""

    def __init__(self, files: list[Path], transform: Any, channels: int) -> None:
        self.files = files
        self.transform = transform
        self.channels = channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None, str]:
        try:
            return i, self.transform(open_image(self.files[i], self.channels)), ""
        except ImageError as error:
            return i, None, str(error)


def _answers(
    network: nn.Module,
    data: Dataset,
    batch_size: int,
    device: str,
    failed: list[str],
    workers: int = 0,
    progress: bool = True,
) -> Iterator[tuple[list[int], Tensor]]:
    """Positions and logits of the readable images of each batch; the others are named, and go to ``failed``."""
    hidden = not (progress and sys.stderr.isatty())
    bar = tqdm(total=len(data), unit="img", disable=hidden)  # type: ignore[arg-type]
    for batch in DataLoader(data, batch_size, collate_fn=list, num_workers=workers):
        for _, image, error in batch:
            if image is None:
                failed.append(error)
                bar.write(f"error: {error}", sys.stderr)
        read = [(i, image) for i, image, _ in batch if image is not None]
        if read:
            images = torch.stack([image for _, image in read]).to(device, memory_format=torch.channels_last)
            with torch.inference_mode():
                try:
                    logits = network(images)
                except (RuntimeError, ValueError) as error:
                    raise Failure(str(error)) from error
            yield [i for i, _ in read], logits.float().cpu()
        bar.update(len(batch))
    bar.close()


def _transform(network: nn.Module) -> tuple[Any, int]:
    config = resolve_data_config(model=network)
    return create_transform(**config, is_training=False), config["input_size"][0]


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
@_options
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
    network = _load(model, device, impl, random_weights)
    names = _class_names(network, class_map)
    top_k = min(top_k, len(names))
    paths = [line.rstrip("\n") for arg in images for line in (sys.stdin if arg == "-" else [arg]) if line.strip()]
    found = list(find_images(paths))
    _report_skipped([path for path, may_be in found if not may_be])
    files = [path for path, may_be in found if may_be]
    if not files:
        raise Failure(f"there is no image in {', '.join(map(str, paths)) or 'standard input'}")

    transform, channels = _transform(network)
    answers: list[dict[str, Any]] = []
    failed: list[str] = []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(["image", "rank", "class", "label", "probability"])
    data = _Files(files, transform, channels)
    progress = not sys.stdout.isatty()  # or it would stand among the answers
    for indices, logits in _answers(network, data, batch_size, device, failed, progress=progress):
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


class _InMemory(Dataset):
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


def _folder(root: Path, names: list[str], classes: int) -> tuple[list[Path], list[int], list[Path]]:
    """Files, labels and other files of <root>/<class>/*.

    Folders are classes in sorted order if there are as many as classes; else by their names: those of the class map, or
    ImageNet's synsets.
    """
    for split in ("val", "validation", "test"):
        if (root / split).is_dir():
            root = root / split
            break
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise Failure(f"{root} holds no folders of images, one for each class")
    if len(folders) == classes:
        index = {folder.name: i for i, folder in enumerate(folders)}
    else:
        index = {name: i for i, name in enumerate(names)}
        if classes == 1000 and not all(folder.name in index for folder in folders):
            index = {name: i for i, name in enumerate(ImageNetInfo().label_names())}
        unknown = [folder.name for folder in folders if folder.name not in index]
        if unknown:
            raise Failure(
                f"{root} holds {len(folders)} folders and the network has {classes} classes; these names are none of "
                f"them: {', '.join(unknown[:SHOWN])}. Give --class-map with the folders' names in the network's order."
            )
    files, labels, skipped = [], [], []
    for folder in folders:
        for path, may_be in find_images([folder]):
            if may_be:
                files.append(path)
                labels.append(index[folder.name])
            else:
                skipped.append(path)
    return files, labels, skipped


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
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the data set, or with a folder of images for each class (or val/, test/ with these).",
)
@click.option(
    "--dataset",
    type=click.Choice(["folder", *datasets.NAMES]),
    default="folder",
    show_default=True,
    help="What is in the folder: images in folders, or a small data set in its own files.",
)
@click.option("--workers", type=click.IntRange(min=0), default=0, metavar="N", help="Processes that read images.")
@json_option
@_options
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
    network = _load(model, device, impl, random_weights)
    transform, channels = _transform(network)
    classes: int = network.num_classes  # type: ignore[assignment]
    data: Dataset
    if dataset == "folder":
        if data_dir is None:
            raise click.UsageError("give --data-dir, a folder with one folder of images for each class")
        names = _class_names(network, class_map)
        files, labels, skipped = _folder(data_dir, names, classes)
        _report_skipped(skipped)
        data = _Files(files, transform, channels)
    else:
        try:
            folder = datasets.find(dataset, str(data_dir) if data_dir else None)
            images, truth = datasets.load(dataset, folder, quiet=not sys.stderr.isatty())["test"]
        except datasets.DataError as error:
            raise Failure(str(error)) from error
        if int(truth.max()) >= classes:
            raise Failure(f"{dataset} has more classes than the network, which has {classes}")
        labels = truth.tolist()
        data = _InMemory(images, truth, transform, channels)
    if not labels:
        raise Failure(f"there is no image in {data_dir}")

    right1 = right5 = count = 0
    failed: list[str] = []
    target = torch.tensor(labels)
    began = time.monotonic()
    for indices, logits in _answers(network, data, batch_size, device, failed, workers):
        hits = logits.topk(min(5, classes)).indices == target[indices, None]
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.sum())
        count += len(indices)
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
