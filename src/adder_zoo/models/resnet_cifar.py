"""ResNet-20, 32, 44, 56 and 110 for 32x32 images, as in the AdderNet paper's Table 2 (arXiv 1912.13200, sec. 4.2).

    conv 3x3, 16 - 3 stages of n blocks, 16, 32 and 64 channels - average pool - conv 1x1, num_classes - batch norm

The blocks are as in He et al. (arXiv 1512.03385, sec. 4.2) with adder layers, also in the 1x1 shortcut where the
shape changes; depth = 6n + 2. The first layer and the classifier stay convolutions whatever the similarity, as in the
paper, and the classifier is followed by a batch norm of its own, as in the authors' code.

Shapes: x [N, in_chans, H, W], 32 x 32 in training; features [N, 64, H/4, W/4]; logits [N, num_classes].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, SelectAdaptivePool2d, calculate_drop_path_rates
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..norms import BatchNorm2d
from ._pretrained import PAPER, build_model, bundled, trained_on
from ._similarity import conv2d
from ._staged import StagedNet, classifier, filter_for

__all__ = ["AdderResNetCifar"]

CHANNELS = (16, 32, 64)
DEPTHS = (20, 32, 44, 56, 110)


def _cfg(name: str, weights: bool = False) -> dict[str, Any]:
    return {
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "first_conv": "conv1",
        "classifier": ("head.fc", "head.bn"),
        **trained_on(name.partition(".")[2].removesuffix("_int8")),
        **({"file": bundled(name)} if weights else {}),
        **PAPER,
    }


SHIPPED = {"adder_resnet20.cifar10", "adder_resnet20.cifar10_int8"}  # with weights in the package

default_cfgs = generate_default_cfgs(
    {
        name: _cfg(name, name in SHIPPED)
        for depth in DEPTHS
        for name in (
            f"adder_resnet{depth}.cifar10",
            f"adder_resnet{depth}.cifar100",
            f"adder_resnet{depth}.cifar10_int8",
        )
        if name in SHIPPED or not name.endswith("_int8")
    }
)


class Block(nn.Module):
    """Two 3x3 layers with batch norm around a shortcut; [N, C, H, W] to [N, K, H/stride, W/stride]."""

    def __init__(
        self, similarity: str, in_channels: int, channels: int, stride: int, drop_path: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.conv1 = conv2d(similarity, in_channels, channels, 3, stride=stride, padding=1, **dd)
        self.bn1 = BatchNorm2d(channels, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv2d(similarity, channels, channels, 3, padding=1, **dd)
        self.bn2 = BatchNorm2d(channels, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                conv2d(similarity, in_channels, channels, 1, stride=stride, **dd), BatchNorm2d(channels, **dd)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.drop_path(self.bn2(self.conv2(x)))
        return self.act2(x + shortcut)


class AdderResNetCifar(StagedNet):
    """A ResNet for small images with adder layers, or its convolutional or binary twin.

    Args:
        depth: Layers with weights, 6n + 2.
        num_classes: Classes; 0 leaves the classifier out and returns the pooled features, [N, 64].
        in_chans, similarity, drop_rate, img_size: See ``StagedNet``.
        global_pool: "avg" as in the paper, or another of timm's; "" with num_classes = 0 returns the map, [N, 64, H/4,
            W/4].
        drop_path_rate: Stochastic depth (arXiv 1603.09382): how often the last block is left out for an image in
            training, those before it less often in proportion to their place.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        similarity: str = "adder",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        img_size: int | Sequence[int] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, similarity, global_pool, drop_rate, img_size)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"AdderResNetCifar: depth must be 6n + 2 (8, 14, 20, ...), got {depth}")
        dd = {"device": device, "dtype": dtype}
        self.num_features = CHANNELS[-1]
        self.conv1 = nn.Conv2d(in_chans, CHANNELS[0], 3, padding=1, bias=False, **dd)
        self.bn1 = BatchNorm2d(CHANNELS[0], **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info.append({"num_chs": CHANNELS[0], "reduction": 1, "module": "act1"})
        previous = CHANNELS[0]
        rates: Any = calculate_drop_path_rates(drop_path_rate, (depth - 2) // 2)
        drop_paths = iter(rates)
        for i, channels in enumerate(CHANNELS):
            blocks = []
            for j in range((depth - 2) // 6):
                stride = 2 if i and not j else 1
                blocks.append(Block(similarity, previous, channels, stride, next(drop_paths), **dd))
                previous = channels
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": 2**i, "module": f"layer{i + 1}"})
        self._set_pool()
        self.head = self._classifier(num_classes, **dd)

    def _pooling(self, global_pool: str, num_classes: int) -> str:
        return global_pool if global_pool else super()._pooling(global_pool, num_classes)

    def _set_pool(self) -> None:
        pool = SelectAdaptivePool2d(pool_type=self.global_pool or "avg", flatten=True)
        self.pre_logits = pool
        self.head_hidden_size = self.num_features * pool.feat_mult()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            self.global_pool = self._pooling(global_pool, num_classes)
            self._set_pool()
        super().reset_classifier(num_classes)

    def _classifier(self, num_classes: int, **dd: Any) -> nn.Module:
        """A 1x1 convolution, as the authors have it, on the pooled features."""
        if num_classes == 0:
            return nn.Identity()
        return classifier(
            unflatten=nn.Unflatten(1, (self.head_hidden_size, 1, 1)),
            fc=nn.Conv2d(self.head_hidden_size, num_classes, 1, bias=False, **dd),
            bn=BatchNorm2d(num_classes, **dd),
            flatten=nn.Flatten(1),
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^(?:conv1|bn1)", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """The stem, then the three stages."""
        return self.get_submodule(f"layer{i}")(x) if i else self.act1(self.bn1(self.conv1(x)))

    def run_checkpointed(self, i: int, x: Tensor) -> Tensor:
        if i and self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.get_submodule(f"layer{i}"), x)  # type: ignore[arg-type]  # block by block
        return self.run_stage(i, x)

    def drop_stages(self, kept: int) -> None:
        for i in range(kept, len(self.feature_info)):
            delattr(self, f"layer{i}")


def _create(variant: str, pretrained: bool, **kwargs: Any) -> AdderResNetCifar:
    return build_model(
        AdderResNetCifar,
        variant,
        pretrained,
        pretrained_filter_fn=filter_for("conv1"),
        feature_cfg={"out_indices": kwargs.pop("out_indices", tuple(range(len(CHANNELS) + 1)))},
        **kwargs,
    )


@register_model
def adder_resnet20(pretrained: bool = False, **kwargs: Any) -> AdderResNetCifar:
    """ResNet-20 for CIFAR, the network of the paper's Table 2: 91.84 % there on CIFAR-10."""
    return _create("adder_resnet20", pretrained, **dict({"depth": 20}, **kwargs))


@register_model
def adder_resnet32(pretrained: bool = False, **kwargs: Any) -> AdderResNetCifar:
    """ResNet-32 for CIFAR, the paper's Table 2: 93.01 % there on CIFAR-10."""
    return _create("adder_resnet32", pretrained, **dict({"depth": 32}, **kwargs))


@register_model
def adder_resnet44(pretrained: bool = False, **kwargs: Any) -> AdderResNetCifar:
    """ResNet-44 for CIFAR (arXiv 1512.03385, Table 6) with adder layers."""
    return _create("adder_resnet44", pretrained, **dict({"depth": 44}, **kwargs))


@register_model
def adder_resnet56(pretrained: bool = False, **kwargs: Any) -> AdderResNetCifar:
    """ResNet-56 for CIFAR (arXiv 1512.03385, Table 6) with adder layers."""
    return _create("adder_resnet56", pretrained, **dict({"depth": 56}, **kwargs))


@register_model
def adder_resnet110(pretrained: bool = False, **kwargs: Any) -> AdderResNetCifar:
    """ResNet-110 for CIFAR (arXiv 1512.03385, Table 6) with adder layers."""
    return _create("adder_resnet110", pretrained, **dict({"depth": 110}, **kwargs))
