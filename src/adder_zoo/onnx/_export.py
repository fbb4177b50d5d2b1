"""``export_onnx``: from the network to the file."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from .. import atomic
from .._version import __version__
from ..architecture import architecture
from ..fuse import FusedAdder2d, fuse
from ..int8.layers import QuantizedAdder2d
from ..layers import AdderLayer
from ..precision import HALF
from . import OnnxError, _functions
from ._functions import DOMAIN, OPSET, VERSION
from ._translate import Translator

# Of the largest logit. Other orders of summation leave some 1e-4 of it; a byte that rounds the other way in a quantised
# network, for its float first layer differs in the last bit, a hundredth. A wrong layer leaves far more.
MOST_DIFFERENCE = 0.05
DESCRIBED = (
    "architecture", "tag", "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes",
    "label_names", "label_descriptions", "license", "paper_name", "paper_ids", "hf_hub_id", "url", "origin_url",
    "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Options of ``export_onnx``."""

    fixed_batch: int | None
    opset: int
    fused: bool
    metadata: dict[str, str]
    check: bool
    force: bool


def export(model: nn.Module, path: Path, input_size: Sequence[int] | None, options: Options) -> float | None:
    """See ``export_onnx``."""
    _check_arguments(model, path, options)
    network = _fused(model) if options.fused else model
    size = _input_size(model, input_size)
    floating = [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
    dtype = next((t.dtype for t in floating if t.dtype in HALF), floating[0].dtype if floating else torch.float32)
    tried = [torch.randn(n, *size, dtype=dtype) for n in ([options.fixed_batch] if options.fixed_batch else [2, 1, 5])]
    written = _model(network, tried[0], options)
    written.metadata_props.update({**_described(model), **options.metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        data = ir.to_proto(written).SerializeToString()
    except (ValueError, MemoryError) as error:  # of protobuf
        raise OnnxError(
            f"the file would be larger than 2 GB, which ONNX needs other files beside it for: {error}"
        ) from error
    onnx.checker.check_model(data, full_check=True)
    difference = _difference(network, data, tried) if options.check else None
    with atomic.replace_file(path) as part:
        part.write_bytes(data)
    return difference


def _check_arguments(model: nn.Module, path: Path, options: Options) -> None:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"export_onnx: {training[0]} is in training mode; call model.eval() first")
    devices = {t.device.type for t in (*model.parameters(), *model.buffers())}
    if devices - {"cpu"}:
        raise ValueError(f"export_onnx: the network is on {sorted(devices)}; call model.cpu() first")
    if path.suffix != ".onnx":
        raise ValueError(f"export_onnx: the file must end in .onnx, not be {path.name!r}")
    if path.exists() and not options.force:
        raise FileExistsError(f"export_onnx: {path} exists; give force=True to replace it")
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= options.opset <= newest:
        raise ValueError(f"export_onnx: opset must lie between {OPSET} and {newest}, got {options.opset}")
    if options.fixed_batch is not None and options.fixed_batch < 1:
        raise ValueError(f"export_onnx: fixed_batch must be at least 1, got {options.fixed_batch}")


def _fused(model: nn.Module) -> nn.Module:
    kinds = {type(module) for module in model.modules()}
    if kinds & {FusedAdder2d, QuantizedAdder2d} or not any(issubclass(kind, AdderLayer) for kind in kinds):
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fuse: nothing was fused")
        return fuse(model)


def _input_size(model: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    size = given if given is not None else (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise ValueError(
            f"export_onnx: {type(model).__name__} does not say how large its images are; give input_size=(C, H, W)"
        )
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"export_onnx: input_size must be (C, H, W), got {tuple(size)}")
    return tuple(int(n) for n in size)


def _model(network: nn.Module, images: Tensor, options: Options) -> ir.Model:
    functions: dict[Any, ir.Function] = {}
    shapes: Any = None if options.fixed_batch else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (images,), dynamo=True, dynamic_shapes=shapes, input_names=["images"], output_names=["logits"],
                custom_translation_table=Translator(functions).table(), optimize=False, verbose=False,
                opset_version=options.opset,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise OnnxError(_reason(error, network, images)) from error
    assert program is not None
    model = program.model
    model.functions.update(functions)
    if functions:
        model.opset_imports[DOMAIN] = VERSION
    onnxscript.optimizer.optimize(model, inline=False)
    guarded = _functions.guarded(list(model.functions.values()))
    model.functions.clear()
    model.functions.update({function.identifier(): function for function in guarded})
    for function in guarded:
        function.graph.opset_imports[""] = options.opset
    model.producer_name, model.producer_version = "adder_zoo", __version__
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()  # paths of this machine
    return model


class _quiet:
    """Keeps torch's exporter from logging what the error says as well."""

    def __enter__(self) -> None:
        self.level = (log := logging.getLogger("torch.onnx")).level
        log.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("torch.onnx").setLevel(self.level)


def _reason(error: BaseException, network: nn.Module, images: Tensor) -> str:
    """What is at fault, of torch's chain of errors: the operator that ONNX has no form for, with its layer."""
    texts, cause = [], error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__  # type: ignore[assignment]
    unknown = re.search(r"OpOverload\(op='([\w.]+)'", "\n".join(texts[-1:]))
    if not unknown:
        said = texts[-1].strip().splitlines() or [repr(error)]
        return f"torch cannot export the network: {said[0]}"
    where = _layer_of(unknown[1], network, images)
    return (
        f"ONNX has no form of {unknown[1]}{where}: exchange that layer, or give torch.onnx.export a table that has one"
    )


def _layer_of(operator: str, network: nn.Module, images: Tensor) -> str:
    """The layer that calls an operator, as " (in NAME, a CLASS)"; nothing where it cannot be found."""
    with torch.no_grad():
        program = torch.export.export(network, (images,))
    for node in program.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        # An operator that torch took apart has a part with another name: aten.special_bessel_j0, prims.bessel_j0.
        called, part = (str(name).split(".")[1:2] for name in (node.target, operator))
        if node.op == "call_function" and stack and called and (called[0] in part[0] or part[0] in called[0]):
            name, kind = stack[-1]
            return f" (in {name}, a {str(getattr(kind, '__name__', kind)).rpartition('.')[2]})"
    return ""


def _described(network: nn.Module) -> dict[str, str]:
    """What timm knows of the network, as text."""
    cfg = dict(getattr(network, "pretrained_cfg", None) or {})
    cfg["architecture"] = cfg.get("architecture") or architecture(network)
    found = {key: cfg[key] for key in DESCRIBED if cfg.get(key) is not None}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def _difference(network: nn.Module, data: bytes, tried: Sequence[Tensor]) -> float:
    """The largest difference of logits, in a plain ONNX Runtime."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, quiet, providers=["CPUExecutionProvider"])
    worst = 0.0
    for images in tried:
        with torch.no_grad():
            wanted = network(images).float().numpy()
        got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0].astype(np.float32)
        difference = float(np.abs(got - wanted).max())
        if not difference <= MOST_DIFFERENCE * float(np.abs(wanted).max()):
            raise OnnxError(f"the file answers otherwise than the network: logits differ by {difference:.4g}")
        worst = max(worst, difference)
    return worst
