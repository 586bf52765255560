"""Logistic regression by any of the solvers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice, integer, number
from fastopt.errors import OptionError
from fastopt.linear_model._classes import ClassifierFace, class_weights, encode
from fastopt.linear_model._data import check_weights, check_x
from fastopt.linear_model._estimator import LinearEstimator, key_of_state, warn_not_converged
from fastopt.linear_model._solve import descend, lbfgs, stochastic
from fastopt.linear_model._train import ONE_VS_REST, Problem, Stochastic

__all__ = ["LogisticRegression"]

SOLVERS = ("lbfgs", "gd", "sgd", "momentum", "nesterov", "adam")


class LogisticRegression(LinearEstimator, ClassifierFace):
    """Logistic regression, min of C sum_i s_i log(1 + exp(-y_i (w . x_i + b))) + R(w).

    With more than two classes the joint (multinomial) cross-entropy of the softmax.

    Parameters
    ----------
    penalty : {"l2", "l1", "elasticnet"} or None
        R(w) = |w|^2 / 2, |w|_1, or their mixture by ``l1_ratio``. "lbfgs" takes "l2" and None.
    C : float
        Inverse of the penalty's strength, in scikit-learn's scale (a sum over the rows).
    solver : {"lbfgs", "gd", "sgd", "momentum", "nesterov", "adam"}
    fit_intercept : bool
        The intercept is not penalised.
    l1_ratio : float
        Share of the L1 part of "elasticnet".
    class_weight : dict, "balanced" or None
    max_iter, tol, lr, batch_size, momentum, warm_start, random_state, threads
        As for LinearRegression.

    Attributes
    ----------
    classes_ : (k,)
    coef_ : (1, d) for two classes, else (k, d)
    intercept_ : (1,) or (k,)
    n_iter_ : int
    loss_curve_ : list of float
        The objective divided by C times the sum of weights, after each iteration or epoch.

    Raises
    ------
    ArrayError, DTypeError, OptionError, DivergedError

    Notes
    -----
    An iteration of "lbfgs" or "gd" reads X once (margins and gradient in one pass). Results are
    the same for every thread count and instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.linear_model import LogisticRegression
    >>> X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> model = LogisticRegression().fit(X, [0, 0, 1, 1])
    >>> model.predict([[-3.0], [3.0]]).tolist()
    [0, 1]
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        *,
        penalty: str | None = "l2",
        C: float = 1.0,
        solver: str = "lbfgs",
        fit_intercept: bool = True,
        l1_ratio: float = 0.5,
        class_weight: Any = None,
        max_iter: int = 1000,
        tol: float = 1e-6,
        lr: float | None = None,
        batch_size: int | None = None,
        momentum: float = 0.9,
        warm_start: bool = False,
        random_state: Any = None,
        threads: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.l1_ratio = l1_ratio
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.lr = lr
        self.batch_size = batch_size
        self.momentum = momentum
        self.warm_start = warm_start
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticRegression:
        """Fit to X (n, d) and the labels y (n,); returns the estimator."""
        solver = choice(self.solver, "solver", SOLVERS)
        share = {None: 0.0, "l2": 0.0, "l1": 1.0}.get(self.penalty, self.l1_ratio)
        if self.penalty is not None:
            choice(self.penalty, "penalty", ("l2", "l1", "elasticnet"))
        share = number(share, "l1_ratio", low=0, high=1)
        if solver == "lbfgs" and share > 0:
            raise OptionError("penalty: solver='lbfgs' takes 'l2' or None; use 'gd' for L1")
        strength = number(self.C, "C", low=0, low_open=True)
        max_iter = integer(self.max_iter, "max_iter", low=1)
        tol = number(self.tol, "tol", low=0)
        lr = None if self.lr is None else number(self.lr, "lr", low=0, low_open=True)
        momentum = number(self.momentum, "momentum", low=0, high=1, high_open=True)
        x = check_x(X, finite=False)
        labels, codes = encode(y, len(x))
        weights, total = check_weights(
            class_weights(self.class_weight, labels, codes, sample_weight), len(x), x.dtype
        )
        two = len(labels) == 2
        alpha = 0.0 if self.penalty is None else 1.0 / (strength * total)
        problem = Problem(
            x,
            np.ascontiguousarray(2 * codes.astype(np.int8) - 1 if two else codes, x.dtype),
            weights,
            "log_loss" if two else "multinomial",
            n_outputs=1 if two else len(labels),
            targets=0 if two else ONE_VS_REST,
            intercept=bool(self.fit_intercept),
            l2=alpha * (1 - share),
            l1=alpha * share,
        )
        lock = self._busy()
        try:
            flat = self._start(problem)
            if solver == "lbfgs":
                fit = lbfgs(problem, flat, max_iter, tol, self.threads)
            elif solver == "gd":
                fit = descend(problem, flat, max_iter, tol, lr, self.threads)
            else:
                size = 32 if problem.n < 8192 else 128
                if self.batch_size is not None:
                    size = integer(self.batch_size, "batch_size", low=1)
                run = Stochastic(
                    problem,
                    solver,
                    min(size, problem.n),
                    key_of_state(self.random_state),
                    momentum=momentum,
                    threads=self.threads,
                )
                fit = stochastic(run, flat, max_iter, tol, lr)
            self.coef_, intercept = problem.unpack(fit.flat)
            self.intercept_ = intercept if problem.intercept else np.zeros_like(intercept)
            self.classes_, self.n_iter_, self.loss_curve_ = labels, fit.n_iter, fit.curve
            self._note_features(X, problem.d)
        finally:
            lock.release()
        if not fit.converged:
            warn_not_converged(
                f"LogisticRegression: solver={solver!r} stopped at max_iter={max_iter} before "
                f"tol={tol:g}; scale the features, raise max_iter, or use solver='lbfgs'"
            )
        return self

    def _start(self, problem: Problem) -> Array:
        shape = (problem.n_outputs, problem.d)
        if self.warm_start and np.shape(getattr(self, "coef_", ())) == shape:
            return problem.pack(self.coef_, self.intercept_)
        return np.zeros(problem.length, problem.x.dtype)

    def _joint(self) -> bool:
        return True

    def _has_probability(self) -> bool:
        return True
