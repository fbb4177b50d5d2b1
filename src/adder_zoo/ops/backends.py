"""Which implementations of the operator there are, what each needs, and which one a call takes.

A ``Backend`` is one row of the table at the end. Triton is imported and the CPU library loaded when they are first
needed: ``import adder_zoo`` works without Triton, a GPU or a compiler.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from . import cpu, power, quadratic, reference, triton
from .geometry import Geometry


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operator.

    Attributes:
        name: What ``adder2d(..., impl=name)`` calls it.
        available: Whether it can run here at all.
        detail: What it computes on, or, where it is not available, why not and what to do.
    """

    name: str
    available: bool
    detail: str


class Forward(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, geometry: Geometry, /) -> Tensor: ...


class ForwardFused(Protocol):
    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        geometry: Geometry,
        relu: bool,
        /,
    ) -> Tensor: ...


class Gradient(Protocol):
    def __call__(self, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mode: str, /) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """An implementation and its functions; shapes and meaning as in ``reference.py``.

    Attributes:
        name: What ``adder2d(..., impl=name)`` calls it.
        probe: Whether it can run here.
        forward: y.
        forward_fused: y with batch norm, shortcut and ReLU.
        grad_input: dx; mode as ``input_grad``.
        grad_weight: dw; mode as ``weight_grad``.
        refusal: Why it cannot compute for this x and p although it is available; None if it can.
        gradients: dx and dw in one pass, where both are derivatives: with signs for p = 1, or 1 < p < 2. It gives None
            for what it does not take. None: there is no such function.
    """

    name: str
    probe: Callable[[], Implementation]
    forward: Forward
    forward_fused: ForwardFused
    grad_input: Gradient
    grad_weight: Gradient
    refusal: Callable[[Tensor, float], str | None]
    gradients: Callable[[Tensor, Tensor, Tensor, Geometry], tuple[Tensor, Tensor] | None] | None = None


def implementations() -> dict[str, Implementation]:
    """What ``adder2d`` can run on here: every implementation by name, and why one is not available."""
    return {name: backend.probe() for name, backend in BACKENDS.items()}


def resolve(impl: str, x: Tensor, p: float) -> Backend:
    """What computes for ``impl``; "auto" chooses by device and p.

    Raises:
        RuntimeError: the implementation asked for by name cannot run on this input or on this machine.
    """
    backend = _choose(x, p) if impl == "auto" else _asked_for(impl, x, p)
    if p == 1 or backend is CONVOLUTION:
        return backend
    modules = {"cpu": power, "triton": triton}
    return _with_power(backend, modules.get(backend.name, reference), p)


def _asked_for(impl: str, x: Tensor, p: float) -> Backend:
    backend = BACKENDS[impl]
    if not _computes(impl, p):
        raise RuntimeError(f"adder2d: impl={impl!r} cannot compute p = {p}; leave impl=None or ask for 'reference'")
    found = backend.probe()
    if not found.available:
        raise RuntimeError(f"adder2d: impl={impl!r} is not available: {found.detail}")
    refusal = backend.refusal(x, p)
    if refusal is not None:
        raise RuntimeError(f"adder2d: impl={impl!r} {refusal}")
    return backend


def _computes(impl: str, p: float) -> bool:
    """Whether the implementation has this p, of 1 <= p <= 2; what else it needs, its ``refusal`` says."""
    if p == 1 or impl == "reference":
        return True
    return p < 2 if impl in ("cpu", "triton") else p == 2 and impl == "convolution"


def _choose(x: Tensor, p: float) -> Backend:
    if p == 2:
        return CONVOLUTION
    if x.dtype != torch.float64:
        if x.device.type == "cpu" and CPU.probe().available:
            return CPU
        if x.device.type == "cuda" and TRITON.probe().available:
            return TRITON
        if x.device.type != "cpu":
            _warn_of_eager_torch(x.device.type)
    return REFERENCE


@functools.cache
def _warn_of_eager_torch(device: str) -> None:
    """Once for each kind of device, as ``_probe_cpu`` does for a CPU."""
    why = TRITON.probe().detail if device == "cuda" else "adder_zoo has kernels for CPUs and for GPUs with Triton"
    warnings.warn(
        f"adder_zoo: no kernels for {device} here, so adder layers run in eager torch, many times slower. {why}",
        stacklevel=2,
    )


def _with_power(backend: Backend, module: ModuleType, p: float) -> Backend:
    """``backend`` with the functions of ``module`` for Σ|x - w|^p."""
    forward = functools.partial(module.forward, p=p)
    return dataclasses.replace(
        backend,
        forward=forward,
        forward_fused=functools.partial(reference.forward_then_epilogue, forward),
        grad_input=functools.partial(module.grad_input, p=p),
        grad_weight=functools.partial(module.grad_weight, p=p),
        gradients=functools.partial(module.gradients, p=p) if module is power else None,
    )


# ---- what each needs ----


def _probe_reference() -> Implementation:
    return Implementation("reference", True, "eager torch on any device; float32, float64, half precision; slow")


def _probe_convolution() -> Implementation:
    return Implementation("convolution", True, "p = 2 only: torch's own convolution and two norms, on any device")


@functools.cache
def _probe_cpu() -> Implementation:
    try:
        library = cpu.library()
    except OSError as error:
        detail = f"{error}; reinstall adder_zoo where there is a C++ compiler (pip install --force-reinstall adder_zoo)"
        warnings.warn(
            f"adder_zoo: the CPU library is missing, so adder layers run in eager torch, many times slower. {detail}",
            stacklevel=2,
        )
        return Implementation("cpu", False, detail)
    return Implementation("cpu", True, f"native {library.isa} kernels on {library.threading}; float32, half precision")


def _probe_exact() -> Implementation:
    found = _probe_cpu()
    detail = f"{found.detail}; every difference formed, no identities" if found.available else found.detail
    return Implementation("exact", found.available, detail)


def _probe_triton() -> Implementation:
    if not triton.installed():
        return Implementation("triton", False, "Triton is not installed (pip install triton)")
    if triton.interpreting():
        return Implementation("triton", True, "interpreted by TRITON_INTERPRET=1: for checking, not for speed")
    if not torch.cuda.is_available():
        return Implementation("triton", False, "torch sees no GPU; TRITON_INTERPRET=1 interprets the kernels on a CPU")
    return Implementation("triton", True, f"Triton kernels on {torch.cuda.get_device_name()}; float32, half precision")


def _takes_anything(x: Tensor, p: float) -> str | None:
    return None


def _needs_p_2(x: Tensor, p: float) -> str | None:
    return None if p == 2 else "computes p = 2 only; leave impl=None"


def _needs_a_cpu(x: Tensor, p: float) -> str | None:
    if x.device.type == "cpu" and x.dtype != torch.float64:
        return None
    return f"takes float32, float16 and bfloat16 tensors on a CPU, got {x.dtype} on {x.device}; leave impl=None"


def _needs_a_gpu(x: Tensor, p: float) -> str | None:
    if x.dtype == torch.float64:
        return "has no float64; leave impl=None or ask for 'reference'"
    if x.device.type == "cuda" or (x.device.type == "cpu" and triton.interpreting()):
        return None
    return (
        f"cannot run on {x.device}; move the tensors to a GPU, or set TRITON_INTERPRET=1 before Python starts to "
        "interpret the kernels on a CPU"
    )


# ---- the table ----

REFERENCE = Backend(
    "reference",
    _probe_reference,
    reference.forward,
    functools.partial(reference.forward_then_epilogue, reference.forward),
    reference.grad_input,
    reference.grad_weight,
    _takes_anything,
)
CPU = Backend(
    "cpu",
    _probe_cpu,
    cpu.forward,
    cpu.forward_fused,
    cpu.grad_input,
    cpu.grad_weight,
    _needs_a_cpu,
    cpu.gradients,
)
# The same kernels without the identities that save operations: every difference x - w is formed and rounded once.
# Forward takes some 1.5 times as long, dx 1.2 times, dw many times. What it buys: no more rounding than in a plain
# sum of the differences, also where x and w share a large offset.
EXACT = Backend(
    "exact",
    _probe_exact,
    functools.partial(cpu.forward, exact=True),
    functools.partial(reference.forward_then_epilogue, functools.partial(cpu.forward, exact=True)),
    functools.partial(cpu.grad_input, exact=True),
    functools.partial(cpu.grad_weight, exact=True),
    _needs_a_cpu,
)
TRITON = Backend(
    "triton",
    _probe_triton,
    triton.forward,
    triton.forward_fused,
    triton.grad_input,
    triton.grad_weight,
    _needs_a_gpu,
)
CONVOLUTION = Backend(
    "convolution",
    _probe_convolution,
    quadratic.forward,
    functools.partial(reference.forward_then_epilogue, quadratic.forward),
    quadratic.grad_input,
    quadratic.grad_weight,
    _needs_p_2,
)
BACKENDS = {backend.name: backend for backend in (REFERENCE, CPU, EXACT, TRITON, CONVOLUTION)}
IMPLEMENTATIONS = tuple(BACKENDS)
