"""Unit scores and the budget over layers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fastopt.calibration import Gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import removal_order, select_units, share_units, unit_scores


def test_scores_are_their_formulas(rng: np.random.Generator) -> None:
    w, grads = rng.standard_normal((2, 12, 3, 3, 2))
    for size in (1, 4):
        flat, slope = w.reshape(12 // size, -1), grads.reshape(12 // size, -1)
        np.testing.assert_allclose(unit_scores(w, unit_size=size), np.linalg.norm(flat, axis=1))
        every = [sum(np.linalg.norm(a - b) for b in flat) for a in flat]
        np.testing.assert_allclose(unit_scores(w, "fpgm", unit_size=size), every, rtol=1e-6)
        taylor = unit_scores(w, "taylor", grads=grads, unit_size=size)
        np.testing.assert_allclose(taylor, (flat * slope).sum(1) ** 2)
    x = rng.standard_normal((100, 12)) * np.arange(12)
    found = unit_scores(w, "activation", gram=Gram(12).update(x))
    np.testing.assert_allclose(found, x.std(axis=0), atol=1e-12)


def test_an_order_of_scores_is_a_selection(rng: np.random.Generator) -> None:
    a = rng.standard_normal((200, 10))
    w1, w2 = rng.standard_normal((10, 6)), rng.standard_normal((4, 10))
    order = np.argsort(unit_scores(w1))
    s = select_units(Gram(10).update(a), w2, 7, order=order)
    assert set(s.index.tolist()) == set(range(10)) - set(order[:3].tolist())


@pytest.mark.parametrize("seed", range(20))
def test_the_shared_budget_is_near_the_best_and_never_missed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = [np.abs(rng.standard_normal(5)) ** 3 for _ in range(3)]
    prices = [1.0, 2.5, 1.5]
    budget = float(rng.uniform(1, 20))
    found = share_units(costs, prices, budget)
    assert np.dot(found, prices) >= budget
    total = sum(c[:k].sum() for c, k in zip(costs, found))
    best = min(
        sum(c[:k].sum() for c, k in zip(costs, ks))
        for ks in product(range(6), repeat=3)
        if np.dot(ks, prices) >= budget
    )
    largest = max(c.max() for c in costs)
    assert total <= best + 2 * largest + 1e-12


def test_a_dip_in_costs_does_not_hide_what_follows() -> None:
    assert share_units([[1.0, 0.0, 0.0, 9.0], [0.5, 0.5, 0.5]], [1.0, 1.0], 3.0) == [3, 0]
    assert share_units([[1.0] * 16, [2.0] * 16], [1.0, 1.0], 3.0, multiple_of=8) == [8, 0]
    assert share_units([[1.0]], [1.0], 0.0) == [0]


def test_with_real_orders(rng: np.random.Generator) -> None:
    costs = []
    for scale in (1.0, 0.01):
        a = rng.standard_normal((300, 16)) * np.geomspace(1, scale, 16)
        w = rng.standard_normal((5, 16))
        gram = Gram(16).update(a)
        costs.append(removal_order(gram, w)[1] / np.trace(w @ gram.covariance() @ w.T))
    first, second = share_units(costs, [1.0, 1.0], 16.0)
    assert second > first


def test_refusals() -> None:
    w = np.ones((6, 2))
    for args, options, kind, word in (
        ((w, "best"), {}, OptionError, "method"), ((w,), {"unit_size": 4}, OptionError, "divisor"),
        ((w, "activation"), {}, OptionError, "gram"), ((w, "taylor"), {}, OptionError, "grads"),
        ((w,), {"grads": w}, OptionError, "not use"), ((np.float64(1),), {}, ArrayError, "w"),
        ((w * np.nan,), {}, ArrayError, "w"), ((w, "taylor"), {"grads": w[:2]}, ArrayError, "gr"),
        ((w, "activation"), {"gram": Gram(6)}, ArrayError, "no rows"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            unit_scores(*args, **options)
    for args, kind, word in (
        (([[1.0]], [1.0, 2.0], 1.0), OptionError, "prices"),
        (([[1.0]], [1.0], 5.0), OptionError, "budget"),
        (([[1.0]], [0.0], 1.0), OptionError, "prices"), ((3, [1.0], 1.0), DTypeError, "costs"),
    ):  # fmt: skip
        with pytest.raises(kind, match=word):
            share_units(*args)
