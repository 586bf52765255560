"""What a run hands around: its budget, and batches of trials with what came out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.search.evaluation import Outcome
from fastopt.search.layout import Matrix
from fastopt.search.ledger import whole
from fastopt.search.stopping import Ladder

__all__ = ["EXHAUSTED", "Batch", "Budget", "rows_of", "told_of"]

EXHAUSTED = "space exhausted: every point was tried"


@dataclass(frozen=True)
class Budget:
    """When a search ends: evaluations, seconds, evaluations without improvement, a value that is
    good enough (in the sign that is minimised)."""

    max_evals: int | None = None
    max_time: float | None = None
    patience: int | None = None
    target: float | None = None


class Batch:
    """Trials proposed from the same knowledge, and what came out of those that are finished."""

    def __init__(self, values: Matrix, first: int, rows: list[int] | None = None) -> None:
        self.values = values  # all that the engine proposed
        self.rows = rows  # those that are new points; None: all
        self.fresh = values if rows is None else values[rows]
        self.first = first  # number of the first fresh trial
        self.outcomes: list[float | Outcome | None] = [None] * len(self.fresh)
        self.known: set[int] = set()  # from the journal
        self.missing = len(self.fresh)
        self.settled = 0
        self.y: NDArray[np.float64] | None = None  # outcomes that are nothing but numbers
        self.stop: Any = None  # rule by which its trials end early
        self.ladder: Ladder | None = None  # how they are thinned as a cohort


def told_of(outcome: float | Outcome) -> tuple[Any, float]:
    """y and the violation of the constraints, as engines get them."""
    trial = whole(outcome)
    return trial.y, sum(max(c, 0.0) for c in trial.constraints)


def rows_of(values: Matrix, rows: list[int]) -> Matrix:
    return values if len(rows) == len(values) else values[rows]
