"""The cascade asks the next level only where the one before is unsure."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.layering import Cascade


class Level:
    """Says class 1 with the probability in one column, and counts the rows it saw."""

    def __init__(self, column: int, classes: tuple[str, ...] = ()) -> None:
        self.column, self.seen = column, 0
        if classes:
            self.classes_ = np.array(classes)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        self.seen += len(x)
        return np.column_stack([1 - x[:, self.column], x[:, self.column]])


def test_only_unsure_rows_go_on() -> None:
    x = np.array([[0.9, 0.1, 0.5], [0.6, 0.05, 0.5], [0.5, 0.6, 0.2], [np.nan, 0.5, 0.9]])
    levels = [Level(0), Level(1), Level(2)]
    c = Cascade(levels, [0.8, 0.9])
    p, answered = c.route(x)
    assert answered.tolist() == [0, 1, 2, 2]
    assert [m.seen for m in levels] == [4, 3, 2]
    assert p[:, 1].tolist() == [0.9, 0.05, 0.2, 0.9]
    assert c.predict(x).tolist() == [1, 0, 0, 1]
    assert c.shares(x) == [0.25, 0.25, 0.5]
    assert c.mean_cost(x, [1.0, 4.0, 16.0]) == 0.25 * 1 + 0.25 * 5 + 0.5 * 21
    assert Cascade([Level(0, ("no", "yes")), Level(1)], 0.5).predict(x[:1]).tolist() == ["yes"]
    assert c.predict(x[:0]).shape == (0,)
    assert Cascade([Level(0)], 0.3).shares(x) == [1.0]


def test_thresholds_zero_and_one() -> None:
    x = np.random.default_rng(0).random((50, 2))
    assert Cascade([Level(0), Level(1)], 0.0).shares(x) == [1.0, 0.0]
    assert Cascade([Level(0), Level(1)], 1.0).shares(x) == [0.0, 1.0]


def test_tuned_keeps_the_accuracy_and_saves_the_big_model() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    small = np.clip(truth + rng.normal(0, 0.45, 400), 0, 1)
    big = np.clip(truth + rng.normal(0, 0.25, 400), 0, 1)
    x, y = np.column_stack([small, big]), truth.astype(int)
    exact = (Cascade([Level(1)], 1.0).predict(x) == y).mean()
    for drop in (0.0, 0.02):
        c = Cascade.tuned([Level(0), Level(1)], x, y, max_drop=drop)
        assert (c.predict(x) == y).mean() >= exact - drop - 1e-12
        assert c.shares(x)[0] > 0.3
        every = [Cascade([Level(0), Level(1)], t) for t in np.linspace(0.5, 1, 200)]
        allowed = [e.shares(x)[0] for e in every if (e.predict(x) == y).mean() >= exact - drop]
        assert c.shares(x)[0] >= max(allowed)
    three = Cascade.tuned([Level(0), Level(0), Level(1)], x, y)
    assert (three.predict(x) == y).mean() >= exact


def test_pickles() -> None:
    c = Cascade([Level(0), Level(1)], 0.7)
    x = np.random.default_rng(0).random((9, 2))
    for other in (pickle.loads(pickle.dumps(c)), copy.deepcopy(c)):
        assert (other.predict_proba(x) == c.predict_proba(x)).all()


def test_with_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    x, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "c"])[y]
    small = linear.LogisticRegression(max_iter=500).fit(x[:, :2], names)
    big = RandomForestClassifier(20, random_state=0).fit(x, names)
    c = Cascade([lambda v: small.predict_proba(v[:, :2]), big], 0.9)
    assert (c.predict(x) == names).mean() > 0.9
    assert 0 < c.shares(x)[0] < 1


def test_refusals() -> None:
    for args, kind in (
        (([], 0.5), OptionError), (([1], 0.5), DTypeError), (([Level(0)] * 2, 1.5), OptionError),
        (([Level(0)] * 2, [0.5, 0.5]), OptionError), (([Level(0)] * 2, "x"), DTypeError),
    ):  # fmt: skip
        with pytest.raises(kind):
            Cascade(*args)
    with pytest.raises(ArrayError, match="levels"):
        Cascade([lambda x: np.zeros(3)], 0.5).predict(np.zeros((3, 1)))
    with pytest.raises(ArrayError, match="levels"):
        Cascade([Level(0), lambda x: np.zeros((len(x), 3))], 1.0).predict(np.full((3, 1), 0.5))
