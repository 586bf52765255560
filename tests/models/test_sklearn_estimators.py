"""scikit-learn's estimators through the one door: real estimators come back where they can."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn import linear_model
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import fastopt
from fastopt.compression import open_model
from fastopt.errors import ArrayError, DTypeError, OptionError, UnsupportedError
from fastopt.models.sklearn import CompactEstimator, EstimatorModel, is_estimator

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 10)).astype(np.float32)
Y3 = np.array(["a", "b", "c"])[np.digitize(X[:, 0] + X[:, 1] * X[:, 2], [-0.5, 0.5])]
Y2 = np.array(["no", "yes"])[(X[:, 0] + X[:, 1] > 0).astype(int)]
NUMBERS = X[:, 0] - 2 * X[:, 1] + 0.1 * X[:, 2]


def fitted(model, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


MODELS = [
    (MLPClassifier((16, 8), max_iter=20, random_state=0), Y3),
    (MLPClassifier((16,), max_iter=20, activation="logistic", random_state=0), Y2),
    (
        MLPRegressor(hidden_layer_sizes=(16,), max_iter=20, activation="tanh", random_state=0),
        NUMBERS,
    ),
    (
        MLPRegressor(hidden_layer_sizes=(8,), max_iter=5, random_state=0),
        np.column_stack([NUMBERS, -NUMBERS]),
    ),
    (linear_model.LogisticRegression(), Y3),
    (linear_model.LogisticRegression(), Y2),
    (linear_model.SGDClassifier(random_state=0), Y3),
    (LinearSVC(), Y2),
    (linear_model.LinearRegression(), NUMBERS),
    (linear_model.Ridge(fit_intercept=False), np.column_stack([NUMBERS, X[:, 4]])),
    (linear_model.Lasso(0.01), NUMBERS),
    (LinearDiscriminantAnalysis(), Y3),
    (make_pipeline(StandardScaler(), MLPClassifier((12,), max_iter=20, random_state=0)), Y2),
    (make_pipeline(StandardScaler(), linear_model.Ridge()), NUMBERS),
]
IDS = [
    f"{type(getattr(m, 'steps', [(0, m)])[-1][1]).__name__}-{k}" for k, (m, _) in enumerate(MODELS)
]


@pytest.mark.parametrize(("model", "y"), MODELS, ids=IDS)
def test_the_way_there_and_back_changes_nothing(model, y) -> None:
    model = fitted(clone(model), y)
    assert is_estimator(model)
    adapter, give_back = open_model(model)
    again = give_back(adapter.copy())
    assert type(again) is type(model)
    if y.dtype.kind == "f":
        np.testing.assert_allclose(again.predict(X), model.predict(X), rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(
            again.predict_proba(X), model.predict_proba(X), rtol=1e-3, atol=1e-5
        )
    (outputs, _), *_ = adapter.run({"X": X})
    out = outputs["output"]
    if y.dtype.kind == "f":
        np.testing.assert_allclose(out.squeeze(), model.predict(X), rtol=1e-3, atol=1e-4)
    else:
        assert (adapter.classes[out.argmax(axis=1)] == model.predict(X)).mean() > 0.99


@pytest.mark.parametrize(("model", "y"), MODELS, ids=IDS)
def test_a_sliced_model_is_the_masked_one(model, y) -> None:
    """Units whose columns are zero in the layers that read them may as well be gone."""
    adapter = EstimatorModel(fitted(clone(model), y))
    for name, group in adapter.groups.items():
        keep = np.arange(0, group.n_units, 2)
        gone = np.setdiff1d(np.arange(group.n_units), keep)
        masked, sliced = adapter.copy(), adapter.copy()
        (reader,) = group.consumers
        weight = masked.layers[reader.tensor].weight.copy()
        weight[:, reader.index[gone].ravel()] = 0
        masked.set_weight(reader.tensor, weight)
        sliced.keep_units(name, keep)
        assert sliced.macs < adapter.macs
        (a, _), *_ = masked.run({"X": X})
        (b, _), *_ = sliced.run({"X": X})
        np.testing.assert_allclose(b["output"], a["output"], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(
            sliced.to_estimator().predict(X[:20]).shape,
            (masked.to_estimator().predict(X[:20])).shape,
        )


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, held = order[:900], order[900:]
    model = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=40, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x[train], y[train]), x[train], y[train], x[held], y[held]


def test_pruned_it_is_a_real_estimator_that_trains_on(digits) -> None:
    model, x, y, xh, yh = digits
    before = pickle.dumps(model)
    found = fastopt.compress(
        model, (xh, yh), calib=x, max_drop=0.03, passes=("prune",), max_evals=25
    )
    assert pickle.dumps(model) == before
    assert found.changed
    small = found.model
    last = small.steps[-1][1]
    assert type(last) is MLPClassifier
    assert sum(w.size for w in last.coefs_) < 0.7 * sum(w.size for w in model[-1].coefs_)
    assert len(pickle.dumps(small)) < len(before) / 4
    assert small.score(xh, yh) >= model.score(xh, yh) - 0.03
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(small)).predict(xh), small.predict(xh))
    widths = tuple(w.shape[1] for w in last.coefs_[:-1])
    assert clone(small).steps[-1][1].hidden_layer_sizes == widths == last.hidden_layer_sizes
    z = small[0].transform(x)
    assert small.predict_proba(xh).shape == (len(xh), 10)
    loss = last.loss_
    for _ in range(3):
        last.partial_fit(z, y)
    assert np.isfinite(last.loss_)
    assert last.loss_ < 2 * loss + 0.1


def test_what_scikit_learn_cannot_hold_has_the_same_methods(digits) -> None:
    model, x, _, xh, yh = digits
    found = fastopt.compress(
        model, (xh, yh), calib=x, max_drop=0.02, passes=("layer", "quantize"), max_evals=8
    )
    small = found.model
    assert isinstance(small.steps[-1][1], CompactEstimator)
    assert small.score(xh, yh) >= model.score(xh, yh) - 0.03
    assert len(pickle.dumps(small[-1])) < found.after.nbytes + 5000
    for other in (pickle.loads(pickle.dumps(small)), clone(small)):
        other = other if hasattr(other[0], "mean_") else make_pipeline(model[0], other[-1])
        np.testing.assert_array_equal(other.predict_proba(xh), small.predict_proba(xh))
    np.testing.assert_array_equal(
        small.predict(xh), small.classes_[small.predict_proba(xh).argmax(axis=1)]
    )


def test_a_linear_model_keeps_fewer_columns() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), linear_model.LogisticRegression()).fit(
        x[:300], y[:300]
    )
    found = fastopt.compress(
        model, (x[300:], y[300:]), calib=x[:300], max_drop=0.03, passes=("prune",), max_evals=10
    )
    last = found.model[-1]
    assert type(last) is linear_model.LogisticRegression
    assert found.changed
    assert np.count_nonzero(last.coef_) == found.after.macs / 2 < 30
    assert found.model.score(x[300:], y[300:]) >= model.score(x[300:], y[300:]) - 0.04


def test_without_labels_a_classifier_is_judged_by_its_decisions(digits) -> None:
    model, x, _, xh, _ = digits
    found = fastopt.compress(model, xh, calib=x, max_drop=0.05, passes=("prune",), max_evals=6)
    assert found.metric == "agreement"
    assert (found.model.predict(xh) == model.predict(xh)).mean() >= 0.93


def test_trees_go_through_the_same_door() -> None:
    x, y = load_digits(return_X_y=True)
    forest = RandomForestClassifier(30, random_state=0).fit(x[:900], y[:900])
    found = fastopt.compress(forest, (x[900:], y[900:]), max_drop=0.03)
    assert found.changed
    assert found.before.nbytes > 20 * found.after.nbytes
    assert found.drop <= 0.03
    assert found.model.score(x[900:], y[900:]) >= forest.score(x[900:], y[900:]) - 0.03
    assert "trees" in found.table()
    for bad in ({"target": "macs"}, {"confidence": 0.9}, {"metric": "r2"}, {"check": x}):
        with pytest.raises(UnsupportedError):
            fastopt.compress(forest, (x[900:], y[900:]), **bad)


def test_what_cannot_be_compressed_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="not fitted"):
        open_model(MLPClassifier())
    many = fitted(MLPClassifier((4,), max_iter=3), np.column_stack([X[:, 0] > 0, X[:, 1] > 0]))
    with pytest.raises(UnsupportedError, match="labels per row"):
        open_model(many)
    sparse = fitted(linear_model.SGDClassifier(), Y3).sparsify()
    with pytest.raises(UnsupportedError, match="sparse"):
        open_model(sparse)
    with pytest.raises(DTypeError, match="scikit-learn"):
        open_model(OneVsRestClassifier(LinearSVC()).fit(X, Y3))
    made = EstimatorModel(fitted(LinearSVC(), Y3))
    made.store("coefs0", "int8")
    compact = made.to_estimator()
    with pytest.raises(ArrayError, match="X"):
        compact.predict(X[:, :3])
    with pytest.raises(AttributeError, match="probabilities"):
        compact.predict_proba(X)
    with pytest.raises(OptionError, match="params"):
        compact.set_params(depth=3)
    with pytest.raises(ArrayError, match="columns"):
        made.keep_units("features", np.arange(4), {"coefs0": (np.ones((3, 5), np.float32), None)})
