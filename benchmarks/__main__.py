"""``python -m benchmarks [pytest arguments]``: run, print the table of ratios, rewrite the page.

With arguments (a file, ``-k``) only that part runs and docs/benchmarks.md stays as it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    # Some machines pin OpenBLAS to an old core type; NumPy is a peer here and gets its best one.
    pinned = [os.environ.pop(name, None) for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")]
    if any(pinned):
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *arguments])
    if not arguments:
        os.environ["FASTOPT_BENCH_WRITE"] = "1"
    where = [] if any(Path(a.partition("::")[0]).exists() for a in arguments) else [str(HERE)]
    quiet = ["--benchmark-disable-gc", "--benchmark-columns=median,min", "-p", "no:cacheprovider"]
    return pytest.main([*where, *quiet, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
