"""Shared weights: the optimum on few values, near it on many, exact codes."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt._kernels import levels
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.merging import codebook
from tests.conftest import THREADS, kernel


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


def distributions(n: int, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    sign = rng.choice([-1, 1], n)
    found = {
        "normal": rng.standard_normal(n),
        "student": rng.standard_t(5, n),
        "near constant": 1 + 1e-3 * rng.standard_normal(n),
        "few values": rng.choice(rng.standard_normal(1000), n),
        "mixed exponents": sign * 10.0 ** rng.uniform(-30, 30, n),
        "an outlier": np.append(rng.laplace(size=n - 1), 1e6),
    }
    if dtype == "float64":
        found["large"] = rng.standard_normal(n) * 1e307
    return {name: w.astype(dtype) for name, w in found.items()}


def optimum(w: np.ndarray, k: int) -> float:
    """The least squared error, in units of the largest weight, by dynamic programming over all."""
    unit = 2.0 ** -np.frexp(np.abs(w).max())[1]
    values, count = np.unique(w.astype(float) * unit, return_counts=True)
    n, starts = len(values), np.zeros(k, np.int64)
    if n <= k:
        return 0.0
    total = (values - np.average(values, weights=count)) * count
    sums = [np.concatenate([[0.0], np.cumsum(v, dtype=float)]) for v in (count, total)]
    room = np.empty((k, n + 1), np.int32), np.empty((2, n + 1))
    kernel("cluster", levels()[0]).partition(starts, *sums, *room)
    means = np.add.reduceat(values * count, starts) / np.add.reduceat(count, starts)
    means = np.repeat(means, np.diff(np.append(starts, n)))
    return float((count * (values - means) ** 2).sum())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [16, 100])
def test_the_error_is_the_optimum_on_any_distribution(k: int, dtype: str) -> None:
    for name, w in distributions(20_000, dtype).items():
        unit = 2.0 ** -np.frexp(np.abs(w).max())[1]
        book = fastopt.cluster_weights(w, k)
        found = float(((w.astype(float) * unit - book.decode().astype(float) * unit) ** 2).sum())
        assert found <= 1.001 * optimum(w, k), name
        assert len(book.centroids) == k


@pytest.mark.parametrize("size", [1e12, 1e20, 1e30])
def test_far_ones_cost_the_others_nothing_but_their_own_values(size: float) -> None:
    w = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    far = np.append(w, np.array([size, -size / 2], np.float32))
    book, rest = fastopt.cluster_weights(far, 16), fastopt.cluster_weights(w, 14)
    found = (far.astype(float) - book.decode()) ** 2
    assert found[-2:].tolist() == [0, 0]
    assert found[:-2].sum() == pytest.approx(error(w, rest), rel=1e-3)


def test_the_codebook_does_not_depend_on_level_or_threads(monkeypatch: Any) -> None:
    w = np.random.default_rng(1).standard_t(5, 200_000).astype(np.float32)
    seen = set()
    for level in levels():
        monkeypatch.setattr(codebook, "cluster", kernel("cluster", level))
        for threads in (1, 2, 3):
            book = fastopt.cluster_weights(w, 16, threads=threads)
            seen.add(book.codes.tobytes() + book.centroids.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tally_and_assign_match_their_twins(level: str, dtype: str) -> None:
    k = kernel("cluster", level)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 3, 1 << 16)
    first = np.concatenate([[0], np.cumsum(1 << bits)])
    entries = (first[:-1] << 5 | (16 - bits)).astype(np.uint32)
    scale = codebook._Scale(0.5, 0.25)
    for n in (0, 1, 255, 256, 257, 70_000):
        x = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n)).astype(dtype)
        keys = scale.keys(x).astype(np.int64)
        at = first[keys >> 16] + ((keys & 0xFFFF) >> (16 - bits[keys >> 16]))
        middles = np.sort(rng.standard_normal(40))
        middles[7:9] = x[:1] if n else middles[7]  # ties go down
        middles.sort()
        span = np.full(first[-1], 40, np.uint32)  # of every bin: any code
        for threads in THREADS:
            count, low = np.zeros((2, first[-1]), np.int64)
            k.tally(count, low, x, *scale, entries, threads)
            assert (count == np.bincount(at, minlength=first[-1])).all()
            assert (low == np.bincount(at, keys & 0xFFFF, minlength=first[-1])).all()
            for codes in (np.zeros(n, np.uint8), np.zeros(n, np.uint16)):
                k.assign(codes, x, *scale, entries, span, middles, threads)
                assert (codes == np.searchsorted(middles, x, side="left")).all()


def test_the_kernels_refuse_what_leads_outside() -> None:
    k = kernel("cluster", levels()[0])
    x, entries = np.ones(5, "f4"), np.full(1 << 16, 16, np.uint32)
    one = np.zeros(1, np.int64)
    codes, span, middles = np.zeros(5, np.uint8), np.zeros(1, np.uint32), np.zeros(1)
    for bad in (entries + np.uint32(32), entries + np.uint32(1)):
        with pytest.raises(ArrayError):
            k.tally(one, one.copy(), x, 1.0, 0.0, bad, 1)
        with pytest.raises(ArrayError):
            k.assign(codes, x, 1.0, 0.0, bad, span, middles, 1)
    with pytest.raises(ArrayError):
        k.assign(codes, x, 1.0, 0.0, entries, span + np.uint32(2), middles, 1)
    rest = np.arange(3.0), np.arange(3.0), np.zeros((3, 3), np.int32), np.zeros((2, 3))
    with pytest.raises(ArrayError):
        k.partition(np.zeros(3, np.int64), *rest)


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


@pytest.mark.parametrize("n", [2000, 100_000])
@pytest.mark.parametrize(
    "far", [(1e30,), (-1e45,), (1e150,), (1e300, -1e300), (1e100, 1e200, 1e300)]
)
def test_far_outliers_leave_the_rest_as_it_was(
    n: int, far: tuple[float, ...], rng: np.random.Generator
) -> None:
    x = rng.standard_normal(n)
    alone = ((fastopt.cluster_weights(x, 6).decode() - x) ** 2).sum()
    book = fastopt.cluster_weights(np.append(x, far), 6 + len(far))
    decoded = book.decode()
    assert (decoded[n:] == far).all()
    assert ((decoded[:n] - x) ** 2).sum() <= 1.001 * alone
    assert len(book.centroids) == 6 + len(far)
