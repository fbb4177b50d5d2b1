"""The kernels as Hugging Face's ``kernels`` gets them: from a folder, from the Hub, and in the place of layers.

Triton decides when it is first imported whether it interprets, so everything runs in processes with TRITON_INTERPRET=1.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from hub_process import scenario
from hub_server import WRITE_TOKEN, HubServer
from torch import nn

from adder_zoo import Adder2d
from adder_zoo.hub import kernel_project

pytest.importorskip("triton")
pytest.importorskip("kernels")
HERE = Path(__file__).parents[1]
# What of tests/test_triton*.py runs with the kernels from the Hub by default; the slow test runs all of it.
QUICK = "layer_for_kernelize or errors or memory_format or repeated_runs or plain and nan"


def load(where: str):
    """The kernels of "folder:PATH" or "hub:ORG", under a name of their own."""
    from kernels import get_kernel, get_local_kernel

    kind, _, name = where.partition(":")
    if kind == "folder":
        return get_local_kernel(Path(name))
    return get_kernel(f"{name}/adder2d", version=1, trust_remote_code=True)


def run_tests_with(where: str, expression: str) -> dict:
    """tests/test_triton.py and its like, with the kernels of ``where`` in the place of the installed ones."""
    kernels = load(where)
    sys.modules["adder_zoo.kernels"] = kernels
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *(["-k", expression] if expression else [])]
    passed = []

    class Count:
        def pytest_runtest_logreport(self, report):
            passed.extend([report.nodeid] if report.when == "call" and report.passed else [])

    files = [str(HERE / name) for name in ("test_triton.py", "test_triton_special.py")]
    status = pytest.main([*options, *files], plugins=[Count()])
    return {"status": int(status), "passed": len(passed)}


def replace_layers(where: str) -> dict:
    """``kernelize`` on a network with adder layers: who computes then, and how much the answer and gradients differ."""
    import kernels
    from kernels import LayerRepository, LocalLayerRepository, Mode, kernelize, replace_kernel_forward_from_hub

    kind, _, name = where.partition(":")
    if kind == "folder":
        repository = LocalLayerRepository(Path(name), layer_name="Adder2d")
    else:
        repository = LayerRepository(f"{name}/adder2d", layer_name="Adder2d", version=1, trust_remote_code=True)
    replace_kernel_forward_from_hub(Adder2d, "Adder2d")
    torch.manual_seed(0)
    parts = [Adder2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    parts += [Adder2d(8, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)]
    model = nn.Sequential(*parts)
    x, dy = torch.randn(2, 3, 8, 9), torch.randn(2, 5, 4, 5)

    def answer():
        model.zero_grad()
        y = model(x)
        y.backward(dy)
        return y.detach(), [p.grad.clone() for p in model.parameters()]

    y, gradients = answer()
    layers = [m for m in model.modules() if isinstance(m, Adder2d)]
    before = [layer.forward.__func__.__module__ for layer in layers]
    with kernels.use_kernel_mapping({"Adder2d": {"cpu": repository}}):
        kernelize(model, mode=Mode.TRAINING, device="cpu", use_fallback=False)
    after = [layer.forward.__func__.__module__ for layer in layers]
    again, gradients_again = answer()
    differ = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(gradients_again, gradients, strict=True)]
    module = sys.modules[after[0].rpartition(".")[0]]
    where = {"file": module.__file__, "name": module.__name__, "before": before, "after": after}
    return {**where, "y": (again - y).abs().max().item(), "gradients": differ}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return kernel_project.build(tmp_path_factory.mktemp("kernel"), "zoo")


def test_build_is_what_the_sources_are(built):
    project = kernel_project.source()
    about = kernel_project.describe(project)
    assert about == {"name": "adder2d", "version": "1", "license": "Apache-2.0", "repo-id": "adder-zoo/adder2d"}
    sources = {path.name: path.read_bytes() for path in (project / "torch-ext" / "adder2d").glob("*.py")}
    assert "forward.py" in sources
    identifiers = set()
    for backend in ("cpu", "cuda"):
        folder = built / "build" / f"torch-{backend}"
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        metadata = json.loads(files.pop("metadata.json"))
        operators: dict = {}
        exec(files.pop("_ops.py"), operators)
        assert files == sources
        assert metadata["backend"] == {"type": backend}
        assert metadata["version"] == 1
        assert operators["add_op_namespace_prefix"]("f") == f"{metadata['id']}::f"
        identifiers.add(metadata["id"])
    assert len(identifiers) == 2
    card = (built / "README.md").read_text()
    assert 'get_kernel("zoo/adder2d", version=1' in card
    assert "adder-zoo/adder2d" not in card
    assert sorted(p.name for p in (built / "build").iterdir()) == ["torch-cpu", "torch-cuda"]


def test_build_again_leaves_nothing_of_before(built):
    (built / "build" / "torch-cpu" / "old.py").write_text("")
    kernel_project.build(built, "zoo")
    assert not (built / "build" / "torch-cpu" / "old.py").exists()


@pytest.mark.parametrize(
    "files",
    [["thesis.tex"], ["README.md"], ["build/main.o"], ["build/torch-cpu/metadata.json"], ["sub/build/torch-cpu/a.py"]],
    ids=lambda files: files[0],
)
def test_build_deletes_nothing_that_it_did_not_make(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"not an earlier build of the kernels.*name a new or an empty folder"):
        kernel_project.build(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in files)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({Path(name).parts[0] for name in files})


def test_build_over_a_file_beside_an_earlier_build(tmp_path):
    built = kernel_project.build(tmp_path / "kernel")
    (built / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        kernel_project.build(built)
    assert (built / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="it is a file"):
        kernel_project.build(built / "notes.txt")


def test_metadata_is_read_by_kernels(built):
    from kernels._rust import Build, Metadata

    metadata = Metadata.read_from_file(built / "build" / "torch-cuda" / "metadata.json")
    assert metadata.name.python_name == "adder2d"
    assert (metadata.version, metadata.license, metadata.python_depends) == (1, "Apache-2.0", [])
    Build.open(kernel_project.source())


@pytest.mark.parametrize("expression", [QUICK, pytest.param("", marks=pytest.mark.slow)], ids=["some", "all"])
def test_kernels_from_elsewhere_pass_the_tests_of_the_installed_ones(built, tmp_path, expression):
    with HubServer(tmp_path / "hub") as hub:
        publish = json.dumps(["push", "--all", "zoo"])
        scenario(hub, tmp_path / "one", "commands", publish, HF_TOKEN=WRITE_TOKEN)
        said = scenario(hub, tmp_path / "two", "test_kernel_project", built, "zoo", expression, TRITON_INTERPRET="1")
        assert any("/kernels/zoo/adder2d/resolve/" in call for call in hub.calls)
    for where, home in (("folder", built), ("hub", tmp_path / "two")):
        layers = said[where]
        assert layers["before"] == ["adder_zoo.layers"] * 2
        assert layers["file"].startswith(str(home))
        assert layers["after"] == [f"{layers['name']}.layers"] * 2
        # float32 sums of 27 and 72 terms in another order
        assert layers["y"] < 1e-4, layers
        assert len(layers["gradients"]) == 6
        assert max(layers["gradients"]) < 1e-4, layers
    assert said["tests"]["status"] == 0, said
    assert said["tests"]["passed"] >= (8 if expression else 130)


def main(built: str, organisation: str, expression: str) -> dict:
    assert os.environ["TRITON_INTERPRET"] == "1"
    said = {"folder": replace_layers(f"folder:{built}"), "hub": replace_layers(f"hub:{organisation}")}
    return {**said, "tests": run_tests_with(f"hub:{organisation}", expression)}
