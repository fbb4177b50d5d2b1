"""``fake_quantize``: a network whose training sees the rounding that ``quantize`` will do (arXiv 1712.05877).

Each adder layer keeps its float filters, which the optimizer moves, and computes with what its bytes stand for, see
``fake.py``. The range of a layer is chosen once, from calibration images, and then stays: a common factor of x, w and
the range only scales the sums, which batch norm divides out again, so training loses nothing by a fixed one.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from .layers import range_integers
from .quantize import Calibration, calibrated, fused_layers, listed, unreached


def fake_quantize(model: nn.Module, calibration: Calibration, *, bits: int = 4, images: int = 512) -> nn.Module:
    """A copy of ``model`` to fine-tune for few bits: it computes in float32 with the values that bytes stand for.

    Train it as any network, then call ``quantize(network.eval())``: it takes the same ranges and filters. Sums are
    exact then, where float32 rounded them. So a value at the border of two levels may become the other one, and others
    behind it; with few bits this moves the logits as rounding itself does (docs/paper/quantization.json has both
    accuracies of a 4-bit ResNet-20).

    The adder layers keep their gradients (``weight_grad``, ``input_grad``), which pass the rounding as it is. In a
    state dict each such layer has ``input_range``; a network of the same kind that loads it computes in the same way.

    Args:
        model: A trained float network in eval mode, as for ``quantize``. It is left as it is.
        calibration: Images to choose ranges by, as for ``quantize``; best prepared as training prepares them.
        bits: 2 to 8. At 8 there is rarely anything to gain.
        images: How many images are used at the most.

    Returns:
        The copy, in eval mode.

    Raises:
        ValueError: as ``quantize`` does; or the network is one of ``fake_quantize`` already.

    Example:
        >>> import adder_zoo, timm, torch
        >>> model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
        >>> images = torch.rand(64, 1, 32, 32)
        >>> network = adder_zoo.fake_quantize(model, images, bits=3)
        >>> # train it here, then
        >>> small = adder_zoo.quantize(network.eval())
    """
    fused, layers, left = fused_layers("fake_quantize", model)
    if any(layer.input_range is not None for layer in layers.values()):
        raise ValueError("fake_quantize: this network was made for fine-tuning already; give the float network")
    found, _ = calibrated("fake_quantize", fused, layers, calibration, bits, images)
    left |= unreached("fake_quantize", model, layers, found)
    if left:
        warnings.warn(f"fake_quantize: these adder layers stay float32:{listed(left)}", stacklevel=2)
    network = copy.deepcopy(model)
    for name, layer in found.items():
        trained = network.get_submodule(name)
        device = next(trained.parameters()).device
        trained.input_range = torch.tensor(range_integers(layer.input_range), device=device)
    return network
