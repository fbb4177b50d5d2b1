"""Our ONNX functions node by node: standard operators in ONNX Runtime, and the native kernels in their place."""

import dataclasses

import int8_truth
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import truth
from shapes import NAMED, random_cases

from adder_zoo import onnx_library_path
from adder_zoo.onnx import _bodies, _functions
from adder_zoo.ops.geometry import Geometry
from adder_zoo.ops.int8.reference import Epilogue

ALL = [case for case in (*NAMED, *random_cases(30)) if min(case.output) > 0]
CASES = [case for case in ALL if case.work < 100_000][::5]
KERNELS = ("functions", "native")
cases_of = pytest.mark.parametrize("cases", [CASES, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])


def layer_of(case, dtype=ir.DataType.FLOAT, p=1.0, pad_value=0, known=True):
    K, Cg, R, S = case.weight
    size = tuple(case.x[2:]) if known else None
    return _bodies.Layer(size, False, (K, R, S, Cg), Geometry.of(*case.geometry), p, dtype, pad_value)


def run(function, inputs, types, kernels="functions"):
    """One node that calls ``function``, in a session of its own."""
    values = [ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(a.dtype))) for name, a in inputs.items()]
    for value, array in zip(values, inputs.values(), strict=True):
        value.shape = ir.Shape([None] * array.ndim)
    empty = [
        name for name in ("wide", "narrow") if name in attributes_of(function) and not attributes_of(function)[name]
    ]
    ranks = [1 if name in empty else 4 for name in ("wide", "narrow")[: len(types)]]
    outputs = [ir.Value(name=f"out{i}", type=ir.TensorType(t)) for i, t in enumerate(types)]
    for value, rank in zip(outputs, ranks, strict=True):
        value.shape = ir.Shape([None] * rank)
    attributes = [ir.Attr(name, a.type, a.value) for name, a in function.attributes.items()]
    node = ir.Node(
        function.domain, function.name, values, attributes, overload=function.overload, outputs=outputs, name="node"
    )
    imports = {"": 18, _functions.DOMAIN: 1}
    graph = ir.Graph(values, outputs, nodes=[node], opset_imports=imports, name="one")
    data = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function])).SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if kernels == "native":
        options.register_custom_ops_library(onnx_library_path())
    return onnxruntime.InferenceSession(data, options).run(None, inputs)


def attributes_of(function):
    return {name: attribute.value for name, attribute in function.attributes.items()}


def last(a):
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1))


def first(a):
    return a.transpose(0, 3, 1, 2)


def operands(case, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=case.x).astype(dtype), rng.normal(size=case.weight).astype(dtype)


@cases_of
@pytest.mark.parametrize("kernels", KERNELS)
def test_distance(kernels, cases):
    for number, case in enumerate(cases):
        x, w = operands(case, number)
        function = _functions.plain(layer_of(case, known=number % 3 > 0))
        (y,) = run(function, {"x": last(x), "w": last(w)}, [ir.DataType.FLOAT], kernels)
        wanted, magnitude, terms = truth.forward(x, w, *case.geometry)
        # The native kernels take an identity with sums four times as large: forward_tile.h.
        bound = truth.gamma((terms + 4) * (1 if kernels == "functions" else 9), 2.0**-24) * magnitude
        assert np.all(np.abs(first(y) - wanted) <= bound + 1e-30), case


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_powers_and_float64(p):
    for number, case in enumerate(CASES[:6]):
        x, w = operands(case, number, np.float64)
        function = _functions.plain(layer_of(case, ir.DataType.DOUBLE, p))
        assert function.name == "Adder2dPower"
        (y,) = run(function, {"x": last(x), "w": last(w)}, [ir.DataType.DOUBLE])
        wanted, magnitude, terms = truth.forward(x, w, *case.geometry, p=p)
        assert np.all(np.abs(first(y) - wanted) <= truth.gamma(terms + 8, 2.0**-53) * magnitude), case


@cases_of
@pytest.mark.parametrize("kernels", KERNELS)
def test_fused(kernels, cases):
    for number, case in enumerate(cases[::2]):
        x, w = operands(case, number)
        rng = np.random.default_rng(number)
        K = case.weight[0]
        scale, shift = (rng.normal(size=K).astype(np.float32) for _ in range(2))
        relu, added = bool(number % 2), number % 3 != 0
        residual = rng.normal(size=case.output).astype(np.float32)
        inputs = {"x": last(x), "w": last(w), "scale": scale, "shift": shift}
        inputs["residual"] = last(residual) if added else np.empty(0, np.float32)
        (y,) = run(_functions.fused(layer_of(case), relu, added), inputs, [ir.DataType.FLOAT], kernels)
        sums, magnitude, terms = truth.forward(x, w, *case.geometry)
        each = (1, K, 1, 1)
        wanted = sums * scale.reshape(each) + shift.reshape(each) + (residual if added else 0)
        size = magnitude * np.abs(scale.reshape(each)) + np.abs(shift.reshape(each)) + np.abs(residual)
        bound = truth.gamma((terms + 8) * (1 if kernels == "functions" else 9), 2.0**-24) * size
        wanted = np.maximum(wanted, 0) if relu else wanted
        assert np.all(np.abs(first(y) - wanted) <= bound), case


