"""The asynchronous loop of a search: no worker waits for another.

Every trial is told when it arrives and a new one is proposed at once; the journal keeps that
order, so a search can be replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastopt.search.batch import EXHAUSTED, Batch
from fastopt.search.engine import fingerprint
from fastopt.search.layout import Matrix
from fastopt.search.workers import Inline, Task, Workers

if TYPE_CHECKING:
    from fastopt.search.run import Run

__all__ = ["free_running"]


def free_running(run: Run) -> None:
    """Propose a trial whenever a worker is free, until the budget ends."""
    workers: Workers = Inline(run.objective) if run.workers is None else run.workers
    run.workers = workers
    run.proposals.list_points()
    flying: dict[int, Matrix] = {}
    slots = run.batch or workers.slots
    try:
        _replay(run, flying)
        _fly(run, list(flying.items()))
        while not run.message and not run.interrupts:
            free = int(min(slots - len(flying), run.proposals.room))
            if free > 0 and run.in_time() and run.proposals.unseen != {}:
                _fly(run, _ask(run, free, flying))
            if not flying and run.proposals.unseen == {}:
                run.message = EXHAUSTED
                return
            if not flying or not run.in_time():
                run.message = run.budget_reached()
                return
            for number, outcome in run.wait():
                batch = Batch(flying.pop(number)[None], number)
                run.counting.record(batch, 0, outcome, run.proposals.asked)
                run.counting.settle(batch, gaps=True)
                run.proposals.learn(batch)
                run.is_fatal(outcome)
            if run.failure is not None:
                raise run.failure
        if run.interrupts:
            run.message = "interrupted"
    finally:
        run.evaluating = False


def _ask(run: Run, k: int, flying: dict[int, Matrix]) -> list[tuple[int, Matrix]]:
    values = run.engine.propose(k)
    new = list(
        zip(range(run.proposals.asked, run.proposals.asked + len(values)), values, strict=True)
    )
    run.proposals.asked += len(values)
    flying.update(new)
    if run.proposals.unseen is not None:
        for row in values:
            run.proposals.unseen.pop(row.tobytes(), None)
    return new


def _fly(run: Run, trials: list[tuple[int, Matrix]]) -> None:
    if trials:
        assert run.workers is not None
        stop = run.rule()
        dicts = run.space.dicts_of(np.array([row for _, row in trials]))
        run.workers.send(
            [Task(number, t, stop) for (number, _), t in zip(trials, dicts, strict=True)]
        )


def _replay(run: Run, flying: dict[int, Matrix]) -> None:
    """Propose and tell as it happened, by the journal's order."""
    journal = run.proposals.journal
    if journal is None:
        return
    for number, record in journal.trials.items():
        if record.asked is None or record.asked > run.proposals.limit:
            break
        if record.asked > run.proposals.asked:
            _ask(run, record.asked - run.proposals.asked, flying)
        if number not in flying or fingerprint(flying[number]) != record.x:
            raise run.proposals.contradiction(number)
        if run.proposals.retry_failed and record.outcome.failed:
            continue
        batch = Batch(flying.pop(number)[None], number)
        batch.outcomes[0] = record.outcome
        run.counting.settle(batch, gaps=True)
        run.proposals.learn(batch)
