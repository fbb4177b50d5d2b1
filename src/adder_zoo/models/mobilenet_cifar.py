"""MobileNetV2 for 32x32 images, with adder layers.

    conv 3x3 stride 2, 16 - 17 blocks of expansion 1x1, depthwise 3x3, projection 1x1 - conv 1x1, 640 - average pool -
    linear, num_classes

The blocks are those of Sandler et al. (arXiv 1801.04381, Table 2) at half their width. Their strides are for large
images, which they make 32 times smaller; here they make them 8 times smaller: the map is 16x16 in the first three
stages, then 8x8 and 4x4. The first convolution and the classifier are never adder layers, as in the AdderNet paper
(arXiv 1912.13200, sec. 4.2). Where nobody says otherwise, the depthwise layers are not either: they have a tenth of the
additions, and cost most of the accuracy (`docs/paper/mobilenet.md` has the figures).

Shapes: x [N, in_chans, H, W], 32 x 32 in training; features [N, 640, H/8, W/8]; logits [N, num_classes].
"""

from __future__ import annotations

import functools
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from ._exchanged import build_exchanged
from ._pretrained import PAPER, trained_on

__all__: list[str] = []

# timm's notation: ds, ir: without and with an expansion; r: blocks; s: stride of the first; e: expansion; c: channels
# at full width.
STAGES = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s1_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s1_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
WIDTH = 0.5
FEATURES = 640
DEPTHWISE = "*.conv_dw"

default_cfgs = generate_default_cfgs(
    {
        f"adder_mobilenetv2_cifar.{dataset}": {
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "first_conv": "conv_stem",
            "classifier": "classifier",
            **trained_on(dataset),
            **PAPER,
        }
        for dataset in ("cifar10", "cifar100")
    }
)


def _network(**kwargs: Any) -> nn.Module:
    """The convolutional network: timm's parts, put together with the strides of ``STAGES``."""
    return EfficientNet(
        block_args=decode_arch_def([[stage] for stage in STAGES]),
        num_features=FEATURES,
        round_chs_fn=functools.partial(round_channels, multiplier=WIDTH),
        act_layer=nn.ReLU6,
        **kwargs,
    )


@register_model
def adder_mobilenetv2_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 at half width for CIFAR; ``convolutions=""`` makes its depthwise layers adder layers, too."""
    feature_cfg = {"feature_cls": "getter", "out_indices": kwargs.pop("out_indices", (0, 1, 2))}
    return build_exchanged(
        _network,
        "adder_mobilenetv2_cifar",
        pretrained,
        standard=DEPTHWISE,
        feature_cfg=feature_cfg,
        **kwargs,
    )
