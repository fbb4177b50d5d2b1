"""What adder2d refuses, in words that name the argument; which implementations there are; what it imports without."""

import dataclasses
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import preloaded
import pytest
import torch
from torch import zeros

import adder_zoo
from adder_zoo import adder2d
from adder_zoo.ops import backends

SOURCE = Path(adder_zoo.__file__).parent
x, w = zeros(1, 4, 6, 6), zeros(8, 4, 3, 3)

BAD = {
    # tensors
    "x_no_tensor": (TypeError, "x must be a tensor, got list", lambda: adder2d([[1.0]], w)),
    "x_none": (TypeError, "x must be a tensor, got NoneType", lambda: adder2d(None, w)),
    "weight_no_tensor": (TypeError, "weight must be a tensor, got float", lambda: adder2d(x, 1.0)),
    "bias_no_tensor": (TypeError, "bias must be a tensor, got float", lambda: adder2d(x, w, 0.5)),
    "x_int": (TypeError, "x must be float32.*int64", lambda: adder2d(x.long(), w)),
    "x_complex": (TypeError, "x must be float32.*complex64", lambda: adder2d(x.to(torch.complex64), w)),
    "x_bool": (TypeError, "x must be float32.*bool", lambda: adder2d(x.bool(), w)),
    "x_float8": (TypeError, "x must be float32.*float8", lambda: adder2d(x.to(torch.float8_e4m3fn), w)),
    "weight_int": (TypeError, "weight must be float32.*int8", lambda: adder2d(x, w.to(torch.int8))),
    "weight_complex": (TypeError, "weight must be float32.*complex128", lambda: adder2d(x, w.to(torch.complex128))),
    "bias_int": (TypeError, "bias must be float32.*int64", lambda: adder2d(x, w, zeros(8).long())),
    "x_sparse": (TypeError, "x must be a dense tensor.*sparse_coo", lambda: adder2d(x.to_sparse(), w)),
    "weight_sparse": (TypeError, "weight must be a dense tensor", lambda: adder2d(x, w.to_sparse())),
    "float64_beside_float32": (TypeError, "x is torch.float64 and weight torch.float", lambda: adder2d(x.double(), w)),
    "float32_beside_float64": (TypeError, "float64 goes with float64 only", lambda: adder2d(x, w.double())),
    "float16_beside_float64": (TypeError, "float64 goes with float64 only", lambda: adder2d(x.half(), w.double())),
    # shapes
    "x_rank_2": (ValueError, r"x must have shape .* got shape \(6, 6\)", lambda: adder2d(x[0, 0], w)),
    "x_rank_5": (ValueError, "x must have shape", lambda: adder2d(x[None], w)),
    "x_scalar": (ValueError, r"x must have shape .* got shape \(\)", lambda: adder2d(torch.tensor(1.0), w)),
    "weight_rank_3": (ValueError, "weight must have 4 dimensions", lambda: adder2d(x, w[0])),
    "weight_rank_5": (ValueError, "weight must have 4 dimensions", lambda: adder2d(x, w[None])),
    "weight_no_filters": (ValueError, "weight must not be empty", lambda: adder2d(x, w[:0])),
    "weight_no_taps": (ValueError, "weight must not be empty", lambda: adder2d(x, w[..., :0])),
    "weight_no_channels": (ValueError, "weight must not be empty", lambda: adder2d(x[:, :0], w[:, :0])),
    "channels": (ValueError, r"weight .* expects 4 input channels, but x has 3", lambda: adder2d(x[:, :3], w)),
    "channels_unbatched": (ValueError, "expects 4 input channels, but x has 3", lambda: adder2d(x[0, :3], w)),
    "channels_groups": (ValueError, "groups = 2 expects 8 input channels", lambda: adder2d(x, w, groups=2)),
    "bias_shape": (ValueError, r"bias must have shape \(8,\), got \(4,\)", lambda: adder2d(x, w, zeros(4))),
    "bias_rank": (ValueError, r"bias must have shape \(8,\), got \(8, 1\)", lambda: adder2d(x, w, zeros(8, 1))),
    "kernel_higher": (ValueError, "kernel's height 3 .* the padded input's 2", lambda: adder2d(x[:, :, :2], w)),
    "kernel_wider": (ValueError, "kernel's width 3 .* the padded input's 1", lambda: adder2d(x[..., :1], w)),
    "kernel_dilated": (ValueError, "kernel's height 7 .* the padded input's 6", lambda: adder2d(x, w, dilation=3)),
    "image_empty": (ValueError, "x must have at least one pixel", lambda: adder2d(x[..., :0], w, padding=4)),
    # devices
    "device_weight": (ValueError, "x is on cpu and weight on meta", lambda: adder2d(x, w.to("meta"))),
    "device_x": (ValueError, "x is on meta and weight on cpu", lambda: adder2d(x.to("meta"), w)),
    "device_bias": (ValueError, "x is on cpu and bias on meta", lambda: adder2d(x, w, zeros(8, device="meta"))),
    # geometry
    "stride_0": (ValueError, "stride must be at least 1, got 0", lambda: adder2d(x, w, stride=0)),
    "stride_negative": (ValueError, r"stride must be at least 1, got \(1, -1\)", lambda: adder2d(x, w, stride=(1, -1))),
    "stride_float": (TypeError, "stride must be an int or a pair of ints, got 1.5", lambda: adder2d(x, w, stride=1.5)),
    "stride_bool": (TypeError, "stride must be an int or a pair of ints", lambda: adder2d(x, w, stride=True)),
    "stride_three": (TypeError, "stride must be an int or a pair of ints", lambda: adder2d(x, w, stride=(1, 1, 1))),
    "stride_none": (TypeError, "stride must be an int or a pair of ints", lambda: adder2d(x, w, stride=None)),
    "stride_empty": (TypeError, "stride must be an int or a pair of ints", lambda: adder2d(x, w, stride=())),
    "dilation_0": (ValueError, "dilation must be at least 1, got 0", lambda: adder2d(x, w, dilation=0)),
    "dilation_float": (TypeError, "dilation must be an int or a pair", lambda: adder2d(x, w, dilation=(1, 2.0))),
    "padding_negative": (ValueError, "padding must be at least 0, got -1", lambda: adder2d(x, w, padding=-1)),
    "padding_float": (TypeError, "padding must be an int or a pair of ints", lambda: adder2d(x, w, padding=0.5)),
    "padding_four": (TypeError, "padding must be an int or a pair", lambda: adder2d(x, w, padding=(0, 1, 0, 1))),
    "padding_word": (ValueError, "padding must be .* got 'full'", lambda: adder2d(x, w, padding="full")),
    "padding_same_stride": (ValueError, "padding='same' needs", lambda: adder2d(x, w, stride=2, padding="same")),
    "padding_same_strides": (ValueError, "padding='same' needs stride 1", lambda: adder2d(x, w, None, (1, 2), "same")),
    "groups_do_not_divide": (ValueError, "groups = 3 does not divide weight's 8", lambda: adder2d(x, w, groups=3)),
    "groups_0": (ValueError, "groups must be at least 1, got 0", lambda: adder2d(x, w, groups=0)),
    "groups_negative": (ValueError, "groups must be at least 1, got -2", lambda: adder2d(x, w, groups=-2)),
    "groups_float": (TypeError, "groups must be an int, got 1.0", lambda: adder2d(x, w, groups=1.0)),
    "groups_bool": (TypeError, "groups must be an int, got True", lambda: adder2d(x, w, groups=True)),
    # options
    "weight_grad": (ValueError, "weight_grad must be .* got 'clipped'", lambda: adder2d(x, w, weight_grad="clipped")),
    "input_grad": (ValueError, "input_grad must be one of .* got None", lambda: adder2d(x, w, input_grad=None)),
    "p_below": (ValueError, "p must be a number from 1 to 2, got 0.5", lambda: adder2d(x, w, p=0.5)),
    "p_above": (ValueError, "p must be a number from 1 to 2, got 3", lambda: adder2d(x, w, p=3)),
    "p_nan": (ValueError, "p must be a number from 1 to 2, got nan", lambda: adder2d(x, w, p=float("nan"))),
    "p_word": (ValueError, "p must be a number from 1 to 2, got 'l1'", lambda: adder2d(x, w, p="l1")),
    "impl_unknown": (ValueError, "impl must be None or one of .* got 'gpu'", lambda: adder2d(x, w, impl="gpu")),
    "impl_type": (ValueError, "impl must be None or one of .* got 3", lambda: adder2d(x, w, impl=3)),
    "options_by_position": (TypeError, "positional argument", lambda: adder2d(x, w, None, 1, 0, 1, 1, "full")),
    # implementations that cannot
    "cpu_float64": (RuntimeError, "'cpu' takes float32.*float64", lambda: adder2d(x.double(), w.double(), impl="cpu")),
    "exact_p": (RuntimeError, "impl='exact' cannot compute p = 1.5", lambda: adder2d(x, w, p=1.5, impl="exact")),
    "convolution_p1": (RuntimeError, "impl='convolution' computes p = 2", lambda: adder2d(x, w, impl="convolution")),
    "convolution_p": (
        RuntimeError, "impl='convolution' cannot compute p = 1.5", lambda: adder2d(x, w, p=1.5, impl="convolution"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "words", "call"), BAD.values(), ids=BAD)
def test_refused(error, words, call):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "adder2d" in str(caught.value)


def test_triton_needs_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"impl='triton' is not available: .*(no GPU|not installed)") as caught:
        adder2d(x, w, impl="triton")
    found = adder_zoo.implementations()["triton"]
    assert not found.available
    assert found.detail in str(caught.value)


