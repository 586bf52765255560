"""Splitting a layer into two thinner ones."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 4), (4, 7), (30, 30), (64, 20)])
def test_full_rank_is_lossless_and_the_error_is_the_tail(
    dtype: str, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    w = rng.standard_normal(shape).astype(dtype)
    before = w.copy()
    values = np.linalg.svd(w.astype(float), compute_uv=False)
    close = 1e-5 if dtype == "float32" else 1e-12
    for rank in range(1, min(shape) + 1, 3):
        a, b = fastopt.split_low_rank(w, rank)
        assert (a.shape, b.shape) == ((shape[0], rank), (rank, shape[1]))
        assert a.dtype == b.dtype == dtype
        assert a.flags.c_contiguous
        assert b.flags.c_contiguous
        tail = np.sqrt((values[rank:] ** 2).sum())
        assert np.linalg.norm(w - a.astype(float) @ b) == pytest.approx(
            tail, abs=close * values[0] * 10
        )
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-3)
    a, b = fastopt.split_low_rank(w, min(shape))
    np.testing.assert_allclose(a @ b, w, atol=close * 10)
    assert (w == before).all()


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (9, 9)])
def test_full_rank_with_data_is_lossless_even_where_data_is_thin(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    w = rng.standard_normal(shape)
    x = rng.standard_normal((40, 2)) @ rng.standard_normal((2, shape[1]))
    a, b = fastopt.split_low_rank(w, min(shape), gram=Gram(shape[1]).update(x))
    np.testing.assert_allclose(a @ b, w, atol=1e-8)
    a, b = fastopt.split_low_rank(w, 2, gram=Gram(shape[1]).update(x))  # all that the data sees
    np.testing.assert_allclose(x @ (a @ b).T, x @ w.T, atol=1e-6)
    silent = Gram(shape[1]).update(np.zeros((3, shape[1])))
    a, b = fastopt.split_low_rank(w, min(shape), gram=silent)
    np.testing.assert_allclose(a @ b, w, atol=1e-8)


def test_data_decides_and_the_output_error_is_least(rng: np.random.Generator) -> None:
    w = rng.standard_normal((15, 20))
    x = rng.standard_normal((500, 20)) * np.geomspace(1, 1e-3, 20) + 0.3
    g = Gram(20).update(x)
    values = np.linalg.svd(x @ w.T, compute_uv=False)
    for rank in (2, 5, 10):
        a, b = fastopt.split_low_rank(w, rank, gram=g)
        plain_a, plain_b = fastopt.split_low_rank(w, rank)
        wise, plain = (np.linalg.norm(x @ (w - p @ q).T) for p, q in ((a, b), (plain_a, plain_b)))
        assert wise == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-5)
        assert wise < plain


def test_energy_gives_the_smallest_rank(rng: np.random.Generator) -> None:
    q, _ = np.linalg.qr(rng.standard_normal((10, 10)))
    w = (q * np.array([4.0, 3, 2, 1, 0, 0, 0, 0, 0, 0])).T
    powers = np.array([16, 25, 29, 30]) / 30
    for rank, share in enumerate(powers, 1):
        assert fastopt.split_low_rank(w, energy=share - 1e-9)[0].shape[1] == rank
        assert fastopt.split_low_rank(w, energy=share)[0].shape[1] == rank
    assert fastopt.split_low_rank(w, energy=0)[0].shape[1] == 1
    assert fastopt.split_low_rank(np.zeros((3, 3)), energy=1)[0].shape[1] == 1
    x = np.eye(10)[[1, 1, 1]]
    assert fastopt.split_low_rank(w, energy=1, gram=Gram(10).update(x))[0].shape[1] == 1


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (400, 400)])
@pytest.mark.parametrize("data", [False, True])
def test_large_weights_are_within_two_per_cent_of_the_least_error(
    shape: tuple[int, int], data: bool, rng: np.random.Generator
) -> None:
    n_out, n_in = shape
    w = (rng.standard_normal(shape) @ np.diag(np.geomspace(1, 0.05, n_in))).astype("float32")
    x = rng.standard_normal((900, n_in)) * np.geomspace(1, 0.1, n_in)
    gram = Gram(n_in).update(x) if data else None
    seen = w @ x.T if data else w
    values = np.linalg.svd(seen.astype(float), compute_uv=False)
    for rank in (1, 20, min(shape) // 4):
        a, b = fastopt.split_low_rank(w, rank, gram=gram)
        assert (a.shape, b.shape, a.dtype) == ((n_out, rank), (rank, n_in), np.float32)
        rest = w.astype(float) - a.astype(float) @ b
        lost = np.linalg.norm(rest @ x.T if data else rest)
        assert lost <= 1.02 * np.sqrt((values[rank:] ** 2).sum())
        again = fastopt.split_low_rank(w, rank, gram=gram)
        assert (again[0] == a).all()


def test_the_rank_by_error_and_by_bytes(rng: np.random.Generator) -> None:
    w = rng.standard_normal((30, 20)) * np.geomspace(1, 1e-2, 20)
    for error in (0.5, 0.1, 0.01):
        a, b = fastopt.split_low_rank(w, error=error)
        assert np.linalg.norm(w - a @ b) <= error * np.linalg.norm(w)
        if a.shape[1] > 1:
            a, b = fastopt.split_low_rank(w, a.shape[1] - 1)
            assert np.linalg.norm(w - a @ b) > error * np.linalg.norm(w)
    a, b = fastopt.split_low_rank(w, max_bytes=8 * 50 * 6 + 10)
    assert a.shape[1] == 6
    assert fastopt.split_low_rank(w, max_bytes=10**9)[0].shape[1] == 20


def test_refusals(rng: np.random.Generator) -> None:
    w = rng.standard_normal((4, 6))
    for args, options, error, word in (
        ((w,), {}, OptionError, "one of"), ((w, 2), {"energy": 0.5}, OptionError, "one of"),
        ((w,), {"error": 2.0}, OptionError, "error"), ((w,), {"max_bytes": 3}, OptionError, "by"),
        ((w, 0), {}, OptionError, "rank"), ((w, 5), {}, OptionError, "rank"),
        ((w,), {"energy": 1.1}, OptionError, "energy"), ((w[0], 1), {}, ArrayError, "w"),
        ((w * np.nan, 1), {}, ArrayError, "NaN"), ((np.zeros((0, 3)), 1), {}, ArrayError, "w"),
        ((w, 1), {"gram": w}, DTypeError, "gram"), ((w, 1), {"gram": Gram(6)}, ArrayError, "gram"),
        ((w, 1), {"gram": Gram(4)}, ArrayError, "gram"), ((w.astype(int), 1), {}, DTypeError, "w"),
    ):  # fmt: skip
        with pytest.raises(error, match=word):
            fastopt.split_low_rank(*args, **options)
