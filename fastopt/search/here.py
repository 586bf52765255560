"""Trials of a batch evaluated in this process: one after the other, or all in one call."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.search.batch import Batch
from fastopt.search.evaluation import Outcome
from fastopt.search.ledger import whole

if TYPE_CHECKING:
    from fastopt.search.run import Run

__all__ = ["evaluate_at_once", "evaluate_here"]


def evaluate_here(run: Run, batch: Batch) -> None:
    """The missing trials of a batch, until the search is to end."""
    outcomes, counting = batch.outcomes, run.counting
    todo = [i for i, o in enumerate(outcomes) if o is None]
    results = run.objective.each(run.space.dicts_of(batch.fresh[todo]), batch.stop)
    timed = run.deadline < math.inf
    watched = counting.journal is not None or counting.line is not None
    if not (timed or watched or counting.per_trial):
        run.evaluating = True
        for i, outcome in zip(todo, results, strict=True):
            outcomes[i] = outcome
            batch.missing -= 1
            if run.interrupts or (type(outcome) is not float and run.is_fatal(outcome)):
                break
        run.evaluating = False
        return
    counting.settle(batch, ready=True)
    for i in todo:
        if run.message or (timed and time.monotonic() >= run.deadline):
            return
        run.evaluating = True
        outcome = next(results)
        run.evaluating = False
        counting.record(batch, i, outcome)
        if counting.per_trial:
            counting.settle(batch, ready=True)
        if run.interrupts or (type(outcome) is not float and run.is_fatal(outcome)):
            return


def evaluate_at_once(run: Run, batch: Batch) -> None:
    """Vectorised: the whole batch in one call, unless the journal has all of it."""
    if not batch.missing:
        return
    batch.known.clear()
    failure: Exception | None = None
    count, limits = len(batch.fresh), None
    run.evaluating = True
    try:
        y, limits = run.objective.batch(batch.fresh)
    except Exception as error:
        failure, y = error, np.full(count, math.nan)
    run.evaluating = False
    outcomes: list[Any] = y.tolist() if y.ndim == 1 else [tuple(row) for row in y.tolist()]
    if y.ndim > 1 or limits is not None:
        c = [()] * count if limits is None else [tuple(row) for row in limits.tolist()]
        outcomes = [Outcome(v, c[i]) for i, v in enumerate(outcomes)]
    if failure is not None:
        message = f"{type(failure).__name__}: {failure}"
        outcomes[0] = Outcome(math.nan, (), message, failure)
        run.is_fatal(outcomes[0])
    if run.counting.journal is not None:
        run.counting.journal.append(
            (batch.first + i, row, whole(o), None)
            for i, (row, o) in enumerate(zip(batch.fresh, outcomes, strict=True))
        )
    batch.outcomes, batch.missing = outcomes, 0
