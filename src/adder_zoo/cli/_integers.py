"""What the formats of integer networks have in common: quantised if need be, with images that set the ranges."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from .. import datasets
from ..images import ImageError, find_images, open_image
from ..int8.layers import QuantizedAdder2d
from ..layers import AdderLayer
from ._common import Failure, config_of
from ._formats import Job

if TYPE_CHECKING:
    from ..integer.network import IntegerNetwork

CALIBRATION = 512

data_dir = click.Option(
    ["--data-dir"],
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of images of the kind that the network will see, or of its data set: for ranges and test vectors.",
)
multiplier_free = click.Option(
    ["--multiplier-free"], is_flag=True, help="Sums of signed powers of two for each multiplication."
)


def integers_of(
    network: nn.Module, job: Job, data_dir: Path | None, multiplier_free: bool
) -> tuple[IntegerNetwork, Tensor]:
    """The integer network, quantised first if it is not, and the images that set its ranges, uint8 [N, H, W, C]."""
    from ..integer.lower import to_integers

    if data_dir is None:
        raise Failure("give --data-dir, a folder of images of the training set: they set the ranges of the integers")
    images = _images(network, job, data_dir)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="quantize: these adder layers stay float32")
            small = _quantised(network, images)
        return to_integers(small, images, multiplier_free=multiplier_free), images
    except ValueError as error:
        raise Failure(f"{job.model}: {error}") from error


def _images(network: nn.Module, job: Job, folder: Path) -> Tensor:
    """Up to 512 images, uint8 [N, H, W, C], resized as for the network and not normalised."""
    channels = job.input_size[0]
    config = {**resolve_data_config(model=network), "mean": (0.0,) * channels, "std": (1.0,) * channels}
    transform: Any = create_transform(**config, is_training=False)
    found = [transform(image) for image in itertools.islice(_pictures(network, folder, channels), CALIBRATION)]
    if not found:
        raise Failure(f"there is no image in {folder}")
    return (torch.stack(found) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _pictures(network: nn.Module, folder: Path, channels: int) -> Any:
    dataset = re.sub(r"_int\d$", "", str(config_of(network).get("tag")))  # a network in bytes is tagged mnist_int8
    if dataset in datasets.NAMES:
        try:
            images = datasets.load(dataset, datasets.find(dataset, str(folder)), quiet=True)["train"][0][:CALIBRATION]
        except datasets.DataError:
            pass  # then it is a folder of images
        else:
            from PIL import Image

            for image in images.numpy():
                yield Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0))
            return
    paths = [path for path, may_be in find_images([folder]) if may_be]
    for path in paths[:: max(1, len(paths) // CALIBRATION)]:  # of all of its folders, which may be classes
        try:
            yield open_image(path, channels)
        except ImageError as error:
            click.echo(f"skipped: {error}", err=True)


def _quantised(network: nn.Module, images: Tensor) -> nn.Module:
    from ..int8.quantize import quantize

    modules = list(network.modules())
    if any(isinstance(m, QuantizedAdder2d) for m in modules) or not any(isinstance(m, AdderLayer) for m in modules):
        return network
    config = config_of(network)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return quantize(network, (images.permute(0, 3, 1, 2) / 255 - mean) / std)
