"""Our kernels as operators of ONNX Runtime: single nodes, what does not fit, threads."""

import threading

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from adder_zoo import Adder2d, export_onnx, onnx_library_path, onnx_session
from adder_zoo.ops import reference
from adder_zoo.ops.geometry import Geometry

GEOMETRY = {
    "stride_h": 1, "stride_w": 1, "pad_top": 0, "pad_bottom": 0, "pad_left": 0, "pad_right": 0,
    "dilation_h": 1, "dilation_w": 1, "group": 1,
}  # fmt: skip
FLOAT, UINT8, INT32 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32
DOMAIN = "ai.adder_zoo"
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
PROVIDERS = ["CPUExecutionProvider"]
LEVELS = {"zero_point": 7, "relu": 1, "wide": 1, "narrow": 1, "next_zero_point": 3, "top": 255}


def model_of(kind, inputs, functions=(), **attributes):
    """A file of one node. Without a function nothing but a kernel can run it."""
    fused, bytes_ = "Fused" in kind, "Int8" in kind
    names = ["x", "w", "scale", "shift", "residual"][: 5 if fused else 2]
    types = [UINT8 if bytes_ else FLOAT] * 2 + [FLOAT] * 3
    outputs = {"y": INT32 if bytes_ and not fused else FLOAT} | ({"levels": UINT8} if bytes_ and fused else {})
    node = helper.make_node(kind, names, list(outputs), domain=DOMAIN, **{**GEOMETRY, **attributes})
    values = [
        helper.make_tensor_value_info(name, kind_, [None] * np.ndim(inputs[name]))
        for name, kind_ in zip(names, types, strict=False)
    ]
    results = [helper.make_tensor_value_info(name, kind_, None) for name, kind_ in outputs.items()]
    graph = helper.make_graph([node], "one", values, results)
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions, ir_version=10).SerializeToString()


def session(kind, inputs, threads=1, **attributes):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(onnx_library_path())
    return onnxruntime.InferenceSession(model_of(kind, inputs, **attributes), options, providers=PROVIDERS)


