"""Trains ResNet-50 and any other network of timm on ImageNet (AdderNet, arXiv 1912.13200, sec. 4.3, Table 3).

    accelerate launch recipes/imagenet.py --model adder_resnet50 --data-dir FOLDER --output-dir runs/resnet50
    accelerate launch recipes/imagenet.py --config recipes/configs/imagenet_modern.yaml --data-dir FOLDER
    accelerate launch recipes/imagenet.py --dataset hfds/ILSVRC/imagenet-1k --data-dir CACHE

FOLDER holds train/<class>/* and val/<class>/*; without --data-dir it is imagenet/ in the folder that ADDER_ZOO_DATA
names. --dataset takes what timm's `create_dataset` takes: hfds/NAME (the Hub's data sets), wds/NAME (WebDataset's
shards in FOLDER), torch/NAME (torchvision's).

The defaults are the paper's where it names them (150 epochs, batch 256, cosine decay, Nesterov's momentum, weight decay
1e-4); `--help` says so where they are not. The paper's batch counts all processes together: give --batch-size 32 on
eight GPUs. The same command on the same --output-dir goes on with a run that was stopped, and ends with the same
weights.

The output folder gets model.safetensors and config.json (the last epoch's weights, with batch norm statistics
recomputed over training images; `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them), results.json,
log.csv, curves.png and args.yaml; best/ has the epoch that tested best, ema/ the averaged weights of --model-ema.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed
from timm.data import create_transform, resolve_data_config
from timm.data.readers.reader_wds import ReaderWds
from torch import nn
from torch.utils.data import Dataset, IterableDataset

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
from adder_zoo.training.data import NOISE_TEST_IMAGES, Noise, Seeded
from adder_zoo.training.networks import name_classes, start_gammas_at_one
from adder_zoo.training.photographs import Photographs, Shards, check_classes, open_split

IMAGENET_SIZE = 1_281_167


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
    zero_init_last: bool = option(
        False, "start the last batch norm of each residual block at 0, as timm's ResNets do, and not at 1 as He et al."
    )
    workers: int = option(4, "processes that load images, for each process; 0: the training process", run=False)
    epochs: int = option(150, "sec. 4.3")
    batch_size: int = option(256, "for each process and accumulation step; sec. 4.3: 256 in all")
    lr: float = option(0.1, "the paper names no rate for ImageNet; this is its rate for the other data sets")
    momentum: float = option(0.9, "Nesterov's, sec. 4.3")
    weight_decay: float = option(1e-4, "sec. 4.3")
    eta: float = option(0.2, "η of Eq. 13; the paper names none; the authors' code for CIFAR")
    bn_batches: int = option(50, "training batches to recompute batch norm statistics over")
    checkpointing_steps: int = option(1000, "updates between checkpoints, beside those after each epoch", run=False)
    min_scale: float = option(
        0.08,
        "smallest part of an image that a training crop shows, as timm and torchvision have it; He et al. crop from "
        "images whose shorter side is 256 to 480 pixels",
    )
    crop_pct: float = option(
        0.875, "part of each side of a test image that is seen: 224 of 256 pixels, as usual; 0: timm's, often 0.95"
    )
    color_jitter: float = option(0.0, "jitter of brightness, contrast and saturation")
    aa: str = option("", "automatic augmentation by timm's name, rand-m7-mstd0.5-inc1 for example")
    reprob: float = option(0.0, "probability of random erasing")


def create(config: Config) -> tuple[nn.Module, nn.Module | None]:
    """The network and its teacher, if any; its configuration says how test images are prepared."""
    options: dict[str, Any] = {"num_classes": config.num_classes} if config.num_classes else {}
    teacher: nn.Module | None = None
    if config.model.startswith("adder_"):
        model, teacher = create_networks(config, config.model, **options)
    elif config.distillation != "none" or config.similarity != "adder":
        raise RecipeError(f"--similarity and --distillation are for networks of this zoo: --model adder_{config.model}")
    else:
        model = create_network(config, config.model, **options)
    if not config.zero_init_last and not config.pretrained and not config.init:
        start_gammas_at_one(model)
        if teacher is not None and config.distillation == "pkkd":  # another teacher is trained
            start_gammas_at_one(teacher)
    changed: dict[str, Any] = {"input_size": (3, config.img_size, config.img_size)} if config.img_size else {}
    changed |= {"crop_pct": config.crop_pct} if config.crop_pct else {}
    if changed:  # config.json holds it then, and whoever loads the network prepares images as here
        cfg: Any = model.pretrained_cfg
        others = {k: v for k, v in cfg.items() if k not in ("test_input_size", "test_crop_pct")}
        model.pretrained_cfg = {**others, **changed}  # type: ignore[assignment]
    return model, teacher


def data(config: Config, model: nn.Module) -> Data:
    """Training and test images, prepared as ``model`` takes them."""
    classes = config.num_classes or model.num_classes
    assert isinstance(classes, int)
    if config.synthetic:
        shape = resolve_data_config(model=model)["input_size"]
        train, test = (Noise(count, shape, classes) for count in (IMAGENET_SIZE, NOISE_TEST_IMAGES))
        return Data("synthetic", train, test, classes, top5=True)
    root = data_folder(config)
    parts = [(config.train_split, True), (config.val_split, False)]
    found = [
        open_split(config.dataset, root, split, training, config.batch_size, config.seed, config.download)
        for split, training in parts
    ]
    indices = [getattr(getattr(part, "reader", None), "class_to_idx", {}) for part in found]
    check_classes(root, classes, *indices)
    name_classes(model, indices[0])
    images: list[Any] = []
    for part, (_, training) in zip(found, parts, strict=True):
        images.append(prepared(config, part, transform_for(config, model, training), training))
    name = "imagenet" if len(images[0]) == IMAGENET_SIZE else "images"
    return Data(name, images[0], images[1], classes, top5=True)


def data_folder(config: Config) -> str | None:
    root = config.data_dir
    if root is None and DATA_ENVIRONMENT in os.environ:
        root = os.path.join(os.environ[DATA_ENVIRONMENT], "imagenet")  # other data lies beside it
    if root is None and not config.dataset.startswith(("hfds/", "hfids/")):  # these have a cache of their own
        raise DataError(f"no --data-dir, and no {DATA_ENVIRONMENT}: give the folder with train/ and val/")
    return root


def transform_for(config: Config, model: nn.Module, training: bool) -> Any:
    options = resolve_data_config(model=model)
    if not training:
        return create_transform(**options)
    return create_transform(
        **{k: v for k, v in options.items() if k in ("input_size", "mean", "std", "interpolation")},
        is_training=True,
        scale=(config.min_scale, 1.0),
        color_jitter=config.color_jitter,
        auto_augment=config.aa or None,
        re_prob=config.reprob,
    )


def prepared(config: Config, part: Any, transform: Any, training: bool) -> Dataset:
    """The images of ``part`` after ``transform``, augmented in a way that a resumed run repeats."""
    reader = getattr(part, "reader", None)
    if isinstance(reader, ReaderWds):
        return Shards(reader, transform, training, config.batch_size, config.workers, config.seed)
    if reader is not None and not isinstance(part, IterableDataset):
        return Seeded(Photographs(reader, transform), config.seed)
    part.transform = transform
    return part if isinstance(part, IterableDataset) else Seeded(part, config.seed)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the recipe with ``argv`` (the command line by default); returns what results.json holds."""
    config = parse_settings(Config, __doc__, argv)
    accelerator = make_accelerator(config)
    run = Run(config, accelerator)
    if run.results is not None:
        return run.results
    set_seed(config.seed)
    model, teacher = create(config)
    return train(config, accelerator, run, data(config, model), model, teacher)


if __name__ == "__main__":
    try:
        main()
    except (RecipeError, DataError) as error:
        exit_with_message(error)