def test_triton_does_not_take_cpu_tensors(monkeypatch):
    if adder_zoo.implementations()["triton"].detail.startswith("Triton is not installed"):
        pytest.skip("needs triton: it is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run on cpu"):
        adder2d(x, w, impl="triton")
    with pytest.raises(RuntimeError, match="impl='triton' has no float64"):
        adder2d(x.double(), w.double(), impl="triton")


def test_refused_under_compile():
    compiled = torch.compile(adder2d, backend="eager", dynamic=True)
    with pytest.raises((ValueError, torch._dynamo.exc.TorchRuntimeError), match="stride must be at least 1"):
        compiled(x, w, stride=0)


def test_meta_tensors_have_a_shape():
    assert adder2d(x.to("meta"), w.to("meta"), padding=1).shape == (1, 8, 6, 6)


def test_implementations():
    found = adder_zoo.implementations()
    assert list(found) == ["reference", "cpu", "exact", "triton", "convolution"]
    for name, implementation in found.items():
        assert implementation.name == name
        assert implementation.detail
        if not implementation.available:
            with pytest.raises(RuntimeError, match=f"impl='{name}' is not available"):
                adder2d(x, w, impl=name)
    assert found["reference"].available
    with pytest.raises(AttributeError):
        found["cpu"].available = False


