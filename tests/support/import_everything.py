"""Imports every module of the package and of the project: ``make test-python310`` runs it with the oldest Python.

An import compiles the whole file and runs what stands outside of functions, so syntax, modules and names that the
version does not have are found there. What stands inside of functions is found by vermin in ``make check``.
"""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import adder_zoo

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("recipes/**/*.py", "benchmarks/*.py", "docs/figures/*.py", "tests/**/test_*.py")


def main() -> None:
    found = pkgutil.walk_packages(adder_zoo.__path__, "adder_zoo.")
    names = [m.name for m in found if not m.name.endswith(("__main__", "_native"))]  # _native is C++ without Python
    for name in names:
        importlib.import_module(name)
    # Scripts import their neighbours, and tests their helpers, of which some run at once and are left to them.
    files = [file for pattern in SCRIPTS for file in sorted(ROOT.glob(pattern))]
    sys.path += [str(folder) for folder in dict.fromkeys((ROOT / "tests/support", *(file.parent for file in files)))]
    for number, file in enumerate(files):
        spec = importlib.util.spec_from_file_location(f"imported_{number}_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    print(f"Python {sys.version.split()[0]} imports {len(names)} modules of adder_zoo and {len(files)} scripts")


if __name__ == "__main__":
    main()
