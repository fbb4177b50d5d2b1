"""``adder-zoo quantize``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .. import __version__, atomic, checkpoints, datasets, fuse, implementations
from ..hub.save import save_pretrained
from ..images import find_images
from ..int8.quantize import quantize as to_bytes
from ..int8.saved import describe, is_quantised
from ..report import report
from ..results import WEIGHTS_FILE, ResultsError, checksum, read_results, write_results
from ._common import Failure, ModelName, config_of, create, has_weights, json_option, write_json
from ._images import ImageFiles, answers_of, class_labels, data_set_options, transform_of
from ._output import force_option, output_option
from ._results import folder_of
from .validate import InMemory, labelled_folder, score, small

SEED = 0  # draws the calibration images


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo quantize adder_resnet20.cifar10 --dataset cifar10 --data-dir data -o resnet20-int8
      adder-zoo quantize runs/resnet50 --data-dir imagenet -o resnet50-int8
      adder-zoo validate resnet20-int8 --dataset cifar10 --data-dir data
    """
)
@click.argument("model", type=ModelName())
@data_set_options("images: in train/, and in val/ or test/ a folder for each class")
@click.option("--bits", type=click.IntRange(2, 8), default=8, show_default=True, metavar="N")
@click.option(
    "--images", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="To choose ranges by."
)
@click.option("--test/--no-test", default=True, help="Measure both networks on the test images, where there are some.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N")
@output_option
@force_option
@json_option
def quantize(
    model: str,
    data_dir: Path | None,
    dataset: str,
    bits: int,
    images: int,
    test: bool,
    batch_size: int,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Writes a network in bytes: its adder layers compute with 8-bit integers, and the file is about a quarter.

    MODEL is a trained adder network. Nothing is trained: training images, drawn with a fixed seed, say which range the
    bytes of each layer cover. Then both networks are measured on all test images, and results.json says what each has.
    The folder is used as MODEL in all commands.
    """
    try:
        checkpoints.check_folder(output, force)
    except checkpoints.CheckpointError as error:
        raise Failure(str(error)) from error
    if not has_weights(model):
        raise Failure(f"{model} has no weights; train it with a recipe, or name a folder with some")
    network = create(model, pretrained=True)
    if is_quantised(network):
        raise Failure(f"{model} is quantised already; give the float network")
    calibration, tests = _data(network, dataset, data_dir, images, test)
    try:
        in_bytes = to_bytes(network, calibration, bits=bits, images=images)
    except ValueError as error:
        raise Failure(str(error)) from error
    record = None
    if tests is not None:
        record = _record(model, network, in_bytes, tests, batch_size)
        record |= {
            "dataset": dataset if dataset != "folder" else "images",
            **_about(dataset, data_dir, tests[1], images),
        }
    try:
        with atomic.replace_folder(output) as part:
            save_pretrained(in_bytes, part)
            record = write_results(part, record) if record is not None else None
            size = (part / WEIGHTS_FILE).stat().st_size
    except ValueError as error:
        raise Failure(str(error)) from error
    layers = describe(in_bytes)["layers"]
    if as_json:
        write_json({"folder": str(output), "bits": bits, "layers": len(layers), "bytes": size, "results": record})
        return
    click.echo(f"{output}: {len(layers)} adder layers in {bits} bits, {size:,} bytes")
    if record is not None:
        before = record["quantized_from"]
        click.echo(
            f"Right of {record['test_images']} test images: {record['test_accuracy']:.2f} %, "
            f"in float32 {before['measured_accuracy']:.2f} %"
        )
    click.echo(f"Load it: timm.create_model('local-dir:{output}', pretrained=True)")


def _data(
    network: nn.Module, dataset: str, data_dir: Path | None, images: int, test: bool
) -> tuple[Tensor, tuple[Dataset, list[int]] | None]:
    """The calibration images as the network takes them, and the test images with their classes, if there are any."""
    transform, channels = transform_of(network)
    known = class_labels(network, None) if test else None
    if dataset != "folder":
        try:
            splits = datasets.load(dataset, datasets.find(dataset, str(data_dir) if data_dir else None), True)
        except datasets.DataError as error:
            raise Failure(str(error)) from error
        calibration = _drawn(InMemory(*splits["train"], transform, channels), images)
        if known is None:
            return calibration, None
        pictures, targets = small(dataset, data_dir, known)
        return calibration, (InMemory(pictures, targets, transform, channels), targets.tolist())
    if data_dir is None:
        raise click.UsageError("give --data-dir, a folder with training images of the kind that the network will see")
    train = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    files = [path for path, may_be in find_images([train]) if may_be]
    if not files:
        raise Failure(f"there is no image in {train}")
    calibration = _drawn(ImageFiles(files, transform, channels), images)
    if known is None or not any((data_dir / split).is_dir() for split in ("val", "validation", "test")):
        return calibration, None
    found, labels, _ = labelled_folder(data_dir, known)
    return calibration, (ImageFiles(found, transform, channels), labels) if labels else None


def _drawn(data: Dataset, images: int) -> Tensor:
    """Up to ``images`` of the images, drawn with a fixed seed."""
    count: int = len(data)  # type: ignore[arg-type]
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[:images].tolist()
    read = [data[i][1:] for i in drawn]
    pictures = [image for image, _ in read if image is not None]
    if len(pictures) < len(read):
        click.echo(f"warning: {len(read) - len(pictures)} image(s) could not be read, and were left out", err=True)
    if not pictures:
        raise Failure(f"none of the calibration images could be read: {read[0][1]}")
    return torch.stack(pictures).contiguous(memory_format=torch.channels_last)


def _record(
    model: str, network: nn.Module, in_bytes: nn.Module, tests: tuple[Dataset, list[int]], batch_size: int
) -> dict[str, Any]:
    """What results.json says of the network in bytes, and of the one that it was made of."""
    data, labels = tests
    failed: list[str] = []
    scores = {}
    for which, tried in (("float", fuse(network)), ("bytes", in_bytes)):
        right1, right5, count = score(answers_of(tried, data, batch_size, "cpu", failed), labels)
        if failed or not count:
            raise Failure(f"{len(failed)} of {len(labels)} test images could not be read; --no-test leaves them out")
        scores[which] = round(100 * right1 / count, 4), round(100 * right5 / count, 4)
    saved = describe(in_bytes)
    cfg = config_of(in_bytes)
    top5 = {"test_top5_accuracy": scores["bytes"][1]} if getattr(network, "num_classes", 0) > 100 else {}
    return {
        "model": f"{cfg['architecture']}.{cfg['tag']}",
        "similarity": "adder",
        "bits": saved["bits"],
        "parameters": report(in_bytes).parameters,
        "test_images": len(labels),
        "test_accuracy": scores["bytes"][0],
        **top5,
        "quantized_from": {**_origin(model, saved["quantized_from"]), "measured_accuracy": scores["float"][0]},
        "environment": {
            "adder_zoo": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
            "device": f"{platform.machine()} CPU",
            "kernels": implementations()["cpu"].detail,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        },
    }


def _origin(model: str, name: str | None) -> dict[str, Any]:
    """The float network: its name, and, where its files are at hand, their size, checksum and results."""
    origin: dict[str, Any] = {"model": name or model}
    if model.startswith(("hf-hub:", "hf_hub:")):
        origin["hub"] = model.partition(":")[2]
    folder = folder_of(model)
    weights = folder / WEIGHTS_FILE
    if weights.is_file():
        origin |= {"weights_sha256": checksum(weights), "bytes": weights.stat().st_size}
        try:
            found: Mapping[str, Any] | None = read_results(folder)
        except ResultsError as error:
            click.echo(f"note: {error}", err=True)
            found = None
        origin["results"] = found
    return origin


def _about(dataset: str, data_dir: Path | None, labels: list[int], images: int) -> dict[str, Any]:
    """On which images it was measured and calibrated."""
    full = dataset == "folder" or len(labels) == 10_000
    calibration = {"images": images, "seed": SEED, "of": "training images"}
    if dataset == "folder" and data_dir is not None and not (data_dir / "train").is_dir():
        calibration["of"] = "all images in the folder"
    return {"data": "full" if full else "sample", "calibration": calibration}
