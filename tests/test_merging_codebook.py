"""Shared weights: the optimum on few values, near it on many, exact codes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import fastopt
from fastopt.errors import ArrayError, DTypeError, OptionError


def error(w: np.ndarray, book: fastopt.merging.Codebook) -> float:
    return float(((w.astype(float) - book.decode()) ** 2).sum())


def best(w: np.ndarray, k: int) -> float:
    v = np.sort(w.astype(float).ravel())
    runs = (np.split(v, cuts) for cuts in combinations(range(1, len(v)), k - 1))
    return min(sum(((r - r.mean()) ** 2).sum() for r in run) for run in runs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_of_all_partitions(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for w in (rng.standard_normal(11), np.round(rng.standard_normal(11)), rng.random(11) + 1e3):
        w = w.astype(dtype)
        for k in (1, 2, 3, 5):
            book = fastopt.cluster_weights(w, k)
            assert error(w, book) == pytest.approx(best(w, k), rel=1e-4, abs=1e-5)


SHAPES = {
    "normal": lambda r, n: r.standard_normal(n),
    "near one": lambda r, n: 1 + 1e-3 * r.standard_normal(n),
    "heavy tails": lambda r, n: r.standard_t(1.2, n),
    "log-normal": lambda r, n: np.exp(3 * r.standard_normal(n)),
    "outliers": lambda r, n: np.append(r.standard_normal(n - 3), [1e9, -1e12, 1e30]),
    "spikes and a thin stretch": lambda r, n: np.concatenate(
        [-1 + 1e-7 * r.random(n // 2), 1 + 1e-7 * r.random(n // 2 - 60), r.uniform(-1, 1, 60)]
    ),
    "far apart": lambda r, n: np.concatenate([r.random(n // 2), 1e5 + r.random(n - n // 2)]),
    "tiny": lambda r, n: 1e-30 * r.standard_normal(n),
}


def optimum(values: np.ndarray, counts: np.ndarray, k: int) -> float:
    """The least squared error by plain dynamic programming, in extended precision."""
    n = len(values)
    cost = np.full((n + 1, n + 1), np.inf)
    for i in range(n):  # about its own first value, so that no outlier drowns a run
        x = values[i:].astype(np.longdouble) - values[i]
        c, sums, squares = (np.cumsum(counts[i:] * x**power) for power in (0, 1, 2))
        cost[i, i + 1 :] = np.maximum(squares - sums * sums / c, 0)
    best = cost[0]
    for _ in range(k - 1):
        best = (best[:, None] + cost).min(axis=0)
    return float(best[n])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_within_a_thousandth_of_the_optimum(shape: str) -> None:
    rng = np.random.default_rng(1)
    values = np.unique(SHAPES[shape](rng, 2200))
    # every second shape of more than 65,536 weights, where not each value has its own bin
    repeated = len(shape) % 2 == 0
    counts = rng.integers(1, 80, len(values)) if repeated else np.ones(len(values), int)
    w = rng.permutation(np.repeat(values, counts))
    for k in (3, 8):
        book = fastopt.cluster_weights(w, k)
        assert len(book.centroids) == k
        wide = w.astype(np.longdouble)
        found = float(((book.decode() - wide) ** 2).sum())
        assert found <= 1.001 * optimum(values, counts, k)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1.7e308])
def test_the_scale_changes_nothing(scale: float) -> None:
    w = np.random.default_rng(0).uniform(-1, 1, 5000)
    codes = fastopt.cluster_weights(w, 16).codes
    assert (fastopt.cluster_weights(w * scale, 16).codes == codes).mean() > 0.999
    book = fastopt.cluster_weights(np.array([-1e300, 0, 1e300, 1e308] * 10), 3)
    np.testing.assert_allclose(book.centroids, [-1e300, 5e299, 1e308], rtol=1e-14)


def test_many_weights_come_close_to_the_exact_optimum() -> None:
    for shape in ("normal", "near one", "heavy tails"):
        w = SHAPES[shape](np.random.default_rng(0), 200_000).astype(np.float32)
        refined, wide = fastopt.cluster_weights(w, 16), w.astype(float)
        found = error(w, refined)
        for _ in range(20):  # Lloyd on the weights themselves finds next to nothing more
            sums = np.bincount(refined.codes, wide, minlength=16)
            means = sums / np.bincount(refined.codes, minlength=16)
            middles = (means[1:] + means[:-1]) / 2
            refined = fastopt.merging.Codebook(np.searchsorted(middles, wide), means)
        assert found <= 1.001 * error(w, refined)


@pytest.mark.parametrize("n", [1, 5, 3000, 80_000])
def test_codes_are_the_nearest_values(n: int) -> None:
    w = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    before = w.copy()
    for k in (1, 7, 256, 300):
        book = fastopt.cluster_weights(w, k)
        assert (w == before).all()
        assert len(book.centroids) <= k
        assert (np.diff(book.centroids) > 0).all()
        assert book.codes.dtype == (np.uint8 if min(k, n) <= 256 else np.uint16)
        middle = n // 2
        part = slice(max(0, middle - 500), middle + 500)
        gap = np.abs(w[part, None].astype(float) - book.centroids)
        np.testing.assert_allclose(
            np.abs(w[part] - book.decode()[part].astype(float)), gap.min(1), atol=1e-12
        )


def test_few_values_are_kept_as_they_are() -> None:
    w = np.array([[0.0, -1.5, 0.0], [2.0, 2.0, -1.5]])
    book = fastopt.cluster_weights(w, 16)
    assert book.centroids.tolist() == [-1.5, 0, 2]
    assert (book.decode() == w).all()
    assert book.codes.shape == (2, 3)
    assert book.nbytes == 2 + 24
    out = np.empty((2, 3))
    assert book.decode(out=out) is out
    sparse = np.where(np.arange(200_000) % 2, 0, np.random.default_rng(0).standard_normal(200_000))
    assert np.isfinite(fastopt.cluster_weights(sparse, 16).centroids).all()


def test_close_to_scikit_learns_kmeans_or_better() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    w = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    peer = cluster.KMeans(8, n_init=3, random_state=0).fit(w[:, None])
    assert error(w, fastopt.cluster_weights(w, 8)) <= 1.001 * peer.inertia_


def test_refusals() -> None:
    w = np.ones(5, np.float32)
    for args, kind, word in (
        ((w, 0), OptionError, "n_clusters"), ((w, 65537), OptionError, "n_clusters"),
        ((w[:0], 3), ArrayError, "w"), ((w * np.nan, 3), ArrayError, "NaN"),
        ((w.astype(int), 3), DTypeError, "w"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            fastopt.cluster_weights(*args)
    with pytest.raises(DTypeError, match="out"):
        fastopt.cluster_weights(w, 2).decode(out=np.empty(5))
