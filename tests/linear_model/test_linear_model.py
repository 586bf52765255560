"""The estimators: the worked example, exact solutions, determinism, refusals."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from fastopt.errors import ArrayError, ConcurrentUseError, DivergedError, DTypeError, OptionError
from fastopt.linear_model import (
    ConvergenceWarning,
    LinearRegression,
    NotFittedError,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from fastopt.linear_model._classes import encode

SOLVERS = ["gram", "lbfgs", "gd", "sgd", "momentum", "nesterov", "adam"]
RULES = ["sgd", "momentum", "nesterov", "adam"]


@pytest.fixture
def regression():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((600, 7))
    w = rng.standard_normal(7)
    return x, x @ w + 2.0 + 0.1 * rng.standard_normal(600)


@pytest.fixture
def classes():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((900, 5))
    z = x @ rng.standard_normal((5, 3)) + 0.3 * rng.standard_normal((900, 3))
    return x, np.array(["a", "b", "c"])[z.argmax(axis=1)]


def least_squares(x, y, weights=None, alpha=0.0):
    """(w, b) of the normal equations, the intercept free of the penalty."""
    a = np.column_stack([x, np.ones(len(x))])
    s = np.ones(len(x)) if weights is None else weights
    penalty = alpha * np.eye(a.shape[1])
    penalty[-1, -1] = 0
    solution = np.linalg.solve(a.T @ (a * s[:, None]) + penalty, a.T @ (y.T * s).T)
    return solution[:-1], solution[-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore::fastopt.linear_model.ConvergenceWarning")
def test_the_worked_example_reaches_the_least_squares_line(solver, dtype):
    x = np.random.default_rng(0).random((100, 1)).astype(dtype)
    y = (x**2).ravel()
    w, b = least_squares(x.astype(float), y.astype(float))
    model = LinearRegression(solver=solver, random_state=0).fit(x, y)
    assert model.coef_.dtype == dtype
    np.testing.assert_allclose(model.coef_, w, atol=1e-4)
    np.testing.assert_allclose(model.intercept_, b, atol=1e-4)
    residual = model.predict(x) - y
    assert abs(residual.mean()) < 1e-5  # the gradient of b


def test_gradient_descent_follows_the_textbook_path():
    x = np.random.default_rng(0).random((100, 1))
    y = (x**2).ravel()
    w, b = 0.0, 0.0
    for _ in range(25):
        error = x.ravel() * w + b - y
        w, b = w - 0.5 * (error * x.ravel()).mean(), b - 0.5 * error.mean()
    with pytest.warns(ConvergenceWarning):
        model = LinearRegression(solver="gd", lr=0.5, max_iter=25).fit(x, y)
    np.testing.assert_allclose([model.coef_[0], model.intercept_], [w, b], rtol=1e-12)
    assert model.n_iter_ == 25
    assert np.all(np.diff(model.loss_curve_) < 0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_agree_with_the_normal_equations(regression, solver):
    x, y = regression
    weights = np.random.default_rng(1).random(len(x))
    many = np.column_stack([y, -2 * y + x[:, 0]])
    for estimator, alpha in ((LinearRegression, 0.0), (Ridge, 30.0)):
        options = {"alpha": alpha} if alpha else {}
        for target in (y, many):
            model = estimator(solver=solver, random_state=0, tol=1e-5, **options)
            model.fit(x, target, sample_weight=weights)
            w, b = least_squares(x, target.reshape(len(x), -1), weights, alpha)
            np.testing.assert_allclose(model.coef_.reshape(-1, 7), w.T, atol=1e-3)
            np.testing.assert_allclose(np.ravel(model.intercept_), b, atol=1e-3)
            assert model.score(x, target) > 0.9


def test_gram_survives_large_offsets_and_collinear_columns(regression):
    x, y = regression
    moved = (x + 1e4).astype("float32")
    w, _ = least_squares(moved.astype(float) - 1e4, y)
    np.testing.assert_allclose(LinearRegression().fit(moved, y).coef_, w, atol=2e-3)
    double = np.column_stack([x, x[:, :1]])
    model = LinearRegression().fit(double, y)
    w, _ = least_squares(x, y)
    np.testing.assert_allclose(model.coef_[0], w[0] / 2, atol=1e-6)  # least norm: shared equally
    wide = np.random.default_rng(0).standard_normal((5, 20))
    model = LinearRegression().fit(wide, np.arange(5.0))
    np.testing.assert_allclose(model.predict(wide), np.arange(5.0), atol=1e-8)


def test_without_intercept(regression):
    x, y = regression
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    for solver in SOLVERS:
        model = LinearRegression(solver=solver, fit_intercept=False, tol=1e-5, random_state=0)
        np.testing.assert_allclose(model.fit(x, y).coef_, w, atol=1e-3)
        assert model.intercept_ == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_sgd_regressor_comes_close_to_the_optimum(regression, rule):
    x, y = regression
    w, b = least_squares(x, y)
    model = SGDRegressor(alpha=0, solver=rule, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.coef_, w, atol=0.02)
    np.testing.assert_allclose(model.intercept_, [b], atol=0.02)
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert len(model.loss_curve_) == model.n_iter_


@pytest.mark.parametrize("loss", SGDRegressor._losses)
def test_regression_losses_fit_clean_data(regression, loss):
    x, _ = regression
    y = x @ np.arange(7.0) + 1
    assert SGDRegressor(loss, alpha=0, random_state=0).fit(x, y).score(x, y) > 0.99


@pytest.mark.parametrize("loss", SGDClassifier._losses)
def test_classification_losses_separate(classes, loss):
    x, y = classes
    two = np.where(y == "a", 1, 0)
    model = SGDClassifier(loss, random_state=0).fit(x, two)
    assert model.score(x, two) > (0.6 if loss == "perceptron" else 0.8)
    assert model.coef_.shape == (1, 5)
    assert model.decision_function(x).shape == (900,)
    assert hasattr(model, "predict_proba") == (loss in ("log_loss", "modified_huber"))
    model = SGDClassifier(loss, random_state=0).fit(x, y)
    assert model.coef_.shape == (3, 5)
    assert set(model.predict(x)) <= {"a", "b", "c"}


@pytest.mark.parametrize("multi_class", ["ovr", "multinomial"])
def test_probabilities_add_up_and_rank_as_the_margins(classes, multi_class):
    x, y = classes
    model = SGDClassifier("log_loss", multi_class=multi_class, random_state=0).fit(x, y)
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p.argmax(axis=1) == model.decision_function(x).argmax(axis=1)).all()
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x)), p)
    assert model.score(x, y) > 0.9


def test_l1_gives_exact_zeros(regression):
    x, y = regression
    noise = np.random.default_rng(9).standard_normal((len(x), 20))
    model = SGDRegressor(penalty="l1", alpha=0.05, random_state=0)
    model.fit(np.column_stack([x, noise]), y)
    assert (model.coef_[7:] == 0).sum() > 15
    assert (model.coef_[:7] != 0).sum() >= 5


def test_result_does_not_depend_on_threads(monkeypatch, regression):
    x = np.random.default_rng(0).standard_normal((9000, 24)).astype("float32")
    y = (x[:, 0] - x[:, 1] > 0).astype(int)
    fits = [
        SGDClassifier("log_loss", max_iter=3, tol=None, local_workers=3, threads=t, random_state=1)
        .fit(x, y)
        .coef_.tobytes()
        for t in (1, 2, 3)
    ]
    assert len(set(fits)) == 1
    assert (
        fits[0]
        != SGDClassifier("log_loss", max_iter=3, tol=None, local_workers=3, random_state=2)
        .fit(x, y)
        .coef_.tobytes()
    )


def test_partial_fit_goes_on_where_fit_would(regression):
    x, y = regression
    options = {"random_state": 0, "solver": "adam", "tol": None, "eta0": 0.01, "average": True,
               "learning_rate": "constant"}  # fmt: skip
    whole = SGDRegressor(max_iter=4, **options).fit(x, y)
    parts = SGDRegressor(**options)
    for _ in range(4):
        parts.partial_fit(x, y)
    assert whole.coef_.tobytes() == parts.coef_.tobytes()
    assert parts.n_iter_ == 4
    again = pickle.loads(pickle.dumps(parts))
    assert again.partial_fit(x, y).coef_.tobytes() == parts.partial_fit(x, y).coef_.tobytes()


def test_partial_fit_of_a_classifier_needs_its_classes(classes):
    x, y = classes
    model = SGDClassifier(random_state=0)
    with pytest.raises(OptionError, match="classes"):
        model.partial_fit(x[:10], y[:10])
    model.partial_fit(x[:1], y[:1], classes=["a", "b", "c"])
    assert model.coef_.shape == (3, 5)
    with pytest.raises(ArrayError, match="not among the classes"):
        model.partial_fit(x[:1], ["z"])
    with pytest.raises(OptionError, match="differs"):
        model.partial_fit(x[:1], y[:1], classes=["a", "b"])


@pytest.mark.parametrize("schedule", ["adaptive", "constant", "invscaling", "optimal", "cosine"])
def test_schedules_learn(classes, schedule):
    x, y = classes
    two = y == "a"
    model = SGDClassifier("log_loss", learning_rate=schedule, max_iter=60, tol=None,
                          random_state=0)  # fmt: skip
    assert model.fit(x, two).score(x, two) > 0.85


def test_early_stopping_stops_and_averaging_smooths(classes):
    x, y = classes
    model = SGDClassifier("log_loss", early_stopping=True, random_state=0).fit(x, y)
    assert model.n_iter_ < 200
    assert model.score(x, y) > 0.85
    noisy = x[:, 0] + np.random.default_rng(0).normal(size=900)
    options = {"eta0": 0.2, "learning_rate": "constant", "max_iter": 30, "tol": None}
    rough = [
        SGDRegressor(average=a, random_state=0, **options).fit(x, noisy) for a in (False, 2700)
    ]
    exact = LinearRegression().fit(x, noisy)
    errors = [np.abs(m.coef_ - exact.coef_).max() for m in rough]
    assert errors[1] < 0.5 * errors[0]


def test_warm_start_begins_at_the_last_solution(regression):
    x, y = regression
    model = LinearRegression(solver="gd", warm_start=True, tol=1e-8).fit(x, y)
    cold = model.n_iter_
    assert model.fit(x, y).n_iter_ <= 1 < cold
    sgd = SGDRegressor(warm_start=True, random_state=0, max_iter=1, tol=None)
    losses = [sgd.fit(x, y).loss_curve_[0] for _ in range(2)]
    assert losses[1] < losses[0]


def test_class_weight_counts_as_sample_weight(classes):
    x, y = classes
    options = {"loss": "log_loss", "random_state": 0, "max_iter": 5, "tol": None}
    by_class = SGDClassifier(class_weight={"a": 3.0}, **options).fit(x, y)
    by_row = SGDClassifier(**options).fit(x, y, sample_weight=np.where(y == "a", 3.0, 1.0))
    assert by_class.coef_.tobytes() == by_row.coef_.tobytes()
    assert SGDClassifier(class_weight="balanced", **options).fit(x, y).score(x, y) > 0.8


def test_an_automatic_step_survives_unscaled_features():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 4)) * [1, 50, 300, 2] + 20
    y = x @ [1.0, 2.0, -1.0, 0.5]
    assert SGDRegressor(random_state=0, alpha=0).fit(x, y).score(x, y) > 0.99


def test_a_step_that_is_too_large_is_told_and_nothing_is_kept(regression):
    x, y = regression
    model = SGDRegressor(eta0=1e6, random_state=0)
    with pytest.raises(DivergedError, match="eta0"):
        model.fit(x, y)
    assert not hasattr(model, "coef_")


@pytest.mark.parametrize("estimator", [LinearRegression, Ridge, SGDRegressor, SGDClassifier])
def test_wrong_input_is_refused_by_name(estimator):
    x, y = np.ones((6, 2)) * np.arange(6)[:, None], np.array([0, 1, 0, 1, 0, 1])
    model = estimator()
    for wrong, kind, word in (
        ((x[:, 0], y), ArrayError, "X"),
        ((x, y[:3]), ArrayError, "y"),
        ((x * 1j, y), ArrayError, "X"),
        ((np.where(x == 3, np.nan, x), y), ArrayError, "X"),
        ((np.where(x == 3, np.inf, x), y), ArrayError, "X"),
        ((x, np.where(y == 1, np.nan, y)), ArrayError, "y"),
        ((np.array([["a", "b"]] * 6), y), ArrayError, "X"),
        ((x[:0], y[:0]), ArrayError, "X"),
        ((x[:, :0], y), ArrayError, "X"),
        ((x.astype(">f8"), y), DTypeError, "X"),
        ((x, y, -np.ones(6)), ArrayError, "sample_weight"),
        ((x, y, np.zeros(6)), ArrayError, "sample_weight"),
        ((x, y, np.ones(5)), ArrayError, "sample_weight"),
    ):
        with pytest.raises(kind, match=word):
            model.fit(*wrong)
        assert not hasattr(model, "coef_")
    with pytest.raises(NotFittedError):
        model.predict(x)


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        (LinearRegression, {"solver": "magic"}),
        (LinearRegression, {"max_iter": 0, "solver": "gd"}),
        (LinearRegression, {"lr": -1.0}),
        (Ridge, {"alpha": -1.0}),
        (SGDRegressor, {"loss": "hinge"}),
        (SGDRegressor, {"penalty": "l3"}),
        (SGDRegressor, {"eta0": 0.0}),
        (SGDRegressor, {"batch_size": 0}),
        (SGDRegressor, {"momentum": 1.0}),
        (SGDRegressor, {"validation_fraction": 1.0}),
        (SGDClassifier, {"multi_class": "multinomial"}),
        (SGDClassifier, {"class_weight": "magic"}),
        (SGDClassifier, {"learning_rate": "optimal", "alpha": 0.0}),
    ],
)
def test_wrong_options_are_refused(estimator, options):
    with pytest.raises(OptionError):
        estimator(**options).fit(np.eye(4), [0, 1, 0, 1])


def test_inputs_are_not_written_and_state_copies_exactly(regression):
    x, y = regression
    x0, y0 = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    model = SGDRegressor(random_state=0).fit(x, y)
    assert np.array_equal(x, x0)
    assert np.array_equal(y, y0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.predict(x).tobytes() == model.predict(x).tobytes()
        assert twin.get_params() == model.get_params()


def test_two_fits_of_one_object_at_once_are_refused(regression):
    model = SGDRegressor()
    lock = model._busy()
    with pytest.raises(ConcurrentUseError):
        model.fit(*regression)
    lock.release()
    model.fit(*regression)


def test_import_brings_numpy_alone():
    code = (
        "import sys, fastopt.linear_model; print('sklearn' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64"])
def test_integer_labels_keep_their_values(dtype):
    y = np.array([5, 100, 5, 7, 100, 7, 5], dtype)
    labels, codes = encode(y, 7)
    assert labels.dtype == dtype
    assert labels.tolist() == [5, 7, 100]
    assert (labels[codes] == y).all()
    wide = np.array([-(2**40), 2**40, -(2**40)])
    assert (encode(wide, 3)[0] == [-(2**40), 2**40]).all()


def test_squares_that_overflow_are_refused():
    x = np.random.default_rng(0).standard_normal((40, 3))
    for dtype, size in (("f8", 1e200), ("f4", 1e25)):
        model = Ridge()
        with pytest.raises(ArrayError, match=r"^X, y: "):
            model.fit((x * size).astype(dtype), x[:, 0])
        assert not hasattr(model, "coef_")


@pytest.mark.parametrize("model", [Ridge(), SGDRegressor(), SGDClassifier()], ids=repr)
@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(40), np.zeros(40), np.full(40, np.nan)])
def test_the_weights_of_a_score_are_checked(model, weights):
    x = np.random.default_rng(0).standard_normal((40, 3))
    y = np.sign(x[:, 0])
    model.fit(x, y)
    with pytest.raises(ArrayError, match=r"^sample_weight"):
        model.score(x, y, weights)


def test_class_weights_come_by_name():
    x = np.random.default_rng(0).standard_normal((40, 3))
    with pytest.raises(OptionError, match=r"^class_weight: "):
        SGDClassifier(class_weight=[1, 2]).fit(x, x[:, 0] > 0)


@pytest.mark.parametrize("d", [6, 16])
def test_batches_of_a_partial_fit_take_the_dtype_of_the_first(d):
    x = np.random.default_rng(0).standard_normal((200, d)).astype("f4")
    y = x[:, 0].astype("f8")
    for first, then in (("f4", "f8"), ("f8", "f4")):
        alike, other = SGDRegressor(random_state=0), SGDRegressor(random_state=0)
        alike.partial_fit(x.astype(first), y).partial_fit(x.astype(first), y)
        other.partial_fit(x.astype(first), y).partial_fit(x.astype(then), y)
        assert other.coef_.dtype == first
        assert np.array_equal(alike.coef_, other.coef_)


@pytest.mark.parametrize("option", [
    {"average": "x"}, {"average": -3}, {"fit_intercept": "x"}, {"warm_start": 3}, {"threads": 0},
], ids=str)  # fmt: skip
def test_options_of_another_kind_are_refused_by_name(option):
    with pytest.raises((OptionError, DTypeError), match=next(iter(option))):
        SGDRegressor(**option).fit(np.eye(3), np.arange(3.0))
    if "average" not in option and "threads" not in option:
        with pytest.raises((OptionError, DTypeError), match=next(iter(option))):
            Ridge(**option).fit(np.eye(3), np.arange(3.0))
