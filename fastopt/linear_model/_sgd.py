"""The loop over epochs that SGDRegressor and SGDClassifier share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fastopt._arrays import Array, check_finite
from fastopt._options import choice, flag, integer, number
from fastopt.errors import ArrayError, DivergedError, DTypeError, OptionError
from fastopt.linear_model._data import check_weights, plain_weights
from fastopt.linear_model._estimator import (
    LinearEstimator,
    key_of_state,
    warn_not_converged,
)
from fastopt.linear_model._problem import Problem, loss_gradient
from fastopt.linear_model._rows import CSR, Rows, Stream, matmul, refuse_nonfinite, take_rows
from fastopt.linear_model._solvers import first_rate
from fastopt.linear_model._stochastic import LOCAL_WORK, RULES, Stochastic

__all__ = ["SGD"]

ABSURD = 1e12  # a mean loss beyond this deserves a second look
ANNEAL_FROM = 64  # batches in an epoch from which "adaptive" lowers its step within the epoch
SCHEDULES = ("adaptive", "constant", "invscaling", "optimal", "cosine")
Self = TypeVar("Self", bound="SGD")


class SGD(LinearEstimator):
    """What both share: options, the loop over epochs, stopping, averaging, partial fits."""

    _losses: tuple[str, ...]
    _state: dict[str, Any]
    loss: str
    penalty: str | None
    alpha: float
    l1_ratio: float
    tol: float | None
    shuffle: bool
    epsilon: float
    learning_rate: str
    eta0: float | None
    power_t: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    average: bool | int
    local_workers: int | None

    def set_partial_fit_request(self: Self, **wanted: bool | str | None) -> Self:
        """As set_fit_request, for partial_fit."""
        return self._ask_for("partial_fit", wanted)

    def _check_options(self) -> None:
        choice(self.loss, "loss", self._losses)
        if self.penalty is not None:
            choice(self.penalty, "penalty", ("l2", "l1", "elasticnet"))
        number(self.alpha, "alpha", low=0)
        number(self.l1_ratio, "l1_ratio", low=0, high=1)
        integer(self.max_iter, "max_iter", low=1)
        if self.tol is not None:
            number(self.tol, "tol", low=0)
        number(self.epsilon, "epsilon", low=0)
        choice(self.learning_rate, "learning_rate", SCHEDULES)
        if self.eta0 is not None:
            number(self.eta0, "eta0", low=0, low_open=True)
        number(self.power_t, "power_t")
        number(
            self.validation_fraction,
            "validation_fraction",
            low=0,
            high=1,
            low_open=True,
            high_open=True,
        )
        integer(self.n_iter_no_change, "n_iter_no_change", low=1)
        if not isinstance(self.average, (bool, np.bool_)):
            integer(self.average, "average", low=0)
        for name in ("shuffle", "early_stopping"):
            flag(getattr(self, name), name)
        flag(self.fit_intercept, "fit_intercept")
        flag(self.warm_start, "warm_start")
        if self.threads is not None:
            integer(self.threads, "threads", low=1)
        choice(self.solver, "solver", RULES)
        number(self.momentum, "momentum", low=0, high=1, high_open=True)
        if self.batch_size is not None:
            integer(self.batch_size, "batch_size", low=1)
        if self.local_workers is not None:
            integer(self.local_workers, "local_workers", low=1, high=64)
        if self.learning_rate == "optimal" and self.alpha == 0:
            raise OptionError("alpha: must be > 0 for learning_rate='optimal', whose step it sets")

    def _weights(self, weights: Any, n: int, dtype: Any, partial: bool) -> Array | None:
        """Factors on the rows' gradients: of mean one in a whole fit, as given in a partial one,
        which cannot know the mean of all."""
        if partial:
            return plain_weights(weights, n, dtype)
        return check_weights(weights, n, dtype)[0]

    def _problem(
        self, x: Rows, y: Array, weights: Array | None, k: int, targets: int, loss: str
    ) -> Problem:
        share = {None: 0.0, "l2": 0.0, "l1": 1.0, "elasticnet": self.l1_ratio}[self.penalty]
        alpha = 0.0 if self.penalty is None else float(self.alpha)
        return Problem(
            x,
            y,
            weights,
            loss,
            n_outputs=k,
            targets=targets,
            epsilon=float(self.epsilon),
            intercept=bool(self.fit_intercept),
            l2=alpha * (1 - share),
            l1=alpha * share,
        )

    def _new_run(self, problem: Problem) -> Stochastic:
        workers = self.local_workers
        if workers is None:
            workers = 1 if problem.size < LOCAL_WORK else 4
        return Stochastic(
            problem,
            self.solver,
            problem.batch_rows(self.batch_size),
            key_of_state(self.random_state),
            shuffle=bool(self.shuffle),
            momentum=float(self.momentum),
            threads=self.threads,
            n_workers=workers,
        )

    def _rate(self, run: Stochastic, eta0: float) -> Callable[[Array], Array | float]:
        """Step sizes by the number of the batch."""
        if self.learning_rate == "invscaling":
            return lambda t: eta0 / t**self.power_t
        if self.learning_rate == "cosine":
            total = self.max_iter * run.n_batches()
            return lambda t: eta0 * 0.5 * (1 + np.cos(np.pi * np.minimum((t - 1) / total, 1.0)))
        if self.learning_rate == "optimal":
            # Bottou's schedule 1 / (alpha (t0 + t)), t in rows, t0 as scikit-learn chooses it.
            typical = (1.0 / np.sqrt(self.alpha)) ** 0.5
            first = typical / max(1.0, self._slope(-typical))
            t0 = 1.0 / (first * self.alpha)
            return lambda t: 1.0 / (self.alpha * (t0 + (t - 1) * run.batch_size))
        if self.learning_rate == "adaptive" and run.n_batches() >= ANNEAL_FROM:
            # Each epoch ends with small steps (cosine restarts: Loshchilov and Hutter, 2017), so
            # that the noise of the last batches does not stay in the parameters.
            share = 1.0 / run.n_batches()
            return lambda t: eta0 * 0.5 * (1 + np.cos(np.pi * ((t - 1) * share % 1.0)))
        return lambda t: eta0

    def _slope(self, margin: float) -> float:
        """dloss/dz at a margin for target 1, for the 'optimal' schedule's first step."""
        if self.loss == "log_loss":
            return float(-1 / (1 + np.exp(margin)))
        if self.loss in ("hinge", "perceptron"):
            return -1.0
        slope = {"squared_hinge": 2.0, "modified_huber": 2.0}.get(self.loss, 1.0)
        return slope * (margin - 1)

    def _descend(self, run: Stochastic, max_iter: int, tol: float | None) -> list[float]:
        """The epochs of one fit; leaves the parameters in the run. Returns the loss curve."""
        problem, start = run.problem, run.flat.copy()
        held, score = self._hold_out(run)
        auto = first_rate(run) if self.eta0 is None and self.learning_rate != "optimal" else 0.0
        eta0 = float(self.eta0) if self.eta0 is not None else auto
        rate, slower = self._rate(run, eta0), 1.0
        curve: list[float] = []
        best, waited, first = np.inf, 0, run.batches
        begin = np.inf if not self.average else 0 if self.average is True else int(self.average)
        for _ in range(max_iter):
            loss = run.run_epoch(lambda t: slower * rate(t - first), begin)  # noqa: B023
            curve.append(loss)
            if not np.isfinite(loss):
                problem.refuse_bad_margins("mini-batch descent")
            value = loss if held is None else -score(self._current(run), held)
            if tol is None:
                continue
            enough = tol if held is not None else tol * abs(best)
            waited = 0 if value < best - (enough if np.isfinite(best) else 0) else waited + 1
            best = min(best, value)
            if waited >= self.n_iter_no_change:
                if self.learning_rate != "adaptive" or slower < 2e-3:
                    self._refuse_divergence(run, curve, start)
                    return curve
                slower, waited = slower / 5, 0
        if tol is not None and max_iter > 1:
            warn_not_converged(
                f"{type(self).__name__}: stopped at max_iter={max_iter} before the loss settled"
            )
        self._refuse_divergence(run, curve, start)
        return curve

    def _refuse_divergence(self, run: Stochastic, curve: list[float], start: Array) -> None:
        """DivergedError if the loss is a hundred times that of the start. Only a fit whose epochs
        lowered nothing, or one of absurd values, is worth two passes over X; only losses whose
        slope grows with the error run away."""
        if not run.problem.loss.startswith("squared"):
            return
        if curve[-1] < curve[0] if len(curve) > 1 else curve[-1] < ABSURD:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            before, after = (
                loss_gradient(run.problem, flat, 1)[0] for flat in (start, self._current(run))
            )
        if not after <= 100 * before + ABSURD**-1:
            run.problem.refuse_bad_margins("mini-batch descent")

    def _train(
        self, run: Stochastic, max_iter: int, tol: float | None, flat: Array
    ) -> list[float]:
        """_descend; with an automatic step that proves too large, again with a quarter of it."""
        slab, steps, begun = run.slab.copy(), run.steps.copy(), (run.epoch, run.batches)
        run.start(flat)
        for attempt in range(8):
            try:
                return self._descend(run, max_iter, tol)
            except DivergedError:
                if self.eta0 is not None or self.learning_rate == "optimal" or attempt == 7:
                    raise
                run.caution *= 0.25
                run.slab[...], run.steps[...] = slab, steps
                run.epoch, run.batches = begun
                run.start(flat)
        raise AssertionError("unreachable")

    def _hold_out(self, run: Stochastic) -> tuple[Array | None, Callable[[Array, Array], float]]:
        """Rows kept back for early stopping, and their score as a function of the parameters."""
        if not self.early_stopping:
            return None, lambda flat, rows: 0.0
        problem = run.problem
        entries = np.random.default_rng(run.key).permutation(-(-problem.n // run.group))
        n_held = max(1, round(self.validation_fraction * len(entries)))
        if n_held >= len(entries):
            raise OptionError(
                f"validation_fraction: {self.validation_fraction:g} of {problem.n} rows leaves "
                "none to train on"
            )
        held, run.rows = entries[:n_held], np.sort(entries[n_held:]).astype(np.int64)
        rows = (held[:, None] * run.group + np.arange(run.group)).ravel()
        rows = np.sort(rows[rows < problem.n])
        kept = take_rows(problem.x, rows)
        refuse_nonfinite(kept, "X")  # no kernel sees these
        check_finite(problem.y[rows], "y")

        def score(flat: Array, rows: Array) -> float:
            coef, intercept = problem.unpack(flat)
            return self._score_margins(problem, matmul(kept, coef) + intercept, rows)

        return rows, score

    def _score_margins(self, problem: Problem, z: Array, rows: Array) -> float:
        raise AssertionError

    def _current(self, run: Stochastic) -> Array:
        return run.average() if self.average and run.steps[:, 1].any() else run.flat

    def _keep(self, run: Stochastic, curve: list[float]) -> None:
        self._state = {
            "slab": run.slab,
            "steps": run.steps,
            "epoch": run.epoch,
            "batches": run.batches,
            "caution": run.caution,
            "key": run.key,
        }
        coef, intercept = run.problem.unpack(self._current(run))
        self._set_coef(coef, intercept if run.problem.intercept else np.zeros_like(intercept))
        self.loss_curve_ = curve
        self.t_ = 1.0 + run.epoch * run.problem.n

    def _set_coef(self, coef: Array, intercept: Array) -> None:
        self.coef_, self.intercept_ = coef, intercept

    def _as_before(self, x: Rows) -> Rows:
        """A batch of a partial fit in the dtype of the first one."""
        kept = self._state["slab"].dtype
        if x.dtype == kept:
            return x
        if isinstance(x, Stream):
            raise DTypeError(f"X: expected {kept} as in the first partial_fit, got {x.dtype}")
        return x._replace(data=x.data.astype(kept)) if isinstance(x, CSR) else x.astype(kept)

    def _resume(self, run: Stochastic) -> Array:
        """Take up the moments, counters and parameters of an earlier call; returns the latter."""
        state = self._state
        if state["slab"].shape[2] != run.slab.shape[2]:
            raise ArrayError("X: the number of features or outputs changed between partial fits")
        run.slab[...] = state["slab"][:1]
        run.steps[...] = state["steps"][:1]
        run.epoch, run.batches = state["epoch"], state["batches"]
        run.caution, run.key = state["caution"], state["key"]
        flat: Array = run.flat.copy()
        return flat

    def _fit_run(self, problem: Problem, partial: bool, coef_shape: tuple[int, ...]) -> None:
        run = self._new_run(problem)
        k, d = problem.n_outputs, problem.d
        warm = self.warm_start and np.shape(getattr(self, "coef_", ())) == coef_shape
        if partial and "_state" in self.__dict__:
            flat = self._resume(run)
        elif warm:
            flat = problem.pack(np.reshape(self.coef_, (k, d)), np.reshape(self.intercept_, -1))
        else:
            flat = np.zeros(problem.length, problem.x.dtype)
        if partial:
            curve = self._train(run, 1, None, flat)
            done = getattr(self, "n_iter_", 0) + 1
            curve = [*getattr(self, "loss_curve_", []), *curve]
        else:
            curve = self._train(run, self.max_iter, self.tol, flat)
            done = len(curve)
        self._keep(run, curve)
        self.n_iter_ = done
