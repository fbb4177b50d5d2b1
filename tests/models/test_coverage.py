"""The coverage run: statuses, reasons, the files that it writes, and what it tells the shell."""

import json
import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from adder_zoo import coverage


def test_a_network_that_converts():
    outcome = coverage.examine("resnet18", backward=True)
    with torch.device("meta"):
        total = sum(isinstance(m, nn.Conv2d) for m in timm.create_model("resnet18").modules())
    assert (outcome.status, outcome.reason, outcome.warning) == ("converted", "", "")
    assert (outcome.model, outcome.family) == ("resnet18", "resnet")
    assert (outcome.convolutions, outcome.converted) == (total, total - 1) == (20, 19)
    assert outcome.backward is True
    assert coverage.examine("resnet18").backward is None


def test_weight_standardisation_is_refused_with_a_reason():
    outcome = coverage.examine("resnetv2_50x1_bit")
    assert outcome.status == "refused"
    assert "StdConv2d" in outcome.reason
    assert "a distance is not invariant to" in outcome.reason
    assert "filter_fn" not in outcome.reason  # the advice is for people with a network of their own
    assert outcome.converted == 0


@pytest.mark.parametrize(("name", "convolutions"), [("vit_tiny_patch16_224", 1), ("beit_base_patch16_224", 1)])
def test_a_transformer_holds_nothing_to_convert(name, convolutions):
    outcome = coverage.examine(name)
    assert (outcome.status, outcome.convolutions, outcome.converted) == ("no convolutions", convolutions, 0)


def test_missing_normalisation_is_written_down():
    outcome = coverage.examine("convnext_atto")
    assert outcome.status == "converted"
    assert "no normalisation layer follows" in outcome.warning


def test_a_crash_is_a_failure_with_its_error(monkeypatch):
    def crash(model):
        raise KeyError("something else")

    monkeypatch.setattr(coverage, "convert_to_adder", crash)
    outcome = coverage.examine("resnet18")
    assert (outcome.status, outcome.reason) == ("failed", "KeyError: 'something else'")


def test_a_network_that_converts_and_does_not_run_is_a_failure(monkeypatch):
    def break_it(model):
        model.layer3 = nn.Linear(1, 1)
        return model

    monkeypatch.setattr(coverage, "convert_to_adder", break_it)
    outcome = coverage.examine("resnet18")
    assert outcome.status == "failed"
    assert outcome.reason.startswith("forward: ")


def test_one_of_each_family_runs_backward():
    outcomes = coverage.examine_all(["resnetv2_50x1_bit", "resnetv2_50", "resnetv2_50d", "resnet18", "resnet34"])
    assert {o.model: o.backward for o in outcomes} == {
        "resnetv2_50x1_bit": None,
        "resnetv2_50": True,
        "resnetv2_50d": None,
        "resnet18": True,
        "resnet34": None,
    }


def outcomes(**statuses):
    return [
        coverage.Outcome(f"{status}{i}", "family", status.replace("_", " "))
        for status, count in statuses.items()
        for i in range(count)
    ]


def test_summary():
    summary = coverage.summary(outcomes(converted=6, refused=1, failed=1, no_convolutions=3))
    assert summary == {
        "converted": 6,
        "refused": 1,
        "no convolutions": 3,
        "failed": 1,
        "convolutional": 8,
        "share_converted": 0.75,
    }
    assert coverage.summary(outcomes(no_convolutions=2))["share_converted"] is None


def test_command_writes_json_and_markdown(tmp_path, capsys):
    files = [tmp_path / "coverage.json", tmp_path / "coverage.md"]
    status = coverage.main(["resnetv2_50*", "--json", str(files[0]), "--markdown", str(files[1])])
    assert status == 0
    found = {o["model"]: o for o in json.loads(files[0].read_text())}
    assert set(found) == set(timm.list_models("resnetv2_50*"))
    assert found["resnetv2_50"]["status"] == "converted"
    assert found["resnetv2_50x1_bit"]["status"] == "refused"
    assert found["resnetv2_50x1_bit"]["reason"]
    table = files[1].read_text()
    converted = sum(o["status"] == "converted" for o in found.values())
    refused = len(found) - converted
    warned = sum("no normalisation" in o["warning"] for o in found.values())
    assert warned > 0
    (row,) = (line for line in table.splitlines() if line.startswith("| resnetv2 |"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "resnetv2", str(len(found)), str(converted), str(warned), str(refused), "",
    ]  # fmt: skip
    assert f"| resnetv2_50x1_bit | {found['resnetv2_50x1_bit']['reason']} |" in table
    out = capsys.readouterr().out
    assert "resnetv2_50x1_bit: refused: " in out
    assert json.loads(out[out.index("{") :])["converted"] == converted


def test_command_fails_if_a_network_does(monkeypatch, capsys):
    def crash(model):
        raise AssertionError("as if")

    monkeypatch.setattr(coverage, "convert_to_adder", crash)
    assert coverage.main(["resnet18"]) == 1
    assert "resnet18: failed: AssertionError: as if" in capsys.readouterr().out


def test_command_knows_no_such_network(capsys):
    with pytest.raises(SystemExit) as caught:
        coverage.main(["no_such_network_*"])
    assert caught.value.code == 2
    assert "no_such_network_*" in capsys.readouterr().err


def test_networks_of_the_zoo_are_not_converted_again(capsys):
    with pytest.raises(SystemExit):
        coverage.main(["adder_resnet*"])


def test_warnings_of_others_are_not_ours(monkeypatch):
    def warn(model):
        warnings.warn("something else", stacklevel=1)
        return model

    monkeypatch.setattr(coverage, "convert_to_adder", warn)
    assert coverage.examine("resnet18").warning == ""


def test_the_committed_table_keeps_the_promise():
    """At least 85 % of the networks with convolutions convert, and none fails."""
    text = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text()
    share = float(text.split(" %)** as they are")[0].rpartition("(")[2])
    assert share >= 85
    assert "; 0 fail." in text


@pytest.mark.slow
def test_every_network_of_timm(tmp_path):
    """No crash, and at least 85 % of those that hold convolutions convert."""
    assert coverage.main(["--json", str(tmp_path / "all.json")]) == 0
    found = [coverage.Outcome(**o) for o in json.loads((tmp_path / "all.json").read_text())]
    assert {o.status for o in found} == {"converted", "refused", "no convolutions"}
    assert all(o.reason for o in found if o.status == "refused")
    assert all(o.converted for o in found if o.status == "converted")
    assert all(o.backward for o in found if o.backward is not None)
    assert coverage.summary(found)["share_converted"] >= 0.85
