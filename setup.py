"""Builds the CPU library beside the package; everything else is in pyproject.toml.

The library is plain C++ behind a C interface, without Python's or torch's headers, so one wheel for each platform
serves every Python and every torch. It is optional: without a compiler the package installs without it and says so
when it is first needed.
"""

import platform

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = "src/adder_zoo/native"
MACHINE = platform.machine().lower()
X86, ARM64 = MACHINE in ("x86_64", "amd64"), MACHINE in ("aarch64", "arm64")

# Floats mean what IEEE says (no -ffast-math). -fno-trapping-math and -fno-math-errno only drop exception flags and
# errno, which nobody reads, and let loops be vectorised.
FLAGS = ["-std=c++17", "-O3", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]
FLAGS += ["-fno-trapping-math", "-fno-math-errno", "-g0"]
ISA_FLAGS = {
    "isa_avx2": "-mavx2 -mfma",
    "isa_avx512": "-mavx2 -mfma -mavx512f -mavx512vl -mavx512dq -mprefer-vector-width=512",
}
SOURCES = ["dispatch", "isa_generic", *(ISA_FLAGS if X86 else ["isa_neon"] if ARM64 else ())]
MACROS = ["ADDER_X86"] if X86 else ["ADDER_ARM64"] if ARM64 else []
HEADERS = ["adder.h", "kernels.h", "parallel.h", "vec.h"]


class BuildNative(build_ext):
    """Compiles each file with the flags of its instruction set; the result is a library, not a Python module."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def compile_with_isa(obj, src, ext_name, cc_args, extra, pp_opts):
            isa = next((flags for name, flags in ISA_FLAGS.items() if src.endswith(name + ".cpp")), "")
            compile_one(obj, src, ext_name, cc_args, extra + isa.split(), pp_opts)

        self.compiler._compile = compile_with_isa
        try:
            super().build_extension(ext)
        finally:
            del self.compiler._compile

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext):
        return []


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
            sources=[f"{NATIVE}/{name}.cpp" for name in SOURCES],
            depends=[f"{NATIVE}/{name}" for name in HEADERS],
            define_macros=[(name, None) for name in MACROS],
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
