"""The kernels as Hugging Face's ``kernels`` gets them: from a folder, from the Hub, and as replacements of layers.

Triton decides when it is first imported whether it interprets, so everything runs in processes with TRITON_INTERPRET=1.
"""

import json
from pathlib import Path

import pytest
from hub_process import scenario
from hub_server import WRITE_TOKEN, HubServer

from adder_zoo.hub import kernel_project

pytest.importorskip("triton")
pytest.importorskip("kernels")
# What of tests/test_triton*.py runs with the kernels from the Hub by default; the slow test runs all of it.
QUICK = "layer_for_kernelize or errors or memory_format or repeated_runs or plain and nan"


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
        said = scenario(hub, tmp_path / "two", "kernels_from_elsewhere", built, "zoo", expression, TRITON_INTERPRET="1")
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
