"""``quantize``: a trained adder network in bytes, for inference.

How: the network is fused (``adder_zoo.fuse``), each fused layer gets the range of values that its bytes cover
(``calibrate.py``), and becomes a ``QuantizedAdder2d``. Then bytes are let go from layer to layer (``connect.py``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..architecture import name_and_tag
from ..fuse import FusedAdder2d
from .calibrate import CalibrationError, calibrate
from .layers import BITS, QuantizedAdder2d, quantized_layer, range_of
from .saved import finish, fused_for_bytes, is_quantised, quantisable, replace_layers, tagged

MUCH = 0.5  # of the outputs' spread, which rounding may cost without a warning
Calibration = Tensor | DataLoader | Iterable[Any]


def quantize(
    model: nn.Module, calibration: Calibration | None = None, *, bits: int | None = None, images: int = 512
) -> nn.Module:
    """A copy of ``model`` in which adder layers compute with integers of ``bits`` bits, for inference.

    Adder layers, fully connected ones too, become integer layers: their activations and filters are uint8, sums are
    exact. Between them bytes pass max pooling, ReLU and flattening as bytes. Convolutions and whatever else the network
    has stay float32. Nothing is trained.

    Args:
        model: An adder network in eval mode: the zoo's, a converted one, your own. It is left as it is.
        calibration: Images as the network takes them, normalised, of the kind that it will see: a tensor
            [N, C, H, W], a loader, or any iterable of batches, which are images or (images, labels). A few hundred
            are enough. None for a network that ``fake_quantize`` made, whose ranges are settled.
        bits: 8; or 2 to 7, on the same kernels, to study what a network needs. Default: 8, or those that the network
            was fine-tuned for.
        images: How many images are used at the most.

    Returns:
        The network. Its input and output are as in ``model``, but bytes have no NaN: an input with one gets finite
        logits. It pickles, copies, compiles and exports; ``train()`` raises. ``adder_zoo.save_pretrained`` saves it.

    Raises:
        ValueError: bits or images out of range; no images, or images that are not finite or do not differ; a network in
            training mode, without adder layers, or of which nothing can be quantised (the message says why).

    Warns:
        UserWarning: layers stay float32, which are named; or the outputs differ much from the float network's.

    Example:
        >>> import adder_zoo, timm, torch
        >>> model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
        >>> small = adder_zoo.quantize(model, torch.rand(64, 1, 32, 32))
    """
    fused, layers, left = fused_layers("quantize", model)
    new: dict[str, QuantizedAdder2d] = {}
    for name, layer in layers.items():
        if layer.input_range is not None:
            new[name] = quantized_layer(layer, range_of(layer.input_range.tolist()))
    rest = {name: layer for name, layer in layers.items() if name not in new}
    trained = {layer.input_range.bits for layer in new.values()}
    if bits is not None and trained - {bits}:
        raise ValueError(
            f"quantize: this network was fine-tuned for {min(trained)} bits, got bits={bits!r}; leave it out"
        )
    sample = None
    if rest and (calibration is not None or not new):
        found, sample = calibrated("quantize", fused, rest, calibration, 8 if bits is None else bits, images)
        new |= found
    left |= unreached("quantize", model, layers, new)
    if left:
        warnings.warn(f"quantize: these adder layers stay float32:{listed(left)}", stacklevel=2)
    used = max(layer.input_range.bits for layer in new.values())
    origin, tag = name_and_tag(model)
    network = replace_layers(fused, {name: new[name] for name in layers if name in new})
    network = finish(network, model, origin, tagged(tag, used))
    lost = 0.0 if sample is None else _lost(network, *sample)
    if lost > MUCH:
        warnings.warn(
            f"quantize: on calibration images the outputs differ by {lost:.2f} of their spread from the float "
            "network's. A trained network loses a few hundredths at 8 bits, and a few tenths at 4. One with random "
            "weights amplifies every rounding from layer to layer: judge quantisation on a trained network. If this is "
            "one, take more bits, and images of the kind that it was trained on.",
            stacklevel=2,
        )
    return network


def fused_layers(caller: str, model: nn.Module) -> tuple[nn.Module, dict[str, FusedAdder2d], dict[str, str]]:
    """``model`` fused; its layers that can be quantised, and why the others cannot, by name.

    Raises:
        ValueError: a network in training mode, quantised already, or of which nothing can be quantised.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"{caller}: {training[0]} is in training mode; call model.eval() first")
    if is_quantised(model):
        raise ValueError(f"{caller}: this network is quantised already; give the float network")
    fused = fused_for_bytes(model)
    layers, left = quantisable(fused)
    if not layers:
        raise ValueError(f"{caller}: nothing of {type(model).__name__} can be quantised:{listed(left)}")
    return fused, layers, left


