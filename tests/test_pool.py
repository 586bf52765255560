"""The pool of threads: many callers, nesting, forks, exits, refused threads; the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from fastopt.pruning import SparseLinear


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def layer() -> SparseLinear:
    w = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
    w[np.abs(w) < 1.2] = 0
    return SparseLinear.from_dense(w)


def test_many_python_threads_call_at_once(layer: SparseLinear) -> None:
    x = np.random.default_rng(1).standard_normal((256, 40)).astype(np.float32)
    want = layer.matmul(x, threads=1)
    wrong = []

    def hammer(threads: int) -> None:
        for _ in range(200):
            if not np.array_equal(layer.matmul(x, threads=threads), want):
                wrong.append(threads)

    callers = [threading.Thread(target=hammer, args=(1 + i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
