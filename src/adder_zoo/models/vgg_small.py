"""VGG-small for 32x32 images, of the AdderNet paper's Table 2 (arXiv 1912.13200, sec. 4.2).

    2 x 3x3, 128 - pool 2 - 2 x 3x3, 256 - pool 2 - 2 x 3x3, 512 - pool 2 - fully connected, num_classes - batch norm

The network is Cai et al.'s (arXiv 1702.00953, sec. 5): batch norm and ReLU behind each convolution, and one fully
connected layer instead of VGG's three. The first layer and the classifier stay what they are whatever the
similarity, as in the paper, and the classifier is followed by a batch norm of its own, as in the authors' ResNets.

Shapes: x [N, in_chans, H, W], 32 x 32 in training; map [N, 512, H/8, W/8], brought to 4 x 4 by average pooling where it
is of another size; hidden layer [N, 8192]; logits [N, num_classes].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ._pretrained import PAPER, build_model, trained_on
from ._staged import StagedNet, conv_stage, filter_for

__all__ = ["AdderVggSmall"]

CHANNELS = (128, 256, 512)
POOLED = 4


def _cfg(dataset: str) -> dict[str, Any]:
    return {
        "input_size": (3, 32, 32),
        "pool_size": (POOLED, POOLED),
        "first_conv": "stages.0.conv1",
        "classifier": ("head.fc", "head.bn"),
        **trained_on(dataset),
        **PAPER,
    }


default_cfgs = generate_default_cfgs(
    {
        "adder_vgg_small.cifar10": _cfg("cifar10"),
        "adder_vgg_small.cifar100": _cfg("cifar100"),
    }
)


class AdderVggSmall(StagedNet):
    """VGG-small with adder layers, or its convolutional or binary twin.

    Args:
        num_classes: Classes; 0 leaves the classifier out and returns the hidden layer, [N, 8192].
        in_chans, similarity, drop_rate, img_size: See ``StagedNet``.
        global_pool: "avg": the map goes flat into the classifier, after average pooling to 4 x 4; "" with num_classes
            = 0 returns it, [N, 512, H/8, W/8].
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        similarity: str = "adder",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        img_size: int | Sequence[int] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, similarity, global_pool, drop_rate, img_size)
        self.classifier_similarity = "conv"
        self.num_features = CHANNELS[-1]
        self.head_hidden_size = CHANNELS[-1] * POOLED**2
        dd = {"device": device, "dtype": dtype}

        stages = []
        previous = in_chans
        for i, channels in enumerate(CHANNELS):
            first = similarity if i else "conv"
            stages.append(conv_stage([first, similarity], previous, channels, 3, **dd))
            previous = channels
            self.feature_info.append({"num_chs": channels, "reduction": 2 ** (i + 1), "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.pre_logits = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(POOLED), flatten=nn.Flatten(1)))
        self.head = self._classifier(num_classes, **dd)


@register_model
def adder_vgg_small(pretrained: bool = False, **kwargs: Any) -> AdderVggSmall:
    """VGG-small for CIFAR, the paper's Table 2: 93.72 % there on CIFAR-10."""
    out_indices = kwargs.pop("out_indices", tuple(range(len(CHANNELS))))
    return build_model(
        AdderVggSmall,
        "adder_vgg_small",
        pretrained,
        pretrained_filter_fn=filter_for("stages.0.conv1"),
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )
