"""Which implementations of the operator there are, what each needs, and which one a call takes.

An implementation is a module with ``forward``, ``grad_input`` and ``grad_weight`` as in ``reference.py``. It is
imported when it is first needed: ``import adder_zoo`` works without Triton, a GPU or a compiler.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


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


def implementations() -> dict[str, Implementation]:
    """What ``adder2d`` can run on here: every implementation by name, and why one is not available."""
    return {name: probe() for name, probe in _PROBES.items()}


def resolve(impl: str, x: Tensor, p: float) -> ModuleType:
    """The module that computes for ``impl``; "auto" chooses by device and p.

    Raises:
        RuntimeError: the implementation asked for by name cannot run on this input or on this machine.
    """
    if impl == "auto":
        impl = _choose(x, p)
    else:
        if p != 1 and not (impl == "reference" or (impl == "convolution" and p == 2)):
            raise RuntimeError(f"adder2d: impl={impl!r} cannot compute p = {p}; leave impl=None or ask for 'reference'")
        if impl == "convolution" and p != 2:
            raise RuntimeError("adder2d: impl='convolution' computes p = 2 only; leave impl=None")
        found = _PROBES[impl]()
        if not found.available:
            raise RuntimeError(f"adder2d: impl={impl!r} is not available: {found.detail}")
        device = x.device.type
        if impl in ("cpu", "exact") and (device != "cpu" or x.dtype == torch.float64):
            raise RuntimeError(
                f"adder2d: impl={impl!r} takes float32, float16 and bfloat16 tensors on a CPU, got {x.dtype} on "
                f"{x.device}; leave impl=None"
            )
        if impl == "triton" and x.dtype == torch.float64:
            raise RuntimeError("adder2d: impl='triton' has no float64; leave impl=None or ask for 'reference'")
        if impl == "triton" and device != "cuda" and not (device == "cpu" and _interpreting()):
            raise RuntimeError(
                f"adder2d: impl='triton' cannot run on {x.device}; move the tensors to a GPU, or set "
                "TRITON_INTERPRET=1 before Python starts to interpret the kernels on a CPU"
            )
    return _module(impl)


def _choose(x: Tensor, p: float) -> str:
    if p == 2:
        return "convolution"
    if p == 1 and x.dtype != torch.float64:
        if x.device.type == "cpu" and _probe_cpu().available:
            return "cpu"
        if x.device.type == "cuda" and _probe_triton().available:
            return "triton"
        if x.device.type != "cpu":
            _warn_of_eager_torch(x.device.type)
    return "reference"


@functools.cache
def _warn_of_eager_torch(device: str) -> None:
    """Once for each kind of device, as ``_probe_cpu`` does for a CPU."""
    why = _probe_triton().detail if device == "cuda" else "adder_zoo has kernels for CPUs and for GPUs with Triton"
    warnings.warn(
        f"adder_zoo: no kernels for {device} here, so adder layers run in eager torch, many times slower. {why}",
        stacklevel=2,
    )


@functools.cache
def _module(impl: str) -> ModuleType:
    if impl == "triton":
        kernels = _kernels()
        # The kernels' own names say what they are outside of this package; in here all modules look alike.
        module = ModuleType("adder_zoo.triton")
        module.__dict__.update(
            forward=kernels.adder2d_forward,
            forward_fused=kernels.adder2d_forward_fused,
            grad_input=kernels.adder2d_grad_input,
            grad_weight=kernels.adder2d_grad_weight,
        )
        return module
    return importlib.import_module(f"adder_zoo.{impl}")


def _kernels() -> ModuleType:
    """``adder_zoo.kernels``: from ``kernels/`` beside this file's source tree, or installed with the package.

    The tree goes first: another checkout may be installed, and its kernels are not this one's.
    """
    name = "adder_zoo.kernels"
    if name in sys.modules:
        return sys.modules[name]
    folder = Path(__file__).parents[2] / "kernels" / "adder2d" / "torch-ext" / "adder2d"
    if not folder.is_dir():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} cannot be read from {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on", "yes")


def _probe_reference() -> Implementation:
    return Implementation("reference", True, "eager torch on any device; float32, float64, half precision; slow")


def _probe_convolution() -> Implementation:
    return Implementation("convolution", True, "p = 2 only: torch's own convolution and two norms, on any device")


@functools.cache
def _probe_cpu() -> Implementation:
    from . import cpu

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
    if importlib.util.find_spec("triton") is None:
        return Implementation("triton", False, "Triton is not installed (pip install triton)")
    if _interpreting():
        return Implementation("triton", True, "interpreted by TRITON_INTERPRET=1: for checking, not for speed")
    if not torch.cuda.is_available():
        return Implementation("triton", False, "torch sees no GPU; TRITON_INTERPRET=1 interprets the kernels on a CPU")
    return Implementation("triton", True, f"Triton kernels on {torch.cuda.get_device_name()}; float32, half precision")


_PROBES: dict[str, Callable[[], Implementation]] = {
    "reference": _probe_reference,
    "cpu": _probe_cpu,
    "exact": _probe_exact,
    "triton": _probe_triton,
    "convolution": _probe_convolution,
}
IMPLEMENTATIONS = tuple(_PROBES)
