"""Build every kernel once per instruction-set level.

Compiler flags and Cython directives stand here and nowhere else. Never -march=native (wheels
travel) and never -ffast-math (linked into a shared object it sets flush-to-zero for the whole
process). -ffp-contract=off keeps the bits equal on every level.

FASTOPT_KERNELS="update quantize" builds only those kernels, for work on one of them.
"""

import copy
import os
import platform
import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("fastopt/_kernels")
X86_LEVELS = {
    "v2": ["-march=x86-64-v2"],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"],
}
IS_X86 = platform.machine().lower() in {"x86_64", "amd64"}
LEVELS = X86_LEVELS if IS_X86 else {"plain": []}

OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-g0", *OPENMP]
# Three levels in one small wheel: nothing unused, no unwind tables (nothing here throws), and
# Cython's own checks without their inlined special cases.
FLAGS += ["-ffunction-sections", "-fno-asynchronous-unwind-tables", "-fvisibility=hidden"]
FLAGS += ["-fno-plt"]  # no stub for each function of the interpreter
# -O3's loop passes without its inlining, which only grows the doors; v2 is for processors from
# before 2013 and is built for size.
FAST = ["-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-funswitch-loops"]
FAST += ["-fpeel-loops", "-fsplit-loops", "-fpredictive-commoning", "-ftree-loop-distribution"]
FAST += ["--param=max-inline-insns-single=200"]
SMALL = ["-Os"]
# Built once, for the machine's plain baseline: _cpu is asked before any level is known, and sparse
# rows are read by scalar loads, as fast on every level.
ONCE = {"_cpu", "linear_sparse"}
KERNEL_FLAGS = {"genetic": ["-O3"]}  # its chains of inline polynomials: 15 % faster a generation
# Not built for v4: wider vectors bring these nothing, so v4 uses v3's build of them.
V3_SERVES_V4 = {"histogram", "update_state"}
MACROS = {
    "NPY_NO_DEPRECATED_API": "NPY_1_7_API_VERSION",
    "CYTHON_USE_PYLONG_INTERNALS": "0",
    "CYTHON_USE_UNICODE_INTERNALS": "0",
}
LDFLAGS = [*OPENMP, *(["-Wl,--strip-all,--gc-sections"] if sys.platform == "linux" else [])]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "nonecheck": False,
    "cdivision": True,
    "auto_pickle": False,
    "freethreading_compatible": True,
    "binding": False,  # plain built-ins with a signature: a third less object code
    "embedsignature": True,
    "embedsignature.format": "clinic",
}


def kernel_extensions() -> list[Extension]:
    """One Extension per kernel and level, all levels over the same generated C."""
    wanted = os.environ.get("FASTOPT_KERNELS", "").split()
    sources = [p for p in sorted(KERNELS.glob("*.pyx")) if not wanted or p.stem in wanted]
    common = {
        "include_dirs": [numpy.get_include(), str(KERNELS)],
        "define_macros": list(MACROS.items()),
        "depends": [str(p) for p in [*KERNELS.glob("*.h"), *KERNELS.glob("*.pxd")]],
        "extra_link_args": LDFLAGS,
    }
    generated = cythonize(
        [Extension(f"fastopt._kernels.{p.stem}", [str(p)], **common) for p in sources],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
    )
    extensions = []
    for ext in generated:
        kernel = ext.name.rpartition(".")[2]
        if kernel in ONCE:
            ext.extra_compile_args = [*FLAGS, *SMALL]
            extensions.append(ext)
            continue
        for level, flags in LEVELS.items():
            if level == "v4" and kernel in V3_SERVES_V4:
                continue
            one = copy.copy(ext)
            one.name = f"fastopt._kernels.{level}.{kernel}"
            size = SMALL if level == "v2" else [*FAST, *KERNEL_FLAGS.get(kernel, [])]
            one.extra_compile_args = [*FLAGS, *size, *flags]
            extensions.append(one)
    return extensions


class BuildLevels(build_ext):
    """build_ext that compiles in parallel and keeps each level's objects apart."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        one = copy.copy(self)
        one.build_temp = os.path.join(self.build_temp, ext.name.split(".")[-2])
        build_ext.build_extension(one, ext)


setup(ext_modules=kernel_extensions(), cmdclass={"build_ext": BuildLevels})
