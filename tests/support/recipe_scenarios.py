"""Recipes in a process of their own, for tests/training/test_equal_batches.py:

frozen  recipes/cifar.py with batch norm that keeps the statistics it begins with: then neither the number of
        processes nor the number of accumulation steps changes what a batch of images gives. In float64, where
        rounding does not turn a ReLU on or off, and so on every fourth pixel of each row and column, for time
"""

import sys

import cifar  # the test puts recipes/ on the path
import torch
from torch import nn

from adder_zoo.datasets import DataError
from adder_zoo.training import RecipeError, exit_with_message
from adder_zoo.training.data import fixed_subset


def frozen(argv):
    networks = cifar.create_networks

    def created(*args, **kwargs):
        model, teacher = networks(*args, **kwargs)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        for norm in norms:
            norm.eval()
            norm.train = lambda mode=True, norm=norm: norm
        return model, teacher

    def small(self, indices):
        images, labels = gather(self, indices)
        return images[:, :, ::4, ::4], labels

    def few_to_test(*args, **kwargs):
        images = data(*args, **kwargs)
        images.test = fixed_subset(images.test, 16)
        return images

    data, cifar.data = cifar.data, few_to_test
    gather = cifar.Augmented.__getitems__
    cifar.Augmented.__getitems__ = small
    cifar.create_networks = created
    torch.set_default_dtype(torch.float64)
    cifar.main(argv)


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2:])
    except (RecipeError, DataError) as error:
        exit_with_message(error)
