"""A portfolio for real spaces: axis search for sums, quasi-Newton, then CMA-ES with polishing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._random import Seed, key_of
from fastopt.errors import OptionError
from fastopt.search.axis_search import AxisSearch, is_sum, splits
from fastopt.search.cma import CMA
from fastopt.search.engine import Engine
from fastopt.search.layout import Matrix
from fastopt.search.quasi_newton import QuasiNewton
from fastopt.search.space import Float, Space, Vector

__all__ = ["Portfolio", "is_real"]

# Evaluations per variable of the first climb and of the polish after each run of CMA-ES, and
# points on each axis: measured on BBOB (benchmarks/search_quality.py).
CLIMB, POLISH, TURNS = 100, 25, 200
FIRST = 20  # first points less 4, at most
SPLIT = 31  # stream of the mixes among the first points


class Portfolio(Engine):
    """Several searches one after the other, for spaces of reals; what "auto" runs on them.

    1. d + 4 points, at most 24; among them mixes of two that tell whether the objective is a sum
       over its variables. The best is evaluated twice: where the values differ the objective is
       noisy, and CMA-ES follows at once.
    2. For a sum: a global search on every axis at once (``AxisSearch``), 200 points on each.
    3. Projected BFGS on finite differences from the best point (``QuasiNewton``), at most 100 d
       evaluations.
    4. CMA-ES with doubling populations (``CMA``); after each run, BFGS from its best point, at
       most 25 d evaluations.

    Parameters
    ----------
    space : Space of Float (without step) and Vector
    x0 : dict, list of dicts, or matrix, optional
        Trials to begin with; they take the place of the first points.
    seed : int, SeedSequence or Generator

    Raises
    ------
    OptionError
        The space holds variables that are not real.

    Notes
    -----
    Gradients and axis points are batches of d trials, generations of CMA-ES batches too; the line
    search is one trial at a time. More trials than that can be asked: they are drawn by CMA-ES.

    Examples
    --------
    >>> from fastopt import Space, Vector
    >>> algo = Portfolio(Space(x=Vector(3, -5, 5)), seed=0)
    >>> while algo.n_told < 300:
    ...     X = algo.ask(algo.wants())
    ...     algo.tell(X, 100 * (X[:, 1] - X[:, 0] ** 2) ** 2 + (1 - X[:, 0]) ** 2 + X[:, 2] ** 2)
    >>> algo.fun < 1e-9
    True
    """

    method = "portfolio"
    _state_names = (
        "_stage",
        "_axes",
        "_climb",
        "_cma",
        "_points",
        "_answers",
        "_given",
        "_start_values",
        "_run",
        "_run_best",
        "_run_y",
    )

    def __init__(
        self, space: Space | Mapping[str, Any], *, x0: Any = None, seed: Seed = 0
    ) -> None:
        super().__init__(space, seed=seed)
        if not is_real(self.space):
            raise OptionError(
                "space: this method needs Float (without step) and Vector variables alone, "
                "none of them under a condition"
            )
        d = self.space.n_columns
        self._width: Matrix = self.space.high - self.space.low
        self._axes, self._climb = AxisSearch(), QuasiNewton()
        self._cma = CMA(self.space, seed=key_of(self._key, 1))
        self._stage = "start"  # then "repeat", "axes", "climb", "cma", "polish"
        points = self._uniform(0, min(d, FIRST) + 4)
        splits(points, self._uniform(0, len(points), SPLIT))
        if x0 is not None:
            points = (self.space.genomes_of(self.space.parse(x0, "x0")) - self.space.low) / (
                np.where(self._width > 0, self._width, 1.0)
            )
        self._points: Matrix = points  # unit points that the stage waits for
        self._answers: NDArray[np.float64] = np.full(len(points), -np.inf)  # -inf: not yet
        self._given = 0  # rows that were proposed
        self._start_values: NDArray[np.float64] = np.empty(0)
        self._run = 0  # runs of CMA-ES that were polished
        self._run_best: Matrix = np.empty(0)
        self._run_y = math.inf

    def wants(self) -> int:
        left = len(self._points) - self._given
        return left if left > 0 else self._cma.wants()

    def propose(self, k: int) -> Matrix:
        self._asked += k
        part = self._points[self._given : self._given + k]
        self._given += len(part)
        values = self.space.values_of(self.space.low + part * self._width)
        if len(part) == k:
            return values
        return np.concatenate([values, self._cma.propose(k - len(part))])

    def absorb(self, values: Matrix, y: NDArray[np.float64]) -> None:
        y = np.where(np.isnan(y), np.inf, y)
        ours = self._answer(values, y)
        if not ours.all():
            self._cma.learn(values[~ours], y[~ours])
            if self._stage == "cma":
                self._follow(values[~ours], y[~ours])
        if self._stage != "cma" and not np.isneginf(self._answers).any():
            self._turn(self._answers)

    # --- inside

    def _answer(self, values: Matrix, y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Note the values of points of this stage; which rows those were."""
        asked = self.space.values_of(self.space.low + self._points[: self._given] * self._width)
        if len(asked) == len(values) and np.array_equal(asked, values):
            self._answers[: len(y)] = y
            return np.ones(len(y), bool)
        places: dict[bytes, list[int]] = {}
        for i in range(len(asked) - 1, -1, -1):
            if self._answers[i] == -np.inf:
                places.setdefault(asked[i].tobytes(), []).append(i)
        ours = np.zeros(len(y), bool)
        for row, value in enumerate(values):
            waiting = places.get(value.tobytes())
            if waiting:
                self._answers[waiting.pop()] = y[row]
                ours[row] = True
        return ours

    def _turn(self, y: NDArray[np.float64]) -> None:
        """All points of the stage are told: its next points, or the next stage."""
        points = self._points
        if self._stage == "start":
            self._start_values = y.copy()
            best = int(np.argmin(y))
            if math.isfinite(y[best]):
                self._stage = "repeat"
                self._wait_for(points[best : best + 1])
            else:
                self._to_cma()
        elif self._stage == "repeat":
            if y[0] != self._start_values.min():
                self._to_cma()
            elif is_sum(self._start_values):
                self._stage = "axes"
                self._axes.start(points[0], float(y[0]), TURNS)
                self._wait_for(self._axes.request)
            else:
                self._to_climb(points[0], float(y[0]))
        elif self._stage == "axes":
            self._axes.advance(y)
            if len(self._axes.request):
                self._wait_for(self._axes.request)
            else:
                self._to_climb(self._axes.x, self._axes.fx)
        else:
            self._climb.advance(y)
            if len(self._climb.request):
                self._wait_for(self._climb.request)
            else:
                self._to_cma()

    def _follow(self, values: Matrix, y: NDArray[np.float64]) -> None:
        """Keep the best of the run of CMA-ES; polish it when the run has ended."""
        best = int(np.argmin(y))
        if y[best] < self._run_y:
            genome = self.space.genomes_of(values[best : best + 1])[0]
            self._run_best = (genome - self.space.low) / np.where(self._width > 0, self._width, 1)
            self._run_y = float(y[best])
        if self._cma.converged > self._run:
            self._run = self._cma.converged
            noisy = self._start_values.size == 0
            if math.isfinite(self._run_y) and not noisy:
                self._stage = "polish"
                self._climb.start(self._run_best, self._run_y, POLISH * len(self._width))
                self._wait_for(self._climb.request)
            self._run_y = math.inf

    def _wait_for(self, points: Matrix) -> None:
        self._points, self._answers, self._given = points, np.full(len(points), -np.inf), 0

    def _to_climb(self, x: Matrix, fx: float) -> None:
        self._stage = "climb"
        self._climb.start(x, fx, CLIMB * len(x))
        self._wait_for(self._climb.request)

    def _to_cma(self) -> None:
        if self._stage in ("start", "repeat"):
            self._start_values = self._start_values[:0]  # noisy: nothing to polish with
        self._stage = "cma"
        self._wait_for(self._points[:0])


def is_real(space: Space) -> bool:
    """Whether every variable is a Float without step or a Vector, and always there."""
    return all(
        (isinstance(v, Vector) or (isinstance(v, Float) and v.step is None))
        and not getattr(v, "when", None)
        for v in space.variables.values()
    )
