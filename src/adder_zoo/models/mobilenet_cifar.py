"""MobileNets for 32x32 images, with adder layers.

    V1: conv 3x3, 32 - 10 blocks of depthwise 3x3, pointwise 1x1 - average pool - linear, num_classes
    V2: conv 3x3 stride 2, 16 - 17 blocks of expansion 1x1, depthwise 3x3, projection 1x1 - conv 1x1, 640 -
        average pool - linear, num_classes

The blocks of V1 are of the kind of Howard et al. (arXiv 1704.04861, Table 1), but ten of them: two with 64 channels,
two with 128, six with 256. Those of V2 are all of Sandler et al. (arXiv 1801.04381, Table 2), at half their width. The
strides there are for large images, which they make 32 times smaller; here they make them 8 times smaller.

The first convolution and the classifier are never adder layers, as in the AdderNet paper (arXiv 1912.13200, sec. 4.2).
Where nobody says otherwise, depthwise layers are not either; docs/paper/mobilenet.md has the reason in figures.

Shapes: x [N, in_chans, H, W], 32 x 32 in training; features [N, 256, H/8, W/8], of V2 [N, 640, H/8, W/8]; logits [N,
num_classes].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from ._exchanged import build_exchanged
from ._pretrained import PAPER, trained_on

__all__: list[str] = []

# timm's notation. dsa: a depthwise and a pointwise layer, each with an activation; ds: the second without; ir: these
# behind an expansion; r: blocks; s: stride of the first; e: factor of the expansion; c: channels.
V1_STAGES = ("dsa_r2_k3_s2_c64", "dsa_r2_k3_s2_c128", "dsa_r6_k3_s2_c256")
V2_STAGES = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s1_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s1_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
V2_WIDTH = 0.5  # by which these channels are multiplied
V2_FEATURES = 640
DEPTHWISE = "*.conv_dw"

default_cfgs = generate_default_cfgs(
    {
        f"{name}.{dataset}": {
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "first_conv": "conv_stem",
            "classifier": "classifier",
            **trained_on(dataset),
            **PAPER,
        }
        for name in ("adder_mobilenetv1_cifar", "adder_mobilenetv2_cifar")
        for dataset in ("cifar10", "cifar100")
    }
)


def _mobilenet_v1(**kwargs: Any) -> nn.Module:
    network = EfficientNet(
        block_args=decode_arch_def([[stage] for stage in V1_STAGES]), num_features=0, act_layer=nn.ReLU6, **kwargs
    )
    network.conv_stem.stride = (1, 1)  # timm has no argument for it
    for stage in network.feature_info:
        stage["reduction"] //= 2
    return network


def _mobilenet_v2(**kwargs: Any) -> nn.Module:
    return EfficientNet(
        block_args=decode_arch_def([[stage] for stage in V2_STAGES]),
        num_features=V2_FEATURES,
        round_chs_fn=functools.partial(round_channels, multiplier=V2_WIDTH),
        act_layer=nn.ReLU6,
        **kwargs,
    )


def _create(make: Callable[..., nn.Module], variant: str, pretrained: bool, maps: int, **kwargs: Any) -> nn.Module:
    """``maps``: of how many sizes the network's maps are, which is how many ``features_only`` returns."""
    feature_cfg = {"feature_cls": "getter", "out_indices": kwargs.pop("out_indices", tuple(range(maps)))}
    return build_exchanged(make, variant, pretrained, standard=DEPTHWISE, feature_cfg=feature_cfg, **kwargs)


@register_model
def adder_mobilenetv1_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNet for CIFAR; its depthwise layers stay convolutions, unless ``convolutions=""`` is given."""
    return _create(_mobilenet_v1, "adder_mobilenetv1_cifar", pretrained, maps=4, **kwargs)


@register_model
def adder_mobilenetv2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 for CIFAR; its depthwise layers stay convolutions, unless ``convolutions=""`` is given."""
    return _create(_mobilenet_v2, "adder_mobilenetv2_cifar", pretrained, maps=3, **kwargs)
