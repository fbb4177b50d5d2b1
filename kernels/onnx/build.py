"""Builds the library of operators for ONNX Runtime: python kernels/onnx/build.py FOLDER [-o FILE].

FOLDER holds ONNX Runtime's C header, onnxruntime_c_api.h, and those that it includes: the folder include/ of a release
of ONNX Runtime. They are not part of this project. The compiler is $CXX, or g++.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU = HERE.parent / "cpu"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
HEADER = "onnxruntime_c_api.h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/libadder_onnx.so"))
    args = parser.parse_args()
    if not (args.folder / HEADER).is_file():
        sys.exit(f"{args.folder} holds no {HEADER}: name the folder include/ of a release of ONNX Runtime")
    build(args.folder, args.output)
    print(args.output)


def build(include: Path, output: Path) -> None:
    """Compiles each file with the flags of its instruction set, as setup.py does, and links them."""
    compiler = os.environ.get("CXX", "g++")
    plan = json.loads((CPU / "sources.json").read_text())
    machine = platform.machine().lower()
    mine = plan.get(MACHINES.get(machine, machine), plan["other"])
    files = {CPU / name: [*plan["flags"], *flags] for name, flags in mine["sources"].items()}
    files[HERE / "adder_ops.cpp"] = ["-std=c++17", "-O2", "-fvisibility=hidden", f"-I{include}"]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for source, flags in files.items():
            objects.append(f"{scratch}/{source.stem}.o")
            macros = [f"-D{name}" for name in mine["macros"]]
            command = [compiler, "-c", "-fPIC", f"-I{CPU}", *macros, *flags, str(source)]
            subprocess.run([*command, "-o", objects[-1]], check=True)
        subprocess.run([compiler, "-shared", *objects, "-o", str(output)], check=True)


if __name__ == "__main__":
    main()
