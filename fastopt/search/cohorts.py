"""Trials that wait for each other: a cohort runs to a rung, the best of it go on, the others end.

Only objectives that yield their values can wait. A trial waits in the process that began it; where
that cannot be (an executor's processes forget, a worker died), it is begun again, so the trials
are the same wherever they run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastopt.search.batch import Batch
from fastopt.search.evaluation import Outcome
from fastopt.search.ledger import whole
from fastopt.search.reporting import Leg, Reports
from fastopt.search.stopping import Ladder
from fastopt.search.workers import Inline, Task

if TYPE_CHECKING:
    from fastopt.search.run import Run

__all__ = ["evaluate_cohort"]


def evaluate_cohort(run: Run, batch: Batch, ladder: Ladder) -> None:
    """The trials of a batch as one cohort, until the search is to end."""
    if run.workers is None:
        run.workers = Inline(run.objective)
    running = list(range(len(batch.fresh)))
    rung = ladder.first
    while running:
        leg = rung if len(running) > 1 and rung < ladder.last else None
        reports = _climb(run, batch, running, leg)
        if run.message or run.interrupts or run.failure is not None or not run.in_time():
            break
        there = [i for i in running if _reached(reports[i], rung) is not None]
        order = sorted(there, key=lambda i: _place(reports[i], rung, i))
        chosen = set(order[: max(1, len(order) // ladder.reduction)])
        lost = [i for i in running if batch.outcomes[i] is None and i not in chosen]
        for i in lost:
            seen = reports[i]
            run.counting.record(batch, i, Outcome(seen[-1][1], reports=seen, stopped=True))
        run.workers.dismiss([batch.first + i for i in lost])
        if run.counting.per_trial:
            run.counting.settle(batch, ready=True)
        running = [i for i in running if i in chosen]
        rung *= ladder.reduction
    if batch.missing:
        run.workers.dismiss([batch.first + i for i in running])


def _reached(reports: Reports, rung: int) -> float | None:
    """The value of a trial at a rung: its first at that step or later."""
    return next((value for step, value in reports if step >= rung), None)


def _place(reports: Reports, rung: int, number: int) -> tuple[bool, float, int]:
    value = _reached(reports, rung)
    assert value is not None
    return math.isnan(value), 0.0 if math.isnan(value) else value, number


def _climb(run: Run, batch: Batch, running: list[int], rung: int | None) -> dict[int, Reports]:
    """Each trial's reports, all of them at the rung (None: at their end) or finished."""
    reports: dict[int, Reports] = {}
    todo = []
    for i in running:
        outcome = batch.outcomes[i]
        if outcome is None:
            todo.append(i)
        else:
            reports[i] = whole(outcome).reports
    for i, outcome in _legs(run, batch, todo, rung):
        reports[i] = outcome.reports
        if rung is None or not outcome.stopped:
            run.counting.record(batch, i, outcome)
            run.is_fatal(outcome)
        if run.counting.per_trial:
            run.counting.settle(batch, ready=True)
        if run.message or run.interrupts or run.failure is not None or not run.in_time():
            break
    return reports


def _legs(
    run: Run, batch: Batch, todo: list[int], rung: int | None
) -> Iterator[tuple[int, Outcome]]:
    """Send the trials on their way to the rung, and give what arrives."""
    assert run.workers is not None
    if not todo:
        return
    trials = run.space.dicts_of(batch.fresh[todo])
    numbers = [batch.first + i for i in todo]
    run.workers.send([Task(n, t, Leg(n, rung)) for n, t in zip(numbers, trials, strict=True)])
    missing = len(todo)
    while missing and not run.interrupts and run.in_time():
        for number, outcome in run.wait():
            missing -= 1
            yield number - batch.first, whole(outcome)
