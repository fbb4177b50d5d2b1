"""The zoo: one file per family. Importing it registers every model with timm.

    import adder_zoo, timm

    model = timm.create_model("adder_lenet5_bn", pretrained=True)
    timm.list_models(module="lenet")

The last part of a family's file name is its module name in timm's registry, so it must not be one of timm's own.
"""

from ..paths import WEIGHTS
from . import imagenet, mobilenet_cifar
from ._similarity import SIMILARITIES
from .lenet import AdderLeNet5
from .lenetpp import AdderLeNetPP
from .resnet_cifar import AdderResNetCifar
from .vgg_small import AdderVggSmall

__all__ = [
    "SIMILARITIES",
    "WEIGHTS",
    "AdderLeNet5",
    "AdderLeNetPP",
    "AdderResNetCifar",
    "AdderVggSmall",
    "imagenet",
    "mobilenet_cifar",
]
