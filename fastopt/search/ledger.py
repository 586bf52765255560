"""The trials of a search that count so far, the best of them, and the result that they make."""

from __future__ import annotations

import logging
import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.errors import TrialError
from fastopt.search.engine import Engine
from fastopt.search.evaluation import Objective, Outcome
from fastopt.search.layout import Matrix
from fastopt.search.result import Result

__all__ = ["Ledger", "whole"]

log = logging.getLogger("fastopt.search")


class Ledger:
    """Finished trials in the order in which they count.

    Parameters
    ----------
    objective : Objective
    engine : Engine
        Learns here how many objectives there are.
    keep : bool
        Keep every trial's values.
    """

    def __init__(self, objective: Objective, engine: Engine, keep: bool) -> None:
        self.objective, self.engine, self.keep = objective, engine, keep
        self.space = engine.space
        self.several = objective.objectives != 1
        self.m = objective.objectives  # 0: not known yet
        if self.m > 1:
            engine.n_objectives = self.m
        self.numbers = array("q")
        self.history = array("d")  # y, with one objective
        self.fronts: list[tuple[float, ...] | None] = []  # the same with several
        self.violations = array("d")
        self.kept: list[Matrix] = []
        self.errors: dict[int, str] = {}
        self.stopped: set[int] = set()
        self.best: tuple[float, float] = (math.inf, math.inf)  # violation, y
        self.best_values: Matrix | None = None
        self.since = 0  # trials since the best one

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, number: int, values: Matrix, outcome: float | Outcome) -> None:
        """One trial: its number, its (d,) values and what came out."""
        trial = whole(outcome)
        y, constraints, message, _, _, stopped = trial
        if message is not None:
            self.errors[number] = message
        if stopped:
            self.stopped.add(number)
        self.numbers.append(number)
        violation = math.nan if trial.failed else sum(max(c, 0.0) for c in constraints)
        if self.objective.constraints:
            self.violations.append(violation)
        if self.keep:
            self.kept.append(values[None].copy())
        self.since += 1
        if self.several:
            self.objectives_of(y)
            self.fronts.append(y if isinstance(y, tuple) else None)
        elif isinstance(y, float):
            self.history.append(y)
            if not (stopped or trial.failed):
                self.note(violation, y, values)

    def add_all(self, first: int, values: Matrix, y: NDArray[np.float64]) -> None:
        """Trials ``first``.. of which nothing but a number is known, NaN for failed ones."""
        self.history.frombytes(y.tobytes())
        self.numbers.extend(range(first, first + len(y)))
        if self.keep:
            self.kept.append(values)
        if not np.isnan(y).all():
            i = int(np.nanargmin(y))
            self.note(0.0, float(y[i]), values[i])

    def note(self, violation: float, y: float, values: Matrix) -> None:
        """The best so far by Deb's rules: the smaller violation, then the smaller objective."""
        if (violation, y) < self.best or self.best_values is None:
            self.best, self.best_values, self.since = (violation, y), values.copy(), 0
            log.debug("trial %d: %g", len(self.numbers) - 1, y)

    def objectives_of(self, y: Any) -> None:
        """Note, from the first result that has them, how many objectives there are."""
        if isinstance(y, tuple) and self.m != len(y):
            if self.m:
                raise TrialError(f"objective: expected {self.m} numbers, got {len(y)}")
            self.m = self.objective.objectives = self.engine.n_objectives = len(y)

    # --- what came out, in the user's sign

    @property
    def x(self) -> dict[str, Any] | None:
        if self.best_values is None:
            return None
        return self.space.dicts_of(self.best_values[None])[0]

    @property
    def fun(self) -> float:
        if self.best_values is None:
            return math.nan
        return self.objective.signs[0] * self.best[1]

    def result(self, **about: Any) -> Result:
        """The result; ``about`` has what only the run knows (message, time ...)."""
        history: NDArray[np.float64] = np.array(self.history, dtype=np.float64)
        if self.several:
            nothing = (math.nan,) * (self.m or 2)
            history = np.array([y or nothing for y in self.fronts]).reshape(-1, len(nothing))
        history = history * np.array(self.objective.signs)
        values = None
        if self.keep:
            values = np.concatenate([np.empty((0, self.space.n_columns)), *self.kept])
        failed = np.isnan(history[:, 0] if self.several else history)
        result = Result(
            x=self.x,
            fun=self.fun,
            n_evals=len(history),
            n_failed=int(failed.sum()),
            history=history,
            method=self.engine.method,
            space=self.space,
            violation=self.best[0] if self.best_values is not None else math.nan,
            violations=np.array(self.violations) if self.objective.constraints else None,
            errors=self.errors,
            stopped=self.stopped,
            numbers=np.array(self.numbers, dtype=np.int64),
            values=values,
            **about,
        )
        return result.with_compromise() if self.several and self.keep else result


def whole(outcome: float | Outcome) -> Outcome:
    """An outcome with all its fields."""
    return outcome if isinstance(outcome, Outcome) else Outcome(outcome)
