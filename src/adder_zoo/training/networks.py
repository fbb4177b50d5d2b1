"""The networks that a recipe trains, from timm's registry."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..architecture import architecture
from ..checkpoints import load_checkpoint
from ..datasets.profiles import profile
from ..fuse import fuse
from ..layers import AdderLayer
from .settings import RecipeError, Settings


def create_network(config: Settings, name: str, **kwargs: Any) -> nn.Module:
    """The network ``name`` as the settings want it, from ``timm.create_model``.

    Raises:
        RecipeError: timm does not know it, or it has no such option.
    """
    if config.drop_path:
        kwargs["drop_path_rate"] = config.drop_path
    if config.convolutions:
        kwargs["convolutions"] = "" if config.convolutions.strip().lower() == "none" else config.convolutions
    source = config.init or name
    try:
        if Path(source).is_file():
            model = _of_checkpoint(source, name, **kwargs)
        else:
            source = f"local-dir:{source}" if Path(source).is_dir() else source
            model = timm.create_model(source, pretrained=config.pretrained or bool(config.init), **kwargs)
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # OSError: no weights, or no network to fetch them
        if isinstance(error, TypeError) and "'convolutions'" in str(error):
            raise RecipeError(f"{name} leaves no choice of its layers: leave --convolutions out") from error
        raise RecipeError(f"--{'init' if config.init else 'model'} {config.init or name}: {error}") from error
    if config.init and architecture(model) != name.partition(".")[0]:
        raise RecipeError(f"--init {config.init} is {architecture(model)}, and --model is {name}")
    for module in model.modules():
        for rule in ("weight_grad", "input_grad"):
            if hasattr(module, rule):
                setattr(module, rule, getattr(config, rule))
    return model


def _of_checkpoint(path: str, name: str, **kwargs: Any) -> nn.Module:
    """The network ``name`` with the weights of a file; its images are prepared as its tag says."""
    loaded = load_checkpoint(path, name, kwargs.get("similarity", "adder"), convolutions=kwargs.get("convolutions"))
    model = timm.create_model(name, **kwargs)
    model.load_state_dict(loaded.state_dict())
    return model


def create_networks(config: Settings, name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module | None]:
    """The network ``name`` in the similarity of the settings, and the one that teaches it, if any.

    That is its untrained convolutional twin; with ``--distillation trained`` the network of ``--teacher``, and with
    ``--distillation float`` what it begins as, both for inference.
    """
    model = create_network(config, name, similarity=config.similarity, **kwargs)
    if config.distillation == "none":
        return model, None
    if config.distillation == "float":
        return model, fuse(copy.deepcopy(model).eval())
    if config.distillation == "trained":
        return model, trained_teacher(config.teacher, model)
    # The twin begins untrained: weights under this name are the adder network's.
    untrained = dataclasses.replace(config, pretrained=False, init="", bits=0)
    return model, create_network(untrained, name, similarity="conv", **kwargs)


class Renormalized(nn.Module):
    """A network that was trained on images with another mean and deviation than those that it is given.

    Args:
        network: Takes images that are normalised by ``own``.
        given, own: Mean and standard deviation for each channel, on the scale from 0 to 1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        given: tuple[tuple[float, ...], tuple[float, ...]],
        own: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> None:
        super().__init__()
        self.network = network
        (mean, std), (own_mean, own_std) = ([torch.tensor(v).view(-1, 1, 1) for v in pair] for pair in (given, own))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.network(images * self.scale + self.shift)
        return result


def trained_teacher(source: str, student: nn.Module) -> nn.Module:
    """A trained network for inference, that takes the images of ``student``.

    Args:
        source: A folder with config.json and model.safetensors, as a run leaves it, or a name as for
            ``timm.create_model``, with its tag.
        student: Whose number of classes and channels it must share; images with its mean and deviation are converted.

    Returns:
        The teacher, in eval mode; ``pretrained_cfg`` is its own. ``require_same_classes`` compares the classes' names.

    Raises:
        RecipeError: timm does not know it or has no weights for it, or it has other classes or channels.
    """
    try:
        name = f"local-dir:{source}" if Path(source).is_dir() else source
        teacher = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"--teacher {source}: {error}") from error
    configs: Any = (teacher.pretrained_cfg, student.pretrained_cfg)
    own, given = ({"label_names": None, **config} for config in configs)
    if teacher.num_classes != student.num_classes:
        raise RecipeError(f"--teacher {source} knows {teacher.num_classes} classes, the network {student.num_classes}")
    if own["input_size"][0] != given["input_size"][0]:
        raise RecipeError(f"--teacher {source}: its images have {own['input_size'][0]} channels")
    teacher = teacher.eval()
    if any(isinstance(module, AdderLayer) for module in teacher.modules()):
        teacher = fuse(teacher)
    of_student, of_teacher = ((tuple(cfg["mean"]), tuple(cfg["std"])) for cfg in (given, own))
    if of_student != of_teacher:
        teacher = Renormalized(teacher, of_student, of_teacher)
    teacher.pretrained_cfg = own  # type: ignore[assignment]
    return teacher


def require_same_classes(source: str, teacher: nn.Module, student: nn.Module) -> None:
    """Call it when ``student`` knows the names of its classes: a recipe may learn them from its images.

    Raises:
        RecipeError: both name their classes, and the names or their order differ.
    """
    theirs, ours = ((getattr(m, "pretrained_cfg", None) or {}).get("label_names") for m in (teacher, student))
    if theirs and ours and [*theirs] != [*ours]:
        raise RecipeError(f"--teacher {source} has other classes, or the same in another order")


def resolve_model_name(model: str, dataset: str) -> str:
    """The full name of ``model`` made for ``dataset``: mean, classes and image size are the data set's.

    Raises:
        RecipeError: there is no such network; names those that exist.
    """
    names = timm.list_models(f"adder_*.{dataset}", include_tags=True)
    name = model if "." in model else f"{model}.{dataset}"
    if name not in names:
        known = ", ".join(n.removesuffix(f".{dataset}") for n in names)
        raise RecipeError(f"--model {model}: no network of this zoo for {dataset} has this name; there are {known}")
    return name


def name_classes(model: nn.Module, index: Mapping[str, int]) -> None:
    """Writes the classes' names into a network's configuration, so that no other ones are shown for them.

    Args:
        model: From timm; its classes beyond those of the data are called "unused 7".
        index: The class of each name, of folders say; nothing changes where it is empty.
    """
    if not index:
        return
    by_class = {i: name for name, i in index.items()}
    count: int = model.num_classes  # type: ignore[assignment]
    names = tuple(by_class.get(i, f"unused {i}") for i in range(count))
    imagenet = profile("imagenet")
    cfg: Any = model.pretrained_cfg
    model.pretrained_cfg = {  # type: ignore[assignment]
        **{key: value for key, value in cfg.items() if key != "label_descriptions"},
        "num_classes": count,
        "label_names": names,
        **({"label_descriptions": imagenet.descriptions} if names == imagenet.classes else {}),
    }


def start_gammas_at_one(model: nn.Module) -> None:
    """Sets the scales of batch norm layers that start at 0 to 1.

    timm starts the last one of each residual block at 0 (``zero_init_last``), so that an untrained block adds nothing;
    He et al. (arXiv 1512.03385) do not, and the AdderNet paper does not say that it does.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


def full_name(model: nn.Module) -> str:
    """The name of a network with its tag, "adder_resnet20.cifar10" for example."""
    cfg: Any = model.pretrained_cfg
    return f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else cfg["architecture"]
