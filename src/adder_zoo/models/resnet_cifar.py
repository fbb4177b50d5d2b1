"""ResNet-20, 32, 44, 56 and 110 for 32x32 images, as in the AdderNet paper's Table 2 (arXiv 1912.13200, sec. 4.2).

    conv 3x3, 16 - 3 stages of n blocks, 16, 32 and 64 channels - average pool - conv 1x1, num_classes - batch norm

The blocks are those of He et al. (arXiv 1512.03385, sec. 4.2) with adder layers, also in the 1x1 shortcut where the
shape changes; depth = 6n + 2. The first layer and the classifier stay convolutions whatever the similarity, as in the
paper, and the classifier is followed by a batch norm of its own, as in the authors' code.

Shapes: x [N, in_chans, H, W], 32 x 32 in training; features [N, 64, H/4, W/4]; logits [N, num_classes].
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ._pretrained import CIFAR10_CLASSES, CIFAR_PREPROCESSING, PAPER, build_model, bundled
from ._similarity import conv2d
from ._staged import filter_for

__all__ = ["AdderResNetCifar"]

CHANNELS = (16, 32, 64)
DEPTHS = (20, 32, 44, 56, 110)


def _cfg(name: str, classes: int, label_names: tuple[str, ...] | None = None, weights: bool = False) -> dict[str, Any]:
    return {
        **CIFAR_PREPROCESSING,
        "pool_size": (8, 8),
        "num_classes": classes,
        "first_conv": "conv1",
        "classifier": ("head.fc", "head.bn"),
        **({"label_names": label_names} if label_names else {}),
        **({"file": bundled(name)} if weights else {}),
        **PAPER,
    }


default_cfgs = generate_default_cfgs(
    {
        cfg: _cfg(cfg, classes, names)
        for depth in DEPTHS
        for tag, classes, names in (("cifar10", 10, CIFAR10_CLASSES), ("cifar100", 100, None))
        for cfg in (f"adder_resnet{depth}.{tag}",)
    }
)


class Block(nn.Module):
    """Two 3x3 layers with batch norm around a shortcut; [N, C, H, W] to [N, K, H/stride, W/stride]."""

    def __init__(self, similarity: str, in_channels: int, channels: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = conv2d(similarity, in_channels, channels, 3, stride=stride, padding=1, **dd)
        self.bn1 = nn.BatchNorm2d(channels, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv2d(similarity, channels, channels, 3, padding=1, **dd)
        self.bn2 = nn.BatchNorm2d(channels, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                conv2d(similarity, in_channels, channels, 1, stride=stride, **dd), nn.BatchNorm2d(channels, **dd)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class AdderResNetCifar(nn.Module):
    """A ResNet for small images with adder layers, or its convolutional or binary twin.

    Args:
        depth: Layers with weights, 6n + 2.
        num_classes: Classes; 0 leaves the classifier out and returns the features.
        in_chans: Channels of the images.
        similarity: What compares a patch with a filter (Eq. 1): "adder", "conv" or "xnor".
        global_pool: timm's pooling, "avg" as in the paper; "" with num_classes = 0 returns the map.
        drop_rate: Dropout before the classifier.
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"AdderResNetCifar: depth must be 6n + 2 (8, 14, 20, ...), got {depth}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.similarity = similarity
        self.num_features = self.head_hidden_size = CHANNELS[-1]
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, CHANNELS[0], 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0], **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": CHANNELS[0], "reduction": 1, "module": "act1"}]
        previous = CHANNELS[0]
        for i, channels in enumerate(CHANNELS):
            blocks = []
            for j in range((depth - 2) // 6):
                blocks.append(Block(similarity, previous, channels, 2 if i and not j else 1, **dd))
                previous = channels
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": 2**i, "module": f"layer{i + 1}"})
        self.head_drop = nn.Dropout(drop_rate)
        self._set_head(num_classes, global_pool, **dd)

    def _set_head(self, num_classes: int, global_pool: str, **dd: Any) -> None:
        if num_classes and not global_pool:
            raise ValueError("AdderResNetCifar: global_pool='' returns the feature map; it needs num_classes=0")
        # The classifier is a 1x1 convolution on the pooled map, so the map stays one until the end.
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.head: nn.Module = nn.Identity()
        if num_classes:
            width = self.num_features * self.global_pool.feat_mult()
            layers = OrderedDict(
                fc=nn.Conv2d(width, num_classes, 1, bias=False, **dd), bn=nn.BatchNorm2d(num_classes, **dd)
            )
            self.head = nn.Sequential(layers)
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^(?:conv1|bn1)", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The 1x1 convolution together with its batch norm: neither means anything without the other."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        weight = self.conv1.weight
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self._set_head(num_classes, pool, device=weight.device, dtype=weight.dtype)
        self.num_classes = num_classes
        self.head.train(self.training)

    def _stages(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{i + 1}") for i in range(len(self.feature_info) - 1)]

    def _stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the stem and the stages that ``indices`` choose, as in timm's other models."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take else []
        for i, stage in enumerate(self._stages()[:last] if stop_early else self._stages(), 1):
            x = self._stage(stage, x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages behind the last of ``indices``, and the head."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        pruned = last + 1 < len(self.feature_info)
        for i in range(last + 1, len(self.feature_info)):
            delattr(self, f"layer{i}")
        self.feature_info = self.feature_info[: last + 1]
        if prune_head or pruned:
            self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] to [N, 64, H/4, W/4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in self._stages():
            x = self._stage(stage, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[N, 64, H/4, W/4] to logits, [N, num_classes], or to the pooled features, [N, 64]."""
        x = self.head_drop(self.global_pool(x))
        return self.flatten(x if pre_logits else self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


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
