"""Small networks of the zoo for tests, with batch norm that fits their filters."""

import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

SIZES = {
    "adder_lenet5_bn": (1, 32, 32),
    "adder_lenetpp": (1, 28, 28),
    "adder_resnet8": (3, 8, 8),
    "adder_vgg_small": (3, 8, 8),
}


def network(name="adder_resnet8", **kwargs):
    """A small network whose batch norms fit its filters."""
    if name == "adder_resnet8":
        model = timm.create_model("adder_resnet20", depth=8, **kwargs)
    else:
        model = timm.create_model(name, **kwargs)
    return fitted(model, SIZES[name])


def fitted(model, size):
    model.train()
    for norm in batch_norms(model):
        norm.momentum = None
    with torch.no_grad():
        model(torch.randn(8, *size, dtype=next(model.parameters()).dtype))
    for norm in batch_norms(model):
        norm.momentum = 0.1
    return model.eval()


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def dtypes(tensors):
    return {t.dtype for t in tensors if t.is_floating_point()}
