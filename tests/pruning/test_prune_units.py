"""Unit selection: the closed form, the greedy path, the refit, refusals."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import pytest

from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import removal_order, select_units, units


def layer(
    n: int = 8, m: int = 5, rows: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, Gram]:
    """Correlated activations with a mean, a consumer, their Gram."""
    rng = np.random.default_rng(seed)
    a = np.maximum(
        rng.standard_normal((rows, n // 2 + 1)) @ rng.standard_normal((n // 2 + 1, n)), 0
    )
    a += 0.05 * rng.standard_normal((rows, n)) + 1
    return a, rng.standard_normal((m, n)), Gram(n).update(a)


def lost(a: np.ndarray, w: np.ndarray, s: units.Selection) -> float:
    y, z = a @ w.T, a[:, s.index] @ s.w_next.T + s.bias_shift
    return float(((y - z) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


def best_fit(a: np.ndarray, y: np.ndarray, index: list[int]) -> float:
    design = np.column_stack([a[:, index], np.ones(len(a))])
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float((rest**2).sum() / ((y - y.mean(0)) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_one_removal_is_the_best_of_all(seed: int) -> None:
    a, w, g = layer(seed=seed)
    s = select_units(g, w, 7, damp=0)
    every = [best_fit(a, a @ w.T, list(kept)) for kept in combinations(range(8), 7)]
    assert s.error == pytest.approx(min(every), rel=1e-6)
    assert lost(a, w, s) == pytest.approx(s.error, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_near_the_best_subset(seed: int) -> None:
    a, w, g = layer(seed=seed)
    for keep in (2, 4, 6):
        s = select_units(g, w, keep, damp=0)
        assert lost(a, w, s) == pytest.approx(best_fit(a, a @ w.T, s.index.tolist()), rel=1e-5)
        best = min(best_fit(a, a @ w.T, list(c)) for c in combinations(range(8), keep))
        assert s.error <= 1.5 * best + 1e-12


def test_costs_are_the_variance_that_each_removal_adds() -> None:
    a, w, g = layer(12)
    order, cost = removal_order(g, w, damp=0)
    total = ((a @ w.T - (a @ w.T).mean(0)) ** 2).sum() / len(a)
    for n_gone in (1, 3, 6):
        s = select_units(g, w, 12 - n_gone, damp=0)
        assert set(order[:n_gone]) == set(range(12)) - set(s.index.tolist())
        assert s.error * total == pytest.approx(cost[:n_gone].sum(), rel=1e-6)
    again = select_units(g, w, 9, damp=0, order=order)
    assert again.index.tolist() == select_units(g, w, 9, damp=0).index.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_dtypes_and_untouched_input(dtype: str) -> None:
    _, w, g = layer()
    w = w.astype(dtype)
    before = w.copy(), g.second
    s = select_units(g, w, 3)
    assert (s.index.dtype, s.w_next.dtype, s.bias_shift.dtype) == (np.int64, dtype, dtype)
    assert (s.index.shape, s.w_next.shape, s.bias_shift.shape) == ((3,), (5, 3), (5,))
    assert (np.diff(s.index) > 0).all()
    assert (w == before[0]).all()
    assert (g.second == before[1]).all()
    whole = select_units(g, w, 8)
    np.testing.assert_allclose(whole.w_next, w, rtol=1e-4)
    np.testing.assert_allclose(whole.bias_shift, 0, atol=1e-4)
    assert whole.error < 1e-9


def test_dead_constant_and_unread_units_leave_first() -> None:
    a, w, _ = layer(8)
    a[:, 2], a[:, 5] = 0, 3
    w[:, 6] = 0
    s = select_units(Gram(8).update(a), w, 5)
    assert s.index.tolist() == [0, 1, 3, 4, 7]
    assert lost(a, w, s) < 1e-4


def test_copies_never_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    a, w, _ = layer(40, rows=400)
    twice = np.concatenate([a, a], axis=1)
    both = np.concatenate([w, 2 * w], axis=1)
    for limit in (256, 8):  # one by one, then in steps of 16
        monkeypatch.setattr(units, "_ONE_BY_ONE", limit)
        s = select_units(Gram(80).update(twice), both, 40, damp=1e-6)
        assert len(set((s.index % 40).tolist())) == 40
        assert lost(twice, both, s) < 1e-6


def test_steps_lose_little_against_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, w, g = layer(120, 20, rows=600)
    for keep in (90, 60, 30, 1):
        one = select_units(g, w, keep)
        monkeypatch.setattr(units, "_ONE_BY_ONE", 8)
        stepped = select_units(g, w, keep)
        monkeypatch.undo()
        assert stepped.error <= 1.02 * one.error + 1e-12
        assert len(stepped.index) == keep


def test_heads_leave_whole() -> None:
    a, w, _ = layer(24, 6)
    a[:, 8:12] *= 1e-3
    g = Gram(24).update(a)
    s = select_units(g, w, 3, unit_size=4)
    assert s.w_next.shape == (6, 12)
    assert 2 not in s.index
    one = select_units(g, w, 24 - 5, unit_size=1)
    blocks = units._remove_blocks(units.inverse(g.covariance(1e-3)), w.T.copy(), 1, 5)[0]
    assert sorted(set(range(24)) - set(blocks)) == one.index.tolist()
    rows = (s.index[:, None] * 4 + np.arange(4)).ravel()
    z = a[:, rows] @ s.w_next.T + s.bias_shift
    y = a @ w.T
    assert ((y - z) ** 2).sum() / ((y - y.mean(0)) ** 2).sum() == pytest.approx(s.error, rel=1e-6)


def test_refusals() -> None:
    _, w, g = layer()
    broken = w.copy()
    broken[0, 0] = np.nan
    for args, options, error, word in (
        ((w, g, 3), {}, DTypeError, "gram"), ((g, w.T, 3), {}, ArrayError, "one column per"),
        ((g, w, 0), {}, OptionError, "n_keep"), ((g, w, 9), {}, OptionError, "n_keep"),
        ((g, broken, 3), {}, ArrayError, "NaN"), ((Gram(8), w, 3), {}, ArrayError, "no rows"),
        ((g, w[0], 3), {}, ArrayError, "dimensions"), ((g, w, 3), {"damp": -1}, OptionError, "da"),
        ((g, w, 3), {"unit_size": 3}, OptionError, "unit_size"),
        ((g, w, 2.5), {}, DTypeError, "n_"),
        ((g, w, 3), {"order": [1, 1, 2, 3, 4]}, ArrayError, "order"),
        ((g, w, 3), {"order": [1]}, ArrayError, "order"),
        ((g, w.astype(int), 3), {}, DTypeError, "w_next"),
    ):  # fmt: skip
        with pytest.raises(error, match=word):
            select_units(*args, **options)


def test_digits_network_survives_an_eighth() -> None:
    """(256, 128) on digits: 18x fewer parameters without training keep the accuracy."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:1168], order[1168:]
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 30 epochs are enough here
        net = MLPClassifier((256, 128), max_iter=30, random_state=0).fit(x[train], y[train])
    w, b = [c.T.copy() for c in net.coefs_], [c.copy() for c in net.intercepts_]
    size = sum(a.size for a in (*w, *b))
    for i in range(2):
        a = x[train]
        for j in range(i + 1):
            a = np.maximum(a @ w[j].T + b[j], 0)
        s = select_units(Gram(a.shape[1]).update(a), w[i + 1], a.shape[1] // 8)
        w[i], b[i] = w[i][s.index], b[i][s.index]
        w[i + 1], b[i + 1] = s.w_next, b[i + 1] + s.bias_shift
    a = np.maximum(np.maximum(x[test] @ w[0].T + b[0], 0) @ w[1].T + b[1], 0) @ w[2].T + b[2]
    dense = (net.predict(x[test]) == y[test]).mean()
    assert size / sum(c.size for c in (*w, *b)) > 18
    assert (a.argmax(1) == y[test]).mean() > dense - 0.02
