"""Small integer networks for tests: every kind of step is in one of them."""

import copy
import warnings

import torch
from small_networks import SIZES, network
from timm.layers import BatchNormAct2d
from torch import nn

import adder_zoo

MEAN, STD = 0.45, 0.25


class Mixed(nn.Module):
    """What the zoo's networks have none of: a first adder layer on colours, readers of two ranges, a padded pool."""

    def __init__(self, similarity):
        super().__init__()

        def layer(*args, **kwargs):
            kind = adder_zoo.Adder2d if similarity == "adder" else nn.Conv2d
            return kind(*args, bias=False, **kwargs)

        self.a, self.bn_a = layer(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.b, self.bn_b = layer(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c, self.bn_c = layer(4, 6, 1), nn.BatchNorm2d(6)
        self.d, self.bn_d = layer(6, 5, (1, 2)), nn.BatchNorm2d(5)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn_a(self.a(x))))
        x = self.bn_c(self.c(x)) + self.bn_b(self.b(x))  # signed
        return self.head(torch.flatten(self.average(torch.relu(self.bn_d(self.d(x)))), 1))


class Grouped(nn.Module):
    """What networks for small devices are made of: groups, one for each channel too, dilation, and ReLU6."""

    def __init__(self, similarity):
        super().__init__()

        def layer(*args, **kwargs):
            kind = adder_zoo.Adder2d if similarity == "adder" else nn.Conv2d
            return kind(*args, bias=False, **kwargs)

        self.a = nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.bn_a = BatchNormAct2d(6, act_layer=nn.ReLU6)
        self.b, self.bn_b, self.act_b = layer(6, 12, 3, stride=2, padding=1, groups=6), nn.BatchNorm2d(12), nn.ReLU6()
        self.c, self.bn_c = layer(12, 8, (2, 1), groups=2), nn.BatchNorm2d(8)
        self.d, self.bn_d = layer(8, 8, 3, padding=(2, 1), dilation=(2, 1), groups=8), nn.BatchNorm2d(8)
        self.e, self.bn_e = layer(8, 5, (1, 2), dilation=(1, 3)), nn.BatchNorm2d(5)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.act_b(self.bn_b(self.b(self.bn_a(self.a(x)))))
        x = self.bn_c(self.c(x))
        x = self.bn_d(self.d(x)) + x
        x = nn.functional.relu6(self.bn_e(self.e(x)))
        return self.head(torch.flatten(self.average(x), 1))


CLASSES = {"mixed": Mixed, "grouped": Grouped}


def pixels(count, channels, height, width, seed=0):
    """uint8 [N, H, W, C]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, channels), generator=generator, dtype=torch.uint8)


def normalised(images):
    return (images.permute(0, 3, 1, 2) / 255 - MEAN) / STD


def float_network(name, similarity="adder"):
    """A float network in eval mode, and images for it."""
    if name in CLASSES:
        torch.manual_seed(0)
        model, images = CLASSES[name](similarity), pixels(16, 3, 9, 11)
        with adder_zoo.reestimated_batch_norm(model, [normalised(images)]):
            return copy.deepcopy(model).eval(), images
    return network(name, similarity=similarity), pixels(16, *SIZES[name])


def integer_network(name, similarity="adder", multiplier_free=False):
    """The integer network, the network that it was made of, and images."""
    model, images = float_network(name, similarity)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="quantize: these adder layers stay float32")
        small = adder_zoo.quantize(model, normalised(images)) if similarity == "adder" else model
    integers = adder_zoo.to_integers(small, images, mean=[MEAN], std=[STD], multiplier_free=multiplier_free)
    return integers, small, images
