"""Gram: moments, merging, constant memory, plain data."""

from __future__ import annotations

import copy
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.calibration import Gram
from fastopt.errors import ArrayError, ConcurrentUseError, DTypeError, FormatError, OptionError


def same(a: Gram, b: Gram) -> bool:
    x, y = a.to_dict(), b.to_dict()
    return x["n"] == y["n"] and all(
        np.asarray(x[k]).tobytes() == np.asarray(y[k]).tobytes() for k in x
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("n", [1, 3, 17])
def test_moments_match_numpy(dtype: str, rows: int, n: int, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((rows, n)) + 3).astype(dtype)
    before = x.copy()
    g = Gram(n).update(x)
    wide = x.astype(np.float64)
    assert g.count == rows
    np.testing.assert_allclose(g.second, wide.T @ wide, rtol=1e-12, atol=1e-12)
    if rows:
        np.testing.assert_allclose(g.mean, wide.mean(0), rtol=1e-13)
        np.testing.assert_allclose(
            g.covariance(), np.cov(wide.T, bias=True).reshape(n, n), rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(g.variance, wide.var(0), rtol=1e-9, atol=1e-15)
    assert x.tobytes() == before.tobytes()


def test_chunks_of_any_size_agree(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((500, 6)) * [1, 10, 0.1, 3, 1, 1] + [0, 5, -3, 100, 0, 0]
    whole = Gram(6).update(x)
    monkeypatch.setattr("fastopt.calibration._CHUNK_BYTES", 8 * 6 * 37)
    pieces = Gram(6).update(x)
    for a, b in ((whole.mean, pieces.mean), (whole.second, pieces.second)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 8), st.integers(0, 99))
def test_sum_has_the_bits_of_one_stream(a: int, b: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((a, n)), rng.standard_normal((b, n))
    joined = Gram(n).update(x) + Gram(n).update(y)
    assert same(joined, Gram(n).update(x).update(y))
    together = Gram(n).update(np.concatenate([x, y]))
    np.testing.assert_allclose(joined.second, together.second, rtol=1e-10, atol=1e-12)
    assert same(sum([Gram(n).update(x), Gram(n).update(y)]), joined)


def test_addition_leaves_both_operands(rng: np.random.Generator) -> None:
    a, b = Gram(3).update(rng.random((5, 3))), Gram(3).update(rng.random((4, 3)))
    kept = copy.deepcopy(a), copy.deepcopy(b)
    assert (a + b).count == 9
    assert same(a, kept[0])
    assert same(b, kept[1])


def test_a_large_mean_costs_no_digits(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4000, 2))
    g = Gram(2)
    for part in np.split(x + 1e8, 8):
        g.update(part)
    np.testing.assert_allclose(g.covariance(), np.cov(x.T, bias=True), rtol=1e-6, atol=1e-7)


def test_leading_axes_are_rows_and_other_numbers_are_converted(rng: np.random.Generator) -> None:
    x = rng.integers(-5, 5, (4, 6, 3))
    assert same(Gram(3).update(x), Gram(3).update(x.reshape(-1, 3).astype(float)))
    half = x.astype(np.float16)
    assert same(Gram(3).update(half), Gram(3).update(x))


def test_memory_does_not_grow_with_the_rows(rng: np.random.Generator) -> None:
    x = rng.standard_normal((400_000, 16), dtype=np.float32)
    g = Gram(16)
    tracemalloc.start()
    g.update(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # the data is 25 MB, its float64 copy would be 51 MB


def test_damping_makes_dead_and_twin_units_invertible(rng: np.random.Generator) -> None:
    x = rng.standard_normal((50, 4))
    x[:, 1], x[:, 3] = 0, x[:, 2]
    g = Gram(4).update(x)
    assert np.linalg.matrix_rank(g.covariance()) == 2
    np.linalg.cholesky(g.covariance(damp=1e-3))
    np.linalg.cholesky(Gram(4).update(np.ones((5, 4))).covariance(damp=1e-3))


def test_take(rng: np.random.Generator) -> None:
    x = rng.standard_normal((30, 5))
    part = Gram(5).update(x).take([4, 1])
    np.testing.assert_allclose(part.second, x[:, [4, 1]].T @ x[:, [4, 1]])
    assert part.count == 30
    for bad in ([5], [-1], []):
        with pytest.raises(ArrayError, match="index"):
            Gram(5).take(bad)


@pytest.mark.parametrize(
    "bad",
    [np.ones((3, 4)), np.ones(3), np.array([[np.nan, 1, 2]]), np.array([[np.inf, 1, 2]]),
     np.array([[1e200, 1, 2], [0, 1, 2]])],
)  # fmt: skip
def test_refused_rows_add_nothing(bad: np.ndarray, rng: np.random.Generator) -> None:
    g = Gram(3).update(rng.random((5, 3)))
    before = copy.deepcopy(g)
    with pytest.raises(ArrayError, match="X"):
        g.update(bad)
    assert same(g, before)


def test_refused_kinds() -> None:
    with pytest.raises(OptionError, match="n:"):
        Gram(0)
    with pytest.raises(DTypeError, match="X"):
        Gram(2).update([[1j, 2]])
    with pytest.raises(ArrayError, match="3 features"):
        Gram(3) + Gram(2)
    with pytest.raises(TypeError):
        Gram(3) + 1  # type: ignore[operator]
    with pytest.raises(OptionError, match="damp"):
        Gram(3).covariance(damp=-1)


def test_plain_data_pickle_and_copy(rng: np.random.Generator) -> None:
    g = Gram(4).update(rng.random((9, 4)))
    for other in (
        Gram.from_dict(g.to_dict()), pickle.loads(pickle.dumps(g)), copy.deepcopy(g), copy.copy(g),
        g.copy(), Gram.from_dict({k: np.asarray(v).tolist() for k, v in g.to_dict().items()}),
    ):  # fmt: skip
        assert same(g, other)
        other.update(np.ones((1, 4)))  # alive and independent
        assert g.count == 9
    g.to_dict()["mean"][:] = 7
    assert not (g.mean == 7).any()


@pytest.mark.parametrize(
    "change",
    [{"n": 3}, {"count": -1}, {"count": 1.5}, {"mean": [1.0]}, {"scatter": "x"},
     {"scatter": [[1.0, 2.0], [3.0, 1.0]]}, {"mean": [np.nan, 0.0]}],
)  # fmt: skip
def test_a_broken_state_is_refused(change: dict[str, object]) -> None:
    state = Gram(2).update(np.eye(2)).to_dict()
    with pytest.raises(FormatError):
        Gram.from_dict({**state, **change})
    with pytest.raises(FormatError, match="missing"):
        Gram.from_dict({k: v for k, v in state.items() if k not in change})


def test_concurrent_update_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Gram(2)
    inside, go_on = threading.Event(), threading.Event()

    def slow(*args: object) -> int:
        inside.set()
        go_on.wait(10)
        return 0

    monkeypatch.setattr("fastopt.calibration._merge", slow)
    worker = threading.Thread(target=g.update, args=(np.ones((1, 2)),))
    worker.start()
    assert inside.wait(10)
    with pytest.raises(ConcurrentUseError):
        g.update(np.ones((1, 2)))
    go_on.set()
    worker.join()


@pytest.mark.parametrize("bad", [[True, False, True], [0.5, 1.0]])
def test_take_refuses_what_is_no_index(bad: list[float]) -> None:
    with pytest.raises(DTypeError, match=r"^index: "):
        Gram(3).take(bad)
