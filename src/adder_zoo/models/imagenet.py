"""timm's convolutional networks for ImageNet as adder networks: ``adder_resnet50``, ``adder_mobilenetv2_100``, ...

The AdderNet paper's Table 3 has ResNet-18 and ResNet-50 (arXiv 1912.13200, sec. 4.3). Every network here is timm's own,
converted by ``convert_to_adder``: the first convolution, the classifier, squeeze-and-excite gates and what has no batch
norm behind it stay convolutions, and so does what an argument like ``convolutions="*.conv_dw"`` names. What timm's
network can do, its adder form can: ``features_only``, ``output_stride``, gradient checkpointing, ...

Shapes: x [N, in_chans, H, W]; logits [N, num_classes].
"""

from __future__ import annotations

import fnmatch
import functools
from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, get_pretrained_cfg, model_entrypoint, register_model
from torch import nn

from ._exchanged import build_exchanged
from ._pretrained import PAPER

__all__: list[str] = []

# Which of timm's networks are registered as adder_<name>: those whose body is convolutions with batch norm behind them.
FAMILIES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d",
    "wide_resnet*", "resnext50_32x4d", "resnext101_32x[48]d", "resnext101_64x4d",
    "seresnet50", "seresnet101", "seresnext50_32x4d", "seresnext101_32x4d",
    "res2net50_26w_4s", "res2net101_26w_4s",
    "regnet[xy]_[0-3][0-9][0-9]",
    "mobilenetv1_100", "mobilenetv2_[0-9][0-9][0-9]", "mobilenetv3_*_[01][0-9][0-9]", "mobilenetv4_conv_*",
    "mnasnet_[0-9]*", "semnasnet_[0-9]*", "fbnetc_100", "spnasnet_100",
    "efficientnet_b[0-7]", "efficientnet_lite[0-4]", "efficientnet_e[sml]",
    "efficientnetv2_[sml]", "tf_efficientnet_b[0-7]", "tf_efficientnetv2_[sml]",
    "vgg*_bn", "densenet121", "densenet161", "densenet169", "densenet201",
    "dla34", "dla60", "dla102", "dla169", "hrnet_w[0-9][0-9]", "darknet53", "cspdarknet53", "cspresnet50",
    "dpn68", "dpn92", "dpn131", "inception_v3", "inception_v4", "xception41", "xception65", "ese_vovnet39b",
    "selecsls60",
)  # fmt: skip

# What a network's preparation of images takes over from timm's configuration of it; its weights are another matter.
INHERITED = (
    "input_size", "fixed_input_size", "min_input_size", "pool_size", "crop_pct", "interpolation", "mean", "std",
    "first_conv", "classifier",
)  # fmt: skip


def parents() -> list[str]:
    """The names of timm's networks that ``FAMILIES`` chooses, as this version of timm has them."""
    return [name for name in timm.list_models() if any(fnmatch.fnmatchcase(name, pattern) for pattern in FAMILIES)]


def _cfg(parent: str) -> dict[str, Any]:
    known = get_pretrained_cfg(parent)
    cfg = known.to_dict() if known else {}
    return {**{key: cfg[key] for key in INHERITED if cfg.get(key) is not None}, "num_classes": 1000, **PAPER}


default_cfgs = generate_default_cfgs({f"adder_{parent}.in1k": _cfg(parent) for parent in parents()})


def _network(parent: str, **kwargs: Any) -> nn.Module:
    return model_entrypoint(parent)(pretrained=False, **kwargs)


def _create(parent: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    feature_cfg: dict[str, Any] = {}
    if kwargs.get("features_only"):
        # forward_intermediates works on every network here; timm's other wrappers know only some of them.
        feature_cfg["feature_cls"] = "getter"
        if "out_indices" not in kwargs:
            with torch.device("meta"):
                info: Any = timm.create_model(parent, features_only=True).feature_info
                feature_cfg["out_indices"] = tuple(info.out_indices)
    return build_exchanged(
        functools.partial(_network, parent), f"adder_{parent}", pretrained, feature_cfg=feature_cfg, **kwargs
    )


def _register(parent: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(parent, pretrained, **kwargs)

    name = f"adder_{parent}"
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"timm's ``{parent}`` as an adder network; ``similarity`` may be 'adder', 'conv' or 'xnor'."
    globals()[name] = register_model(entrypoint)


for _parent in parents():
    _register(_parent)
