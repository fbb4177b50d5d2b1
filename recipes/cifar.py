"""Trains ResNet-20 and its kin on CIFAR-10 or CIFAR-100 (AdderNet, arXiv 1912.13200, sec. 4.2, Table 2).

    accelerate launch recipes/cifar.py --model adder_resnet20 --data-dir FOLDER --output-dir runs/resnet20
    accelerate launch recipes/cifar.py --similarity conv --data-dir FOLDER --output-dir runs/resnet20-conv

FOLDER holds cifar-10-batches-py or cifar-100-python, as torchvision unpacks them, or train/<class>/*.png and
test/<class>/*.png; without --data-dir the recipe looks in the folder that ADDER_ZOO_DATA names.

The defaults are the paper's where it names them; `--help` says so where they are not: the decay of the learning rate is
the authors' code's. The same command on the same --output-dir goes on with a run that was stopped, and ends with the
same weights.

The output folder gets model.safetensors and config.json (the last epoch's weights, with batch norm statistics
recomputed over training images; `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them), results.json,
log.csv, curves.png and args.yaml; best/ has the epoch that tested best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed
from timm.data import resolve_data_config
from torch import nn

from adder_zoo.datasets import DataError
from adder_zoo.datasets.cifar import CLASSES, find, load
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
from adder_zoo.training.data import SIZE, Augmented, hold_out, noise_splits


@dataclass(frozen=True)
class Config(Settings):
    dataset: str = option("cifar10", "", tuple(CLASSES))
    held_out: int = option(0, "training images to leave out of training and test on instead, to choose settings by")
    output_dir: str = option("runs/cifar", "the run's folder; a run in it is taken up", run=False)
    model: str = option("adder_resnet20", "a network of this zoo")
    epochs: int = option(400, "sec. 4.2")
    batch_size: int = option(256, "for each process and accumulation step; sec. 4.2")
    lr: float = option(0.1, "sec. 4.2")
    sched: str = option(
        "cosine",
        "decay of the learning rate to zero: cosine is the authors' code's; sec. 4.2 says polynomial and no power",
        ("cosine", "poly"),
    )
    momentum: float = option(0.9, "Nesterov's; the paper names it for MNIST only (sec. 4.1)")
    weight_decay: float = option(5e-4, "the paper names it for MNIST only (sec. 4.1); the authors' code has it here")
    eta: float = option(0.2, "η of Eq. 13; the paper names none; the authors' code")


def data(config: Config, model: nn.Module, quiet: bool) -> Data:
    classes = CLASSES[config.dataset]
    if config.synthetic:
        splits = noise_splits(50_000, (3, SIZE, SIZE), classes)
    else:
        splits = load(config.dataset, find(config.dataset, config.data_dir), quiet)
    part = "full" if [len(labels) for _, labels in splits.values()] == [50_000, 10_000] else "part"
    if config.held_out:
        splits, part = hold_out(splits["train"], config.held_out), f"{config.held_out} training images held out"
    preprocessing = resolve_data_config(model=model)
    scale = preprocessing["mean"], preprocessing["std"]
    train, test = Augmented(*splits["train"], *scale, config.seed), Augmented(*splits["test"], *scale)
    return Data(config.dataset, train, test, classes, record={"data": "synthetic" if config.synthetic else part})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe with ``argv`` (the command line by default); returns what results.json holds."""
    config = parse_settings(Config, __doc__, argv)
    accelerator = make_accelerator(config)
    run = Run(config, accelerator)
    if run.results is not None:
        return run.results
    set_seed(config.seed)
    name = resolve_model_name(config.model, config.dataset)
    model, teacher = create_networks(config, name, num_classes=CLASSES[config.dataset])
    images = data(config, model, quiet=not accelerator.is_main_process)
    return train(config, accelerator, run, images, model, teacher)


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        exit_with_message(error)