def calibrated(
    caller: str, fused: nn.Module, layers: dict[str, FusedAdder2d], calibration: Any, bits: int, images: int
) -> tuple[dict[str, QuantizedAdder2d], tuple[Tensor, Any]]:
    """``layers`` of the network ``fused`` in integers of ``bits`` bits, by name; not those that no image reaches.

    And a batch of the images, with what ``fused`` makes of it.

    Raises:
        ValueError: bits or images out of range, or images that do not tell the ranges.
    """
    if type(bits) is not int or bits not in BITS:
        raise ValueError(f"{caller}: bits must be a whole number from {BITS[0]} to {BITS[-1]}, got {bits!r}")
    if type(images) is not int or images < 1:
        raise ValueError(f"{caller}: images must be a whole number from 1, got {images!r}")
    batches = _batches(caller, calibration, images, next(fused.parameters()))
    try:
        found = calibrate(fused, layers, batches, bits)
    except CalibrationError as error:
        raise ValueError(f"{caller}: {error}") from error
    with torch.no_grad():
        sample = batches[0], fused(batches[0])
    return {name: calibration.choose(layers[name]) for name, calibration in found.items()}, sample


@torch.no_grad()
def _lost(network: nn.Module, images: Tensor, wanted: Any) -> float:
    """How far the outputs are from those wanted, as a share of how far these are apart; 0 where that says nothing."""
    if not isinstance(wanted, Tensor) or not wanted.is_floating_point() or len(images) < 2 or not wanted.dim():
        return 0.0
    error, spread = (network(images) - wanted).double(), (wanted - wanted.mean(0)).double()
    spread_squared = float(spread.square().mean())
    return (float(error.square().mean()) / spread_squared) ** 0.5 if spread_squared > 0 else 0.0


def unreached(
    caller: str, model: nn.Module, layers: dict[str, FusedAdder2d], found: dict[str, QuantizedAdder2d]
) -> dict[str, str]:
    """Why those of ``layers`` that are not among ``found`` stay float32, by name.

    Raises:
        ValueError: all of them do.
    """
    left = {name: "no calibration image reaches it: forward did not call it" for name in layers if name not in found}
    if not found:
        raise ValueError(f"{caller}: nothing of {type(model).__name__} can be quantised:{listed(left)}")
    return left


def listed(left: dict[str, str]) -> str:
    return "".join(f"\n  {name}: {reason}" for name, reason in left.items())


def _batches(caller: str, calibration: Any, images: int, like: Tensor) -> list[Tensor]:
    """Up to ``images`` images of the calibration, in batches, where and as precise as the network is."""
    if calibration is None:
        raise ValueError(f"{caller}: give calibration images; a few hundred of the training set are enough")
    if isinstance(calibration, Tensor):
        calibration = calibration.split(64) if calibration.dim() == 4 else [calibration]
    if not isinstance(calibration, Iterable):
        raise ValueError(
            f"{caller}: calibration must be a tensor of images, a loader or batches, got {type(calibration).__name__}"
        )
    batches: list[Tensor] = []
    for batch in calibration:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(batch, Tensor) or batch.dim() != 4 or not batch.is_floating_point():
            what = f"{batch.dtype} of {list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"{caller}: calibration needs batches of images, float [N, C, H, W], got {what}")
        batch = batch[: images - sum(map(len, batches))]
        if not torch.isfinite(batch).all():
            raise ValueError(f"{caller}: the calibration images have values that are not finite")
        if len(batch):
            batches.append(batch.to(like.device, like.dtype))
        if sum(map(len, batches)) >= images:
            break
    if not batches:
        raise ValueError(f"{caller}: there are no calibration images; a few hundred of the training set are enough")
    return batches
