"""Whole networks in ONNX Runtime on 1,000 test images, in bytes as well, and how much memory a large one takes."""

import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from integer_images import read

import adder_zoo
from adder_zoo.ops.int8.library import adder2d_int8_fused

pytestmark = pytest.mark.slow
COUNT = 1000
NETWORKS = ["adder_lenet5_bn.mnist", "adder_resnet20.cifar10", "adder_resnet18", "adder_mobilenetv2_100"]


def images_for(model, data_dir):
    """Test images of MNIST or CIFAR-10, as the network takes them."""
    dataset = "mnist" if model.pretrained_cfg["input_size"][0] == 1 else "cifar10"
    pixels = read(dataset, "test", data_dir, COUNT)[0].permute(0, 3, 1, 2) / 255
    assert len(pixels) == COUNT
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


def made(name):
    """The network with its weights, or one with ten classes whose batch norm has seen images."""
    if timm.models.is_model_pretrained(name):
        return timm.create_model(name, pretrained=True).eval()
    model = timm.create_model(name, num_classes=10).train()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def assert_alike(logits, wanted, most, decided=0.99):
    """Within ``most``, and the same class for each image whose two best logits differ by more than that.

    ``decided`` of the images at least are such. With random weights MobileNetV2 decides for none.
    """
    difference = np.abs(logits - wanted).max()
    assert difference <= most
    best = np.sort(wanted, 1)
    clear = best[:, -1] - best[:, -2] > 2 * difference
    assert clear.mean() >= decided
    assert np.array_equal(logits.argmax(1)[clear], wanted.argmax(1)[clear])


@pytest.mark.parametrize("name", NETWORKS)
def test_thousand_images(name, data_dir, tmp_path):
    model = made(name)
    images = images_for(model, data_dir)
    size = tuple(images.shape[1:])
    path = tmp_path / "x.onnx"
    adder_zoo.export_onnx(model, path, size)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    native = adder_zoo.onnx_session(path)
    with torch.no_grad():
        wanted = torch.cat([model(batch) for batch in images.split(50)]).numpy()
        float64 = model.double()(images[:50].double()).numpy()
    rounding = np.abs(wanted[:50] - float64).max()  # torch's own
    for runs in (session, native):
        logits = np.concatenate([runs.run(None, {"images": batch.numpy()})[0] for batch in images.split(50)])
        assert_alike(logits, wanted, 16 * rounding, decided=0 if "mobilenet" in name else 0.99)


@pytest.mark.parametrize("name", NETWORKS[:2])
def test_bytes(name, data_dir, tmp_path):
    """Every layer's integers are exactly what the operator makes of the bytes that it was given."""
    model = made(name)
    images = images_for(model, data_dir)
    small = adder_zoo.quantize(model, images[-200:])
    path = tmp_path / "x.onnx"
    adder_zoo.export_onnx(small, path)
    file = onnx.load(path)
    nodes = [node for node in file.graph.node if node.op_type == "Adder2dInt8Fused"]
    known = {value.name for value in (*file.graph.initializer, *file.graph.output)}
    names = list(dict.fromkeys(n for node in nodes for n in (*node.input, *node.output) if n and n not in known))
    file.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    onnx.save(file, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    got = dict(zip(outputs, session.run(None, {"images": images[:4].numpy()}), strict=True))
    got.update({t.name: onnx.numpy_helper.to_array(t) for t in file.graph.initializer})
    for node in nodes:
        check_node(node, got)
    with torch.no_grad():
        assert_alike(got["logits"], small(images[:4]).numpy(), 0.05 * np.abs(got["logits"]).max())


def check_node(node, got):
    a = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    x, w, scale, shift, residual = (torch.from_numpy(got[name].copy()) for name in node.input)
    x, w = x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2)
    residual = residual.permute(0, 3, 1, 2) if residual.numel() else None
    wide, narrow = adder2d_int8_fused(
        x, w, a["zero_point"], scale, shift, residual, bool(a["relu"]), bool(a["wide"]), a["inverse_step"],
        a["next_zero_point"], a["top"], bool(a["narrow"]), (a["stride_h"], a["stride_w"]),
        (a["pad_top"], a["pad_bottom"], a["pad_left"], a["pad_right"]), (a["dilation_h"], a["dilation_w"]), a["group"],
        "reference",
    )  # fmt: skip
    for wanted, name in ((wide, node.output[0]), (narrow, node.output[1])):
        if wanted.numel():
            assert np.array_equal(got[name].transpose(0, 3, 1, 2), wanted.numpy()), node.name


def test_memory(tmp_path):
    """A ResNet-50 on a photograph of 224 x 224 runs in 2 GB."""
    path = tmp_path / "x.onnx"
    adder_zoo.export_onnx(timm.create_model("adder_resnet50").eval(), path, check=False)
    code = f"""
import re, numpy, onnxruntime
session = onnxruntime.InferenceSession({str(path)!r}, providers=["CPUExecutionProvider"])
session.run(None, {{"images": numpy.zeros((1, 3, 224, 224), "float32")}})
print("KB", re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""  # ru_maxrss would be at least the peak of this process, which starts it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(re.search(r"KB (\d+)", done.stdout)[1]) < 2_000_000