@cases_of
@pytest.mark.parametrize("kernels", KERNELS)
def test_bytes_are_exact(kernels, cases):
    for number, case in enumerate(cases):
        rng = np.random.default_rng(number)
        x, w = (rng.integers(0, 256, shape).astype(np.uint8) for shape in (case.x, case.weight))
        zero_point = int(rng.integers(0, 256))
        layer = layer_of(case, ir.DataType.INT32, pad_value=zero_point)
        (y,) = run(_functions.plain(layer), {"x": last(x), "w": last(w)}, [ir.DataType.INT32], kernels)
        assert np.array_equal(first(y), int8_truth.distance(x, w, zero_point, *case.geometry)), case


@cases_of
@pytest.mark.parametrize("kernels", KERNELS)
def test_what_follows_bytes_is_exact(kernels, cases):
    for number, case in enumerate(cases[::2]):
        rng = np.random.default_rng(number)
        x, w = (rng.integers(0, 256, shape).astype(np.uint8) for shape in (case.x, case.weight))
        K, zero_point = case.weight[0], int(rng.integers(0, 256))
        y = int8_truth.distance(x, w, zero_point, *case.geometry)
        spread = max(1.0, float(np.abs(y).max(initial=1)))
        scale, shift = (rng.normal(size=K) * 8 / spread).astype(np.float32), (rng.normal(size=K) * 4).astype(np.float32)
        if number % 4 == 0:  # halves, which go to the even level
            scale, shift = np.ones(K, np.float32), np.full(K, 0.5 - y.flat[0], np.float32)
        residual = rng.normal(size=case.output).astype(np.float32)
        added, relu = number % 3 != 0, bool(number % 2)
        wide, narrow = [(True, True), (False, True), (True, False)][number % 3]
        after = Epilogue(
            None, None, None, relu, wide, 1.0 if number % 4 == 0 else 7.12345678, 3 * (number % 5), 255, narrow
        )
        layer = layer_of(case, ir.DataType.INT32, pad_value=zero_point)
        inputs = {"x": last(x), "w": last(w), "scale": scale, "shift": shift}
        inputs["residual"] = last(residual) if added else np.empty(0, np.float32)
        types = [ir.DataType.FLOAT, ir.DataType.UINT8]
        v, levels = run(_functions.int8_fused(layer, after, added), inputs, types, kernels)
        wanted = int8_truth.epilogue(y, scale, shift, residual if added else None, relu)
        if wide:
            assert np.array_equal(first(v), wanted), case
        if narrow:
            made = int8_truth.levels(wanted, after.inverse_step, after.next_zero_point, after.top)
            assert np.array_equal(first(levels), made), case
        assert (v.size > 0, levels.size > 0) == (wide, narrow)


def test_nan_infinity_and_levels_of_them():
    b = _bodies.Builder(f"t{i}" for i in range(99))
    v = ir.Value(name="v", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None]))
    out = _functions.levels(b, v, 2.0, 10, 200)
    out.type = ir.TensorType(ir.DataType.UINT8)
    graph = ir.Graph([v], [out], nodes=b.nodes, opset_imports={"": 18}, name="levels")
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    values = np.array([np.nan, np.inf, -np.inf, 0.25, 0.75, -0.25, 1e30, -5.0], np.float32)
    (got,) = onnxruntime.InferenceSession(data).run(None, {"v": values})
    assert got.tolist() == [0, 200, 0, 10, 12, 10, 200, 0]


def test_functions_of_different_layers_have_different_names():
    """A name that two bodies shared would make one of them the other's."""
    case = CASES[0]
    layer = layer_of(case)
    other = {
        "size": (99, 98), "single": True, "filters": (2, 1, 1, 1),
        "geometry": Geometry.of((3, 2), (1, 0, 2, 0), (2, 1), 1),
        "p": 1.25, "dtype": ir.DataType.INT32, "pad_value": 7,
    }  # fmt: skip
    assert set(other) == {field.name for field in dataclasses.fields(layer)}
    layers = [layer, *(dataclasses.replace(layer, **{name: value}) for name, value in other.items())]
    for name in ("stride", "padding", "dilation", "groups"):
        changed = dataclasses.replace(
            layer.geometry, **{name: 5 if name == "groups" else (5,) * len(getattr(layer.geometry, name))}
        )
        layers.append(dataclasses.replace(layer, geometry=changed))
    layers.append(dataclasses.replace(layer, p=1.25 + 1e-9))
    assert len({one.key for one in layers}) == len(layers)
