"""``AdderSGD``: SGD with the adaptive learning rate of adder layers (AdderNet, arXiv 1912.13200, Eq. 12 and 13).

The gradients of adder filters differ in norm by orders of magnitude between layers (the paper's Table 1), so each
layer's is brought to a norm of its own before the usual update:

    Δw_l = γ · α_l · ΔL(w_l),   α_l = η·√k / ‖ΔL(w_l)‖₂,   k = elements of w_l

γ is the learning rate of the whole network. This belongs here and not into the layer's backward: the norm is that of
the gradient of the whole batch, after it has been summed over accumulation steps and ranks and freed of the loss scale.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry
from torch import Tensor

from .layers import is_adder_weight

ADDER_LRS = ("adaptive", "increased", "none")


class AdderSGD(torch.optim.SGD):
    """SGD whose gradients of adder filters are scaled first, layer by layer; all other parameters get plain SGD.

    The filters of adder layers are recognised by the layers that hold them when the optimizer is built, so parameters
    may come in any grouping: ``AdderSGD(model.parameters(), lr=0.1)`` is all there is to it. The order of the authors'
    recipe is kept: scale, add weight decay, momentum, learning rate.

    Args:
        params: Parameters or parameter groups, as for ``torch.optim.SGD``; a group may set any option of its own.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach: As in ``torch.optim.SGD``.
        eta: η of Eq. 13, at least 0; the authors use 0.2.
        adder_lr: "adaptive", Eq. 13 (the paper's ALR); "increased", a fixed factor (ILR); "none", plain SGD for all.
        factor: The factor of "increased"; the paper uses 100.

    Raises:
        ValueError: an option has no meaning.

    A filter whose gradient is zero, or that has none, is only subject to weight decay and momentum; a gradient with a
    NaN stays one.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        eta: float = 0.2,
        adder_lr: str = "adaptive",
        factor: float = 100.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        self._own = {"eta": eta, "adder_lr": adder_lr, "factor": factor}  # until there are defaults to put them in
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, foreach=foreach)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as in ``torch.optim.Optimizer``, with ``eta``, ``adder_lr`` and ``factor``."""
        self.defaults.update(self.__dict__.pop("_own", {}))
        options = {**self.defaults, **param_group}
        if options["adder_lr"] not in ADDER_LRS:
            raise ValueError(f"AdderSGD: adder_lr must be one of {ADDER_LRS}, got {options['adder_lr']!r}")
        for name in ("eta", "factor"):
            if not options[name] >= 0:
                raise ValueError(f"AdderSGD: {name} must be at least 0, got {options[name]!r}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["adder"] = is_adder_weight(group["params"])  # one for each parameter; saved with the state

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        momentum_buffer_list: list[Tensor | None],
    ) -> bool:
        # SGD's step gathers here what it updates with; ``grad`` itself stays as it is.
        sparse = super()._init_group(group, params, grads, momentum_buffer_list)
        if group["adder_lr"] != "none":
            with_grad = zip(group["params"], group["adder"], strict=True)
            adder = [yes for parameter, yes in with_grad if parameter.grad is not None]
            for i, yes in enumerate(adder):
                if yes:
                    grads[i] = scaled_gradient(grads[i], group)
        return sparse


def scaled_gradient(grad: Tensor, group: dict[str, Any]) -> Tensor:
    """The gradient of one adder layer's filters, multiplied by its local learning rate α_l (Eq. 13)."""
    if group["adder_lr"] == "increased":
        return grad * group["factor"]
    # Divided by its largest element first: squares of what mixed precision leaves of a small gradient would underflow.
    tiny = torch.finfo(grad.dtype).tiny
    grad = grad / grad.abs().amax().clamp_min(tiny)
    norm = torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
    # Now no norm lies between 0 and eps, the smallest subnormal number over tiny, so a gradient of zeros stays one.
    rate = group["eta"] * grad.numel() ** 0.5 / norm.clamp_min(torch.finfo(grad.dtype).eps)
    return (grad * rate).to(grad.dtype)


# No underscore in the name: timm cuts a name at its last one, and `adder_sgd` would be plain SGD.
default_registry.register(
    OptimInfo(
        name="addersgd",
        opt_class=AdderSGD,
        description="SGD with the adaptive learning rate of adder layers (arXiv 1912.13200)",
        has_eps=False,
        has_momentum=True,
        defaults={"nesterov": True},
    )
)
