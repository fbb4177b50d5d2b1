"""Neural networks without multiplications: layers that answer with -Σ|x - w| (AdderNet, arXiv 1912.13200).

Importing this package registers its models and its optimizer with timm.
"""

from . import models
from ._version import __version__
from .batchnorm import reestimated_batch_norm
from .convert import convert_to_adder
from .distance import cdist, nearest
from .functional import adder2d
from .fuse import fuse
from .hub import push_to_hub, save_pretrained
from .int8.fine_tune import fake_quantize
from .int8.quantize import quantize
from .integer.c.folder import export_c
from .integer.lower import to_integers
from .layers import Adder2d, AdderLinear, adder_parameters
from .norms import float32_norms
from .onnx import export_onnx, onnx_library_path, onnx_session, onnx_translation_table
from .ops.backends import implementations
from .optim import AdderSGD
from .report import report

__all__ = [
    "Adder2d",
    "AdderLinear",
    "AdderSGD",
    "__version__",
    "adder2d",
    "adder_parameters",
    "cdist",
    "convert_to_adder",
    "export_c",
    "export_onnx",
    "fake_quantize",
    "float32_norms",
    "fuse",
    "implementations",
    "models",
    "nearest",
    "onnx_library_path",
    "onnx_session",
    "onnx_translation_table",
    "push_to_hub",
    "quantize",
    "reestimated_batch_norm",
    "report",
    "save_pretrained",
    "to_integers",
]
