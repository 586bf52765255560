"""Two threads beside a process that keeps one core busy; one thread beside the same process.

Each figure is the mean, the median or the 99th percentile of the calls of a round; rounds of two
threads and of one take turns. No real-time class here: the scheduler's slices are the point.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastopt
from benchmarks.harness import Contender
from fastopt.pruning import SparseLinear
from fastopt.quantization import PackedMatrix, QuantizedLinear, matmul_integer, quantize_linear

ROUNDS = 9
ROUND_S = 0.2
STATISTICS: dict[str, Callable[[Any], float]] = {
    "mean": lambda t: float(np.mean(t)),
    "median": lambda t: float(np.median(t)),
    "p99": lambda t: float(np.percentile(t, 99)),
}


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def adamw(n: int) -> Callable[[int], object]:
    p, g = normal(n), [normal(n) * np.float32(1e-3)]
    optimizers = {t: fastopt.optim.AdamW([p], threads=t) for t in (1, 2)}
    return lambda threads: optimizers[threads].step(g)


def quantize_2048(_: int) -> Callable[[int], object]:
    x, out = normal(2048, 2048), np.empty((2048, 2048), np.int8)
    scale = np.float32(0.04)
    return lambda threads: quantize_linear(x, scale, np.int8(0), out=out, threads=threads)


def prune(n: int) -> Callable[[int], object]:
    w, out = normal(n), np.empty(n, np.float32)
    return lambda threads: fastopt.prune(w, 0.8, out=out, masks="none", threads=threads)


def product(m: int) -> Callable[[int], object]:
    a = np.random.default_rng(1).integers(0, 256, (m, 768)).astype(np.uint8)
    w = normal(768, 3072)
    b = PackedMatrix(np.rint(w / np.abs(w).max(0) * 127).astype(np.int8))
    out = np.empty((m, 3072), np.int32)
    return lambda threads: matmul_integer(a, b, out=out, threads=threads)


def layer(m: int) -> Callable[[int], object]:
    dense, x, out = QuantizedLinear(normal(3072, 768)), normal(m, 768), np.empty((m, 3072), "f4")
    return lambda threads: dense(x, out, threads=threads)


def sparse(n: int) -> Callable[[int], object]:
    w = normal(2048, 2048)
    one, x = SparseLinear.from_dense(np.where(np.abs(w) > 1.3, w, 0), "csr"), normal(2048, n)
    out = np.empty((2048, n), np.float32)
    return lambda threads: one.matmul(x, out=out, threads=threads)


# (work, set-up, its size, statistic, wanted: one thread's figure over two threads')
CASES = [
    ("AdamW, 1M float32", adamw, 1_000_000, "mean", 1 / 1.10),
    ("quantize_linear, 2048 x 2048", quantize_2048, 0, "mean", 1 / 1.10),
    ("prune, 1M float32", prune, 1_000_000, "mean", 1 / 1.10),
    ("matmul_integer, 32 x 768 x 3072", product, 32, "mean", 1 / 1.10),
    ("QuantizedLinear w8a8, 32 x 768 x 3072", layer, 32, "mean", 1 / 1.10),
    ("sparse product, 2048 x 2048 x 64", sparse, 64, "mean", 1 / 1.10),
    ("AdamW, 100,000 float32", adamw, 100_000, "median", 1 / 1.05),
    ("prune, 100,000 float32", prune, 100_000, "median", 1 / 1.05),
    ("AdamW, 1M float32", adamw, 1_000_000, "p99", None),
    ("matmul_integer, 32 x 768 x 3072", product, 32, "p99", None),
]


@pytest.fixture(scope="module")
def busy_core() -> Iterator[None]:
    """A process that does nothing but run."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.3)
    yield
    hog.kill()
    hog.wait()


def calls(call: Contender) -> list[float]:
    """Seconds of each call of a round."""
    times = []
    end = time.perf_counter() + ROUND_S
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


@pytest.mark.parametrize(
    ("work", "setup", "size", "statistic", "wanted"),
    CASES,
    ids=[f"{work} [{statistic}]" for work, _, _, statistic, _ in CASES],
)
def test_contention(
    busy_core: None,
    work: str,
    setup: Callable[[int], Callable[[int], object]],
    size: int,
    statistic: str,
    wanted: float | None,
    benchmark: Any,
) -> None:
    run = setup(size)
    times: dict[str, list[float]] = {"fastopt": [], "one thread": []}
    for name, threads in (("fastopt", 2), ("one thread", 1)) * (1 + ROUNDS):
        times[name].append(STATISTICS[statistic](calls(lambda threads=threads: run(threads))))
    benchmark.extra_info["case"] = f"{work}, a core kept busy: {statistic} of calls"
    benchmark.extra_info["threads"] = 2
    benchmark.extra_info["targets"] = {} if wanted is None else {"one thread": round(wanted, 2)}
    benchmark.extra_info["times"] = {name: values[1:] for name, values in times.items()}
    benchmark.pedantic(lambda: run(2), rounds=1)
