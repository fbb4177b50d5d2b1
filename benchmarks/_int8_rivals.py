"""Int8 convolutions, which ``int8.py`` compares with: torch's engines, ONNX Runtime, and whole networks.

Needs ``pip install adder_zoo[bench]``: onnx, onnxruntime, onnxscript and torchao.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CHAIN = 10  # nodes: ONNX Runtime changes the layout at both ends of a graph, which a network does once
OPSET = 20


def engine(name: str, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Callable[[], Any]:
    """A call of torch's int8 convolution by one of ``torch.backends.quantized``'s engines, on bytes of x."""
    torch.backends.quantized.engine = name
    bytes_of_x = torch.quantize_per_tensor(x, float(x.max()) / 255, 0, torch.quint8)
    bytes_of_x = bytes_of_x.contiguous(memory_format=torch.channels_last)
    filters = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(filters, None, [stride] * 2, [padding] * 2, [1, 1], groups)

    def call() -> Any:
        torch.backends.quantized.engine = name
        return torch.ops.quantized.conv2d(bytes_of_x, packed, 1.0, 0)

    return call


def session(model: Any, threads: int) -> Any:
    """An ONNX Runtime session of a model (bytes or a path) on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def qlinearconv(x: Tensor, weight: Tensor, padding: int, groups: int, threads: int) -> Callable[[], Any]:
    """A chain of ``CHAIN`` QLinearConv nodes with stride 1; where K is not C, every second one leads back to C."""
    from onnx import TensorProto, helper

    K, Cg, R, _ = weight.shape
    N, C, H, W = x.shape
    initializers = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02]),
        helper.make_tensor("x_zero", TensorProto.UINT8, [], [0]),
        helper.make_tensor("w_zero", TensorProto.INT8, [], [0]),
    ]
    shapes = [(K, Cg), (K, Cg) if K == C else (C, K)]
    for i, shape in enumerate(shapes):
        values = np.random.default_rng(i).integers(-127, 128, (*shape, R, R)).astype(np.int8)
        initializers.append(helper.make_tensor(f"w{i}", TensorProto.INT8, values.shape, values.tobytes(), raw=True))
    nodes = [
        helper.make_node(
            "QLinearConv",
            [f"t{i}", "scale", "x_zero", f"w{i % 2}", "scale", "w_zero", "scale", "x_zero"],
            [f"t{i + 1}"],
            kernel_shape=[R, R],
            pads=[padding] * 4,
            group=groups,
        )
        for i in range(CHAIN)
    ]
    image = helper.make_tensor_value_info("t0", TensorProto.UINT8, [N, C, H, W])
    out = helper.make_tensor_value_info(f"t{CHAIN}", TensorProto.UINT8, None)
    model = helper.make_model(
        helper.make_graph(nodes, "chain", [image], [out], initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    feed = {"t0": np.random.default_rng(9).integers(0, 256, (N, C, H, W)).astype(np.uint8)}
    run = session(model.SerializeToString(), threads).run
    return lambda: run(None, feed)


def export_twin(twin: nn.Module, images: Tensor, path: Path) -> None:
    torch.onnx.export(twin, (images,), path, input_names=["x"], dynamo=True, external_data=False, verbose=False)


def onnxruntime_float_twin(twin: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    """The convolutional network in float32 in ONNX Runtime."""
    images = images.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float.onnx")
        export_twin(twin, images, path)
        run = session(str(path), threads).run
    feed = {"x": images.numpy()}
    return lambda: run(None, feed)


def onnxruntime_twin(twin: nn.Module, images: Tensor, calibration: Tensor, threads: int) -> Callable[[], Any]:
    """The convolutional network in int8 by ``onnxruntime.quantization.quantize_static`` (QDQ, a scale a filter)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            pieces = calibration.repeat(-(-len(images) // len(calibration)), 1, 1, 1)[: len(images)]
            self.batches = iter([{"x": pieces.contiguous().numpy()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    images = images.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        path, quantised = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        export_twin(twin, images, path)
        quantize_static(
            path, quantised, Images(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
        run = session(str(quantised), threads).run
    feed = {"x": images.numpy()}
    return lambda: run(None, feed)


def inductor_twin(twin: nn.Module, images: Tensor, calibration: Tensor) -> Callable[[], Any]:
    """The convolutional network in int8 by torchao's PT2E quantisation (X86InductorQuantizer), compiled and frozen."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torch._inductor import config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    exported = torch.export.export(twin, (images,)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(calibration.repeat(-(-len(images) // len(calibration)), 1, 1, 1)[: len(images)])
    converted = convert_pt2e(prepared)
    config.freezing = True
    compiled = torch.compile(converted)
    compiled(images)  # now, so that no timed call pays for it
    return lambda: compiled(images)
