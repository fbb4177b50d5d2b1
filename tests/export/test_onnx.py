"""``export_onnx``, ``onnx_translation_table`` and ``onnx_session``: whole networks in ONNX Runtime."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, export_onnx, onnx_session, onnx_translation_table
from adder_zoo.cli import main
from adder_zoo.onnx import OnnxError

LENET = "adder_lenet5_bn.mnist"


@pytest.fixture(scope="module")
def lenet():
    return timm.create_model(LENET, pretrained=True).eval()


@pytest.fixture(scope="module")
def lenet_file(lenet, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "lenet.onnx"
    export_onnx(lenet, path, metadata={"source": "here"})
    return path


def plain(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_as_close_as_torch(model, images, logits, slack=8):
    """The file's logits are as close to those in float64 as torch's own are, but for other orders of summation."""
    with torch.no_grad():
        float32 = model(images).numpy()
        float64 = model.double()(images.double()).numpy()
    model.float()
    error = np.abs(float32 - float64).max()
    assert np.abs(logits - float64).max() <= slack * error + 1e-6 * np.abs(float64).max()


@pytest.mark.parametrize("start", [plain, onnx_session])
def test_network_of_the_zoo(lenet, lenet_file, start):
    session = start(lenet_file)
    for n in (1, 5):
        images = torch.randn(n, 1, 32, 32)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert logits.shape == (n, 10)
        assert_as_close_as_torch(lenet, images, logits)


def test_file(lenet_file):
    model = onnx.load(lenet_file)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim] == [0, 10]
    assert inferred.graph.output[0].type.tensor_type.shape.dim[0].dim_param
    adders = [node for node in model.graph.node if node.domain == "ai.adder_zoo"]
    assert [node.op_type for node in adders] == ["Adder2dFused"] * 5
    called = [f for f in model.functions if not f.overload.startswith("guard_")]
    assert {(f.domain, f.name, f.overload) for f in called} == {
        (node.domain, node.op_type, node.overload) for node in adders
    }
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["mean"]) == [0.1307]
    assert json.loads(said["input_size"]) == [1, 32, 32]
    assert json.loads(said["label_names"]) == [str(i) for i in range(10)]
    assert (said["architecture"], said["interpolation"], said["license"]) == (
        "adder_lenet5_bn", "bilinear", "apache-2.0"
    )  # fmt: skip
    assert said["source"] == "here"
    assert b"/site-packages/" not in lenet_file.read_bytes()


class Alike(nn.Module):
    """Two layers of one shape, of which one has a ReLU: one's function answers for the other, and wrongly."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Adder2d(3, 3, 1), Adder2d(3, 3, 1)
        self.c, self.d = adder_zoo.norms.BatchNorm2d(3), adder_zoo.norms.BatchNorm2d(3)
        nn.init.constant_(self.c.bias, 5.0)

    def forward(self, x):
        return self.d(self.b(torch.relu(self.c(self.a(x)))))


@pytest.mark.parametrize("quantised", [False, True])
def test_a_runtime_that_ignores_overloads_says_so(tmp_path, quantised):
    """ONNX's own reference is one, as ONNX Runtime was before 1.27: each keeps one function of a name."""
    model, images = Alike().eval(), torch.randn(2, 3, 4, 4)
    network = adder_zoo.quantize(model, images) if quantised else model
    path = tmp_path / "alike.onnx"
    export_onnx(network, path, (3, 4, 4))
    with pytest.raises(NotImplementedError, match="IgnoresOverloads"):
        onnx.reference.ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})
    functions = onnx.load(path).functions
    name = functions[0].name
    assert [f.overload for f in (functions[0], functions[-1])] == ["guard_first", "guard_last"]
    assert [f.name for f in functions] == [name] * 4


def test_one_function_needs_no_guard(tmp_path):
    path = tmp_path / "one.onnx"
    export_onnx(nn.Sequential(Adder2d(3, 3, 1)).eval(), path, (3, 4, 4))
    assert len(onnx.load(path).functions) == 1
    images = torch.randn(2, 3, 4, 4).numpy()
    (got,) = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"images": images})
    np.testing.assert_allclose(got, plain(path).run(None, {"images": images})[0], atol=1e-5)


def number(node, name):
    return next(attribute.i for attribute in node.attribute if attribute.name == name)


