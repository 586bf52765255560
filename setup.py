"""Build every kernel once per instruction-set level.

Compiler flags and Cython directives stand here and nowhere else. Never -march=native (wheels
travel) and never -ffast-math (linked into a shared object it sets flush-to-zero for the whole
process). -ffp-contract=off keeps the bits equal on every level.

FASTOPT_KERNELS="update quantize" builds only those kernels, for work on one of them;
FASTOPT_LEVELS="v3" only those levels; FASTOPT_SANITIZE="address,undefined" or "thread" builds with
those checks (make asan, make tsan).
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

SOURCES = Path("fastopt/_kernels")
X86_LEVELS = {
    "v2": ["-march=x86-64-v2"],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"],
}
IS_X86 = platform.machine().lower() in {"x86_64", "amd64"}
LEVELS = X86_LEVELS if IS_X86 else {"plain": []}
if os.environ.get("FASTOPT_LEVELS"):
    LEVELS = {name: LEVELS[name] for name in os.environ["FASTOPT_LEVELS"].split()}

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-g0"]
FLAGS += ["-ffunction-sections", "-fvisibility=hidden"]
FLAGS += ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]  # C unwinds nothing
LDFLAGS = ["-pthread", "-Wl,--strip-all,--gc-sections"] if sys.platform == "linux" else []
SANITIZE = os.environ.get("FASTOPT_SANITIZE", "")
if SANITIZE:
    CHECKS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if "undefined" in SANITIZE:  # (int) of a NaN is not part of "undefined"
        CHECKS.append("-fsanitize=float-cast-overflow")
    FLAGS = [*CHECKS, "-O1", "-g", "-ffp-contract=off", "-fno-math-errno"]
    LDFLAGS = [*CHECKS, "-pthread"]
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
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

# Every kernel: its source in fastopt/_kernels, the levels it is built for, its own flags. A module
# is fastopt._kernels.<level>.<stem>; one that is built once is fastopt._kernels.shared.<stem>.
ONCE: dict[str, list[str]] = {}
# A formula becomes part of the loop that calls it only if every function on the way is inlined.
INLINED = ["-DCYTHON_INLINE=inline __attribute__((always_inline))"]
# Rows of scattered columns, one element at a time: -O3 is no faster there and 30 % larger.
SMALL = ["-O2", "-ftree-vectorize"]
KERNELS = [
    ("shared/cpu", ONCE, []),  # asked before any level is known
    ("shared/pool", ONCE, []),  # one pool of threads for the process
    ("update/update", LEVELS, []),
    ("update/rules_sgd", LEVELS, INLINED),
    ("update/rules_adam", LEVELS, INLINED),
    ("update/rules_rmsprop", LEVELS, INLINED),
    ("update/update_state", LEVELS, []),
    ("linear/linear", LEVELS, []),
    ("linear/linear_gram", LEVELS, []),
    ("linear/linear_sparse", LEVELS, SMALL),
    ("quantize/quantize", LEVELS, []),
    ("quantize/quantize_range", LEVELS, []),
    ("quantize/dequantize", LEVELS, []),
    ("quantize/pack", LEVELS, []),
    ("quantize/codebook", LEVELS, []),
    ("matmul/matmul", LEVELS, []),
    ("matmul/topk", LEVELS, []),
    ("prune/prune", LEVELS, []),
    ("cluster/cluster", LEVELS, []),
    ("sparse/sparse", LEVELS, []),
    ("trees/forest", LEVELS, []),
    ("filter/depthwise", LEVELS, []),
    ("calibrate/clip", LEVELS, []),
    ("calibrate/gptq", LEVELS, []),
    ("calibrate/obs", LEVELS, []),
    ("calibrate/histogram", LEVELS, []),
    ("genetic/genetic", LEVELS, []),
    ("genetic/genetic_bits", LEVELS, []),
    ("genetic/genetic_select", LEVELS, []),
    ("search/cma", LEVELS, []),
    ("search/fronts", LEVELS, []),
    ("search/gp", LEVELS, []),
]


def kernel_extensions() -> list[Extension]:
    """One Extension per kernel and level, all levels over the same generated C."""
    wanted = os.environ.get("FASTOPT_KERNELS", "").split()
    table = [row for row in KERNELS if not wanted or Path(row[0]).stem in wanted]
    common = {
        "include_dirs": [numpy.get_include(), str(SOURCES)],
        "define_macros": MACROS,
        "extra_link_args": LDFLAGS,
    }
    generated = cythonize(
        [
            Extension(
                f"fastopt._kernels.{kernel.replace('/', '.')}",
                [f"{SOURCES}/{kernel}.pyx"],
                depends=[
                    str(p)
                    for folder in (Path(kernel).parent, "shared")
                    for p in (SOURCES / folder).iterdir()
                    if p.suffix in {".h", ".pxd"}
                ],
                **common,
            )
            for kernel, _, _ in table
        ],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
    )
    extensions = []
    for ext, (kernel, levels, flags) in zip(generated, table, strict=True):
        for level, march in (levels or {"shared": []}).items():
            one = copy.copy(ext)
            one.name = f"fastopt._kernels.{level}.{Path(kernel).stem}"
            one.extra_compile_args = [*FLAGS, *march, *flags]
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
