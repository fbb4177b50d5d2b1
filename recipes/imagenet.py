"""Trains ResNet-50 and any other network of timm on ImageNet (AdderNet, arXiv 1912.13200, sec. 4.3, Table 3).

    accelerate launch recipes/imagenet.py --model adder_resnet50 --data-dir FOLDER --output-dir runs/resnet50
    accelerate launch recipes/imagenet.py --config recipes/configs/imagenet_modern.yaml --data-dir FOLDER
    accelerate launch recipes/imagenet.py --dataset hfds/ILSVRC/imagenet-1k --data-dir CACHE

FOLDER holds train/<class>/* and val/<class>/*; without --data-dir it is imagenet/ in the folder that ADDER_ZOO_DATA
names. --dataset takes what timm's `create_dataset` takes: hfds/NAME (the Hub's data sets), wds/NAME (WebDataset's
shards in FOLDER), torch/NAME (torchvision's). The defaults are the paper's, whose batch of 256 is that of all processes
together: give --batch-size 32 on eight GPUs. The authors never said what η they used; 0.2 is that of their code for
CIFAR. The same command on the same --output-dir goes on with a run that was stopped, and ends with the same weights.

The output folder gets model.safetensors and config.json (the last epoch's weights, with batch norm statistics taken
anew: `timm.create_model("local-dir:FOLDER", pretrained=True)`), results.json, log.csv, curves.png and args.yaml; best/
has the epoch that tested best, ema/ the averaged weights of --model-ema.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm.data.dataset
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.data.readers import reader_wds
from torch import nn
from torch.utils.data import IterableDataset

from adder_zoo.datasets import DATA_ENVIRONMENT, DataError
from adder_zoo.training import (
    Data,
    RecipeError,
    Run,
    Settings,
    create_network,
    create_networks,
    exit_with_message,
    make_accelerator,
    option,
    parse_settings,
    train,
)
from adder_zoo.training.data import Noise, Seeded

# An image that cannot be read is an error with its name: timm would take the next one in its place.
timm.data.dataset._ERROR_RETRY = 1


def _stop(error: Exception) -> bool:
    if isinstance(error, DataError):
        raise error
    raise DataError(f"the shards cannot be read: {error}") from error


def _decode_or_name(sample: dict[str, Any], **options: Any) -> Any:
    try:
        return _decode(sample, **options)
    except (OSError, ValueError, RuntimeError, SyntaxError, KeyError) as error:
        where = f"image {sample.get('__key__')} of {sample.get('__url__')}"
        raise DataError(f"{where} cannot be read: {error}") from error


_decode = reader_wds._decode
reader_wds._decode = _decode_or_name  # type: ignore[assignment]
reader_wds.log_and_continue = _stop


@dataclass(frozen=True)
class Config(Settings):
    dataset: str = option("", "hfds/NAME, wds/NAME, torch/NAME, ... of timm; default: folders of images")
    train_split: str = option("train", "of the data set, or folder; empty: --data-dir itself holds the classes")
    val_split: str = option("validation", "the same of what to test with")
    download: bool = option(False, "let the data set fetch itself, where it can", run=False)
    num_classes: int = option(0, "classes of the data; 0: the network's own 1000")
    img_size: int = option(0, "pixels; 0: the network's own")
    output_dir: str = option("runs/imagenet", "the run's folder; a run in it is taken up", run=False)
    model: str = option("adder_resnet50", "a network of this zoo, or of timm (which is then trained as it is)")
    workers: int = option(4, "processes that load images, for each process; 0: the training process", run=False)
    epochs: int = 150  # sec. 4.3
    batch_size: int = option(256, "for each process and accumulation step")  # sec. 4.3
    lr: float = 0.1  # sec. 4.3, cosine decay to zero
    momentum: float = 0.9  # Nesterov's, sec. 4.3
    weight_decay: float = 1e-4  # sec. 4.3
    eta: float = option(0.2, "η of Eq. 13")  # the authors' code for CIFAR
    bn_batches: int = option(50, "training batches to take batch norm statistics over")
    checkpointing_steps: int = option(1000, "updates between checkpoints, beside those after each epoch", run=False)
    # Augmentation: crops and mirrors are the paper's; the rest is of timm's modern recipes and off.
    min_scale: float = option(0.08, "smallest part of an image that a crop may show")
    color_jitter: float = option(0.0, "jitter of brightness, contrast and saturation")
    aa: str = option("", "automatic augmentation by timm's name, rand-m7-mstd0.5-inc1 for example")
    reprob: float = option(0.0, "probability of random erasing")


def data(config: Config, model: nn.Module, accelerator: Accelerator) -> Data:
    preprocessing = resolve_data_config(model=model)
    classes = config.num_classes or model.num_classes
    assert isinstance(classes, int)
    if config.synthetic:
        shape = preprocessing["input_size"]
        train, test = Noise(1_281_167, shape, classes), Noise(50_000, shape, classes)
        return Data("synthetic", train, test, classes, top5=True)
    root = config.data_dir
    if root is None and DATA_ENVIRONMENT in os.environ:
        root = os.path.join(os.environ[DATA_ENVIRONMENT], "imagenet")  # other data lies beside it
    if root is None and not config.dataset.startswith(("hfds/", "hfids/")):  # these have a cache of their own
        raise DataError(f"no --data-dir, and no {DATA_ENVIRONMENT}: give the folder with train/ and val/")
    parts: list[Any] = []
    for split, training in ((config.train_split, True), (config.val_split, False)):
        try:
            part = create_dataset(
                config.dataset,
                root,
                split=split,
                is_training=training,
                download=config.download,
                batch_size=config.batch_size,
                seed=config.seed,
            )
        except ImportError as error:
            raise DataError(f"--dataset {config.dataset} needs a package that is not installed: {error}") from error
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            raise DataError(f"no {split} images in {root}: {error or type(error).__name__}") from error
        if (
            split and root and not config.dataset and os.path.samefile(part.reader.root, root)
        ):  # timm takes all that there is
            raise DataError(
                f"{root} has no folder {split}/, nor one of the names that timm knows for it. If the classes lie in it "
                f"directly, say so by an empty --{'train' if training else 'val'}-split=''"
            )
        options = preprocessing
        if training:
            options = {k: v for k, v in preprocessing.items() if k in ("input_size", "mean", "std", "interpolation")}
            options |= {
                "is_training": True,
                "scale": (config.min_scale, 1.0),
                "color_jitter": config.color_jitter,
                "auto_augment": config.aa or None,
                "re_prob": config.reprob,
            }
        part.transform = create_transform(**options)
        parts.append(part if isinstance(part, IterableDataset) else Seeded(part, config.seed))
    train, test = parts
    known, tested = (
        getattr(getattr(getattr(part, "dataset", None), "reader", None), "class_to_idx", {}) for part in parts
    )
    found = len(known)
    if found > classes:
        raise DataError(f"{root} holds {found} classes, the network knows {classes}: give --num-classes {found}")
    if known and tested and known != tested:
        others = sorted({*known} ^ {*tested})
        raise DataError(
            f"the classes of --train-split and --val-split in {root} differ, which would shift the labels: only one "
            f"has {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}"
        )
    return Data("imagenet" if len(train) == 1_281_167 else "images", train, test, classes, top5=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe with ``argv`` (the command line by default); returns what results.json holds."""
    config = parse_settings(Config, __doc__, argv)
    accelerator = make_accelerator(config)
    run = Run(config, accelerator)
    if run.results is not None:
        return run.results
    set_seed(config.seed)
    options: dict[str, Any] = {"num_classes": config.num_classes} if config.num_classes else {}
    model: nn.Module
    if config.model.startswith("adder_"):
        model, teacher = create_networks(config, config.model, **options)
    elif config.distillation != "none" or config.similarity != "adder":
        raise RecipeError(f"--similarity and --distillation are for networks of this zoo: --model adder_{config.model}")
    else:
        model, teacher = create_network(config, config.model, **options), None
    if config.img_size:  # config.json holds it then, and whoever loads the network prepares images as here
        cfg: Any = model.pretrained_cfg
        model.pretrained_cfg = {  # type: ignore[assignment]
            **{k: v for k, v in cfg.items() if k not in ("test_input_size", "test_crop_pct")},
            "input_size": (3, config.img_size, config.img_size),
        }
    images = data(config, model, accelerator)
    return train(config, accelerator, run, images, model, teacher)


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        exit_with_message(error)
