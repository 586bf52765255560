"""SearchCV under scikit-learn's own checks, beside RandomizedSearchCV, and with its journal."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.base import BaseEstimator, ClassifierMixin, clone  # noqa: E402
from sklearn.datasets import make_classification  # noqa: E402
from sklearn.ensemble import GradientBoostingClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression, Ridge  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastopt.errors import FastoptError, FormatError  # noqa: E402
from fastopt.integrations.sklearn import SearchCV  # noqa: E402
from fastopt.search import Choice, Float, Int, Space  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
X, Y = make_classification(160, 6, random_state=0)
C = {"C": Float(1e-3, 1e3, log=True)}


@parametrize_with_checks(
    [
        SearchCV(LogisticRegression(), C, n_iter=3, cv=2, random_state=0),
        SearchCV(Ridge(), {"alpha": Float(1e-3, 1e3, log=True)}, n_iter=3, cv=2, random_state=0),
    ],
    # As scikit-learn's own searches: Ridge takes several targets, so it does not warn of them.
    expected_failed_checks=lambda _: {"check_supervised_y_2d": "DataConversionWarning not caught"},
)
def test_scikit_learns_checks(estimator, check):
    if "array_api" in str(check):  # a check of array-API estimators, which skips itself for others
        return
    check(estimator)


class Counted(ClassifierMixin, BaseEstimator):
    """Its score is a function of its parameters; counts its fits."""

    fits = 0

    def __init__(self, a=0.0, b=1, budget=1):
        self.a, self.b, self.budget = a, b, budget

    def fit(self, X, y):
        Counted.fits += 1
        self.classes_, self.n_rows_ = np.unique(y), len(X)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])

    def score(self, X, y):
        return 1.0 - (self.a - 0.3) ** 2 - 0.1 * abs(self.b - 3) + 0.001 * self.budget


AB = {"a": Float(0, 1), "b": Int(1, 5)}


def test_results_are_those_of_scikit_learn():
    search = SearchCV(
        LogisticRegression(),
        {"C": [0.1, 1.0, 10.0], "fit_intercept": [True, False]},
        n_iter=50,
        cv=3,
        return_train_score=True,
        scoring=["accuracy", "roc_auc"],
        refit="roc_auc",
        random_state=0,
    ).fit(X, Y)
    grid = GridSearchCV(
        LogisticRegression(),
        {"C": [0.1, 1.0, 10.0], "fit_intercept": [True, False]},
        cv=3,
        return_train_score=True,
        scoring=["accuracy", "roc_auc"],
        refit="roc_auc",
    ).fit(X, Y)
    ours, theirs = search.cv_results_, grid.cv_results_
    assert set(ours) == set(theirs)
    assert len(ours["params"]) == 6  # every point of the grid, once
    order = [ours["params"].index(p) for p in theirs["params"]]
    for key, value in theirs.items():
        if "time" not in key and key != "params":
            assert np.array_equal(np.array(ours[key])[order], np.array(value)), key
    assert search.best_score_ == grid.best_score_
    assert search.best_params_ in theirs["params"]
    assert search.multimetric_
    assert search.predict(X).shape == Y.shape


def test_engines_search_better_than_draws():
    best = {
        m: np.median(
            [
                SearchCV(Counted(), AB, method=m, n_iter=30, cv=2, random_state=s)
                .fit(X, Y)
                .best_score_
                for s in range(5)
            ]
        )
        for m in ("random", "genetic", "auto")
    }
    assert best["genetic"] > best["random"]
    assert best["auto"] > best["random"]


def test_pipelines_conditions_and_pickles():
    space = Space(
        logisticregression__solver=Choice("saga", "lbfgs"),
        logisticregression__l1_ratio=Float(0, 1, when={"logisticregression__solver": "saga"}),
    )
    pipe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=50))
    search = SearchCV(pipe, space, n_iter=6, cv=2, random_state=0).fit(X, Y)
    lacks = ["logisticregression__l1_ratio" not in p for p in search.cv_results_["params"]]
    assert any(lacks)
    assert pickle.loads(pickle.dumps(search)).best_params_ == search.best_params_
    assert clone(search).get_params()["n_iter"] == 6


def test_the_same_seed_tries_the_same_candidates():
    runs = [
        SearchCV(Counted(), AB, n_iter=12, cv=2, random_state=s).fit(X, Y).cv_results_["params"]
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("scoring", [None, ["accuracy", "f1"]])
def test_storage_goes_on(tmp_path, scoring):
    options = dict(  # noqa: C408
        method="genetic",
        cv=2,
        random_state=0,
        scoring=scoring,
        storage=tmp_path / "j",
        refit="f1" if scoring else True,
        return_train_score=True,
    )
    Counted.fits = 0
    SearchCV(Counted(), AB, n_iter=8, **options).fit(X, Y)
    assert Counted.fits == 17
    longer = SearchCV(Counted(), AB, n_iter=20, **options).fit(X, Y)
    assert Counted.fits == 17 + 25
    options["storage"] = None
    plain = SearchCV(Counted(), AB, n_iter=20, **options).fit(X, Y)
    assert set(plain.cv_results_) == set(longer.cv_results_)
    for key, value in plain.cv_results_.items():
        if "time" not in key:
            assert np.array_equal(np.array(value), np.array(longer.cv_results_[key])), key
    Counted.fits = 0
    options["storage"] = tmp_path / "j"
    again = SearchCV(Counted(), AB, n_iter=20, **options).fit(X, Y)
    assert Counted.fits == 3  # one candidate for scikit-learn, and the refit
    assert again.best_params_ == plain.best_params_
    with pytest.raises(FormatError, match="another search"):
        SearchCV(Counted(), AB, n_iter=20, **options).fit(X[:-1], Y[:-1])


def test_halving_by_rows():
    search = SearchCV(
        Counted(), AB, n_iter=9, cv=2, resource="n_samples", random_state=0, method="random"
    ).fit(X, Y)
    results = search.cv_results_
    assert list(results["iter"]) == [0] * 9 + [1] * 3 + [2]
    assert list(np.unique(results["n_resources"])) == [17, 53, 160]
    assert search.best_index_ == 12
    assert search.best_params_ == max(
        results["params"][:9], key=lambda p: Counted(**p).score(X, Y)
    )


def test_halving_by_a_parameter(tmp_path):
    for _ in range(2):
        search = SearchCV(
            GradientBoostingClassifier(random_state=0),
            {"learning_rate": Float(0.01, 1, log=True)},
            n_iter=4,
            cv=2,
            resource="n_estimators",
            factor=2,
            max_resources=8,
            random_state=0,
            storage=tmp_path / "j",
        ).fit(X, Y)
        assert list(search.cv_results_["n_resources"]) == [2] * 4 + [4] * 2 + [8]
        assert search.best_params_["n_estimators"] == 8


def test_failed_fits_are_counted():
    search = SearchCV(
        LogisticRegression(), {"C": Choice(-1.0, 1.0, 2.0)}, n_iter=3, cv=2, random_state=0
    ).fit(X, Y)
    assert search.result_.n_failed == 1
    assert search.best_params_["C"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_iter": 0},
        {"method": "magic"},
        {"resource": "a"},
        {"resource": "nothing", "max_resources": 5},
        {"max_time": -1},
    ],
)
def test_refusals(wrong):
    with pytest.raises(FastoptError):
        SearchCV(Counted(), AB, cv=2, **wrong).fit(X, Y)
