"""The run over timm's networks: each is converted, refused with a reason, or holds nothing to convert."""

import json

import timm

from adder_zoo import coverage
from adder_zoo.coverage import examine


def test_outcomes():
    converted = examine("resnet18", backward=True)
    assert (converted.status, converted.convolutions, converted.converted) == ("converted", 20, 19)
    assert converted.backward is True
    assert not converted.warning
    refused = examine("resnetv2_50x1_bit")
    assert refused.status == "refused"
    assert "StdConv2d" in refused.reason
    assert "and 49 more" in refused.reason
    assert examine("vit_tiny_patch16_224").status == "no convolutions"
    assert "no normalisation layer follows" in examine("vgg11").warning


def test_table(tmp_path, capsys):
    files = tmp_path / "x.json", tmp_path / "x.md"
    assert coverage.main(["resnetv2_50x*_bit", "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    outcomes = json.loads(files[0].read_text())
    assert [o["model"] for o in outcomes] == timm.list_models("resnetv2_50x*_bit")
    assert {o["status"] for o in outcomes} == {"refused"}
    assert "| resnetv2_50x1_bit | stages.0.blocks.0.downsample.conv" in files[1].read_text()
    assert '"refused": 2' in capsys.readouterr().out


def test_a_failure_is_one(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "convert_to_adder", lambda model: 1 / 0)
    assert coverage.main(["resnet18"]) == 1
    assert "failed: ZeroDivisionError" in capsys.readouterr().out


def test_the_committed_table_keeps_the_promise():
    """At least 85 % of the networks with convolutions convert, and none fails (docs/coverage.md)."""
    text = (coverage.Path(__file__).parents[1] / "docs/coverage.md").read_text()
    share = float(text.split(" %)** as they are")[0].rpartition("(")[2])
    assert share >= 85
    assert "; 0 fail." in text
