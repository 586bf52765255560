"""Logistic regression by any of the solvers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice, number
from fastopt.errors import OptionError
from fastopt.linear_model._classes import ClassifierFace, as_targets, class_weights, encode
from fastopt.linear_model._data import check_weights, check_x
from fastopt.linear_model._estimator import LinearEstimator
from fastopt.linear_model._problem import Problem
from fastopt.linear_model._solvers import Solver

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
    penalty: str | None
    C: float
    l1_ratio: float
    class_weight: Any
    tol: float
    lr: float | None

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
        self._keep_parameters(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticRegression:
        """Fit to X (n, d), dense, sparse or mapped, and the labels y (n,); returns itself."""
        solver = Solver.of(self, SOLVERS)
        share = {None: 0.0, "l2": 0.0, "l1": 1.0}.get(self.penalty, self.l1_ratio)
        if self.penalty is not None:
            choice(self.penalty, "penalty", ("l2", "l1", "elasticnet"))
        share = number(share, "l1_ratio", low=0, high=1)
        if solver.name == "lbfgs" and share > 0:
            raise OptionError("penalty: solver='lbfgs' takes 'l2' or None; use 'gd' for L1")
        strength = number(self.C, "C", low=0, low_open=True)
        x = check_x(X, finite=False)
        labels, codes = encode(y, len(x), threads=self.threads)
        weights, total = check_weights(
            class_weights(self.class_weight, labels, codes, sample_weight), len(x), x.dtype
        )
        targets, meaning, k = as_targets(x, codes, len(labels))
        alpha = 0.0 if self.penalty is None else 1.0 / (strength * total)
        problem = Problem(
            x,
            targets,
            weights,
            "log_loss" if k == 1 else "multinomial",
            n_outputs=k,
            targets=meaning,
            intercept=bool(self.fit_intercept),
            l2=alpha * (1 - share),
            l1=alpha * share,
        )
        lock = self._busy()
        try:
            fit = solver(problem, self._start(problem))
            self.coef_, intercept = problem.unpack(fit.flat)
            self.intercept_ = intercept if problem.intercept else np.zeros_like(intercept)
            self.classes_, self.n_iter_, self.loss_curve_ = labels, fit.n_iter, fit.curve
            self._note_features(X, problem.d)
        finally:
            lock.release()
        solver.warn(fit, "LogisticRegression", "lbfgs")
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