def test_bytes_give_the_same_integers(tmp_path, lenet):
    """LeNet-5-BN begins with adder layers: what comes out of them is torch's, bit by bit."""
    small = adder_zoo.quantize(lenet, torch.randn(32, 1, 32, 32))
    path = tmp_path / "int8.onnx"
    assert export_onnx(small, path) < 0.01
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == "Adder2dInt8Fused"]
    assert len(nodes) == 5
    outputs = [node.output[1] if number(node, "narrow") else node.output[0] for node in nodes]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    images = torch.randn(16, 1, 32, 32)
    seen = []
    layers = [m for m in small.modules() if isinstance(m, adder_zoo.int8.layers.QuantizedAdder2d)]
    handles = [layer.register_forward_hook(lambda *args: seen.append(args[2])) for layer in layers]
    with torch.no_grad():
        logits = small(images)
    for handle in handles:
        handle.remove()
    onnx.save(model, path)
    for start in (plain, onnx_session):
        got = start(path).run(None, {"images": images.numpy()})
        np.testing.assert_allclose(got[0], logits.numpy(), atol=0.01)
        for ours, theirs in zip(got[1:], seen, strict=True):
            ours = ours.transpose(0, 3, 1, 2).reshape(theirs.shape)  # a fully connected layer is a 1x1 one in the file
            assert np.array_equal(ours, theirs.numpy())


class Kinds(nn.Module):
    """A layer of each kind, their outputs side by side."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                Adder2d(4, 6, 3, stride=2, padding=1),
                Adder2d(4, 8, 3, padding="same", dilation=2, groups=2, bias=False),
                Adder2d(4, 8, 2, groups=4, padding=1, padding_mode="reflect"),
                Adder2d(4, 3, 1, p=2.0),
                Adder2d(4, 3, (1, 3), p=1.5),
            ]
        )
        self.linear = AdderLinear(9, 5)
        self.binary = adder_zoo.binary.BinaryConv2d(4, 5, 3)

    def forward(self, x):
        return torch.cat([m(x).flatten(1) for m in (*self.layers, self.linear, self.binary)], 1)


def test_kinds_of_layers(tmp_path):
    model = Kinds().eval()
    export_onnx(model, tmp_path / "x.onnx", (4, 9, 9))
    images = torch.randn(3, 4, 9, 9)
    for start in (plain, onnx_session):
        (y,) = start(tmp_path / "x.onnx").run(None, {"images": images.numpy()})
        assert_as_close_as_torch(model, images, y)


def test_table_of_torchs_exporter_with_any_size_of_image(tmp_path):
    model = nn.Sequential(Adder2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)).eval()
    sizes = ({0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)},)
    with torch.no_grad():
        torch.onnx.export(
            model, (torch.randn(2, 3, 9, 8),), tmp_path / "x.onnx", dynamo=True, verbose=False, dynamic_shapes=sizes,
            custom_translation_table=onnx_translation_table(),
        )  # fmt: skip
    session = plain(tmp_path / "x.onnx")
    for shape in ((1, 3, 9, 8), (2, 3, 16, 5)):
        images = torch.randn(shape)
        (y,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert_as_close_as_torch(model, images, y)
    with pytest.raises(ValueError, match="no adder layer that the native kernels take"):
        onnx_session(tmp_path / "x.onnx")


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_bad_input_is_refused_and_nothing_is_written(tmp_path, lenet, monkeypatch):
    with pytest.raises(ValueError, match=r"stages\.0\.conv|training mode.*eval"):
        export_onnx(timm.create_model("adder_lenet5_bn").train(), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_onnx(lenet, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="input_size"):
        export_onnx(nn.Sequential(Adder2d(1, 2, 3)).eval(), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="opset"):
        export_onnx(lenet, tmp_path / "x.onnx", opset=9)
    with pytest.raises(OnnxError, match=r"bessel_j0 \(in 1, a Bessel\)"):
        export_onnx(nn.Sequential(Adder2d(1, 2, 3), Bessel()).eval(), tmp_path / "x.onnx", (1, 8, 8))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'adder_zoo\[onnx\]'"):
        export_onnx(lenet, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.onnx").write_text("mine")
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="force"):
        export_onnx(lenet, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_text() == "mine"


def test_command(tmp_path, monkeypatch):
    """What it hands to ``export_onnx``, which the other tests are about."""
    calls = []

    def export(network, path, size, **options):
        calls.append((path, size, options))
        path.write_bytes(b"1234")
        return 0.25

    monkeypatch.setattr(adder_zoo.onnx, "export_onnx", export)
    args = ["export", LENET, "-o", str(tmp_path / "x.onnx"), "--fixed-batch", "1", "--opset", "20", "--json"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["format"], told["bytes"], told["largest_difference"]) == ("onnx", 4, 0.25)
    ((path, size, options),) = calls
    said = options.pop("metadata")
    assert (path, size) == (tmp_path / "x.onnx", (1, 32, 32))
    assert options == {"fixed_batch": 1, "opset": 20, "force": True}
    assert said["source"] == LENET
    assert json.loads(said["results"])["test_accuracy"] == 99.5
