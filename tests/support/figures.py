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


def benchmark(script: str = "cpu") -> ModuleType:
    """``benchmarks/cpu.py`` or ``int8.py``, which render the rows of the tables of speeds."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(f"{script}_benchmark", ROOT / f"benchmarks/{script}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
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


def int8_rows() -> list[str]:
    """The rows of the table in docs/results.md, a file each."""
    row = benchmark("int8").table_row
    return [row(json.loads(path.read_text())) for path in sorted(RESULTS.glob("int8-*.json"))]


def int8_layers() -> list[str]:
    """The table of layers in docs/design/cpu-kernels.md, from both files."""
    files = [RESULTS / "int8-zen4-avx2.json", RESULTS / "int8-zen4.json"]
    return benchmark("int8").layers_table([json.loads(path.read_text()) for path in files])


def speeds() -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in speed_rows()]


# The rows of the table of machine code in docs/design/gpu-kernels.md: kernel, layout, type, whether for many filters.
MACHINE_CODE = {
    "forward, more than 64 filters": ("forward", "nchw", "float32", True),
    "forward, up to 64": ("forward", "nchw", "float32", False),
    "forward, channels_last, more than 64": ("forward", "channels_last", "float32", True),
    "forward, channels_last, up to 64": ("forward", "channels_last", "float32", False),
    "forward, float16": ("forward", "channels_last", "float16", True),
    "forward, bfloat16, more than 64": ("forward", "channels_last", "bfloat16", True),
    "forward, bfloat16, up to 64": ("forward", "channels_last", "bfloat16", False),
    "dx, more than 64 channels": ("dx", "nchw", "float32", True),
    "dx, up to 64": ("dx", "nchw", "float32", False),
    "dx, channels_last, more than 64": ("dx", "channels_last", "float32", True),
    "dx, channels_last, up to 64": ("dx", "channels_last", "float32", False),
}


def _counted(kernels: list[dict[str, Any]], label: str, arch: str) -> dict[str, Any]:
    """What was counted of the kernel of this row."""
    kernel, layout, dtype, many = MACHINE_CODE[label]
    found = [k for k in kernels if (k["kernel"], k["arch"]) == (kernel, arch)]
    found = [k for k in found if k["configuration"].endswith(f"-{layout}-{dtype}")]
    found.sort(key=lambda k: int(k["configuration"].split("x")[1]))  # filters of a tile
    return found[-1 if many else 0]


def versions_of_triton() -> dict[str, dict[str, Any]]:
    """The counts by Triton's version, from benchmarks/results/sass.json and its neighbours, oldest first."""
    records = [json.loads(path.read_text()) for path in RESULTS.glob("sass*.json")]
    records.sort(key=lambda record: [int(part) for part in record["triton"].split(".")])
    return {record["triton"]: record for record in records}


def triton_rows() -> list[str]:
    """Slots and spills in the loop on sm_90, a row for each version of Triton."""
    labels = ("forward, more than 64 filters", "forward, up to 64", "dx, more than 64 channels", "dx, up to 64")
    rows = []
    for version, record in versions_of_triton().items():
        cells = [version, "yes" if record["fp_fusion_by_default"] else "no"]
        for label in (*labels, "forward, bfloat16, up to 64"):
            count = _counted(record["kernels"], label, "sm_90")
            cells.append(f"{count['slots']:.2f}, {count['spills_in_loop']}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


POWERS = {
    "forward": ("power-forward", "nchw-float32"),
    "forward, channels_last": ("power-forward", "channels_last-float32"),
    "forward, bfloat16": ("power-forward", "channels_last-bfloat16"),
    "dx": ("power-dx", "nchw-float32"),
    "dx, channels_last": ("power-dx", "channels_last-float32"),
    "dw": ("power-dw", "float32"),
}


def power_rows() -> list[str]:
    """Slots and registers of each kernel for 1 < p < 2; for gfx942 those of its larger tile."""
    counted = json.loads((RESULTS / "sass.json").read_text())["kernels"]
    rows = []
    for label, (kernel, configuration) in POWERS.items():
        cells = []
        for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
            found = [k for k in counted if (k["kernel"], k["arch"]) == (kernel, arch)]
            found = [k for k in found if k["configuration"].endswith(f"-{configuration}")]
            assert not any(k["spills_in_loop"] for k in found)
            count = max(found, key=lambda k: int(k["configuration"].split("x")[1]))
            cells.append(f"{count['slots']:.2f}, {count['registers']}")
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


def machine_code_rows() -> list[str]:
    """Share, slots, registers and spills (in the loop, in all) of each kernel, from benchmarks/results/sass.json."""
    counted = json.loads((RESULTS / "sass.json").read_text())["kernels"]
    rows = []
    for label in MACHINE_CODE:
        cells = []
        for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
            count = _counted(counted, label, arch)
            share = "" if arch == "gfx942" else f"{count['share']:.1%}, ".replace("%", " %")
            spills = f"{count['spills_in_loop']}/{count['spills']}"
            cells.append(f"{share}{count['slots']:.2f}, {count['registers']}, {spills}")
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows
