"""Mini-batch stochastic gradient descent: SGDRegressor and SGDClassifier."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice
from fastopt.errors import OptionError
from fastopt.linear_model._classes import (
    ClassifierFace,
    as_targets,
    check_classes,
    class_weights,
    encode,
)
from fastopt.linear_model._data import check_x, check_y
from fastopt.linear_model._estimator import r2_score
from fastopt.linear_model._problem import DIRECT, LOSSES, Problem
from fastopt.linear_model._rows import CSR
from fastopt.linear_model._sgd import SGD

__all__ = ["SGDClassifier", "SGDRegressor"]


class SGDRegressor(SGD):
    """Linear regression by mini-batch SGD, min of mean_i s_i loss(y_i, w . x_i + b) + alpha R(w).

    Parameters
    ----------
    loss : {"squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"}
    penalty : {"l2", "l1", "elasticnet"} or None
        R(w) = |w|^2 / 2, |w|_1, or l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2.
    alpha, l1_ratio : float
    fit_intercept : bool
    max_iter : int
        Most epochs.
    tol : float or None
        Stop (or, for "adaptive", divide the step by 5) once the mean loss of an epoch has not
        fallen by the share ``tol`` for ``n_iter_no_change`` epochs; None runs all epochs.
    shuffle : bool
        A new order each epoch: of single rows on small data, of runs of neighbouring rows (at
        least 16, up to 32 KB, two or more to a batch) on large.
    epsilon : float
        Of the Huber and epsilon-insensitive losses.
    random_state : int, SeedSequence, Generator or RandomState, optional
    learning_rate : {"adaptive", "constant", "invscaling", "optimal", "cosine"}
        Step at batch t: see below; eta0; eta0 / t^power_t; 1 / (alpha (t0 + rows seen)); eta0
        (1 + cos(pi t / T)) / 2 over all epochs. "adaptive" is that cosine over each epoch (eta0
        where an epoch has fewer than 64 batches); eta0 is divided by 5 whenever the loss settles,
        and the fit stops at 1/500 of the first.
    eta0 : float, optional
        First step. None: from the curvature of the data (a few power iterations on a sample), and
        a quarter of it again should that diverge.
    early_stopping, validation_fraction, n_iter_no_change
        Hold rows out and stop by their score instead of the training loss.
    warm_start : bool
    average : bool or int
        Use the mean of the iterates, from the start or from that many rows on.
    solver : {"sgd", "momentum", "nesterov", "adam"}
    batch_size : int, optional
        None: 32, or 128 from 8192 rows on. 1 is the classical per-sample SGD.
    momentum : float
    local_workers : int, optional
        Copies of the parameters that walk their own batches and are averaged on a fixed
        schedule, so that threads can share the work: 1 on small data, else 4. Part of the
        result, unlike ``threads``.
    threads : int, optional
        None: as many as useful, at most local_workers.

    Attributes
    ----------
    coef_ : (d,)
    intercept_ : (1,)
    n_iter_ : int
    loss_curve_ : list of float
        Mean loss of each epoch's batches, each before its step, without the penalty.
    t_ : float
        1 + rows seen.

    Raises
    ------
    ArrayError, DTypeError, OptionError
    DivergedError
        A given eta0 is too large: values are no longer finite, or the fit ends with a hundred
        times the loss that it began with.

    Notes
    -----
    One epoch reads X once; per row it costs 4 d flops. The result is a function of the data, the
    options and random_state: the same for every thread count and instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.linear_model import SGDRegressor
    >>> X = np.random.default_rng(0).standard_normal((1000, 3))
    >>> model = SGDRegressor(alpha=0, random_state=0).fit(X, X @ [1.0, -2.0, 0.5] + 3.0)
    >>> model.coef_.round(2).tolist(), model.intercept_.round(2).tolist()
    ([1.0, -2.0, 0.5], [3.0])
    """

    _estimator_type = "regressor"
    _losses = ("squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive")

    def __init__(
        self,
        loss: str = "squared_error",
        *,
        penalty: str | None = "l2",
        alpha: float = 0.0001,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        epsilon: float = 0.1,
        random_state: Any = None,
        learning_rate: str = "adaptive",
        eta0: float | None = None,
        power_t: float = 0.25,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
        average: bool | int = False,
        solver: str = "sgd",
        batch_size: int | None = None,
        momentum: float = 0.9,
        local_workers: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._keep_parameters(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDRegressor:
        """Fit to X (n, d), dense, sparse or mapped, and y (n,); returns itself.

        ``sample_weight`` is divided by its mean, so that a weight of 2 is the same as a row given
        twice (scikit-learn's SGD multiplies by the weights as they are, which scales the loss
        against ``alpha``).
        """
        return self._fit(X, y, sample_weight, partial=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDRegressor:
        """One epoch over these rows, going on from where the last call ended.

        ``sample_weight`` multiplies each row's gradient, as in scikit-learn; ``fit`` divides the
        weights by their mean first.
        """
        return self._fit(X, y, sample_weight, partial=True)

    def _fit(self, X: Any, y: Any, sample_weight: Any, partial: bool) -> SGDRegressor:
        self._check_options()
        x = check_x(X, finite=False)
        if partial and "coef_" in self.__dict__:
            self._check_features(X, x.shape[1])
        if partial and "_state" in self.__dict__:
            x = self._as_before(x)
        targets = check_y(y, len(x), finite=isinstance(x, CSR))
        weights = self._weights(sample_weight, len(x), x.dtype, partial)
        targets = np.ascontiguousarray(targets, x.dtype)
        problem = self._problem(x, targets, weights, 1, DIRECT, self.loss)
        lock = self._busy()
        try:
            self._fit_run(problem, partial, (problem.d,))
            self._note_features(X, problem.d)
        finally:
            lock.release()
        return self

    def _set_coef(self, coef: Array, intercept: Array) -> None:
        self.coef_, self.intercept_ = coef[0], intercept

    def _score_margins(self, problem: Problem, z: Array, rows: Array) -> float:
        return r2_score(problem.y[rows], z.ravel())

    def predict(self, X: Any) -> Array:
        """X w + b, (n,)."""
        return self._margins(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 of the predictions for X against y."""
        predicted = self.predict(X)
        return r2_score(check_y(y, len(predicted)), predicted, sample_weight)


