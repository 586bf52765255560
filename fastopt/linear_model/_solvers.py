"""Least squares and full-batch solvers on a Problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array
from fastopt._interrupts import interruptible
from fastopt._kernels import linear_gram
from fastopt._options import choice, flag, integer, number
from fastopt.errors import ArrayError, OptionError
from fastopt.linear_model._estimator import key_of_state, warn_not_converged
from fastopt.linear_model._problem import (
    Problem,
    curvature,
    gradient_room,
    loss_gradient,
    step_size,
)
from fastopt.linear_model._rows import CSR, dense_pieces
from fastopt.linear_model._stochastic import Stochastic
from fastopt.optim import descend as minimise

__all__ = ["Fit", "Quadratic", "Solver", "first_rate", "moments", "stochastic"]

FUSED_UP_TO = 256  # columns and outputs up to which the fused kernel beats blocks of BLAS
GRAM_UP_TO = 64  # columns up to which a Gram matrix pays for exact gradients of squared loss
SPARSE_GRAM_UP_TO = 4096  # columns of sparse X whose dense Gram matrix is worth its d^2


@dataclass
class Fit:
    """What a solver found: packed parameters, passes over X, losses, whether it got there."""

    flat: Array
    n_iter: int
    curve: list[float]
    converged: bool
    dominated: bool = False  # tolerance met, but only beside one gradient that began far larger


@dataclass
class Quadratic:
    """Squared loss through its moments: everything gradient descent needs, in O(d^2) a step."""

    mean_x: Array  # (d,)
    mean_y: Array  # (k,)
    xx: Array  # (d, d) sum s (x - mean_x)(x - mean_x)' / n
    xy: Array  # (d, k)
    yy: Array  # (k,)
    intercept: bool

    def loss_gradient(self, coef: Array, b: Array, l2: float) -> tuple[float, Array, Array]:
        """Mean of |W x + b - y|^2 / 2 plus l2/2 |W|^2, and its gradient in W (k, d) and b (k,)."""
        error = coef @ self.mean_x + b - self.mean_y  # of the means, (k,)
        moved = coef @ self.xx - self.xy.T
        grad = moved + np.outer(error, self.mean_x) + l2 * coef
        loss = 0.5 * float(
            ((moved - self.xy.T) * coef).sum() + self.yy.sum() + (error * error).sum()
        ) + 0.5 * l2 * float((coef * coef).sum())
        return loss, grad, error if self.intercept else np.zeros_like(error)


def moments(problem: Problem, threads: int | None) -> Quadratic:
    """Means and centred second moments of (X, y) in one pass: fused up to 256 columns, by blocks
    through BLAS beyond."""
    n, d = problem.n, problem.d
    both = d + problem.n_outputs
    pilot = np.zeros(both, problem.x.dtype)
    gram, total = np.zeros((both, both)), np.zeros(both)
    summed = _fused if both <= FUSED_UP_TO else _blocked
    with np.errstate(invalid="ignore", over="ignore"):
        for first, x in dense_pieces(problem.x):
            y, weights = problem.part(first, len(x))
            if first == 0 and problem.intercept:
                # Second moments about a pilot mean, so that large offsets do not cancel digits.
                pilot[:] = np.concatenate([x[:256].mean(axis=0), y[:256].mean(axis=0)])
            part, part_total = summed(x, y, weights, pilot, threads)
            gram += part
            total += part_total
    if not np.isfinite(gram).all():
        problem.refuse_nonfinite()
        raise ArrayError("X, y: the sums of their squares overflow; scale them")
    mean = total / n
    gram = gram / n
    if problem.intercept:
        gram -= np.outer(mean, mean)
        mean += pilot
    else:
        mean[:] = 0
    return Quadratic(
        mean[:d], mean[d:], gram[:d, :d], gram[:d, d:], np.diag(gram)[d:], problem.intercept
    )


def _fused(
    x: Array, y: Array, weights: Array | None, pilot: Array, threads: int | None
) -> tuple[Array, Array]:
    """sum s z z' and sum s z of z = (x, y) - pilot, by the kernel."""
    n, both = len(x), len(pilot)
    pad = (both + 4) // 4 * 4
    n_runs = min(16, -(-n // 1024))  # by the size alone: threads must not change the bits
    out = np.empty((n_runs, pad, pad))
    count = _threads.resolve(threads, n * both)
    linear_gram.gram(out, x, y, weights, pilot, count)
    upper = np.triu(out.sum(axis=0))[: both + 1, : both + 1]
    full = upper + np.triu(upper, 1).T
    return full[:both, :both], full[:both, both].copy()


def _blocked(
    x: Array, y: Array, weights: Array | None, pilot: Array, threads: int | None
) -> tuple[Array, Array]:
    """The same in float64 by BLAS, a block of rows at a time."""
    n, both = len(x), len(pilot)
    gram, total = np.zeros((both, both)), np.zeros(both)
    rows = max(256, (1 << 20) // both)
    for i in range(0, n, rows):
        z = np.column_stack([x[i : i + rows], y[i : i + rows]]).astype(np.float64) - pilot
        s = z if weights is None else z * weights[i : i + rows, None]
        gram += s.T @ z
        total += s.sum(axis=0)
    return gram, total


def solve_gram(problem: Problem, threads: int | None) -> Fit:
    """The minimum of squared loss + l2/2 |W|^2 from the normal equations (one pass over X).

    Cholesky where the matrix allows it, else the minimum-norm solution by its eigenvectors.
    """
    if isinstance(problem.x, CSR) and problem.d > SPARSE_GRAM_UP_TO:
        raise OptionError(
            f"solver: 'gram' takes up to {SPARSE_GRAM_UP_TO} sparse columns, X has {problem.d}; "
            "use solver='lbfgs' or 'sgd'"
        )
    q = moments(problem, threads)
    a = q.xx + problem.l2 * np.eye(problem.d)
    scale = np.sqrt(np.maximum(np.diag(a), 1e-300))
    work = float(problem.d) ** 2 * (problem.d + problem.n_outputs)
    try:
        # Equilibrated, so that columns of very different size do not look singular.
        c = interruptible(work, np.linalg.cholesky, a / np.outer(scale, scale))
        if np.diag(c).min() ** 2 < 1e-10:
            raise np.linalg.LinAlgError
        half = interruptible(work, np.linalg.solve, c, q.xy / scale[:, None])
        coef = interruptible(work, np.linalg.solve, c.T, half) / scale[:, None]
    except np.linalg.LinAlgError:
        values, vectors = interruptible(10 * work, np.linalg.eigh, a)
        keep = values > max(values[-1], 0.0) * problem.d * np.finfo(np.float64).eps
        v = vectors[:, keep]
        coef = v @ ((v.T @ q.xy) / values[keep, None])
    coef = coef.T
    b = q.mean_y - coef @ q.mean_x if problem.intercept else np.zeros(problem.n_outputs)
    loss, _, _ = q.loss_gradient(coef, b, problem.l2)
    return Fit(problem.pack(coef, b), 1, [loss], True)


class Objective:
    """f and its gradient on packed parameters: through the moments where those are cheaper."""

    def __init__(self, problem: Problem, threads: int | None) -> None:
        self.problem = problem
        self.threads = _threads.resolve(threads, problem.size)
        quadratic = problem.loss == "squared_error" and problem.d <= GRAM_UP_TO
        self.moments = moments(problem, threads) if quadratic else None
        self.room = None if quadratic else gradient_room(problem)

    def __call__(self, flat: Array) -> tuple[float, Array]:
        p = self.problem
        if self.moments is None:
            return loss_gradient(p, flat.astype(p.x.dtype, copy=False), self.threads, self.room)
        k, pad = p.n_outputs, p.pad
        coef = flat[: k * pad].reshape(k, pad)[:, : p.d].astype(np.float64)
        loss, grad, grad_b = self.moments.loss_gradient(
            coef, flat[k * pad : k * pad + k].astype(np.float64), p.l2
        )
        out = np.zeros(p.length)
        out[: k * pad].reshape(k, pad)[:, : p.d] = grad
        out[k * pad : k * pad + k] = grad_b
        return loss, out


def lbfgs(problem: Problem, flat: Array, max_iter: int, tol: float, threads: int | None) -> Fit:
    """Limited-memory BFGS on the exact objective (no L1), to ``descend``'s stopping rule.

    In units in which every parameter has the same curvature (Jacobi's preconditioner): columns of
    very different scale or frequency then count alike, also for ``tol``.
    """
    objective = Objective(problem, threads)
    unit = 1 / np.sqrt(curvature(problem))
    at_zero = objective(np.zeros(len(flat)))
    best = np.inf, at_zero[1]  # the lowest value seen and the gradient there, in these units

    def scaled(x: Array) -> tuple[float, Array]:
        nonlocal best
        value, grad = objective(x * unit) if x.any() else at_zero
        grad = grad * unit
        best = min(best, (value, grad), key=lambda pair: pair[0])
        return value, grad

    eps = float(np.finfo(flat.dtype).eps)
    result = minimise(
        scaled,
        flat / unit,
        optimizer="lbfgs",
        max_iter=max_iter,
        tol=max(max(tol, 16 * eps) * float(np.abs(at_zero[1] * unit).max()), 1e-300),
        noise=4 * eps,
    )
    curve = [float(value) for value in result.history]
    # A line search that finds nothing better has reached the arithmetic's floor.
    done = bool(result.converged) or result.n_iter < max_iter
    # In these units half a component's square is about what moving it can still gain. Where that
    # is much of the loss, and some have hardly shrunk, another one's start set the tolerance.
    left, start = np.abs(best[1]), np.abs(at_zero[1] * unit)
    gain = 0.5 * float(np.sum(left[left > 0.1 * start] ** 2))
    dominated = bool(result.converged) and gain > 1e-3 * abs(best[0])
    return Fit((result.x * unit).astype(flat.dtype), int(result.n_iter), curve, done, dominated)


def prox_gradient(flat: Array, grad: Array, problem: Problem) -> Array:
    """The least element of the subgradient of f + l1 |W|_1; the plain gradient without L1."""
    if problem.l1 == 0:
        return grad
    out: Array = grad.copy()
    m = problem.n_outputs * problem.pad
    w, g = flat[:m], grad[:m]
    out[:m] = np.where(
        w != 0, g + problem.l1 * np.sign(w), np.sign(g) * np.maximum(np.abs(g) - problem.l1, 0)
    )
    return out


def descend(
    problem: Problem, flat: Array, max_iter: int, tol: float, lr: float | None, threads: int | None
) -> Fit:
    """Full-batch gradient descent with a fixed step, proximal for L1.

    Stops when the largest element of the gradient is ``tol`` times what it was at the start (or
    at zero, if that is more). In float64 whatever X's dtype.
    """
    objective = Objective(problem, threads)
    rate = step_size(problem, max(problem.n, 1) * 1000, "gd") if lr is None else lr
    w = flat.astype(np.float64)
    m = problem.n_outputs * problem.pad
    scale = float(np.abs(objective(np.zeros_like(w))[1]).max())
    curve: list[float] = []
    for iteration in range(max_iter + 1):
        loss, grad = objective(w)
        if not np.isfinite(loss):
            problem.refuse_bad_margins("gradient descent")
        if float(np.abs(prox_gradient(w, grad, problem)).max(initial=0.0)) <= tol * scale:
            return Fit(w.astype(flat.dtype), iteration, [*curve, loss], True)
        if iteration == max_iter:
            break
        curve.append(loss)
        w = w - rate * grad
        if problem.l1 > 0:
            w[:m] = np.sign(w[:m]) * np.maximum(np.abs(w[:m]) - rate * problem.l1, 0)
    return Fit(w.astype(flat.dtype), max_iter, [*curve, loss], False)


def stochastic(run: Stochastic, flat: Array, max_iter: int, tol: float, lr: float | None) -> Fit:
    """Mini-batch descent to the minimum of a smooth objective.

    The batch stays as long as the exact gradient, looked at after each epoch, goes on shrinking,
    and is doubled when it has not for three epochs, up to all rows: the noise falls, the step
    does not (Byrd et al., "Sample size selection in optimization methods for machine learning",
    2012). Adam's step, which does not shrink with the gradient, falls by 1 % an epoch
    after that.
    """
    problem = run.problem
    objective = Objective(problem, run.threads)
    scale = float(np.abs(objective(np.zeros_like(flat))[1]).max())
    tol = max(tol, 16 * float(np.finfo(flat.dtype).eps))
    curve: list[float] = []
    best, waited, slower = np.inf, 0, 1.0
    rate = first_rate(run) if lr is None else lr
    run.start(flat)
    for _ in range(max_iter):
        run.run_epoch(lambda numbers: slower * rate)  # noqa: B023
        loss, grad = objective(run.flat)
        curve.append(loss)
        norm = float(np.abs(prox_gradient(run.flat, grad, problem)).max(initial=0.0))
        if norm <= tol * scale:
            return Fit(run.flat.copy(), len(curve), curve, True)
        waited = 0 if norm < 0.9 * best else waited + 1
        best = min(best, norm)
        if run.rule == "adam" and run.batch_size == problem.n:
            slower *= 0.99
        if waited == 3:
            waited, best = 0, norm
            if run.batch_size < problem.n:
                run.batch_size = min(2 * run.batch_size, problem.n)
                rate = first_rate(run) if lr is None else lr
    return Fit(run.flat.copy(), len(curve), curve, False)


def first_rate(run: Stochastic) -> float:
    """The step for the run's rule and batch: momentum amplifies a batch's noise 1/(1 - momentum)
    times, and leaves the bound by the curvature as it is. A batch of all rows has no noise, and
    then a row of weight two counts as two rows."""
    heavy = run.rule in ("momentum", "nesterov")
    rows = run.batch_size * (1 - run.momentum) if heavy else run.batch_size
    if run.batch_size >= run.problem.n:
        rows = np.inf
    return run.caution * step_size(run.problem, rows, run.rule)


@dataclass(frozen=True)
class Solver:
    """The checked solver options of an estimator; called with a problem and a start, it solves."""

    name: str
    max_iter: int
    tol: float
    lr: float | None
    batch_size: int | None
    momentum: float
    random_state: Any
    threads: int | None

    @classmethod
    def of(cls, model: Any, names: Iterable[str]) -> Solver:
        """From the attributes of the estimator, which takes the solvers of those names."""
        flag(model.fit_intercept, "fit_intercept")
        flag(model.warm_start, "warm_start")
        return cls(
            choice(model.solver, "solver", names),
            integer(model.max_iter, "max_iter", low=1),
            number(model.tol, "tol", low=0),
            None if model.lr is None else number(model.lr, "lr", low=0, low_open=True),
            None if model.batch_size is None else integer(model.batch_size, "batch_size", low=1),
            number(model.momentum, "momentum", low=0, high=1, high_open=True),
            model.random_state,
            model.threads,
        )

    def __call__(self, problem: Problem, flat: Array) -> Fit:
        if self.name == "gram":
            return solve_gram(problem, self.threads)
        if self.name == "lbfgs":
            return lbfgs(problem, flat, self.max_iter, self.tol, self.threads)
        if self.name == "gd":
            return descend(problem, flat, self.max_iter, self.tol, self.lr, self.threads)
        run = Stochastic(
            problem,
            self.name,
            problem.batch_rows(self.batch_size),
            key_of_state(self.random_state),
            momentum=self.momentum,
            threads=self.threads,
        )
        return stochastic(run, flat, self.max_iter, self.tol, self.lr)

    def warn(self, fit: Fit, model: str, exact: str) -> None:
        """ConvergenceWarning if the fit is not done; ``exact`` names the solver to try."""
        if fit.dominated:
            warn_not_converged(
                f"{model}: tol={self.tol:g} was met only because one gradient began far larger "
                "than the others, which have hardly shrunk; centre or scale y and the features, "
                "or lower tol"
            )
        if not fit.converged:
            warn_not_converged(
                f"{model}: solver={self.name!r} stopped at max_iter={self.max_iter} before "
                f"tol={self.tol:g}; scale the features, raise max_iter, or use solver={exact!r}"
            )
