"""Calibration: the streaming histogram, range search, GPTQ and the search over codes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, peer
from fastopt.calibration import Gram, HistogramObserver, MinMaxObserver
from fastopt.quantization import EmbeddingQuantizer, gptq
from fastopt.quantization.clipping import mse_range


def histogram(threads: int) -> dict[str, Any]:
    """Range and histogram of 10M float32 values that nobody has seen before."""
    x = np.random.default_rng(0).standard_normal(10_000_000, np.float32)
    contenders: dict[str, Any] = {
        "fastopt": lambda: HistogramObserver(bins=4096).partial_fit(x, threads=threads),
        "np.histogram": lambda: np.histogram(x, 4096),
    }
    if torch := peer("torch"):
        from torch.ao.quantization import HistogramObserver as TorchObserver

        tensor = torch.from_numpy(x)
        contenders["torch HistogramObserver"] = lambda: TorchObserver(bins=2048)(tensor)
    return contenders


def min_max(threads: int) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((26_000, 384), np.float32)
    return {
        "fastopt": lambda: MinMaxObserver(axis=1).partial_fit(x, threads=threads),
        "NumPy": lambda: (x.min(axis=0), x.max(axis=0), np.isfinite(x).all()),
    }


def mse(threads: int) -> dict[str, Any]:
    """Symmetric int4 range of 4608 groups of 128, 32 candidates."""
    x = np.random.default_rng(0).standard_normal((4608, 128), np.float32)
    low, high = x.min(1), x.max(1)

    def plain() -> None:
        best = np.full(len(x), np.inf)
        for ratio in np.arange(100, 36, -2) / 100:
            s = (np.maximum(-low, high) * ratio / 7)[:, None]
            error = ((x - s * np.clip(np.rint(x / s), -7, 7)) ** 2).sum(axis=1)
            np.minimum(best, error, out=best)

    return {
        "fastopt": lambda: mse_range(
            x, None, low, high, "int4", symmetric=True, wide=False, threads=threads
        ),
        "NumPy": plain,
    }


def minilm_gptq(threads: int, group: int | None = None) -> dict[str, Any]:
    """The shapes of MiniLM's 36 linear layers, Grams given; int4, a scale a row or a group."""
    rng = np.random.default_rng(0)
    layers = []
    for n_out, n_in, count in ((384, 384, 24), (1536, 384, 6), (384, 1536, 6)):
        mix = rng.standard_normal((n_in, n_in)) / np.sqrt(n_in)
        gram = Gram(n_in).update(rng.standard_normal((2 * n_in, n_in)) @ mix)
        w = rng.standard_normal((n_out, n_in), np.float32)
        layers += [(w, gram)] * count

    def run() -> None:
        for w, gram in layers:
            gptq(w, gram, "int4", group_size=group, threads=threads)

    return {"fastopt": run}


def search(threads: int) -> dict[str, Any]:
    """The 10 best of 100k vectors of 384 dimensions for 32 queries."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100_000, 384), np.float32)
    queries = x[:32].copy()
    index, bits = EmbeddingQuantizer("int8").fit(x), EmbeddingQuantizer("binary").fit(x)

    def plain() -> Any:
        return np.argpartition(-(queries @ x.T), 10, axis=1)[:, :10]

    return {
        "fastopt": lambda: index.top_k(queries, 10, threads=threads),
        "fastopt binary": lambda: bits.top_k(queries, 10, threads=threads),
        "NumPy float32": plain,
    }


CASES = [
    Case("Range and histogram, 10M float32", histogram, t, {"np.histogram": 5.0}) for t in (1, 2)
] + [
    Case("Range per channel, 26000 x 384", min_max, 2),
    Case("MSE range, 4608 groups of 128", mse, 2, {"NumPy": 20.0}),
    *(
        Case(f"GPTQ of MiniLM's shapes, int4{name}", partial(minilm_gptq, group=g), t, rounds=3)
        for t in (1, 2)
        for name, g in (("", None), (" g32", 32), (" g128", 128))
    ),
    Case("Best 10 of 100k x 384, 32 queries", search, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calibration(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
