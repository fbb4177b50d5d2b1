"""LeNet-5-BN, the network of the AdderNet paper's experiments on MNIST (arXiv 1912.13200, sec. 4.1 and 4.5).

    32x32 - adder 5x5, 6 - pool 2 - adder 5x5, 16 - pool 2 - adder 5x5, 120 - adder 84 - adder 10

Every layer is an adder layer, the first, the last and the fully connected ones too, and batch norm follows each, also
the last: a distance is never positive, and without batch norm nothing trains. ReLU follows all but the last.

Shapes: x [N, in_chans, 32, 32]; features [N, 120, 1, 1]; hidden layer [N, 84]; logits [N, num_classes].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..norms import BatchNorm1d, BatchNorm2d
from ._pretrained import PAPER, build_model, bundled, trained_on
from ._similarity import conv2d, linear
from ._staged import StagedNet, filter_for

__all__ = ["AdderLeNet5"]

SIZE = 32
CHANNELS = (6, 16, 120)
HIDDEN = 84


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "file": bundled(name),
        "input_size": (1, SIZE, SIZE),
        "fixed_input_size": True,
        "pool_size": (1, 1),
        "first_conv": "stages.0.conv",
        "classifier": ("head.fc", "head.bn"),
        **PAPER,
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        f"adder_lenet5_bn.{dataset}{form}": _cfg(f"adder_lenet5_bn.{dataset}{form}", **trained_on(dataset))
        for form in ("", "_int8")
        for dataset in ("mnist", "fashion_mnist")
    }
)


class AdderLeNet5(StagedNet):
    """LeNet-5-BN with adder layers, or its convolutional or binary twin.

    Args:
        num_classes: Classes; 0 leaves the classifier out and returns the hidden layer, [N, 84].
        in_chans, similarity, drop_rate, img_size: See ``StagedNet``.
        global_pool: "avg", which is nothing to do on a 1 x 1 map; "" with num_classes = 0 returns the map, [N, 120, 1,
            1].
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
        self.head_hidden_size = HIDDEN
        dd = {"device": device, "dtype": dtype}

        stages = []
        previous = in_chans
        for i, channels in enumerate(CHANNELS):
            layers: list[tuple[str, nn.Module]] = [("pool", nn.MaxPool2d(2))] if i else []
            layers += [
                ("conv", conv2d(similarity, previous, channels, 5, **dd)),
                ("bn", BatchNorm2d(channels, **dd)),
                ("act", nn.ReLU(inplace=True)),
            ]
            stages.append(nn.Sequential(OrderedDict(layers)))
            self.feature_info.append({"num_chs": channels, "reduction": 2**i, "module": f"stages.{i}"})
            previous = channels
        self.stages = nn.Sequential(*stages)
        self.pre_logits = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(1),
                fc=linear(similarity, CHANNELS[-1], HIDDEN, **dd),
                bn=BatchNorm1d(HIDDEN, **dd),
                act=nn.ReLU(inplace=True),
            )
        )
        self.head = self._classifier(num_classes, **dd)


@register_model
def adder_lenet5_bn(pretrained: bool = False, **kwargs: Any) -> AdderLeNet5:
    """LeNet-5-BN of arXiv 1912.13200, sec. 4.1; ``similarity="conv"`` is the convolutional network it is held against.

    Weights: ``adder_lenet5_bn.mnist`` (default), the paper's, and ``adder_lenet5_bn.fashion_mnist``, in the package.
    """
    out_indices = kwargs.pop("out_indices", tuple(range(len(CHANNELS))))
    return build_model(
        AdderLeNet5,
        "adder_lenet5_bn",
        pretrained,
        pretrained_filter_fn=filter_for("stages.0.conv"),
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )
