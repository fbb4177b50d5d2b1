"""Builds the CPU library beside the package; everything else is in pyproject.toml.

The library is plain C++ behind a C interface, without Python's or torch's headers, so one wheel for each platform
serves every Python and every torch. It is optional: without a compiler the package installs without it and says so
when it is first needed. ``kernels/cpu/sources.json`` has the files for each kind of CPU and the flags of each file.
"""

import hashlib
import json
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

FOLDER = "kernels/cpu"
MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
# Floats mean what IEEE says (no -ffast-math). -fno-trapping-math and -fno-math-errno only drop exception flags and
# errno, which nobody reads, and let loops be vectorised. -Wno-maybe-uninitialized: GCC 12 warns of its own header for
# AVX-512.
BUILD = json.loads(Path(FOLDER, "sources.json").read_text())
CPU = BUILD[MACHINES.get(platform.machine().lower(), "other")]


# Says which interface the library has; adder_zoo takes no library that has another one.
INTERFACE = hashlib.sha256(
    b"".join(Path(FOLDER, name).read_bytes().replace(b"\r\n", b"\n") for name in ("adder.h", "adder_int8.h"))
).hexdigest()[:16]


class BuildNative(build_ext):
    """Compiles each file with the flags of its instruction set; the result is a library, not a Python module."""

    def build_extension(self, ext):
        library = self.get_ext_fullpath(ext.name)
        if not self.force and not newer_group([*ext.sources, *ext.depends], library):
            return
        objects = []
        for source in ext.sources:
            flags = [*BUILD["flags"], *CPU["sources"][Path(source).name]]
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, macros=ext.define_macros, extra_postargs=flags
            )
        self.compiler.link_shared_object(objects, library, target_lang="c++")

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: compiled, but for no Python in particular."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "adder_zoo._native",
            sources=[f"{FOLDER}/{name}" for name in CPU["sources"]],
            depends=["setup.py", f"{FOLDER}/sources.json", *(str(path) for path in sorted(Path(FOLDER).glob("*.h")))],
            define_macros=[*((name, None) for name in CPU["macros"]), ("ADDER_INTERFACE", f'"{INTERFACE}"')],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