def operands(N=2, C=6, H=9, W=8, K=4, R=3, S=2, groups=1, bytes_=False):
    generator = np.random.default_rng(0)
    shapes = (N, H, W, C), (K, R, S, C // groups)
    if bytes_:
        return [generator.integers(0, 256, shape, np.uint8) for shape in shapes]
    return [generator.standard_normal(shape, np.float32) for shape in shapes]


ODD = {
    "stride_h": 2, "stride_w": 1, "pad_top": 2, "pad_bottom": 0, "pad_left": 1, "pad_right": 3,
    "dilation_h": 2, "dilation_w": 1, "group": 2,
}  # fmt: skip
AS_GEOMETRY = Geometry((2, 1), (2, 0, 1, 3), (2, 1), 2)


def in_torchs_order(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


@pytest.mark.parametrize("bytes_", [False, True])
def test_every_attribute_is_read(bytes_):
    """A node whose sides all differ, against the definition; bytes pad with the level of zero."""
    x, w = operands(groups=2, bytes_=bytes_)
    inputs = {"x": x, "w": w}
    kind, more = ("Adder2dInt8", {"zero_point": 7}) if bytes_ else ("Adder2d", {})
    (y,) = session(kind, inputs, **ODD, **more).run(None, inputs)
    shift = 7 if bytes_ else 0
    a, b = (in_torchs_order(array.astype(np.float64) - shift) for array in (x, w))
    wanted = reference.forward(a, b, AS_GEOMETRY).permute(0, 2, 3, 1).numpy()
    if bytes_:
        assert y.dtype == np.int32
        np.testing.assert_array_equal(y, wanted)
    else:
        np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_bytes_behind_a_fused_layer():
    x, w = operands(bytes_=True)
    scale, shift = np.full(4, -0.01, np.float32), np.arange(4, dtype=np.float32)
    none = np.empty(0, np.float32)
    inputs = {"x": x, "w": w, "scale": scale, "shift": shift, "residual": none}
    v, levels = session("Adder2dInt8Fused", inputs, **LEVELS, inverse_step=0.1).run(None, inputs)
    a, b = (in_torchs_order(array.astype(np.float64)) for array in (x, w))
    sums = reference.forward(a, b, Geometry.of((1, 1), (0, 0, 0, 0), (1, 1), 1)).permute(0, 2, 3, 1).numpy()
    wanted = np.maximum(sums * -0.01 + shift, 0)
    np.testing.assert_allclose(v, wanted, rtol=1e-6)
    assert np.abs(levels - np.clip(np.rint(wanted / 10) + 3, 0, 255)).max() <= 1  # where it lies between two levels
    assert levels.max() > 3
    only = session("Adder2dInt8Fused", inputs, **{**LEVELS, "wide": 0}, inverse_step=0.1).run(None, inputs)
    assert only[0].size == 0
    assert np.array_equal(only[1], levels)


@pytest.mark.parametrize(
    ("kind", "change", "attributes", "message"),
    [
        ("Adder2d", {"w": np.zeros((4, 3, 2, 5), np.float32)}, {}, "filters do not fit the channels"),
        ("Adder2d", {}, {"group": 4}, "filters do not fit the channels"),
        ("Adder2d", {"w": np.zeros((4, 30, 2, 6), np.float32)}, {}, "kernel is larger than the padded input"),
        ("Adder2d", {"w": np.zeros((0, 3, 2, 6), np.float32)}, {}, "no elements"),
        ("Adder2d", {"x": np.zeros((2, 9, 8), np.float32)}, {}, "4 dimensions"),
        ("Adder2d", {"x": np.zeros((1, 2, 9, 8, 6), np.float32)}, {}, "4 dimensions"),
        ("Adder2d", {}, {"stride_h": 0}, "stride, dilation or group is out of range"),
        ("Adder2d", {}, {"pad_left": -1}, "padding is out of range"),
        ("Adder2d", {}, {"pad_left": 1 << 40}, "padding is out of range"),
        ("Adder2dInt8", {}, {"zero_point": 256}, "not a byte"),
        ("Adder2dInt8Fused", {}, {**LEVELS, "next_zero_point": 9, "top": 8}, "not a byte"),
        ("Adder2dFused", {"scale": np.zeros(3, np.float32)}, {"relu": 0}, "a value for each filter"),
        ("Adder2dFused", {"residual": np.zeros((2, 7, 7, 3), np.float32)}, {"relu": 0}, "the shape of the result"),
    ],
)
def test_what_does_not_fit_is_refused(kind, change, attributes, message):
    x, w = operands(bytes_="Int8" in kind)
    floats = {"scale": np.ones(4), "shift": np.ones(4), "residual": np.empty(0)} if "Fused" in kind else {}
    inputs = {"x": x, "w": w, **{name: value.astype(np.float32) for name, value in floats.items()}, **change}
    given = {"zero_point": 0, **attributes} if "Int8" in kind else attributes
    given = {**given, "inverse_step": 0.1} if kind == "Adder2dInt8Fused" else given
    with pytest.raises(Exception, match=f"adder_zoo: {kind}: .*{message}"):  # ONNX Runtime has a class for each code
        session(kind, inputs, **given).run(None, inputs)


def test_a_missing_attribute_is_named():
    x, w = operands(bytes_=True)
    with pytest.raises(Exception, match="zero_point"):
        session("Adder2dInt8", {"x": x, "w": w}).run(None, {"x": x, "w": w})


def test_threads_of_sessions_that_run_at_once():
    """Sessions with other numbers of threads, and torch's own calls between them, give the same bits."""
    x, w = operands(N=4, C=32, H=20, W=20, K=40)
    inputs = {"x": x, "w": w}
    (wanted,) = session("Adder2d", inputs).run(None, inputs)
    sessions = [session("Adder2d", inputs, threads=n) for n in (1, 2, 4)]
    answers, faults = [], []

    def repeat(one):
        try:
            answers.extend(one.run(None, inputs)[0] for _ in range(5))
        except Exception as fault:
            faults.append(fault)

    def repeat_in_torch():
        from adder_zoo import adder2d

        a, b = in_torchs_order(x), in_torchs_order(w)
        answers.extend(adder2d(a, b, impl="cpu").permute(0, 2, 3, 1).numpy() for _ in range(5))

    workers = [threading.Thread(target=repeat, args=(one,)) for one in sessions]
    workers.append(threading.Thread(target=repeat_in_torch))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults
    assert len(answers) == 20
    assert all(np.array_equal(answer, wanted) for answer in answers)


def test_an_empty_batch():
    x, w = operands(N=0)
    (y,) = session("Adder2d", {"x": x, "w": w}).run(None, {"x": x, "w": w})
    assert y.shape == (0, 7, 7, 4)


def test_the_kernel_runs_in_the_place_of_the_function():
    """The function here answers with x. Without function and library there is nothing that runs the node."""
    x, w = operands(R=1, S=1, K=6)
    inputs = {"x": x, "w": w}
    body = [helper.make_node("Identity", ["x"], ["y"])]
    wrong = helper.make_function(DOMAIN, "Adder2d", ["x", "w"], ["y"], body, OPSETS[:1], list(GEOMETRY))
    data = model_of("Adder2d", inputs, [wrong])
    assert np.array_equal(onnxruntime.InferenceSession(data, providers=PROVIDERS).run(None, inputs)[0], x)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnx_library_path())
    (y,) = onnxruntime.InferenceSession(data, options, providers=PROVIDERS).run(None, inputs)
    np.testing.assert_allclose(y, -np.abs(x[..., None, :] - w[:, 0, 0]).sum(-1), atol=1e-5)
    with pytest.raises(Exception, match="Adder2d"):
        onnxruntime.InferenceSession(model_of("Adder2d", inputs), providers=PROVIDERS)


@pytest.fixture(scope="module")
def layer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "layer ö.onnx"
    torch.manual_seed(0)
    export_onnx(torch.nn.Sequential(Adder2d(3, 4, 3)).eval(), path, (3, 5, 5), check=False)
    return path


IMAGES = {"images": np.random.default_rng(0).standard_normal((2, 3, 5, 5), np.float32)}


def test_options_can_be_given_again(layer_file):
    options = onnxruntime.SessionOptions()
    answers = [onnx_session(layer_file, options).run(None, IMAGES)[0] for _ in range(3)]
    assert np.array_equal(answers[0], answers[2])
    again = onnxruntime.InferenceSession(str(layer_file), options, providers=PROVIDERS)
    assert np.array_equal(again.run(None, IMAGES)[0], answers[0])


def test_options_that_have_the_library_by_hand(layer_file):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnx_library_path())
    with pytest.raises(ValueError, match="takes it once"):
        onnx_session(layer_file, options)


@pytest.mark.parametrize("form", ["ONNX", "ORT"])
def test_what_a_session_saved(layer_file, tmp_path, form):
    options, saved = onnxruntime.SessionOptions(), tmp_path / f"saved.{form.lower()}"
    options.optimized_model_filepath = str(saved)
    options.add_session_config_entry("session.save_model_format", form)
    (wanted,) = onnx_session(layer_file, options).run(None, IMAGES)
    (got,) = onnx_session(saved).run(None, IMAGES)
    assert np.array_equal(got, wanted)


def test_what_no_session_takes(layer_file, tmp_path):
    data = layer_file.read_bytes()
    assert onnx_session(data).run(None, IMAGES)[0].shape == (2, 4, 3, 3)
    with pytest.raises(TypeError, match=r"must be onnxruntime\.SessionOptions, got dict"):
        onnx_session(layer_file, {})
    with pytest.raises(ValueError, match="not a model in ONNX"):
        onnx_session(b"no model at all")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "saved.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(data, options, providers=PROVIDERS)  # its layers are standard operators
    with pytest.raises(ValueError, match="no adder layer that the native kernels take"):
        onnx_session(tmp_path / "saved.ort")
