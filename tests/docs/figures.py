"""Where the figures come from that README and documentation tell."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

from pages import ROOT

WEIGHTS = ROOT / "src/adder_zoo/weights"
RESULTS = ROOT / "benchmarks/results"


def benchmark() -> ModuleType:
    """``benchmarks/cpu.py``, which renders the rows of the tables of speeds."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("cpu_benchmark", ROOT / "benchmarks/cpu.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def whole_measurements() -> list[dict[str, Any]]:
    """The measurements of processors on which all of the benchmark ran."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("cpu-*.json"))]
    whole = [record for record in records if "inference" in record]
    assert len(whole) >= 4
    return whole


def speed_rows(ranges: bool = False) -> list[str]:
    summary = benchmark().summary
    return [summary(record, ranges) for record in whole_measurements()]


def speeds() -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in speed_rows()]
