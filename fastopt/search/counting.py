"""What counts of a search: finished trials in order of their numbers, and when it is enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.search.batch import Batch, Budget
from fastopt.search.evaluation import Outcome
from fastopt.search.journal import Journal
from fastopt.search.layout import Matrix
from fastopt.search.ledger import Ledger, whole
from fastopt.search.progress import Line
from fastopt.search.result import Progress
from fastopt.search.stopping import Stopper

__all__ = ["Counting"]


class Counting:
    """Records trials as they arrive, and counts them when their turn has come.

    Parameters
    ----------
    trials : Ledger
    budget : Budget
    callback : callable, optional
        Gets a Progress after each trial; the search ends where it returns something true.
    vectorized : bool
        Trials come in whole batches, so what ends the search is looked at after each batch.
    """

    def __init__(
        self,
        trials: Ledger,
        budget: Budget,
        callback: Callable[[Progress], Any] | None,
        vectorized: bool,
    ) -> None:
        self.trials, self.budget, self.callback = trials, budget, callback
        self.vectorized = vectorized
        self.journal: Journal | None = None
        self.stopper: Stopper | None = None
        self.line: Line | None = None
        self.ended = ""  # why what comes now no longer counts
        # What callers want to see or decide after each trial.
        self.per_trial = callback is not None or budget.patience or budget.target is not None
        self.start = time.monotonic()
        self._arrived, self._shown = 0, math.inf

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.start

    def record(
        self, batch: Batch, i: int, outcome: float | Outcome, asked: int | None = None
    ) -> None:
        """Note what came out of the batch's trial i: in the journal, so that it is not lost."""
        batch.outcomes[i] = outcome
        batch.missing -= 1
        if self.line is not None:
            self._show(self.line, outcome)
        if self.journal is not None:
            self.journal.append([(batch.first + i, batch.fresh[i], whole(outcome), asked)])

    def settle(self, batch: Batch, *, ready: bool = False, gaps: bool = False) -> None:
        """Take finished trials into the history in the order of their numbers: up to the first
        gap (``ready``), or all of them (``gaps``)."""
        todo = batch.outcomes[batch.settled :]
        if not self.per_trial:
            if ready:
                return
            plain = self.stopper is None and not self.trials.several
            if plain and set(map(type, todo)) <= {float}:
                self._settle_all(batch, todo)
                return
        for outcome in todo:
            i = batch.settled
            if outcome is None and not gaps:
                return
            batch.settled += 1
            if outcome is None or self.ended:
                batch.outcomes[i] = None
                continue
            self._settle_one(batch.first + i, batch.fresh[i], outcome)
            if self.per_trial and not self.vectorized:
                self._judge()
        if self.vectorized:
            self._judge()
            if self.line is not None:
                self.line.show(len(self.trials), self.trials.fun)

    # --- inside

    def _show(self, line: Line, outcome: float | Outcome) -> None:
        """The progress line, which counts trials as they arrive."""
        self._arrived += 1
        if not isinstance(outcome, Outcome):
            self._shown = min(self._shown, outcome) if outcome == outcome else self._shown
        best = self.trials.best
        fun = min(self._shown, best[1] if best[0] == 0.0 else math.inf)
        line.show(self._arrived, self.trials.objective.signs[0] * fun)

    def _settle_all(self, batch: Batch, todo: list[Any]) -> None:
        """The same for plain numbers that nobody waits for."""
        y = np.array(todo, dtype=np.float64)
        if batch.rows is None and not batch.settled:
            batch.y = y
        first, n = batch.first + batch.settled, len(y)
        self.trials.add_all(first, batch.fresh[batch.settled :], y)
        batch.settled += n

    def _settle_one(self, number: int, values: Matrix, outcome: float | Outcome) -> None:
        self.trials.add(number, values, outcome)
        if self.stopper is not None:
            y, _, _, _, reports, stopped = whole(outcome)
            assert isinstance(y, float)
            self.stopper.tell(reports, y, stopped)

    def _judge(self) -> None:
        """After a trial: the callback, patience, the target."""
        if self.callback is not None and self.callback(self._progress()):
            self.ended = "stopped by the callback"
        elif self.budget.patience and self.trials.since >= self.budget.patience:
            self.ended = f"patience={self.budget.patience}: no improvement"
        elif self.budget.target is not None and self.trials.best <= (0.0, self.budget.target):
            self.ended = "target reached"

    def _progress(self) -> Progress:
        return Progress(len(self.trials), self.trials.fun, self.trials.x, self.elapsed)
