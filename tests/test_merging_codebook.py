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


def test_many_weights_come_close_to_the_exact_optimum() -> None:
    w = np.random.default_rng(0).standard_t(5, 100_000).astype(np.float32)
    exact = fastopt.cluster_weights(np.sort(w)[::50].copy(), 16)  # 2000 values: exact path
    scaled = error(np.sort(w)[::50], exact)
    few = np.sort(w)[::50]
    from fastopt.merging import codebook

    counts, sums, squares = codebook._histogram(few)
    cuts = codebook._lloyd(counts, sums, codebook._optimal(counts, sums, squares, 16))
    centroids = (np.add.reduceat(sums, cuts) / np.add.reduceat(counts, cuts)).astype(np.float32)
    binned = fastopt.merging.Codebook(codebook._assign(few, centroids, 16), centroids)
    assert scaled <= error(few, binned) <= 1.001 * scaled
    whole = fastopt.cluster_weights(w, 16)
    refined, wide = whole, w.astype(float)
    for _ in range(20):  # Lloyd on the weights themselves finds next to nothing more
        sums = np.bincount(refined.codes, wide, minlength=16)
        means = sums / np.bincount(refined.codes, minlength=16)
        refined = fastopt.merging.Codebook(codebook._assign(wide, means, 16), means)
    assert error(w, whole) <= 1.001 * error(w, refined)


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
