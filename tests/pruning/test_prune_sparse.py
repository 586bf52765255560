"""Sparse times dense: kernel against its twin, then SparseLinear."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastopt
from fastopt.errors import ArrayError, DTypeError, FastoptError, FormatError, OptionError
from fastopt.pruning import SparseLinear
from tests import reference as twin
from tests.conftest import SIZES, THREADS, Guarded, kernel


def weight(n_out: int, n_in: int, dtype: str = "float32", share: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(n_out + n_in)
    live = rng.random((n_out, n_in)) < share
    return np.where(live, rng.standard_normal((n_out, n_in)), 0).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["csr", "4x1"])
def test_product_matches_its_twin(level: str, dtype: str, form: str) -> None:
    k = kernel("sparse", level)
    for n in SIZES:
        for threads in THREADS if n in (3, 70) else (1,):
            s = SparseLinear.from_dense(weight(12, 9, dtype), form)
            x = np.random.default_rng(n).standard_normal((9, n)).astype(dtype)
            y = Guarded(np.full((12, n), 7, dtype))
            rows = 4 if form == "4x1" else 1
            k.product(y.array, s._values, s._columns, s._starts, x, n, rows, threads)
            wanted = twin.sparse_product(s._values, s._columns, s._starts, x)
            assert y.array.tobytes() == wanted.tobytes()
            y.check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["auto", "csr", "4x1", "8x1", "bitmask", "dense"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 16), (33, 20), (0, 3), (3, 0)])
def test_equals_the_dense_product(dtype: str, form: str, shape: tuple[int, int]) -> None:
    w = weight(*shape, dtype)
    before = w.copy()
    s = SparseLinear.from_dense(w, form)
    assert (s.to_dense() == w).all()
    assert s.nnz == np.count_nonzero(w)
    rng = np.random.default_rng(0)
    for tail in ((), (1,), (5,), (64,), (100,), (0,)):
        x = rng.standard_normal((shape[1], *tail)).astype(dtype)
        y = s @ x
        assert y.dtype == dtype
        np.testing.assert_allclose(y, w @ x, rtol=1e-4, atol=1e-5)
        assert (s.matmul(x, threads=2) == y).all()
        out = np.empty_like(y)
        assert s.matmul(x, out=out) is out
        assert (out == y).all()
    assert (w == before).all()


def test_auto_takes_what_it_measured_as_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    blocks = fastopt.prune(w, 0.9, pattern="4x1").arrays
    cost = {"dense": 3.0, "csr": 2.0, "4x1": 1.0}
    clock = [0.0]
    product = SparseLinear.matmul

    def slow(self: SparseLinear, x: np.ndarray, **options: object) -> np.ndarray:
        clock[0] += cost[self.format]
        return product(self, x, **options)

    monkeypatch.setattr(SparseLinear, "matmul", slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert SparseLinear.from_dense(blocks).format == "4x1"
    assert SparseLinear.from_dense(fastopt.prune(w, 0.95).arrays).format == "csr"
    cost["dense"] = 0.5
    s = SparseLinear.from_dense(blocks, batch=3)
    assert s.format == "dense"
    assert s.reason == (
        "fastest for 3 samples at 90% zeros: dense 500000 us, 4x1 1000000 us, csr 2000000 us"
    )


def test_bytes_of_the_formats() -> None:
    w = fastopt.prune(np.random.default_rng(0).standard_normal((64, 64)).astype("f4"), 0.9)
    blocks = fastopt.prune(w.arrays, 0.9, pattern="4x1").arrays
    assert SparseLinear.from_dense(blocks, "4x1").nbytes < blocks.nbytes / 5
    mask, rows = (SparseLinear.from_dense(w.arrays, f).nbytes for f in ("bitmask", "csr"))
    assert mask == 4 * w.arrays.astype(bool).sum() + 64 * 8 + 65 * 8 < rows


@pytest.mark.parametrize("form", ["csr", "4x1", "bitmask", "dense"])
def test_a_call_takes_rows_and_adds_the_bias(form: str) -> None:
    w, rng = weight(10, 7), np.random.default_rng(1)
    bias = rng.standard_normal(10).astype("f4")
    s = SparseLinear.from_dense(w, form, bias=bias)
    for lead in ((), (1,), (5,), (2, 3), (0,)):
        x = rng.standard_normal((*lead, 7)).astype("f4")
        out = np.empty((*lead, 10), "f4")
        assert s(x, out, threads=2) is out
        np.testing.assert_allclose(out, x @ w.T + bias, rtol=1e-5, atol=1e-5)
    with pytest.raises(ArrayError, match="x"):
        s(np.ones((3, 10), "f4"))
    with pytest.raises(ArrayError, match="bias"):
        SparseLinear.from_dense(w, form, bias=bias[:3])


def test_pickle_and_copy() -> None:
    s = SparseLinear.from_dense(weight(9, 8), "csr")
    x = np.ones((8, 3), np.float32)
    for other in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s)):
        assert ((other @ x) == (s @ x)).all()


def test_refusals() -> None:
    w = weight(8, 6)
    s = SparseLinear.from_dense(w, "csr")
    x = np.ones((6, 2), np.float32)
    for bad, kind, word in (
        (x[:5], ArrayError, "x"), (x.astype("f8"), DTypeError, "x"),
        (np.ones((6, 2, 1), "f4"), ArrayError, "x"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            s @ bad
    with pytest.raises(OptionError, match="format"):
        SparseLinear.from_dense(w, "coo")
    with pytest.raises(ArrayError, match="w"):
        SparseLinear.from_dense(w[0])
    with pytest.raises(TypeError):
        x.T @ s
    whole = np.ones((14, 2), np.float32)
    with pytest.raises(ArrayError, match="shares memory"):
        s.matmul(whole[:6], out=whole[2:10])
    with pytest.raises(FormatError):
        SparseLinear((8, 6), s.format, s._values, s._columns + np.int32(6), s._starts)
    with pytest.raises(FormatError):
        SparseLinear((8, 6), s.format, s._values, s._columns, s._starts[::-1].copy())
    bits = SparseLinear.from_dense(w, "bitmask")
    parts = {"values": bits._values, "columns": bits._columns, "starts": bits._starts}
    for name, other in (
        ("values", bits._values[1:]), ("columns", bits._columns ^ np.uint8(128)),
        ("columns", bits._columns | np.uint8(1)), ("starts", bits._starts[::-1].copy()),
    ):  # fmt: skip
        with pytest.raises(FormatError):
            SparseLinear((8, 6), "bitmask", **{**parts, name: other})


def test_the_arrays_it_was_made_from_may_change() -> None:
    values, columns, starts = np.ones((64, 1), "f4"), np.zeros(64, "i4"), np.arange(65)
    s = SparseLinear((64, 64), "csr", values, columns, starts)
    columns[:], starts[1:], values[:] = 2**31 - 1, 2**40, np.nan
    assert (s.matmul(np.ones(64, "f4")) == 1).all()
    for shape in ((64,), (-1, 64), (64, 2.5), "64", (2**70, 64)):
        with pytest.raises(FastoptError, match="shape"):
            SparseLinear(shape, "csr", np.ones((64, 1), "f4"), np.zeros(64, "i4"), np.arange(65))
