"""``python -m benchmarks [pytest arguments]``: run, print the table of ratios, rewrite the page.

Without arguments everything runs on each level of this machine, best first, and docs/benchmarks.md
gets a chapter per level; with some (a file, ``-k``) only that part runs, on the level in use, and
the page stays as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastopt._kernels import levels

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    # Some machines pin OpenBLAS to an old core type; NumPy is a peer here and gets its best one.
    pinned = [os.environ.pop(name, None) for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")]
    if any(pinned):
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *arguments])
    if not arguments and "FASTOPT_BENCH_PAGE" not in os.environ:
        command = [sys.executable, "-m", "benchmarks"]
        done = 0
        for level in levels():
            page = "new" if level == levels()[0] else "more"
            env = {**os.environ, "FASTOPT_ISA": level, "FASTOPT_BENCH_PAGE": page}
            done = max(done, subprocess.run(command, env=env, check=False).returncode)
        return done
    where = [] if any(Path(a.partition("::")[0]).exists() for a in arguments) else [str(HERE)]
    quiet = ["--benchmark-disable-gc", "--benchmark-columns=median,min", "-p", "no:cacheprovider"]
    return pytest.main([*where, *quiet, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
