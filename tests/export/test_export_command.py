"""``adder-zoo export``: what the formats have in common."""

from __future__ import annotations

import click
import pytest
import torch
from click.testing import CliRunner

from adder_zoo.cli import export as command
from adder_zoo.cli import main
from adder_zoo.cli._formats import Format, Job, Written

MODEL = "adder_lenet5_bn.mnist"


@pytest.fixture
def folder_format(monkeypatch):
    """A format that writes a folder, with an option of its own."""
    jobs: list[tuple[Job, dict]] = []

    def write(job, **options):
        jobs.append((job, options))
        return Written("done", {"told": 1})

    level = click.Option(["--level"], type=int, default=2)
    monkeypatch.setitem(command.FORMATS, "rows", Format("rows", "", (level,), write))
    monkeypatch.setattr(command.export, "params", [*command.export.params, level])
    monkeypatch.setattr(
        next(p for p in command.export.params if p.name == "name"), "type", click.Choice(["pt2", "rows"])
    )
    return jobs


def run(*args, code=0):
    result = CliRunner().invoke(main, ["export", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def test_a_format_gets_the_network_and_its_own_options(tmp_path, folder_format):
    assert run(MODEL, "-o", tmp_path / "out", "--format", "rows", "--level", "3").stdout == "done\n"
    run(MODEL, "-o", tmp_path / "out", "--format", "rows")
    (job, options), (_, default) = folder_format
    assert (options, default) == ({"level": 3}, {"level": 2})
    assert (job.model, job.input_size, job.output) == (MODEL, (1, 32, 32), tmp_path / "out")
    assert not job.network.training
    assert job.network(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_options_of_another_format_are_refused(tmp_path, folder_format):
    said = run(MODEL, "-o", tmp_path / "x.pt2", "--level", "2", code=2).stderr
    assert "--level goes with --format rows, not with pt2" in said
    said = run(MODEL, "-o", tmp_path / "x", "--format", "rows", "--fixed-batch", "2", code=2).stderr
    assert "--fixed-batch goes with --format pt2" in said
    assert not list(tmp_path.iterdir())
    assert not folder_format


def test_format_by_ending_or_by_name(tmp_path):
    said = run(MODEL, "-o", tmp_path / "net.bin", code=2).stderr
    assert ".pt2" in said
    assert "--format" in said
    assert "must end in .pt2" in run(MODEL, "-o", tmp_path / "net.bin", "--format", "pt2", code=2).stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path, folder_format):
    file = tmp_path / "x.pt2"
    file.write_text("mine")
    assert "--force" in run(MODEL, "-o", file, code=1).stderr
    assert file.read_text() == "mine"
    run(MODEL, "-o", file, "--force")
    assert torch.export.load(file)
    (tmp_path / "y.pt2").mkdir()
    assert "is a folder" in run(MODEL, "-o", tmp_path / "y.pt2", "--force", code=1).stderr
    assert "is a file" in run(MODEL, "-o", file, "--format", "rows", "--force", code=1).stderr
    assert "not empty" in run(MODEL, "-o", tmp_path, "--format", "rows", code=1).stderr
    run(MODEL, "-o", tmp_path / "y.pt2", "--format", "rows")  # an empty folder
    assert len(folder_format) == 1


def test_weights_are_needed(tmp_path):
    assert "no weights" in run("adder_vgg_small", "-o", tmp_path / "x.pt2", code=1).stderr
    assert not list(tmp_path.iterdir())