def test_every_name_in_the_docstring_is_accepted():
    for name in adder_zoo.implementations():
        assert f'"{name}"' in adder2d.__doc__, f"impl={name!r} is accepted and not described"


# ---- fresh processes -----------------------------------------------------------------------------------------------


def python(program, folder=SOURCE.parent, command=(sys.executable,)):
    """What a fresh process prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(folder)}
    done = subprocess.run([*command, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_without_triton():
    """The import does without Triton, and impl="triton" says that it is missing."""
    answer = python("""
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, adder_zoo
x, w = torch.ones(1, 2, 4, 4), torch.zeros(3, 2, 3, 3, requires_grad=True)
y = adder_zoo.adder2d(x, w, padding=1)
y.sum().backward()
assert y[0, 0, 1, 1] == -18, y
print(adder_zoo.implementations()["triton"])
try:
    adder_zoo.adder2d(x, w, impl="triton")
except RuntimeError as error:
    print(error)
""")
    assert "available=False" in answer
    assert "impl='triton' is not available: Triton is not installed" in answer


def test_import_is_quiet_and_lazy():
    answer = python("""
import sys, warnings
import timm, torch
before = set(sys.modules)
warnings.simplefilter("error")
import adder_zoo
new = set(sys.modules) - before
print([m for m in new if m.partition(".")[0] == "triton" or m == "adder_zoo.kernels"])
""")
    assert answer.split() == ["[]"]


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "not_a_library"])
def test_without_the_native_library(tmp_path, broken):
    """Eager torch takes over and says so once, when it is first needed; by name there is an error."""
    shutil.copytree(SOURCE, tmp_path / "adder_zoo", ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    if broken:
        (tmp_path / "adder_zoo" / "_native.so").write_bytes(b"no library")
    answer = python(
        """
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch, adder_zoo
    def ours():
        return [str(w.message) for w in seen if "adder_zoo" in str(w.message)]
    assert not ours(), ours()
    x, w = torch.ones(1, 2, 4, 4), torch.zeros(3, 2, 3, 3, requires_grad=True)
    y = adder_zoo.adder2d(x, w, padding=1)
    y.sum().backward()
    assert len(ours()) == 1, ours()
    adder_zoo.adder2d(x, w, padding=1).sum().backward()
    adder_zoo.implementations()
    assert len(ours()) == 1, ours()
print(ours()[0])
assert y[0, 0, 1, 1] == -18 and y[0, 0, 0, 0] == -8, y
found = adder_zoo.implementations()["cpu"]
assert not found.available
try:
    adder_zoo.adder2d(x, w, impl="cpu")
except RuntimeError as error:
    print(error)
else:
    raise SystemExit("impl='cpu' ran")
""",
        tmp_path,
        preloaded.python(),
    )
    warning, error = answer.strip().splitlines()[:2]
    assert "the CPU library is missing" in warning
    assert "eager torch" in warning
    assert "impl='cpu' is not available" in error
    assert "C++ compiler" in error


@pytest.mark.parametrize(("device", "why"), [("cuda", "Triton is not installed"), ("xpu", "for CPUs and for GPUs")])
def test_a_device_without_kernels_is_said_once(device, why, monkeypatch):
    """A GPU without Triton (Windows, aarch64) and other devices: what runs there is many times slower."""

    class Fake:  # all that is asked of a tensor
        def __init__(self, dtype=torch.float32):
            self.device, self.dtype = torch.device(device), dtype

    missing = backends.Implementation("triton", False, "Triton is not installed (pip install triton)")
    monkeypatch.setattr(backends, "TRITON", dataclasses.replace(backends.TRITON, probe=lambda: missing))
    backends._warn_of_eager_torch.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # eager torch is what these are computed by anywhere
        for p in (1.0, 1.5):
            assert backends.resolve("auto", Fake(torch.float64), p).name == "reference"
        assert backends.resolve("auto", Fake(), 2.0).name == "convolution"
    for p in (1.0, 1.5):
        backends._warn_of_eager_torch.cache_clear()
        with pytest.warns(UserWarning, match=f"no kernels for {device} here, so adder layers run in eager.*{why}"):
            assert backends.resolve("auto", Fake(), p).name == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backends.resolve("auto", Fake(), 1.0)
        backends.resolve("reference", Fake(), 1.0)  # who asks for it knows
    backends._warn_of_eager_torch.cache_clear()
