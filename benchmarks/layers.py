"""The adder layers of ResNet-18 and ResNet-50 on ImageNet: all convolutions but the first, which stays one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """``count`` layers of one shape: C channels of HxH pixels to K of PxP, by RxR filters."""

    C: int
    H: int
    K: int
    R: int
    stride: int
    count: int = 1

    @property
    def padding(self) -> int:
        return self.R // 2

    @property
    def P(self) -> int:
        return (self.H + 2 * self.padding - self.R) // self.stride + 1

    @property
    def taps(self) -> int:
        """Differences for one image, of one layer."""
        return self.P * self.P * self.K * self.C * self.R * self.R

    @property
    def name(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.R}x{self.R}{stride} {self.C}->{self.K} @{self.H}"


def _collect(layers: list[tuple[int, int, int, int, int]]) -> list[Layer]:
    return [Layer(*shape, count=layers.count(shape)) for shape in dict.fromkeys(layers)]


def resnet18() -> list[Layer]:
    layers, C, H = [], 64, 56
    for K, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [(C, H, K, 3, stride), (K, H // stride, K, 3, 1)]
        if stride > 1:
            layers.append((C, H, K, 1, stride))
        C, H = K, H // stride
        layers += [(K, H, K, 3, 1)] * 2
    return _collect(layers)


def resnet50() -> list[Layer]:
    """The bottleneck's stride is at its 3x3 layer, as in timm and torchvision."""
    layers, C, H = [], 64, 56
    for width, stride, blocks in ((64, 1, 3), (128, 2, 4), (256, 2, 6), (512, 2, 3)):
        K = 4 * width
        for block in range(blocks):
            s = stride if block == 0 else 1
            layers += [(C, H, width, 1, 1), (width, H, width, 3, s), (width, H // s, K, 1, 1)]
            if block == 0:
                layers.append((C, H, K, 1, s))
            C, H = K, H // s
    return _collect(layers)


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}
