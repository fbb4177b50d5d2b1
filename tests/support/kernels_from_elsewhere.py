"""Runs the tests of the Triton kernels, and a network, with kernels from a folder or the Hub."""

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn

from adder_zoo import Adder2d

OPS = Path(__file__).parents[1] / "ops"
PROJECT = Path(__file__).parents[2] / "kernels" / "adder2d"


def load(where: str):
    """The kernels of "folder:PATH" or "hub:ORG", under a name of their own."""
    from kernels import get_kernel, get_local_kernel

    kind, _, name = where.partition(":")
    if kind == "folder":
        return get_local_kernel(Path(name))
    return get_kernel(f"{name}/adder2d", version=1, trust_remote_code=True)


def run_tests_with(where: str, expression: str) -> dict:
    """With the kernels of ``where``: the tests of their own project, of the layer, and those of tests/ops for p = 1.

    The last are run with these kernels instead of the installed ones. The project's own fetch them by their name.
    """
    kernels = load(where)
    sys.modules["adder_zoo.kernels"] = sys.modules[f"{kernels.__name__}.kernels"]
    sys.modules["kernels_to_test"] = kernels
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-m", "not slow"]
    passed = []

    class Count:
        def pytest_runtest_logreport(self, report):
            passed.extend([report.nodeid] if report.when == "call" and report.passed else [])

    def run(*arguments: str, only: str = "") -> int:
        return int(pytest.main([*options, *(["-k", only] if only else []), *arguments], plugins=[Count()]))

    # The quick suite leaves out a second memory format in torch's checks of operators, and strides of 1.
    own = ("-c", os.devnull, "--rootdir", str(PROJECT), str(PROJECT / "tests"))
    alone = run(*own, only="not channels_last and not 1-dtype" if expression else "")
    files = [str(OPS / name) for name in ("test_triton.py", "test_triton_special.py")]
    status = run(*files, str(Path(__file__).with_name("layers_for_kernelize.py")), only=expression)
    return {"own status": alone, "status": status, "passed": len(passed)}


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
    parts = [Adder2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    parts += [Adder2d(4, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)]
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
        kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu", use_fallback=False)
    after = [layer.forward.__func__.__module__ for layer in layers]
    again, gradients_again = answer()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)  # with its layers as kernelize left them
    differ = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(gradients_again, gradients, strict=True)]
    module = sys.modules[after[0].rpartition(".")[0]]
    where = {"file": module.__file__, "name": module.__name__, "before": before, "after": after}
    apart = {"y": (again - y).abs().max().item(), "compiled": (compiled - again).abs().max().item()}
    return {**where, **apart, "gradients": differ}


def as_older_clients(built: str) -> bool:
    """Whether the folder of the kernels' own name in a variant exports the same functions as the variant."""
    kernels = sys.modules[load(f"folder:{built}").__name__]  # the same build came from the Hub since, under its name
    file = Path(kernels.__file__).parent / "adder2d" / "__init__.py"
    spec = importlib.util.spec_from_file_location("older", file)
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    return all(getattr(older, name) is getattr(kernels, name) for name in (*kernels.__all__, "__all__"))


def trust(*organisations: str) -> None:
    """Has the stand-in call these trusted publishers, as Hugging Face does with some."""
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_trusted", json.dumps(organisations).encode()).close()


def intact(where: str) -> bool:
    """Whether a variant that came from ``where`` is what its digest says, by the library's own check."""
    from kernels._rust import Digest, Metadata

    folder = Path(load(where).__file__).parent
    digest = Metadata.read_from_file(folder / "metadata.json").digest
    return digest.validate(Digest.hash_variant(digest.algorithm, folder)) is None


def client_commands(built: str, organisation: str) -> dict:
    """What the commands of the library say: of each, its status and what it printed."""
    from kernels.cli import benchmark

    from kernels import backends, cli

    def run(*arguments: str) -> list:
        out = io.StringIO()
        sys.argv = ["kernels", *arguments]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                cli.main()
        except SystemExit as end:
            return [end.code, out.getvalue()]
        except ValueError as error:
            return ["ValueError", str(error)]
        return [0, out.getvalue()]

    repo_id = f"{organisation}/adder2d"
    verify = ("verify-signature", repo_id, "1", "--all-variants")
    said = {"versions": run("versions", repo_id), "info": run("info", repo_id, "--version", "1", "--json")}
    said["verify, not trusted"] = run(*verify)
    trust(organisation)
    said["verify"] = run(*verify)
    said["verify, unsigned left out"] = run(*verify, "--filter-unsigned")
    with tempfile.TemporaryDirectory() as project:
        Path(project, "pyproject.toml").write_text(f'[tool.kernels.dependencies]\n"{repo_id}" = 1\n')
        said["lock"], said["download"] = run("lock", project), run("download", project, "--all-variants")
    trust()
    benchmark._backend = backends.CPU  # without a GPU a torch that is built for one has no device to name
    return {**said, "benchmark": run("benchmark", built, "--iterations", "1", "--warmup", "0", "--json")}


def main(built: str, organisation: str, expression: str) -> dict:
    assert os.environ["TRITON_INTERPRET"] == "1"
    said = {"folder": replace_layers(f"folder:{built}"), "hub": replace_layers(f"hub:{organisation}")}
    said |= {"older client": as_older_clients(built), "intact": intact(f"hub:{organisation}")}
    said["commands"] = client_commands(built, organisation)
    return {**said, "tests": run_tests_with(f"hub:{organisation}", expression)}
