"""Least squares: LinearRegression and Ridge by any of the solvers."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from fastopt._arrays import Array
from fastopt._options import number
from fastopt.linear_model._data import check_weights, check_x, check_y
from fastopt.linear_model._estimator import LinearEstimator, r2_score
from fastopt.linear_model._problem import Problem
from fastopt.linear_model._rows import CSR
from fastopt.linear_model._solvers import Fit, Solver

__all__ = ["LinearRegression", "Ridge"]

SOLVERS = ("gram", "lbfgs", "gd", "sgd", "momentum", "nesterov", "adam")

Self = TypeVar("Self", bound="LeastSquares")


class LeastSquares(LinearEstimator):
    """What LinearRegression and Ridge share: the fit, predict and score of squared loss."""

    _estimator_type = "regressor"
    tol: float
    lr: float | None

    def _multi_output(self) -> bool:
        return True

    def _penalty(self, total_weight: float) -> float:
        return 0.0

    def fit(self: Self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, d), dense, sparse or mapped, and y (n,) or (n, k); returns itself."""
        solver = Solver.of(self, SOLVERS)
        x = check_x(X, finite=False)
        targets = check_y(y, len(x), multi=True, finite=isinstance(x, CSR))
        weights, total = check_weights(sample_weight, len(x), x.dtype)
        k = 1 if targets.ndim == 1 else targets.shape[1]
        problem = Problem(
            x,
            np.ascontiguousarray(targets.reshape(-1), x.dtype),
            weights,
            "squared_error",
            n_outputs=k,
            intercept=bool(self.fit_intercept),
            l2=self._penalty(total),
        )
        lock = self._busy()
        try:
            flat = self._start(problem, targets.ndim)
            fit = solver(problem, flat)
            self._keep(problem, fit, targets.ndim)
            self._note_features(X, problem.d)
        finally:
            lock.release()
        solver.warn(fit, type(self).__name__, "gram")
        return self

    def _start(self, problem: Problem, ndim: int) -> Array:
        """Zeros, or with warm_start the coefficients of the last fit where they have its shape."""
        k, d = problem.n_outputs, problem.d
        if self.warm_start and np.shape(getattr(self, "coef_", ())) == (
            (d,) if ndim == 1 else (k, d)
        ):
            return problem.pack(np.reshape(self.coef_, (k, d)), np.reshape(self.intercept_, -1))
        return np.zeros(problem.length, problem.x.dtype)

    def _keep(self, problem: Problem, fit: Fit, ndim: int) -> None:
        coef, intercept = problem.unpack(fit.flat)
        self.coef_ = coef[0] if ndim == 1 else coef
        if not problem.intercept:
            self.intercept_ = 0.0
        else:
            self.intercept_ = intercept[0] if ndim == 1 else intercept
        self.n_iter_ = fit.n_iter
        self.loss_curve_ = fit.curve

    def predict(self, X: Any) -> Array:
        """X coef_' + intercept_, (n,) or (n, k)."""
        return self._margins(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R^2 of the predictions for X against y."""
        predicted = self.predict(X)
        return r2_score(check_y(y, len(predicted), multi=True), predicted, sample_weight)


class LinearRegression(LeastSquares):
    """Ordinary least squares, min over w, b of 1/(2n) sum_i s_i (w . x_i + b - y_i)^2.

    Parameters
    ----------
    solver : {"gram", "lbfgs", "gd", "sgd", "momentum", "nesterov", "adam"}
        "gram": the normal equations, one pass over X, exact. "lbfgs":
        limited-memory BFGS. "gd": full-batch gradient descent.
        "sgd", "momentum", "nesterov", "adam": shuffled mini-batches with that update.
    fit_intercept : bool
        Fit b as well; its gradient is mean(X w + b - y).
    max_iter : int
        Most iterations ("gd") or epochs (the stochastic solvers).
    tol : float
        Stop when the largest gradient element is ``tol`` times that at w = b = 0; for "lbfgs" with
        each parameter in units of its own curvature.
    lr : float, optional
        Step size. None: from the largest eigenvalue of X'X / n and the batch size, small enough
        to be stable on unscaled features.
    batch_size : int, optional
        Rows of a mini-batch; None is 32, or 128 from 8192 rows on.
    momentum : float in [0, 1)
        Of "momentum" and "nesterov"; Adam's beta1 as well.
    warm_start : bool
        Start at the last fit's coefficients.
    random_state : int, SeedSequence, Generator or RandomState, optional
        Order of the mini-batches.
    threads : int, optional
        Threads of the full passes. They do not change the result.

    Attributes
    ----------
    coef_ : (d,) or (k, d) float32 or float64, as X
    intercept_ : float or (k,)
    n_iter_ : int
        Iterations or epochs done.
    loss_curve_ : list of float
        The objective after each.
    n_features_in_ : int
    feature_names_in_ : (d,) of str, if X had column names

    Raises
    ------
    ArrayError, DTypeError
        X, y or sample_weight have the wrong shape or type, or hold NaN or infinity.
    DivergedError
        A given ``lr`` is too large.

    Notes
    -----
    "gram" costs n d^2 / 2 multiply-adds in one pass; a gradient pass costs 2 n d, and up to 64
    columns the descents run on the moments of X instead (d^2 an iteration). For a fixed
    ``random_state`` the result is the same for every thread count and instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.linear_model import LinearRegression
    >>> X = np.random.default_rng(0).random((100, 1))
    >>> y = X.ravel() ** 2
    >>> exact = LinearRegression().fit(X, y)
    >>> sgd = LinearRegression(solver="sgd", random_state=0).fit(X, y)
    >>> bool(np.allclose(sgd.coef_, exact.coef_, atol=1e-4))
    True
    """

    def __init__(
        self,
        *,
        solver: str = "gram",
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-6,
        lr: float | None = None,
        batch_size: int | None = None,
        momentum: float = 0.9,
        warm_start: bool = False,
        random_state: Any = None,
        threads: int | None = None,
    ) -> None:
        self._keep_parameters(locals())


class Ridge(LeastSquares):
    """Least squares with an L2 penalty, min of sum_i s_i (w . x_i + b - y_i)^2 + alpha |w|^2.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, in scikit-learn's scale (a sum over the rows, not a mean). The
        intercept is not penalised.
    solver, fit_intercept, max_iter, tol, lr, batch_size, momentum, warm_start, random_state, \
threads
        As for LinearRegression.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.linear_model import Ridge
    >>> X = np.array([[0.0], [1.0], [2.0]])
    >>> model = Ridge(alpha=2.0).fit(X, np.array([0.0, 1.0, 2.0]))
    >>> float(model.coef_[0]), float(model.intercept_)
    (0.5, 0.5)
    """

    alpha: float

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        solver: str = "gram",
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-6,
        lr: float | None = None,
        batch_size: int | None = None,
        momentum: float = 0.9,
        warm_start: bool = False,
        random_state: Any = None,
        threads: int | None = None,
    ) -> None:
        self._keep_parameters(locals())

    def _penalty(self, total_weight: float) -> float:
        return number(self.alpha, "alpha", low=0) / total_weight
