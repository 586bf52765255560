"""Calibration: the streaming histogram, range search, GPTQ and the search over codes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, peer
from fastopt.calibration import Gram
from fastopt.quantization import EmbeddingQuantizer, HistogramObserver, MinMaxObserver, gptq
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


def minilm_gptq(threads: int, group: int, order: bool = False) -> dict[str, Any]:
    """The shapes of MiniLM's 36 linear layers, Grams given; int4 affine.

    NumPy does the published algorithm in the given order without a search for the range.
    """
    rng = np.random.default_rng(0)
    layers = []
    for n_out, n_in, count in ((384, 384, 24), (1536, 384, 6), (384, 1536, 6)):
        mix = rng.standard_normal((n_in, n_in)) / np.sqrt(n_in)
        gram = Gram(n_in).update(rng.standard_normal((2 * n_in, n_in)) @ mix)
        w = rng.standard_normal((n_out, n_in), np.float32)
        layers += [(w, gram)] * count
    options: dict[str, Any] = {"symmetric": False, "act_order": order, "threads": threads}

    def run() -> None:
        for w, gram in layers:
            gptq(w, gram, "int4", group_size=group, **options)

    return {
        "fastopt": run,
        "NumPy, min-max": lambda: [plain_gptq(w, gram, group) for w, gram in layers],
    }


def plain_gptq(w: Any, gram: Gram, block: int) -> Any:
    """Codes of uint4 in groups of a block, which the later columns learn of in one product."""
    h = gram.second / gram.count
    h += 0.01 * h.diagonal().mean() * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)
    w, codes = w.copy(), np.empty(w.shape, np.uint8)
    for k in range(0, w.shape[1], block):
        part, own = w[:, k : k + block], upper[k : k + block, k : k + block]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        scale = (high - low) / 15
        zero, errors = np.rint(-low / scale), np.empty_like(part)
        for i in range(part.shape[1]):
            codes[:, k + i] = q = np.clip(np.rint(part[:, i] / scale) + zero, 0, 15)
            errors[:, i] = error = (part[:, i] - scale * (q - zero)) / own[i, i]
            part[:, i + 1 :] -= np.multiply.outer(error, own[i, i + 1 :])
        w[:, k + block :] -= errors @ upper[k : k + block, k + block :]
    return codes


def search(threads: int, count: int = 32) -> dict[str, Any]:
    """The 10 best of 100k vectors of 384 dimensions for ``count`` queries."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100_000, 384), np.float32)
    queries = x[:count].copy()
    index = {dtype: EmbeddingQuantizer(dtype).fit(x) for dtype in ("int8", "int4", "binary")}

    def plain() -> Any:
        return np.argpartition(-(queries @ x.T), 10, axis=1)[:, :10]

    contenders: dict[str, Any] = {
        "fastopt": lambda: index["int8"].top_k(queries, 10, threads=threads),
        "fastopt int4": lambda: index["int4"].top_k(queries, 10, threads=threads),
        "fastopt binary": lambda: index["binary"].top_k(queries, 10, threads=threads),
        "NumPy float32": plain,
    }
    if neighbours := peer("sklearn.neighbors"):
        found = neighbours.NearestNeighbors(n_neighbors=10, algorithm="brute", n_jobs=threads)
        found.fit(x)
        contenders["scikit-learn brute force, float32"] = lambda: found.kneighbors(queries)
    return contenders


def embed(threads: int) -> dict[str, Any]:
    """Ranges and codes of 100k vectors of 384 dimensions."""
    x = np.random.default_rng(0).standard_normal((100_000, 384), np.float32)

    def plain() -> Any:
        scale = np.abs(x).max(axis=0) / 127
        return np.clip(np.rint(x / scale), -127, 127).astype(np.int8)

    return {"fastopt": lambda: EmbeddingQuantizer("int8").fit(x), "NumPy": plain}


CASES = [
    Case("Range and histogram, 10M float32", histogram, t, {"np.histogram": 5.0}) for t in (1, 2)
] + [
    Case("Range per channel, 26000 x 384", min_max, 2, {"NumPy": 5.0}),
    Case("MSE range, 4608 groups of 128", mse, 2, {"NumPy": 20.0}),
    *(
        Case(
            f"GPTQ of MiniLM's 36 layers (wanted < 2 s), int4 {name}",
            partial(minilm_gptq, group=group, order=order),
            threads,
            {"NumPy, min-max": 3.0},
            rounds=2,
        )
        for threads in (1, 2)
        for name, group, order in (("g32", 32, False), ("g128 act-order", 128, True))
    ),
    *(
        Case(
            f"Best 10 of 100k x 384, {count} quer{'y' if count == 1 else 'ies'}",
            partial(search, count=count),
            2,
            {"NumPy float32": 5.0},
        )
        for count in (1, 32)
    ),
    Case("int8 embeddings, 100k x 384", embed, 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calibration(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
