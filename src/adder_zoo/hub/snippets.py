"""Code that uses a network, for its card and its notebook: a class, feature maps, an embedding, as in timm's cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

LOAD = """\
import adder_zoo, timm, PIL.Image
model = timm.create_model("hf-hub:{repo_id}", pretrained=True{options}).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
image = transform(PIL.Image.open("image.png").convert("{mode}"))
"""
NAMED = 'print(model.pretrained_cfg["label_names"][model(image.unsqueeze(0)).argmax()])\n'
NUMBERED = 'print("class", model(image.unsqueeze(0)).argmax().item())\n'
FEATURES = """\
for features in model(image.unsqueeze(0)):
    print(tuple(features.shape))  # {shapes}
"""
EMBEDDING = """\
embedding = model(image.unsqueeze(0))
print(tuple(embedding.shape))  # {embedding}

# the same, of a model that has its classifier
features = model.forward_features(image.unsqueeze(0))  # {features}
embedding = model.forward_head(features, pre_logits=True)
"""


@dataclass(frozen=True)
class Snippet:
    """A piece of code that stands for itself.

    Attributes:
        title: Its heading.
        code: Reads ``image.png``.
    """

    title: str
    code: str


def snippets(folder: Path, repo_id: str, config: Mapping[str, Any]) -> list[Snippet]:
    """What can be done with the network in ``folder`` when it is at ``repo_id``.

    The shapes that the code prints are in it: they are found out by building the network, without its weights. What it
    cannot do is left out: a network in bytes has no feature maps.
    """
    cfg = config["pretrained_cfg"]
    mode = "L" if cfg["input_size"][0] == 1 else "RGB"

    def load(options: str = "") -> str:
        return LOAD.format(repo_id=repo_id, mode=mode, options=options)

    found = [Snippet("Classify an image", load() + (NAMED if cfg.get("label_names") else NUMBERED))]
    maps = _shapes(folder, cfg, _features)
    if maps is not None:
        shapes = ", ".join(map(str, maps))
        found.append(Snippet("Feature maps", load(", features_only=True") + FEATURES.format(shapes=shapes)))
    embedded = _shapes(folder, cfg, _embedding)
    if embedded is not None:
        code = EMBEDDING.format(embedding=embedded[0], features=embedded[1])
        found.append(Snippet("Embedding", load(", num_classes=0") + code))
    return found


def _features(name: str, x: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(features.shape) for features in timm.create_model(name, features_only=True).eval()(x)]


def _embedding(name: str, x: torch.Tensor) -> list[tuple[int, ...]]:
    model: Any = timm.create_model(name, num_classes=0).eval()
    features = model.forward_features(x)
    if tuple(model(x).shape) != tuple(model.forward_head(features, pre_logits=True).shape):
        raise ValueError("two embeddings")
    return [tuple(model(x).shape), tuple(features.shape)]


def _shapes(folder: Path, cfg: Mapping[str, Any], of: Any) -> list[tuple[int, ...]] | None:
    """Shapes for one image, or None where the network has no such thing."""
    try:
        with torch.device("meta"), torch.no_grad():
            return of(f"local-dir:{folder}", torch.empty(1, *cfg["input_size"]))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
