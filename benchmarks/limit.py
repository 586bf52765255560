"""The machine's own limit, measured in the same run: ``limit.update3(p, m, v, g)`` and so on.

Each function streams NumPy arrays with the access pattern of a kernel and does next to nothing
with them; its time is what the memory system allows. ``limit.c`` is compiled on first use with
the compiler that built the kernels; without one the limit is left out of the tables.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._kernels import levels

SOURCE = Path(__file__).with_name("limit.c")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    level = levels()[0]
    flags = [f"-march=x86-64-{level}"] if level != "plain" else []
    target = Path(tempfile.mkdtemp(prefix="fastopt-limit-")) / "limit.so"
    command = [compiler, "-O3", *flags, "-fopenmp", "-shared", "-fPIC", str(SOURCE)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def stream(name: str, *arrays: np.ndarray[Any, Any], threads: int) -> None:
    """Run the loop ``name`` of limit.c over the arrays, whose length is the first one's."""
    lib = library()
    assert lib is not None
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
    getattr(lib, name)(*pointers, ctypes.c_ssize_t(arrays[0].size), ctypes.c_int(threads))
