"""docs/compatibility.md is what its rows say, and each row stands on tests that exist and can fail."""

import compatibility
import pytest


def test_page_is_what_the_rows_say():
    assert compatibility.PAGE.read_text() == compatibility.render(), "run python tests/support/compatibility.py"


def test_each_row_names_tests_that_exist():
    assert all(row.tests for row in compatibility.ROWS)
    assert compatibility.missing() == []


def test_a_test_that_does_not_exist_is_found(monkeypatch):
    rows = (compatibility.row("a", "works", "", "optim/test_optim.py::test_no_such", "test_no_such.py::test_closure"),)
    monkeypatch.setattr(compatibility, "ROWS", rows)
    assert compatibility.missing() == ["tests/optim/test_optim.py::test_no_such", "tests/test_no_such.py::test_closure"]


def test_no_row_hides_behind_a_test_that_never_runs():
    """A test that is always skipped shows nothing; slow and GPU tests do not run where the others do."""
    for test in compatibility.tests():
        file, name = test.split("::")
        source = (compatibility.ROOT / file).read_text()
        above = source[: source.index(f"def {name}(")].rpartition("\n\n\n")[2]
        assert "mark.skip" not in above, test
        assert "@pytest.mark.slow" not in above, test
        assert "@pytest.mark.gpu" not in above, test


@pytest.mark.parametrize("column", ["tool", "result", "how"])
def test_rows_fit_a_table(column):
    for row in compatibility.ROWS:
        assert "|" not in getattr(row, column)
        assert "\n" not in getattr(row, column)
    tools = [row.tool for row in compatibility.ROWS]
    assert len(set(tools)) == len(tools)
