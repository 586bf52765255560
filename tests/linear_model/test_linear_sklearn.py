"""The estimators as scikit-learn sees them: its own checks, and its tools around them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fastopt import linear_model
from fastopt.errors import DivergedError, DTypeError, FastoptError, OptionError

pytest.importorskip("sklearn")

import sklearn
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression as TheirLogisticRegression
from sklearn.linear_model import SGDRegressor as TheirSGDRegressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

ESTIMATORS = [
    linear_model.LinearRegression(),
    linear_model.Ridge(),
    linear_model.LogisticRegression(),
    linear_model.SGDRegressor(),
    linear_model.SGDClassifier(),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_checks(estimator, check):
    if "array_api" in str(check):  # a check of array-API estimators, which skips itself for others
        return
    check(estimator)


def test_kind_clone_and_params():
    model = linear_model.SGDClassifier(loss="log_loss", alpha=0.5, random_state=3)
    assert is_classifier(model)
    assert is_regressor(linear_model.Ridge())
    twin = clone(model)
    assert twin is not model
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "coef_")


def test_pipeline_grid_search_and_cross_validation():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)) * [1, 10, 100, 1000]
    y = (x[:, 1] / 10 > x[:, 2] / 100).astype(int)
    pipe = make_pipeline(StandardScaler(), linear_model.SGDClassifier("log_loss", random_state=0))
    assert cross_val_score(pipe, x, y, cv=3).mean() > 0.9
    grid = GridSearchCV(pipe, {"sgdclassifier__alpha": [1e-4, 10.0]}, cv=3).fit(x, y)
    assert grid.best_params_ == {"sgdclassifier__alpha": 1e-4}
    assert grid.predict_proba(x).shape == (300, 2)


@pytest.mark.parametrize("loss", linear_model.SGDRegressor._losses)
@pytest.mark.parametrize("penalty", [None, "l2"])
def test_batches_of_one_row_walk_scikit_learns_path(loss, penalty):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 6)), rng.standard_normal(200)
    options = {"loss": loss, "penalty": penalty, "alpha": 0.01, "eta0": 0.01, "shuffle": False,
               "learning_rate": "constant", "max_iter": 3, "tol": None}  # fmt: skip
    ours = linear_model.SGDRegressor(batch_size=1, **options).fit(x, y)
    theirs = TheirSGDRegressor(**options).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-10)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-10)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("solver", ["lbfgs", "gd", "sgd", "momentum", "adam"])
def test_logistic_regression_reaches_scikit_learns_optimum(solver, n_classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 5))
    y = (x @ rng.standard_normal((5, n_classes)) + rng.standard_normal((500, n_classes))).argmax(1)
    weights = rng.random(500)
    theirs = TheirLogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(x, y, weights)
    ours = linear_model.LogisticRegression(C=0.5, solver=solver, tol=1e-5, random_state=0)
    ours.fit(x, y, weights)
    atol = 2e-2 if solver == "adam" else 2e-3  # Adam's last steps are coarse
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=atol)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=atol / 2)
    assert (ours.predict(x) == theirs.predict(x)).mean() > 0.99


def test_a_batch_of_all_rows_takes_weights_as_repetitions():
    rng = np.random.default_rng(0)
    x, y, weights = rng.standard_normal((40, 3)), rng.integers(0, 2, 40), rng.integers(0, 4, 40)
    for batch_size in (200, None):
        options = {"loss": "log_loss", "batch_size": batch_size, "random_state": 0}
        weighted = linear_model.SGDClassifier(**options).fit(x, y, weights).coef_
        repeated = linear_model.SGDClassifier(**options)
        repeated.fit(np.repeat(x, weights, axis=0), np.repeat(y, weights))
        # Exact with one batch; with mini-batches both end near the optimum, not at one point.
        atol = 1e-9 if batch_size else 0.3
        np.testing.assert_allclose(weighted, repeated.coef_, atol=atol)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_weights_are_routed_through_pipeline_and_grid_search(routing, estimator):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((200, 3)), rng.integers(0, 2, 200).astype(float)
    y = (x[:, 0] > 0).astype(int)
    y[weights == 0] = 1 - y[weights == 0]  # what counts nothing is wrong
    model = clone(estimator)
    if "random_state" in model.get_params():
        model.set_params(random_state=0)
    asking = clone(model).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    pipe = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), asking)
    pipe.fit(x, y, sample_weight=weights)
    name = type(estimator).__name__.lower()
    direct = clone(model).fit(StandardScaler().fit_transform(x), y, weights)
    np.testing.assert_array_equal(pipe.named_steps[name].coef_, direct.coef_)
    grid = GridSearchCV(pipe, {f"{name}__fit_intercept": [True, False]}, cv=3)
    grid.fit(x, y, sample_weight=weights)
    assert grid.score(x, y, sample_weight=weights) > 0.4
    twin = clone(asking)
    assert twin.get_metadata_routing().fit.requests == {"sample_weight": True}
    with pytest.raises(UnsetMetadataPassedError):
        make_pipeline(clone(model)).fit(x, y, sample_weight=weights)
    with pytest.raises(OptionError, match="groups"):
        asking.set_fit_request(groups=True)


def test_partial_fit_asks_for_its_own_metadata():
    model = linear_model.SGDClassifier().set_partial_fit_request(classes=True, sample_weight="w")
    assert model.get_metadata_routing().partial_fit.requests == {
        "classes": True,
        "sample_weight": "w",
    }
    assert model.get_metadata_routing().fit.requests == {"sample_weight": None}


def test_sparse_tag_says_that_sparse_rows_are_taken():
    for estimator in ESTIMATORS:
        assert sklearn.utils.get_tags(estimator).input_tags.sparse


# -- weights, averages, labels and divergence as scikit-learn's users expect them -----------------


@pytest.mark.parametrize("weight", [1e-9, 1.0, 5.0])
@pytest.mark.parametrize("name", ["SGDRegressor", "SGDClassifier"])
def test_partial_fit_weights_multiply_the_gradient(name, weight):
    x, y = np.array([[1.0, 2.0], [0.5, -1.0]]), [1.0, 0.0]
    options = {"learning_rate": "constant", "eta0": 0.1, "alpha": 0.0, "shuffle": False}
    classes = {"classes": [0, 1]} if name == "SGDClassifier" else {}
    ours = getattr(linear_model, name)(batch_size=1, **options)
    theirs = getattr(sklearn.linear_model, name)(**options)
    for model in (ours, theirs):
        model.partial_fit(x, y, sample_weight=[weight, 2 * weight], **classes)
        model.partial_fit(x[:1], y[:1], sample_weight=[weight], **classes)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-12)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-12)


@pytest.mark.parametrize("average", [1, 50, 199, 200, 350])
def test_the_average_starts_after_that_many_rows(average, rng):
    x = rng.standard_normal((200, 5))
    y = x @ [1, -2, 3, 0, 0.0]
    options = {
        "alpha": 0.01, "max_iter": 2, "tol": None, "shuffle": False, "learning_rate": "constant",
        "eta0": 0.01, "average": average,
    }  # fmt: skip
    ours = linear_model.SGDRegressor(batch_size=1, **options).fit(x, y)
    theirs = sklearn.linear_model.SGDRegressor(**options).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9)


def test_balanced_with_sample_weights_equals_repetition(rng):
    x = rng.standard_normal((60, 3))
    y = (x[:, 0] + 0.5 * rng.standard_normal(60) > 0.7).astype(int)
    times = rng.integers(1, 4, 60)
    options = {"class_weight": "balanced", "tol": 1e-10}
    weighted = linear_model.LogisticRegression(**options).fit(x, y, sample_weight=times)
    again = linear_model.LogisticRegression(**options).fit(
        np.repeat(x, times, axis=0), np.repeat(y, times)
    )
    np.testing.assert_allclose(weighted.coef_, again.coef_, rtol=1e-6)
    np.testing.assert_allclose(weighted.intercept_, again.intercept_, rtol=1e-6)


@pytest.mark.parametrize(("weights", "word"), [
    ({"0": 1, "1": 50}, "no class is called '0', '1'"), ({0: 1, 2: 3}, "no class is called 2"),
    ({0: "a", 1: 5}, "class_weight"), ({0: -1.0, 1: 5}, "class_weight"), ("balance", "balanced"),
    ({0: np.nan}, "class_weight"), (5, "class_weight"),
], ids=str)  # fmt: skip
def test_class_weights_that_mean_nothing_are_refused(weights, word):
    x = np.arange(20.0)[:, None]
    y = (x[:, 0] > 9).astype(int)
    for model in (linear_model.LogisticRegression, linear_model.SGDClassifier):
        with pytest.raises(FastoptError, match=word):
            model(class_weight=weights).fit(x, y)
    more = {0: 1, 1: 2, 2: 3}  # a label of other samples
    linear_model.LogisticRegression(class_weight=more).fit(x, y)


@pytest.mark.parametrize("eta0", [1e1, 1e2, 1e3])
@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
def test_a_step_that_runs_away_is_an_error(eta0, schedule, rng):
    x = rng.standard_normal((200, 5))
    y = x @ [1, -2, 3, 0, 0.0]
    model = linear_model.SGDRegressor(
        learning_rate=schedule, eta0=eta0, random_state=0, power_t=0.01
    )
    with pytest.raises(DivergedError, match="eta0"):
        model.fit(x, y)


def test_a_tolerance_met_beside_one_gradient_alone_warns(rng):
    x = rng.standard_normal((300, 3)).astype("f4")
    y = x @ np.array([1, -2, 3], "f4") + rng.standard_normal(300).astype("f4")
    quiet = linear_model.Ridge(alpha=1e-3, solver="lbfgs", tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet.fit(x, y)
    with pytest.warns(sklearn.exceptions.ConvergenceWarning, match="one gradient"):
        linear_model.Ridge(alpha=1e-3, solver="lbfgs", tol=1e-2).fit(x.astype("f8"), y + 1e6)


@pytest.mark.parametrize("bad", [
    np.array([0, 1, np.nan] * 20, object), np.array(["2020", "NaT", "2021"] * 20, "M8[Y]"),
    np.arange(60).astype(object) / 7, np.ma.masked_array([0, 1] * 30, [0, 1] * 30),
], ids=["nan", "nat", "continuous", "masked"])  # fmt: skip
def test_labels_that_are_none_are_refused(bad):
    x = np.arange(180.0).reshape(60, 3)
    for model in (linear_model.LogisticRegression(), linear_model.SGDClassifier()):
        with pytest.raises(FastoptError, match="y: "):
            model.fit(x, bad)
    for classes in ([0, 1, np.nan], [0, 1, None], np.array([0, "a"], object)):
        with pytest.raises(FastoptError, match="classes"):
            linear_model.SGDClassifier().partial_fit(x, [0, 1] * 30, classes=classes)


def test_masks_in_targets_and_weights_are_refused():
    x = np.arange(20.0)[:, None]
    y = 2 * x[:, 0]
    for model in (
        linear_model.LinearRegression(),
        linear_model.Ridge(),
        linear_model.SGDRegressor(),
    ):
        with pytest.raises(DTypeError, match="y: masked"):
            model.fit(x, np.ma.masked_array(y, y > 30))
        with pytest.raises(DTypeError, match="sample_weight: masked"):
            model.fit(x, y, sample_weight=np.ma.masked_array(y, y > 30))
