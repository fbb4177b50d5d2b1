"""Counts the instructions of one layer in each kernel under callgrind, and records them in instructions.json.

python tests/support/count_instructions.py DRIVER INT8_DRIVER    (`make driver`)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

RECORD = Path(__file__).parents[1] / "native/instructions.json"
# what, instruction set, N, C, H, K, R, stride, groups
LAYERS = [
    "forward avx2 1 16 32 16 3 1",
    "forward avx2 1 64 8 64 3 1",
    "forward avx2 1 256 14 64 1 1",
    "forward avx2 1 64 16 128 1 2",
    "forward generic 1 16 16 16 3 1",
    "forward avx2 1 16 16 4 3 1",
    "forward avx2 1 16 16 32 1 1",
    "forward avx2 1 128 28 128 3 1 32",
    "forward avx2 1 64 14 64 3 1 64",
    "forward avx2 1 64 14 64 5 2 64",
    "exact avx2 1 64 8 64 3 1",
    "fused avx2 1 64 8 64 3 1",
    "fused avx2 1 64 14 64 3 1 64",
    "dx avx2 1 16 32 16 3 1",
    "dx avx2 1 64 8 64 3 1",
    "dx avx2 8 16 32 16 3 1",
    "dx avx2 8 64 8 64 3 1",
    "dx avx2 8 32 8 64 1 2",
    "dx avx2 1 64 16 64 1 1",
    "dx generic 1 16 16 16 3 1",
    "dx avx2 1 4 16 16 3 1",
    "dx avx2 1 128 28 128 3 1 32",
    "dx avx2 1 64 14 64 3 1 64",
    "dx avx2 1 64 14 64 5 2 64",
    "dw avx2 1 16 32 16 3 1",
    "dw avx2 1 64 8 64 3 1",
    "dw avx2 8 64 28 40 3 1",
    "dw avx2 8 32 16 64 1 2",
    "dw avx2 1 64 14 64 3 1 64",
    "dw-rest avx2 8 256 14 64 1 1",
    "dw-sign avx2 4 1 32 6 5 1",
    "both-signs avx2 1 64 8 64 3 1",
]
# The same of the operator on bytes, which is a driver of its own; callgrind knows no AVX-512.
INT8_LAYERS = [
    "int8 avx2 1 16 32 16 3 1 1",
    "int8 avx2 1 32 16 32 3 1 1",
    "int8 avx2 1 64 8 64 3 1 1",
    "int8 avx2 1 256 14 64 1 1 1",
    "int8 avx2 1 64 16 128 1 2 1",
    "int8 avx2 1 3 32 16 3 1 1",
    "int8 avx2 1 1 32 6 5 1 1",
    "int8 avx2 1 128 14 128 3 1 32",
    "int8 avx2 1 64 14 20 1 1 1",
    "int8 avx2 1 64 14 64 3 1 64",
    "int8 avx2 1 64 14 64 5 2 64",
    "int8 generic 1 16 8 16 3 1 1",
    "int8-wide avx2 1 64 8 64 3 1 1",
    "int8-levels avx2 1 64 8 64 3 1 1",
]
FUNCTIONS = {
    **dict.fromkeys(("forward", "exact", "fused"), "adder_forward"),
    "dx": "adder_grad_input",
    "dw": "adder_grad_weight_product",
    "dw-rest": "adder_grad_weight_from_convolution",
    "dw-sign": "adder_grad_weight",
    "both-signs": "adder_gradients",
    **dict.fromkeys(("int8", "int8-wide"), "adder_int8_forward"),
    "int8-levels": "adder_int8_levels",
}


def compiler() -> str:
    return "g++ " + subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()


def instructions(driver: Path, layer: str, folder: Path) -> int | None:
    """Instructions inside of the library's function; None if this CPU lacks the instruction set."""
    arguments = layer.split()
    command = ["valgrind", "--tool=callgrind", f"--toggle-collect={FUNCTIONS[arguments[0]]}"]
    command += [f"--callgrind-out-file={folder}/callgrind.out", str(driver), "layer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        return None
    assert done.returncode == 0, done.stderr
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert collected, done.stderr
    return int(collected[1])


if __name__ == "__main__":
    drivers = [Path(argument).resolve() for argument in sys.argv[1:3]]
    counts, int8_counts = (
        {layer: instructions(driver, layer, driver.parent) for layer in layers}
        for driver, layers in zip(drivers, (LAYERS, INT8_LAYERS), strict=True)
    )
    RECORD.write_text(json.dumps({"compiler": compiler(), "layers": counts, "int8": int8_counts}, indent=2) + "\n")
    for layer, count in {**counts, **int8_counts}.items():
        print(f"{count:>12,}  {layer}")
