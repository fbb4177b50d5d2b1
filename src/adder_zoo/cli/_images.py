"""What ``adder-zoo predict`` and ``validate`` share: a network with weights, and its answers to image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import datasets
from ..images import ImageError, open_image
from ..int8.layers import QuantizedAdder2d
from ..int8.saved import is_quantised
from ..labels import LabelError, Labels, assumption, labels_of
from ..layers import AdderLayer
from ..ops.backends import IMPLEMENTATIONS
from ..ops.int8.library import BACKENDS
from ._common import Failure, config_of, create, has_weights, on_device

SHOWN = 5  # file names in a message


def data_set_options(layout: str) -> Any:
    """``--data-dir`` and ``--dataset``; ``layout`` says how a folder of images is laid out."""
    folder = click.option(
        "--data-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help=f"Folder of the data set, or with {layout}.",
    )
    kind = click.option(
        "--dataset",
        type=click.Choice(["folder", *datasets.NAMES]),
        default="folder",
        show_default=True,
        help="What is in the folder: images, or a small data set in its own files.",
    )
    return lambda command: folder(kind(command))


def image_options(command: Any) -> Any:
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


def load_network(model: str, device: str, impl: str | None, random_weights: bool) -> nn.Module:
    if not has_weights(model) and not random_weights:
        raise Failure(
            f"{model} has no weights, so its answers would mean nothing. Train it with a recipe, `adder-zoo import` a "
            "checkpoint and name the folder, or try the pipeline with --random-weights."
        )
    network = create(model, pretrained=not random_weights)
    if is_quantised(network) and impl not in (None, *BACKENDS):
        raise Failure(f"--impl {impl} computes no bytes, and {model} is in bytes: take {' or '.join(BACKENDS)}")
    for module in network.modules():
        if isinstance(module, (AdderLayer, QuantizedAdder2d)):
            module.impl = impl
    return on_device(network, device)


def class_labels(network: nn.Module, class_map: Path | None) -> Labels:
    """The classes of a network, by --class-map if it is given."""
    count: int = network.num_classes  # type: ignore[assignment]
    if not count:
        raise Failure("the network has no classifier (num_classes is 0), so it answers with features, not with classes")
    try:
        return labels_of(config_of(network), count, class_map)
    except LabelError as error:
        raise Failure(str(error)) from error


def say_what_is_assumed(model: str, network: nn.Module) -> None:
    """Reminds of what was assumed when the network was imported."""
    assumed = assumption(config_of(network))
    if assumed:
        click.echo(
            f"note: how {model} has to see images was assumed when it was imported ({assumed}); if that is wrong, so "
            "are its answers. `adder-zoo import` with --dataset, or --mean and --std, states it.",
            err=True,
        )


def report_skipped(skipped: list[Path]) -> None:
    if skipped:
        names = ", ".join(map(str, skipped[:SHOWN])) + (", ..." if len(skipped) > SHOWN else "")
        click.echo(f"skipped {len(skipped)} file(s) that are not images by their name: {names}", err=True)


class ImageFiles(Dataset):
    """Images from files; a file that cannot be read gives its error instead of pixels."""

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


def answers_of(
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


def transform_of(network: nn.Module) -> tuple[Any, int]:
    config = resolve_data_config(model=network)
    return create_transform(**config, is_training=False), config["input_size"][0]
