"""What the paper's networks share: stages of layers one after another, a hidden layer, a classifier.

    x - stages - pre_logits - dropout - head

A family builds the parts; this class makes them a citizen of timm: features, head, pruning, checkpointing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..norms import BatchNorm1d, BatchNorm2d
from ..ops.geometry import numbers
from ._pretrained import check_input_channels, drop_keys
from ._similarity import conv2d, linear


class StagedNet(nn.Module):
    """Base of LeNet-5-BN, LeNet++, VGG-small and the ResNets for CIFAR.

    Args:
        num_classes: Classes; 0 leaves the classifier out and returns the hidden layer.
        in_chans: Channels of the images.
        similarity: What compares a patch with a filter (Eq. 1): "adder", the negative L1 distance; "conv", the
            cross-correlation of ``nn.Conv2d`` and ``nn.Linear``; "xnor", a correlation of one-bit values. All else is
            the same.
        global_pool: "avg"; "" with num_classes = 0 returns the last stage's map.
        drop_rate: Dropout before the classifier.
        img_size: The size of images, a number or (height, width), where a subclass has a ``fixed_size`` only that; a
            network without one takes images of any size, whatever it is.

    A subclass sets ``stages`` (or says by ``run_stage`` and ``drop_stages`` what they are), ``feature_info``, one entry
    for each, ``num_features``, ``head_hidden_size`` and ``pre_logits``, and says of what similarity the classifier is.
    """

    stages: nn.Sequential
    pre_logits: nn.Module
    feature_info: list[dict[str, Any]]
    num_features: int
    head_hidden_size: int
    classifier_similarity: str
    fixed_size: int | None = None

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        similarity: str,
        global_pool: str,
        drop_rate: float,
        img_size: int | Sequence[int] | None,
    ) -> None:
        super().__init__()
        if self.fixed_size is not None and img_size is not None:
            require_image_size(img_size, self.fixed_size, type(self).__name__)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.similarity = self.classifier_similarity = similarity
        self.global_pool = self._pooling(global_pool, num_classes)
        self.head_drop = nn.Dropout(drop_rate)
        self.grad_checkpointing = False
        self.feature_info = []

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError for images that do not fit."""
        if self.fixed_size is not None:
            require_images_of_size(x, self.fixed_size, type(self).__name__)

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """Stage ``i``, whose output ``feature_info[i]`` describes."""
        return self.stages[i](x)

    def drop_stages(self, kept: int) -> None:
        """Drops all stages but the first ``kept``."""
        self.stages = self.stages[:kept]

    def _pooling(self, global_pool: str, num_classes: int) -> str:
        name = type(self).__name__
        if global_pool not in ("avg", ""):
            raise ValueError(f"{name}: global_pool must be 'avg' or '', got {global_pool!r}")
        if num_classes and not global_pool:
            raise ValueError(f"{name}: global_pool='' returns the feature map; it needs num_classes=0")
        return global_pool

    def _classifier(self, num_classes: int, **dd: Any) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        fc = linear(self.classifier_similarity, self.head_hidden_size, num_classes, **dd)
        return classifier(fc=fc, bn=BatchNorm1d(num_classes, **dd))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [(r"^stages\.(\d+)\.", None), (r"^pre_logits\.", (len(self.stages),))]
        return {"stem": r"^stages\.0\.", "blocks": blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer together with its batch norm: neither means anything without the other.

        Like the ``nn.Linear`` of other networks it has ``in_features`` and ``out_features``.
        """
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = self._pooling(self.global_pool if global_pool is None else global_pool, num_classes)
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
        """The outputs of the stages that ``indices`` choose, as in timm's other models."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        self.check_input(x)
        intermediates = []
        for i in range(last + 1 if stop_early else len(self.feature_info)):
            x = self.run_checkpointed(i, x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages behind the last of ``indices``, and the head."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        pruned = last + 1 < len(self.feature_info)
        self.drop_stages(last + 1)
        self.feature_info = self.feature_info[: last + 1]
        if prune_head or pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.pre_logits = nn.Sequential()
            self.reset_classifier(0, "")
        return take

    def run_checkpointed(self, i: int, x: Tensor) -> Tensor:
        """``run_stage``, whose inner activations are computed again in the backward pass if that is enabled."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(self.run_stage, i, x)
        return self.run_stage(i, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] to the last stage's map."""
        self.check_input(x)
        for i in range(len(self.feature_info)):
            x = self.run_checkpointed(i, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map to logits, [N, num_classes], or to the hidden layer, [N, head_hidden_size]."""
        if not self.global_pool:
            return x
        x = self.head_drop(self.pre_logits(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def classifier(**layers: nn.Module) -> nn.Sequential:
    """A head of layers one after another, among them ``fc``, with the attributes that users of timm read of it."""
    head: Any = nn.Sequential(OrderedDict(layers))
    weight: Any = layers["fc"].weight
    head.out_features, head.in_features = weight.shape[:2]
    return head


def filter_for(first: str) -> Any:
    """A checkpoint filter for a network whose first layer is ``first``.

    It refuses filters for other input channels, and drops a classifier for other classes with its statistics.
    """

    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        check_input_channels(state_dict, f"{first}.weight", model.in_chans)  # type: ignore[arg-type]
        classifier = state_dict.get("head.fc.weight")
        if classifier is not None and classifier.shape[0] != model.num_classes:
            return drop_keys(state_dict, "head.")
        return state_dict

    return checkpoint_filter_fn


def conv_stage(
    similarities: Sequence[str], in_channels: int, channels: int, kernel_size: int, **dd: Any
) -> nn.Sequential:
    """Layers of ``similarities`` that keep the size, each with batch norm and ReLU, and max pooling by 2 behind."""
    layers: list[tuple[str, nn.Module]] = []
    for j, similarity in enumerate(similarities, 1):
        layers += [
            (f"conv{j}", conv2d(similarity, in_channels, channels, kernel_size, padding=kernel_size // 2, **dd)),
            (f"bn{j}", BatchNorm2d(channels, **dd)),
            (f"act{j}", nn.ReLU(inplace=True)),
        ]
        in_channels = channels
    return nn.Sequential(OrderedDict([*layers, ("pool", nn.MaxPool2d(2))]))


def require_image_size(size: int | Sequence[int], wanted: int, name: str) -> None:
    """Raises ValueError if ``img_size`` is not the only one that fits."""
    if (tuple(size) if isinstance(size, Sequence) else (size, size)) != (wanted, wanted):
        raise ValueError(f"{name} takes images of {wanted} x {wanted} pixels, not img_size={size!r}")


@torch.fx.wrap  # a condition on the shape, which a symbolic trace cannot follow
def require_images_of_size(x: Tensor, wanted: int, name: str) -> None:
    """Raises ValueError for images of other sizes than ``wanted`` x ``wanted``."""
    if has_torch_function_unary(x):  # a proxy of torch.fx: the graph checks when it is run
        return handle_torch_function(require_images_of_size, (x,), x, wanted, name)
    if x.dim() != 4 or numbers(x.shape[2:]) != [wanted, wanted]:
        raise ValueError(
            f"{name} takes images of {wanted} x {wanted} pixels, [N, C, {wanted}, {wanted}], got {tuple(x.shape)}; "
            "resize them (timm.data.create_transform does, with timm.data.resolve_data_config)"
        )
