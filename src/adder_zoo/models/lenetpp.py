"""LeNet++, whose features have two dimensions and can be drawn: the AdderNet paper's Fig. 1 (arXiv 1912.13200).

    28x28 - 2 x 5x5, 32 - pool 2 - 2 x 5x5, 64 - pool 2 - 2 x 5x5, 128 - pool 2 - fully connected 2 - fully connected 10

The network is Wen et al.'s (ECCV 2016, "A discriminative feature learning approach"). As in LeNet-5-BN every layer is
an adder layer with batch norm behind it. ReLU follows all but the last two: the two features and the logits keep their
sign.

Shapes: x [N, in_chans, 28, 28]; map [N, 128, 3, 3]; features, ``forward_head(..., pre_logits=True)``, [N, 2]; logits
[N, num_classes].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..norms import BatchNorm1d
from ._pretrained import PAPER, build_model, bundled, trained_on
from ._similarity import linear
from ._staged import StagedNet, conv_stage, filter_for

__all__ = ["AdderLeNetPP"]

SIZE = 28
CHANNELS = (32, 64, 128)
FEATURES = 2


def _cfg(name: str, dataset: str) -> dict[str, Any]:
    return {
        "file": bundled(name),
        "input_size": (1, SIZE, SIZE),
        "fixed_input_size": True,
        "pool_size": (3, 3),
        "first_conv": "stages.0.conv1",
        "classifier": ("head.fc", "head.bn"),
        **trained_on(dataset),
        **PAPER,
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg(name, "mnist") for name in ("adder_lenetpp.mnist", "adder_lenetpp.mnist_int8")}
)


class AdderLeNetPP(StagedNet):
    """LeNet++ with adder layers, or its convolutional or binary twin.

    Args:
        num_classes: Classes; 0 leaves the classifier out and returns the two features, [N, 2].
        in_chans, similarity, drop_rate, img_size: See ``StagedNet``.
        global_pool: "avg": the map goes flat into the fully connected layer; "" with num_classes = 0 returns it, [N,
            128, 3, 3].
        device, dtype: Of the parameters.
    """

    fixed_size = SIZE

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        similarity: str = "adder",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        img_size: int | Sequence[int] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, similarity, global_pool, drop_rate, img_size)
        self.num_features = CHANNELS[-1]
        self.head_hidden_size = FEATURES
        dd = {"device": device, "dtype": dtype}

        stages = []
        previous = in_chans
        for i, channels in enumerate(CHANNELS):
            stages.append(conv_stage([similarity] * 2, previous, channels, 5, **dd))
            previous = channels
            self.feature_info.append({"num_chs": channels, "reduction": 2 ** (i + 1), "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        width = CHANNELS[-1] * (SIZE // 2 ** len(CHANNELS)) ** 2
        self.pre_logits = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(1),
                fc=linear(similarity, width, FEATURES, **dd),
                bn=BatchNorm1d(FEATURES, **dd),
            )
        )
        self.head = self._classifier(num_classes, **dd)


@register_model
def adder_lenetpp(pretrained: bool = False, **kwargs: Any) -> AdderLeNetPP:
    """LeNet++ with two features, for the paper's Fig. 1; ``forward_head(x, pre_logits=True)`` returns them."""
    out_indices = kwargs.pop("out_indices", tuple(range(len(CHANNELS))))
    return build_model(
        AdderLeNetPP,
        "adder_lenetpp",
        pretrained,
        pretrained_filter_fn=filter_for("stages.0.conv1"),
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )
