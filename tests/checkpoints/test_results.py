"""Results are bound to the weights that they were measured of."""

import hashlib
import json

import pytest

from adder_zoo.models import WEIGHTS
from adder_zoo.results import ResultsError, read_results, write_results


def test_results_name_their_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert read_results(tmp_path) is None
    record = write_results(tmp_path, {"test_accuracy": 90.0})
    assert record == {"test_accuracy": 90.0, "weights_sha256": hashlib.sha256(b"abc").hexdigest()}
    assert read_results(tmp_path) == record
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    with pytest.raises(ResultsError, match=r"results.json is not of the weights beside it.*Remove it"):
        read_results(tmp_path)
    assert write_results(tmp_path, record)["weights_sha256"] == hashlib.sha256(b"abd").hexdigest()
    (tmp_path / "model.safetensors").unlink()
    assert read_results(tmp_path)["test_accuracy"] == 90.0
    with pytest.raises(FileNotFoundError):
        write_results(tmp_path, record)


def test_advice_for_results_without_a_checksum_works(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    path = tmp_path / "results.json"
    path.write_text('{"test_accuracy": 90.0}')
    with pytest.raises(ResultsError, match="does not say which weights") as raised:
        read_results(tmp_path)
    line = str(raised.value).partition("add ")[2].partition(" to it")[0]
    path.write_text('{"test_accuracy": 90.0, ' + line + "}")
    assert read_results(tmp_path)["test_accuracy"] == 90.0


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null"])
def test_damaged_results(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ResultsError, match=r"results\.json"):
        read_results(tmp_path)


def test_shipped_results_are_of_the_shipped_weights():
    folders = sorted(path.parent for path in WEIGHTS.glob("*/results.json"))
    assert len(folders) >= 4
    for folder in folders:
        assert read_results(folder)["model"] == folder.name
        assert "weights_sha256" in json.loads((folder / "results.json").read_text())