class SGDClassifier(SGD, ClassifierFace):
    """Linear classifier by mini-batch SGD: min mean_i s_i loss(y_i, W x_i + b) + alpha R(W).

    Parameters
    ----------
    loss : {"hinge", "log_loss", "squared_hinge", "modified_huber", "perceptron", ...}
        Or any of SGDRegressor's, on targets -1 and 1. Default "hinge", as in scikit-learn.
    multi_class : {"ovr", "multinomial"}
        More than two classes: one model a class against the rest (all in one pass over X), or
        for log_loss the joint softmax.
    class_weight : dict, "balanced" or None
        Factors on the sample weights by class.
    others
        As for SGDRegressor.

    Attributes
    ----------
    classes_ : (k,)
    coef_ : (1, d) for two classes, else (k, d)
    intercept_ : (1,) or (k,)
    n_iter_, loss_curve_, t_
        As for SGDRegressor.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.linear_model import SGDClassifier
    >>> X = np.random.default_rng(0).standard_normal((500, 2))
    >>> y = np.where(X[:, 0] > X[:, 1], "above", "below")
    >>> model = SGDClassifier(loss="log_loss", random_state=0).fit(X, y)
    >>> model.predict([[2.0, -2.0], [-2.0, 2.0]]).tolist()
    ['above', 'below']
    """

    _estimator_type = "classifier"
    _losses = tuple(name for name in LOSSES if name != "multinomial")
    class_weight: Any
    multi_class: str

    def __init__(
        self,
        loss: str = "hinge",
        *,
        penalty: str | None = "l2",
        alpha: float = 0.0001,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        epsilon: float = 0.1,
        random_state: Any = None,
        learning_rate: str = "adaptive",
        eta0: float | None = None,
        power_t: float = 0.5,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        class_weight: Any = None,
        warm_start: bool = False,
        average: bool | int = False,
        multi_class: str = "ovr",
        solver: str = "sgd",
        batch_size: int | None = None,
        momentum: float = 0.9,
        local_workers: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._keep_parameters(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SGDClassifier:
        """Fit to X (n, d), dense, sparse or mapped, and the labels y (n,); returns itself."""
        return self._fit(X, y, None, sample_weight, partial=False)

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> SGDClassifier:
        """One epoch over these rows; the first call names all ``classes``.

        ``sample_weight`` and the class weights multiply each row's gradient, as in scikit-learn;
        ``fit`` divides them by their mean first.
        """
        return self._fit(X, y, classes, sample_weight, partial=True)

    def _fit(
        self, X: Any, y: Any, classes: Any, sample_weight: Any, partial: bool
    ) -> SGDClassifier:
        self._check_options()
        choice(self.multi_class, "multi_class", ("ovr", "multinomial"))
        joint = self.multi_class == "multinomial"
        if joint and self.loss != "log_loss":
            raise OptionError("multi_class: 'multinomial' goes with loss='log_loss' alone")
        x = check_x(X, finite=False)
        if partial and "coef_" in self.__dict__:
            self._check_features(X, x.shape[1])
        if partial and "_state" in self.__dict__:
            x = self._as_before(x)
        known = self._known_classes(classes) if partial else None
        labels, codes = encode(y, len(x), known, self.threads)
        factors = class_weights(self.class_weight, labels, codes, sample_weight)
        weights = self._weights(factors, len(x), x.dtype, partial)
        targets, meaning, k = as_targets(x, codes, len(labels))
        loss = "multinomial" if joint and k > 1 else self.loss
        problem = self._problem(x, targets, weights, k, meaning, loss)
        lock = self._busy()
        try:
            self._fit_run(problem, partial, (problem.n_outputs, problem.d))
            self.classes_ = labels
            self._note_features(X, problem.d)
        finally:
            lock.release()
        return self

    def _known_classes(self, classes: Any) -> Array:
        have: Array | None = getattr(self, "classes_", None)
        if classes is None:
            if have is None:
                raise OptionError("classes: must be passed on the first call to partial_fit.")
            return have
        given = check_classes(classes)
        if have is not None and not np.array_equal(have, given):
            raise OptionError("classes: differs from that of the first call to partial_fit")
        return given

    def _joint(self) -> bool:
        return self.multi_class == "multinomial"

    def _has_probability(self) -> bool:
        return self.loss in ("log_loss", "modified_huber")

    def _score_margins(self, problem: Problem, z: Array, rows: Array) -> float:
        y = problem.y[rows]
        if problem.n_outputs == 1:
            return float(np.mean((z.ravel() > 0) == (y > 0)))
        return float(np.mean(z.argmax(axis=1) == y))
