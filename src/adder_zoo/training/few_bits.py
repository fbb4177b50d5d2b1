"""``--bits``: a trained float network made ready to be fine-tuned for adder layers of few bits."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..int8.fine_tune import fake_quantize
from .data import Data, fixed_subset, seed_everything, set_epoch
from .loaders import make_loader
from .settings import RecipeError, Settings

IMAGES = 512
TOGETHER = 64


def prepare(config: Settings, accelerator: Accelerator, data: Data, model: nn.Module) -> nn.Module:
    """``model``, trained in float32, with the rounding of ``--bits`` in its adder layers.

    The ranges come from training images as training sees them, the same ones in every process and in every attempt.

    Raises:
        RecipeError: nothing of the network can be quantised, or it cannot be trained so here.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        raise RecipeError("--bits: not with FSDP")
    seed_everything(config.seed)
    set_epoch(data.train, 0)
    try:
        with warnings.catch_warnings():
            if not accelerator.is_main_process:
                warnings.simplefilter("ignore")
            network = fake_quantize(model.eval(), _images(data, accelerator.device), bits=config.bits, images=IMAGES)
    except ValueError as error:
        raise RecipeError(f"--bits {config.bits}: {error}") from error
    return network


def _images(data: Data, device: torch.device) -> Iterator[Tensor]:
    part = data.train if isinstance(data.train, IterableDataset) else fixed_subset(data.train, IMAGES)
    batches = make_loader(part, TOGETHER, False, 0, device)
    for images, _ in itertools.islice(batches, IMAGES // TOGETHER):
        yield images.cpu()
