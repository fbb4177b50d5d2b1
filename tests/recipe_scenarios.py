"""Recipes in a process of their own, for tests/test_recipes.py:

frozen      recipes/cifar.py with batch norm that keeps the statistics it begins with: then neither the number of
            processes nor that of accumulation steps changes what a batch of images gives
reversed    the same, with the images of each batch from last to first: sums that are rounded otherwise
"""

import sys

import cifar  # the test puts recipes/ on the path
import torch
from _settings import RecipeError, fail
from torch import nn

from adder_zoo.datasets import DataError


def frozen(argv):
    create = cifar.create

    def created(*args, **kwargs):
        model = create(*args, **kwargs)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        for norm in norms:
            norm.eval()
            norm.train = lambda mode=True, norm=norm: norm
        return model

    cifar.create = created
    cifar.main(argv)


def reversed(argv):
    gather = cifar.Augmented.__getitems__
    cifar.Augmented.__getitems__ = lambda self, indices: gather(self, indices[::-1])
    frozen(argv)


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2:])
    except (RecipeError, DataError) as error:
        sys.exit(fail(error))
