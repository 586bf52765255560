"""Fit linear models to a file that is larger than the memory that holds it.

    python examples/out_of_core.py [rows] [columns]

The file is mapped, never read as a whole: ``fit`` walks over it in blocks, drops what is behind,
and keeps only the parameters and one number per row. A sparse matrix goes in as it is.
"""

import os
import sys
import tempfile
import time

import numpy as np

from fastopt.linear_model import Ridge, SGDClassifier, SGDRegressor

n = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
d = int(sys.argv[2]) if len(sys.argv) > 2 else 64


def resident_mb() -> float:
    """Memory of this process, mapped files included; 0 where the system does not say."""
    if not os.path.exists("/proc/self/statm"):
        return 0.0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "rows.f32")
    rng = np.random.default_rng(0)
    truth = np.linspace(-1, 1, d).astype("float32")
    y = np.empty(n, "float32")
    with open(path, "wb") as file:  # rows arrive in pieces, as from a log or a sensor
        for first in range(0, n, 50_000):
            piece = rng.standard_normal((min(50_000, n - first), d), dtype="float32")
            y[first : first + len(piece)] = piece @ truth + 2
            file.write(piece.tobytes())
    before = resident_mb()
    X = np.memmap(path, "float32", "r", shape=(n, d))
    print(f"file {X.nbytes / 2**20:.0f} MB, process {before:.0f} MB")
    for model, target in (
        (Ridge(alpha=1e-3), y),
        (SGDRegressor(alpha=0, max_iter=3, tol=None, random_state=0), y),
        (SGDClassifier("log_loss", max_iter=2, tol=None, random_state=0), y > 2),
    ):
        start = time.perf_counter()
        model.fit(X, target)
        spent = time.perf_counter() - start
        print(
            f"{type(model).__name__:14s} {spent:6.2f} s  score {model.score(X, target):.4f}  "
            f"process {resident_mb():.0f} MB"
        )
    del X
