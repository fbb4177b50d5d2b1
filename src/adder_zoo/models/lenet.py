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

import torch
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models import register_notrace_function as leaf
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ._pretrained import PAPER, build_model, bundled, check_input_channels, without
from ._similarity import conv2d, linear

__all__ = ["AdderLeNet5"]

SIZE = 32
CHANNELS = (6, 16, 120)
HIDDEN = 84

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "file": bundled(name),
        "input_size": (1, SIZE, SIZE),
        "fixed_input_size": True,
        "pool_size": (1, 1),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "num_classes": 10,
        "first_conv": "stages.0.conv",
        "classifier": ("head.fc", "head.bn"),
        **PAPER,
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "adder_lenet5_bn.fashion_mnist": _cfg(
            "adder_lenet5_bn.fashion_mnist", mean=(0.2860,), std=(0.3530,), label_names=CLOTHES
        ),
        "adder_lenet5_bn.mnist": _cfg("adder_lenet5_bn.mnist", mean=(0.1307,), std=(0.3081,), label_names=DIGITS),
    }
)


@leaf
def _check_size(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[2] != SIZE or x.shape[3] != SIZE:
        raise ValueError(
            f"adder_lenet5_bn takes images of {SIZE} x {SIZE} pixels, [N, C, {SIZE}, {SIZE}], got {tuple(x.shape)}; "
            "resize them (timm.data.create_transform does, with timm.data.resolve_data_config)"
        )


class AdderLeNet5(nn.Module):
    """LeNet-5-BN with adder layers, or its convolutional or binary twin.

    Args:
        num_classes: Classes; 0 leaves the classifier out and returns the hidden layer, [N, 84].
        in_chans: Channels of the images.
        similarity: What compares a patch with a filter (Eq. 1): "adder", the negative L1 distance; "conv", the
            cross-correlation of ``nn.Conv2d`` and ``nn.Linear``; "xnor", that of one-bit values. All else is the same.
        global_pool: "avg", which is nothing to do on a 1 x 1 map; "" with num_classes = 0 returns the map, [N, 120, 1,
            1].
        drop_rate: Dropout before the last layer.
        img_size: 32, for timm's sake; nothing else fits.
        device, dtype: Of the parameters.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        similarity: str = "adder",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        img_size: int | Sequence[int] = SIZE,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if size != (SIZE, SIZE):
            raise ValueError(f"adder_lenet5_bn takes images of {SIZE} x {SIZE} pixels, not img_size={img_size!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.similarity = similarity
        self.num_features = CHANNELS[-1]
        self.head_hidden_size = HIDDEN
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        dd = {"device": device, "dtype": dtype}

        stages = []
        previous = in_chans
        for i, channels in enumerate(CHANNELS):
            layers: list[tuple[str, nn.Module]] = [("pool", nn.MaxPool2d(2))] if i else []
            layers += [
                ("conv", conv2d(similarity, previous, channels, 5, **dd)),
                ("bn", nn.BatchNorm2d(channels, **dd)),
                ("act", nn.ReLU(inplace=True)),
            ]
            stages.append(nn.Sequential(OrderedDict(layers)))
            self.feature_info.append({"num_chs": channels, "reduction": 2**i, "module": f"stages.{i}"})
            previous = channels
        self.stages = nn.Sequential(*stages)
        self.global_pool = _pooling(global_pool, num_classes)
        self.pre_logits = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(1),
                fc=linear(self.similarity, CHANNELS[-1], HIDDEN, **dd),
                bn=nn.BatchNorm1d(HIDDEN, **dd),
                act=nn.ReLU(inplace=True),
            )
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier(num_classes, **dd)

    def _classifier(self, num_classes: int, **dd: Any) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        return nn.Sequential(
            OrderedDict(fc=linear(self.similarity, HIDDEN, num_classes, **dd), bn=nn.BatchNorm1d(num_classes, **dd))
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stages\.0\.", "blocks": [(r"^stages\.(\d+)\.", None), (r"^pre_logits\.", (len(CHANNELS),))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer together with its batch norm: neither means anything without the other."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = _pooling(self.global_pool if global_pool is None else global_pool, num_classes)
        self.num_classes = num_classes
        weight = next(self.parameters())
        self.head = self._classifier(num_classes, device=weight.device, dtype=weight.dtype)
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the three stages that ``indices`` choose, as in timm's other models."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        _check_size(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages behind the last of ``indices``, and the head."""
        take, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_head or last + 1 < len(CHANNELS):
            self.num_features = self.head_hidden_size = CHANNELS[last]
            self.pre_logits = nn.Sequential()
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, 32, 32] to [N, 120, 1, 1]."""
        _check_size(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages, x)
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[N, 120, 1, 1] to logits, [N, num_classes], or to the hidden layer, [N, 84]."""
        if not self.global_pool:
            return x
        x = self.head_drop(self.pre_logits(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _pooling(global_pool: str, num_classes: int) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"adder_lenet5_bn: global_pool must be 'avg' or '', got {global_pool!r}")
    if num_classes and not global_pool:
        raise ValueError("adder_lenet5_bn: global_pool='' returns the feature map; it needs num_classes=0")
    return global_pool


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Checks a checkpoint against the model, and drops a classifier for other classes with its statistics."""
    check_input_channels(state_dict, "stages.0.conv.weight", model.in_chans)  # type: ignore[arg-type]
    classifier = state_dict.get("head.fc.weight")
    if classifier is not None and classifier.shape[0] != model.num_classes:
        return without(state_dict, "head.")
    return state_dict


@register_model
def adder_lenet5_bn(pretrained: bool = False, **kwargs: Any) -> AdderLeNet5:
    """LeNet-5-BN of arXiv 1912.13200, sec. 4.1; ``similarity="conv"`` is the convolutional network it is held against.

    Weights: ``adder_lenet5_bn.fashion_mnist`` (default) and ``adder_lenet5_bn.mnist``, both in the package.
    """
    out_indices = kwargs.pop("out_indices", tuple(range(len(CHANNELS))))
    return build_model(
        AdderLeNet5,
        "adder_lenet5_bn",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )
