"""``adder-zoo bench``."""

from __future__ import annotations

import statistics
import time
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import nn

from .. import fuse, implementations
from ..architecture import creation_args
from ..int8.folding import folded
from ..int8.saved import is_quantised
from ..report import report
from ._common import (
    Failure,
    ModelName,
    config_of,
    create,
    has_weights,
    json_option,
    on_device,
    significant,
    write_json,
)


@click.command(
    epilog="""
    \b
    Examples:
      adder-zoo bench adder_resnet20 --batch-size 128 --train
      adder-zoo bench adder_resnet50 --batch-size 8 --threads 2 --json
      adder-zoo bench adder_resnet20.cifar10_int8         in bytes, beside float32 and the twin
    """
)
@click.argument("model", type=ModelName())
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N")
@click.option("--train", is_flag=True, help="Time a training step instead of inference.")
@click.option("--threads", type=click.IntRange(1, 4096), metavar="N", help="CPU threads; by default torch's choice.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@json_option
def bench(
    model: str, batch_size: int, train: bool, threads: int | None, device: str, repeat: int, as_json: bool
) -> None:
    """Times a network of the zoo beside the same network with convolutions, in turns; gives medians and their ratio.

    A network in bytes (a folder, or a name that ends in _int8) is timed beside its float32 form too, which is fused;
    batch norm is folded into the convolutions of its twin.
    """
    if threads:
        torch.set_num_threads(threads)
    networks = {name: on_device(network, device) for name, network in _networks(model, train).items()}
    first = next(iter(networks))
    size = report(networks[first]).input_size
    try:
        x = torch.randn(batch_size, *size, device=device).to(memory_format=torch.channels_last)
        labels = torch.arange(batch_size, device=device) % networks[first].num_classes  # type: ignore[operator]
    except RuntimeError as error:
        raise Failure(f"--batch-size {batch_size} is too large for the memory here: {error}") from error

    def run(network: nn.Module) -> float:
        began = time.perf_counter()
        if train:
            F.cross_entropy(network(x), labels).backward()
            network.zero_grad()
        else:
            with torch.inference_mode():
                network(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    times: dict[str, list[float]] = {s: [] for s in networks}
    for _ in range(repeat):
        for similarity, network in networks.items():
            run(network)  # or it would pay for the memory that the one before gave back
            times[similarity].append(run(network))
    medians = {s: statistics.median(t) for s, t in times.items()}
    result: dict[str, Any] = {
        "model": model,
        "what": "training step, forward and backward" if train else "inference",
        "batch_size": batch_size,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "implementation": implementations()["cpu" if device == "cpu" else "triton"].detail,
        "images_per_second": {s: significant(batch_size / t) for s, t in medians.items()},
        "speed_against_twin": significant(medians["conv"] / medians[first]),
        "repeat": repeat,
    }
    if as_json:
        write_json(result)
    else:
        rates = result["images_per_second"]
        click.echo(
            f"{model}, {result['what']}, batch {batch_size}: {rates[first]:,.1f} images per second, its "
            f"convolutional twin {rates['conv']:,.1f}; {result['speed_against_twin']:.2f} times as fast as the twin"
            + (f"; in float32 {rates['adder']:,.1f}" if first == "int8" else "")
        )


def _networks(model: str, train: bool) -> dict[str, nn.Module]:
    """The networks to compare, the one that was asked for first."""
    with torch.device("meta"):
        network = create(model)
    name = config_of(network)["architecture"]
    if not name.startswith("adder_") or (":" in model and not is_quantised(network)):
        raise Failure(
            f"{model} is not a network of the zoo, so there is no convolutional form to compare it with; "
            "`adder-zoo list` shows those that have one"
        )
    if not is_quantised(network):
        return {s: create(model, similarity=s).train(train) for s in ("adder", "conv")}
    if train:
        raise Failure(f"{model} is in bytes, which cannot be trained; leave --train out")
    args = {key: value for key, value in creation_args(network).items() if key not in ("int8", "similarity")}
    floats = {s: create(name, similarity=s, **args) for s in ("adder", "conv")}
    return {
        "int8": create(model, pretrained=has_weights(model)),
        "adder": fuse(floats["adder"]),
        "conv": _folded(floats["conv"].eval()).to(memory_format=torch.channels_last),
    }


def _folded(twin: nn.Module) -> nn.Module:
    try:
        return folded(twin)
    except ValueError as error:
        click.echo(f"The convolutional twin runs with its batch norm: {error}", err=True)
        return twin
