"""Gradients of operators, for autograd and for ``torch.func`` alike; a forward-mode tangent is refused.

``torch.library``'s own ``register_autograd`` gives an operator a gradient that ``torch.func`` cannot use, and it passes
over a tangent: ``torch.func.jvp`` would answer zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad


def register_autograd(
    library: torch.library.Library,
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] = lambda ctx, inputs, output: None,
) -> None:
    """Gives an operator of ``library`` a gradient; arguments as in ``torch.library.register_autograd``.

    Args:
        library: Where the operator is defined.
        name: Its name there.
        backward: ``backward(ctx, *grads)``, one gradient for each argument of the operator.
        setup_context: ``setup_context(ctx, inputs, output)``, with all inputs, defaults filled in.
    """
    operator = getattr(getattr(torch.ops, library.ns), name).default
    after_autograd = torch._C._after_autograd_keyset
    defaults = [argument.default_value for argument in operator._schema.arguments]

    def below(keyset: Any, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & after_autograd, *args)

    def forward(ctx: Any, *args: Any) -> Any:
        *inputs, keyset = args  # last, so that needs_input_grad counts from the operator's first argument
        output = below(keyset, inputs)
        setup_context(ctx, inputs, output)
        return output

    def gradients(ctx: Any, *grads: Any) -> tuple:
        return *backward(ctx, *grads), None

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(
            f"{library.ns}::{name} has no forward-mode derivative. Use reverse mode: backward(), torch.func.grad, vjp "
            "or jacrev."
        )

    def forward_of_a_level(ctx: Any, *args: Any) -> Any:
        # apply() turns gradients off, and the levels below want theirs.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return forward(ctx, *args)

    rules = {"backward": staticmethod(gradients), "jvp": staticmethod(jvp)}
    function = type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), **rules})
    # In a transform of torch.func this kernel runs once for each level, as torch's own operators do.
    rules["forward"] = staticmethod(forward_of_a_level)
    of_a_level = type(name, (torch.autograd.function._SingleLevelFunction,), rules)

    def kernel(keyset: Any, *args: Any) -> Any:
        needs_grad = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        if not needs_grad and forward_ad._current_level < 0:
            return below(keyset, args)
        args = (*args, *defaults[len(args) :])
        if not torch._C._are_functorch_transforms_active():
            return function.apply(*args, keyset)  # type: ignore[attr-defined]
        with enable_single_level_autograd_function():
            return of_a_level.apply(*args, keyset)  # type: ignore[attr-defined]

    library.impl(name, kernel, "Autograd", with_keyset=True)
