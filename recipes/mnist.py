"""Trains LeNet-5-BN on MNIST or Fashion-MNIST (AdderNet, arXiv 1912.13200, sec. 4.1).

    accelerate launch recipes/mnist.py --dataset mnist --data-dir FOLDER --output-dir runs/mnist
    accelerate launch recipes/mnist.py --dataset fashion_mnist --data-dir sample --epochs 2   # the bundled sample

FOLDER holds the four idx files, or is torchvision's root; without --data-dir the recipe looks in the folder that
ADDER_ZOO_DATA names and where Debian's package dataset-fashion-mnist puts its files.

The defaults are the paper's; it does not name η, which is the authors' code's. The same command on the same
--output-dir goes on with a run that was stopped, and ends with the same weights.

The output folder gets model.safetensors and config.json (the last epoch's weights, with batch norm statistics
recomputed over training images; `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them), results.json,
log.csv, curves.png and args.yaml; best/ has the epoch that tested best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from timm.data import resolve_data_config
from torch import Tensor, nn

from adder_zoo.datasets import DataError
from adder_zoo.datasets.idx import find, load, resize
from adder_zoo.training import (
    Data,
    RecipeError,
    Run,
    Settings,
    create_networks,
    exit_with_message,
    make_accelerator,
    option,
    parse_settings,
    resolve_model_name,
    train,
)
from adder_zoo.training.data import Images, hold_out, noise_splits

SAMPLE = Path(__file__).resolve().parent / "data" / "fashion_mnist_sample"


@dataclass(frozen=True)
class Config(Settings):
    dataset: str = option("mnist", "", ("mnist", "fashion_mnist"))
    data_dir: str | None = option(None, "folder of the idx files, or 'sample' for the bundled one", run=False, type=str)
    held_out: int = option(0, "training images to leave out of training and test on instead, to choose settings by")
    output_dir: str = option("runs/mnist", "the run's folder; a run in it is taken up", run=False)
    model: str = option("adder_lenet5_bn", "a network of this zoo")
    epochs: int = option(50, "sec. 4.1")
    batch_size: int = option(256, "for each process and accumulation step; sec. 4.1")
    lr: float = option(0.1, "sec. 4.1; decays to zero by a cosine")
    momentum: float = option(0.9, "Nesterov's, sec. 4.1")
    weight_decay: float = option(5e-4, "sec. 4.1")
    eta: float = option(0.2, "η of Eq. 13; the paper names none; the authors' code for CIFAR")
    factor: float = option(100.0, "of --adder-lr increased; sec. 4.5")


def preprocessed(images: Tensor, model: nn.Module) -> Tensor:
    """Images [N, 28, 28] uint8 as ``model`` takes them, [N, 1, H, W] float32."""
    config = resolve_data_config(model=model)
    images = resize(images, config["input_size"][-1]).unsqueeze(1).float() / 255
    return (images - config["mean"][0]) / config["std"][0]


def data(config: Config, model: nn.Module) -> Data:
    if config.synthetic:
        splits, part = noise_splits(60_000, (28, 28), 10), "synthetic"
    else:
        splits, part = load(
            config.dataset, SAMPLE if config.data_dir == "sample" else find(config.dataset, config.data_dir)
        )
    if config.held_out:
        splits, part = hold_out(splits["train"], config.held_out), f"{config.held_out} training images held out"
    train, test = (Images(preprocessed(images, model), labels) for images, labels in (splits["train"], splits["test"]))
    return Data(config.dataset, train, test, 10, record={"data": part})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe with ``argv`` (the command line by default); returns what results.json holds."""
    config = parse_settings(Config, __doc__, argv)
    accelerator = make_accelerator(config)
    run = Run(config, accelerator)
    if run.results is not None:
        return run.results
    set_seed(config.seed)
    name = resolve_model_name(config.model, config.dataset)
    model, teacher = create_networks(config, name, num_classes=10, in_chans=1)
    images = data(config, model)
    return train(config, accelerator, run, images, model, teacher)


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        exit_with_message(error)
