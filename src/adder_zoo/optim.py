"""``AdderSGD``: SGD with the adaptive learning rate of adder layers (AdderNet, arXiv 1912.13200, Eq. 12 and 13).

The gradients of adder filters differ in norm by orders of magnitude between layers (the paper's Table 1), so each
layer's is brought to a norm of its own before the usual update:

    Δw_l = γ · α_l · ΔL(w_l),   α_l = η·√k / ‖ΔL(w_l)‖₂,   k = elements of w_l

γ is the learning rate of the whole network. This belongs here and not into the layer's backward: the norm is taken of
the gradient of the whole batch, after it has been summed over accumulation steps and ranks and freed of the loss scale.
"""

from __future__ import annotations

import functools
import gc
import warnings
from typing import Any

import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry
from torch import Tensor, nn
from torch.optim.sgd import sgd

from .layers import filters_of, is_adder_weight
from .living import LAYERS, OPTIMIZERS

ADDER_LRS = ("adaptive", "increased", "none")


class AdderSGD(torch.optim.SGD):
    """SGD whose gradients of adder filters are scaled first, layer by layer; all other parameters get plain SGD.

    ``AdderSGD(model.parameters(), lr=0.1)`` is all there is to it: in whatever grouping parameters come, the filters
    among them are recognised by the adder layers that hold them, at each step, so the network may also be converted, or
    the optimizer's state loaded, later on. Filters that no layer holds (of a call of ``adder_zoo.adder2d``) come in a
    group that says so: ``{"params": [w], "filters": True}``. The order of the authors' recipe is kept: scale, add
    weight decay, momentum, learning rate.

    Where a filter is computed from other parameters, each of these is scaled by itself, with its own norm and k: its
    gradient is linear in the norm of the filter, and so differs between layers by the same orders of magnitude. With
    ``nn.utils.prune`` that is ``weight_orig``, where k counts the pruned elements too; with ``weight_norm`` the lengths
    (``weight_g``, [K, 1, 1, 1]) as well as the directions; with ``parametrize`` all that the parametrisation holds.

    Args:
        params: Parameters or parameter groups, as for ``torch.optim.SGD``; a group may set any option of its own.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, fused: As in ``torch.optim.SGD``.
        eta: η of Eq. 13, at least 0; the authors use 0.2.
        adder_lr: "adaptive", Eq. 13 (the paper's ALR); "increased", a fixed factor (ILR); "none", plain SGD for all.
        factor: The factor of "increased"; the paper uses 100.

    Raises:
        ValueError: an option has no meaning; or, from ``load_state_dict``, the state belongs to another optimizer.
        RuntimeError: FSDP 1 has put filters into flat parameters, in which no norm of a layer can be taken; also from
            ``step``.

    Warns once, at the first step, where none of its parameters is a filter with a gradient and yet their network has
    adder layers with filters that no optimizer has.

    A filter whose gradient is zero, or that has none, is only subject to weight decay and momentum; a gradient with a
    NaN stays one. ``group["adder"]`` tells for each parameter of a group whether it is a filter.
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
        fused: bool | None = None,
    ) -> None:
        # The options of a group that torch knows nothing of; in defaults as soon as there are any.
        self._own = {"eta": eta, "adder_lr": adder_lr, "factor": factor, "filters": False}
        # Filters that were recognised. Copies of this know theirs, though no layer may hold the copies of parameters,
        # and parameters in parts (FSDP 2) are not the layers' own while the whole ones are.
        self._known: list[Tensor] = []
        self._looked = False  # whether the network was searched for filters that are not here
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, foreach=foreach, fused=fused
        )
        self._step_supports_amp_scaling = False  # the scale of a loss must be gone before a norm is taken
        OPTIMIZERS.add(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in ``torch.optim.Optimizer``, with ``eta``, ``adder_lr``, ``factor`` and ``filters``."""
        self.defaults.update(self._own)
        options = {**self.defaults, **param_group}
        if options["adder_lr"] not in ADDER_LRS:
            raise ValueError(f"AdderSGD: adder_lr must be one of {ADDER_LRS}, got {options['adder_lr']!r}")
        if not isinstance(options["filters"], bool):
            raise ValueError(f"AdderSGD: filters must be True or False, got {options['filters']!r}")
        for name in ("eta", "factor"):
            if not options[name] >= 0:
                raise ValueError(f"AdderSGD: {name} must be at least 0, got {options[name]!r}")
        super().add_param_group(param_group)
        self._recognise()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own": self._own, "_known": self._known, "_looked": self._looked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, a pickle, or a loaded state dict; that may be plain SGD's or of a network without adder layers."""
        before = self.__dict__.get("param_groups", [])
        missing = sorted({name for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov")
                          for group in state["param_groups"] if name not in group})  # fmt: skip
        if missing:
            raise ValueError(
                f"AdderSGD: this is the state of another optimizer, without {', '.join(missing)}; load that of "
                "AdderSGD or torch.optim.SGD, or begin with a new one"
            )
        super().__setstate__(state)
        for i, group in enumerate(self.param_groups):
            known = before[i] if before else self._own
            for name in self._own:
                group.setdefault(name, known[name])
            group["filters"] = known["filters"] if before else group["filters"]  # what is here, whatever was saved
        self._step_supports_amp_scaling = False
        OPTIMIZERS.add(self)
        self._recognise()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update, as ``torch.optim.SGD.step``; ``grad`` itself stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._recognise()
        if not self._looked:
            self._look_around()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            buffers: list[Tensor | None] = []
            sparse = self._init_group(group, params, grads, buffers)
            if group["adder_lr"] != "none":
                present = [yes for p, yes in zip(group["params"], group["adder"], strict=True) if p.grad is not None]
                grads = [scaled_gradient(g, group) if yes else g for g, yes in zip(grads, present, strict=True)]
            sgd(
                params,
                grads,
                buffers,
                has_sparse_grad=sparse,
                foreach=group["foreach"],
                fused=group["fused"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )
            if group["momentum"] != 0:
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer
        return loss

    @torch.compiler.disable  # walks over what is alive, which no graph can hold
    def _recognise(self) -> None:
        """Sets ``group["adder"]``: what is a filter may change after construction (``convert_to_adder``, pruning)."""
        known = {id(p) for p in self._known}
        params = [p for group in self.param_groups for p in group["params"]]
        new = [p for p, yes in zip(params, is_adder_weight(params), strict=True) if yes and id(p) not in known]
        self._known += new
        known |= {id(p) for p in new}
        for group in self.param_groups:
            group["adder"] = [group["filters"] or id(p) in known for p in group["params"]]
            if group["adder_lr"] != "none":
                _refuse_flat(group)

    @torch.compiler.disable
    def _look_around(self) -> None:
        """Warns where a network that these parameters belong to has adder layers, and no parameter here is a filter."""
        self._looked = True
        for group in self.param_groups:
            trained = [yes and p.grad is not None for p, yes in zip(group["params"], group["adder"], strict=True)]
            if group["adder_lr"] == "none" or any(trained):
                return
        here_or_elsewhere = {id(p) for o in OPTIMIZERS for group in o.param_groups for p in group["params"]}
        left = [
            layer
            for layer in LAYERS
            if any(p.requires_grad and id(p) not in here_or_elsewhere for p in filters_of(layer))
        ]
        network = _network_of([p for group in self.param_groups for p in group["params"]], left) if left else None
        if network is not None:
            warnings.warn(
                f"AdderSGD: {type(network).__name__} holds adder layers, and none of the parameters given to this "
                "optimizer is a filter of theirs, so all of them get plain SGD. Give it the parameters of the network "
                "as it is now (a filter that was replaced after the optimizer was built is not trained at all), or a "
                'group {"params": [...], "filters": True}. If no filter is to be trained, freeze them '
                "(requires_grad_(False)).",
                stacklevel=6,  # past torch's wrappers of step
            )


def _refuse_flat(group: dict[str, Any]) -> None:
    """Raises RuntimeError where FSDP 1 keeps filters in flat parameters: of one, or of views into one."""
    for p, adder in zip(group["params"], group["adder"], strict=True):
        flat = any(part in LAYERS for info in getattr(p, "_param_infos", ()) for part in info)
        if adder and p.dim() < 2 and not hasattr(p, "to_local"):
            flat = any(
                layer.__dict__.get("_is_fsdp_managed_module") and any(f is p for f in filters_of(layer))
                for layer in LAYERS
            )
        if flat:
            raise RuntimeError(
                "AdderSGD: FSDP 1 (FullyShardedDataParallel) has put filters of adder layers into flat parameters, of "
                "which each process holds a piece; the norm of a layer's gradient cannot be taken of it. Use FSDP 2 "
                "(torch.distributed.fsdp.fully_shard; fsdp_version: 2 for accelerate), which keeps layers apart, or "
                "DistributedDataParallel."
            )


def _network_of(parameters: list[Tensor], layers: list[nn.Module]) -> nn.Module | None:
    """The outermost network that holds one of ``parameters`` and one of ``layers``.

    No layer knows what holds it, so this looks through all that is alive: a fraction of a second, once, and only where
    something is odd already.
    """
    ids, wanted = {id(p) for p in parameters}, {id(layer) for layer in layers}
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module) and "_modules" in thing.__dict__]
    inner = {id(child) for module in alive for child in list(module._modules.values())}
    for module in alive:
        if id(module) in inner or not any(id(m) in wanted for m in module.modules()):
            continue
        if any(id(p) in ids for p in module.parameters()):
            return module
    return None


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


for _name in ("addersgd", "adder_sgd"):
    default_registry.register(
        OptimInfo(
            name=_name,
            opt_class=AdderSGD,
            description="SGD with the adaptive learning rate of adder layers (arXiv 1912.13200)",
            has_eps=False,
            has_momentum=True,
            defaults={"nesterov": True},
        )
    )


def _understand_adder_sgd(registry: Any) -> None:
    """Lets timm's factory find ``adder_sgd``: it cuts a name at its last underscore, and would build plain SGD.

    Only that name is treated in another way; all others reach timm's own function as they were given.
    """
    create = registry.create_optimizer
    if getattr(create, "knows_adder_sgd", False):
        return

    @functools.wraps(create)
    def create_optimizer(model_or_params: Any, opt: str, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if opt.lower().endswith("adder_sgd"):  # also behind timm's lookahead_
            opt = opt.lower().replace("adder_sgd", "addersgd")
        return create(model_or_params, opt, *args, **kwargs)

    create_optimizer.knows_adder_sgd = True  # type: ignore[attr-defined]
    registry.create_optimizer = create_optimizer


_understand_adder_sgd(default_registry)
