"""Networks in ONNX: files that an unmodified ONNX Runtime runs, and our native kernels in it.

Needs ``pip install 'adder_zoo[onnx]'``, which is looked for when a function is called and not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["export_onnx", "onnx_library_path", "onnx_session", "onnx_translation_table"]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: Sequence[int] | None = None,
    *,
    fixed_batch: int | None = None,
    opset: int = 18,
    fused: bool = True,
    metadata: Mapping[str, str] | None = None,
    check: bool = True,
    force: bool = False,
) -> float | None:
    """Writes a network for inference as an ONNX file, runs it in ONNX Runtime and compares its answers.

    Each adder layer is a node of the domain ``ai.adder_zoo``. The file has a function for it whose body is standard
    operators, so any runtime that knows functions and their overloads runs it: ONNX Runtime from 1.27 on. Others say
    that they do not. In ``onnx_session`` our native kernels take its place.

    How images are prepared, the names of the classes and where the weights are from lie in the file's metadata, under
    the names of timm's ``pretrained_cfg``; what is not text is JSON there.

    Args:
        model: A network in evaluation mode on a CPU: float32, or what ``quantize`` made of one. Networks without adder
            layers are taken too.
        path: The file, which must end in .onnx. It is the old one or the new one, never half of it.
        input_size: Of an image, (C, H, W). Default: as the network's ``pretrained_cfg`` says.
        fixed_batch: The only size of a batch that the file takes; None for any.
        opset: The version of ONNX's operators, from 18.
        fused: Whether to ``fuse`` the network first, which is faster everywhere. A fused or quantised
            one stays as it is.
        metadata: More of it, which has precedence.
        check: Whether to run the file and compare. False needs no ONNX Runtime.
        force: Whether to replace a file that is there.

    Returns:
        The largest difference between its logits and the network's, on random images; None without ``check``.

    Raises:
        ImportError: a package of the extra ``onnx`` is missing; the message has the command that installs it.
        FileExistsError: there is a file already, and not ``force``.
        ValueError: the network is in training mode, in whole or in part, or not on a CPU; the arguments do not fit.
        OnnxError: the network has a layer that ONNX has no form for (named), or the file answers otherwise than the
            network. Nothing is written then.
        OSError: the file cannot be written.

    Example:
        >>> import adder_zoo, timm
        >>> model = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
        >>> adder_zoo.export_onnx(model, "lenet5.onnx")  # doctest: +SKIP
    """
    _require("onnx", "onnxscript", *["onnxruntime"] * check)
    from . import _export

    options = _export.Options(fixed_batch, opset, fused, dict(metadata or {}), check, force)
    return _export.export(model, Path(path), input_size, options)


def onnx_translation_table() -> dict[Any, Callable[..., Any]]:
    """How ``torch.onnx.export`` writes our operators, for a network of your own and options that it has::

        torch.onnx.export(model, (images,), "net.onnx", dynamo=True,
                          custom_translation_table=adder_zoo.onnx_translation_table())

    torch puts the bodies of functions in their nodes' place: such a file has standard operators alone, and no node that
    a native kernel could take. ``export_onnx`` keeps the functions.

    Raises:
        ImportError: onnxscript is missing; the message has the command that installs it.
    """
    _require("onnx", "onnxscript")
    from ._translate import Translator

    return Translator().table()


def onnx_session(path: str | Path | bytes, options: Any = None, **kwargs: Any) -> InferenceSession:
    """An ``onnxruntime.InferenceSession`` in which our native kernels compute the adder layers of a file.

    All layers run on ONNX Runtime's threads (``options.intra_op_num_threads``).

    Args:
        path: A file of ``export_onnx``, or its bytes. Also what such a session saved
            (``options.optimized_model_filepath``), as ONNX or in ONNX Runtime's own format.
        options: ``onnxruntime.SessionOptions``; the kernels are added to them. They can be given again.
        kwargs: Of ``InferenceSession``. ``providers`` is the CPU's if it is not given.

    Raises:
        ImportError: onnxruntime is missing; the message has the command that installs it.
        OSError: the native library was not built.
        TypeError: ``options`` are something else.
        ValueError: the file has no adder layer that the kernels take: float64, p other than 1, or written without
            functions; or it is not ONNX; or the library was added to the options by hand.
    """
    _require("onnx", "onnxruntime")
    from . import _session

    return _session.session(path if isinstance(path, bytes) else Path(path), options, **kwargs)


def onnx_library_path() -> str:
    """The file of our native kernels as operators of ONNX Runtime: 1.18 or newer for files of ``export_onnx``.

    ``onnx_session`` takes it by itself. It is for programs with sessions of their own: in Python
    ``SessionOptions.register_custom_ops_library``, in C ``RegisterCustomOpsLibrary_V2``. The file needs nothing but
    the C library, so it can be copied to where there is no Python.

    Raises:
        OSError: the native library was not built.

    Example:
        >>> import adder_zoo
        >>> adder_zoo.onnx_library_path().endswith(".so")
        True
    """
    from ..ops.cpu import library

    return str(library().path)


class OnnxError(RuntimeError):
    """A network that cannot be written as ONNX. The message names what is at fault."""


def _require(*modules: str) -> None:
    """Raises ImportError, with the command that helps, for packages that are not installed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"ONNX needs the package {module.replace('_', '-')}: pip install 'adder_zoo[onnx]'", name=module
            ) from error
