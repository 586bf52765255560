"""Batches of trials: what the engine proposes, what of it is known, what it is told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt._random import generator_of
from fastopt.errors import FormatError
from fastopt.search.batch import Batch, rows_of, told_of
from fastopt.search.engine import Engine, fingerprint
from fastopt.search.journal import Journal
from fastopt.search.layout import LISTED, Matrix
from fastopt.search.ledger import Ledger

__all__ = ["Proposals"]

# Batches without any new point of a finite space after which the rest is listed.
STALE = 4


class Proposals:
    """Between an engine and the trials of a search.

    In a finite space no point is a trial twice: the engine is told what is known of it, and the
    search ends when every point was tried.

    Parameters
    ----------
    engine : Engine
    trials : Ledger
    limit : float
        Trials at most.
    """

    def __init__(self, engine: Engine, trials: Ledger, limit: float) -> None:
        self.engine, self.trials, self.limit = engine, trials, limit
        self.space = engine.space
        self.journal: Journal | None = None
        self.retry_failed = False
        self.asked = 0
        self.unseen: dict[bytes, Matrix] | None = None  # points of a finite space not tried yet
        self._seen: dict[bytes, int] = {}  # point -> number of its trial
        self._told: dict[int, tuple[Any, float]] = {}  # and what came out
        self._retried = False

    @property
    def room(self) -> int | float:
        """Trials that may still be proposed."""
        return self.limit - self.asked

    def list_points(self) -> None:
        """Note every point of a small finite space, in an order of the seed."""
        if self.space.size <= LISTED:
            points = self.space.points()
            order = generator_of(self.engine.key).permutation(len(points))
            self.unseen = {points[i].tobytes(): points[i] for i in order}

    def next(self, wanted: Callable[[], int]) -> Batch | None:
        """The next batch of up to ``wanted()`` trials; None if there is nothing to propose."""
        for _ in range(STALE if self.unseen != {} else 0):
            values = self.engine.propose(int(min(wanted(), self.room)))
            if not len(values):
                break
            if self.unseen is None:
                return self._known(Batch(values, self.asked))
            rows = [i for i, row in enumerate(values) if self._is_new(row)]
            batch = Batch(values, self.asked, rows)
            if rows:
                return self._known(batch)
            self.learn(batch)
        if self.unseen:
            k = int(min(wanted(), self.room))
            rest = np.array(list(self.unseen.values())[:k])
            rows = [i for i, row in enumerate(rest) if self._is_new(row)]
            return self._known(Batch(rest, self.asked, rows))
        return None

    def learn(self, batch: Batch) -> None:
        """Tell the engine the finished part of a batch; points that it repeats are answered from
        what is known."""
        if batch.y is not None:  # settled at once
            self.engine.learn(batch.values, batch.y)
            return
        if batch.rows is not None:
            numbers = range(batch.first, batch.first + len(batch.fresh))
            for number, outcome in zip(numbers, batch.outcomes, strict=True):
                if outcome is not None:
                    self._told[number] = told_of(outcome)
            rows = [
                i for i, row in enumerate(batch.values) if self._seen[row.tobytes()] in self._told
            ]
            told = [self._told[self._seen[batch.values[i].tobytes()]] for i in rows]
        else:
            rows = [i for i, o in enumerate(batch.outcomes) if o is not None]
            plain = rows and not self.trials.several
            if plain and all(type(batch.outcomes[i]) is float for i in rows):
                y = np.array([batch.outcomes[i] for i in rows])
                self.engine.learn(rows_of(batch.values, rows), y)
                return
            told = [told_of(o) for o in batch.outcomes if o is not None]
        if not rows:
            return
        m = self.trials.m or self.engine.n_objectives
        y = np.array([v if isinstance(v, tuple) or m == 1 else (v,) * m for v, _ in told])
        limited = self.trials.objective.constraints
        violation = np.array([v for _, v in told]) if limited else None
        self.engine.learn(rows_of(batch.values, rows), y, violation)

    def contradiction(self, number: int) -> FormatError:
        """The error of a journal whose trial ``number`` is not what is proposed now."""
        assert self.journal is not None
        return FormatError(
            f"trial {number} was evaluated at another point than is proposed now: the "
            "journal is of another version or machine",
            self.journal.path,
        )

    # --- inside

    def _is_new(self, row: Matrix) -> bool:
        """Whether a point of a finite space comes for the first time; it is noted then."""
        key = row.tobytes()
        assert self.unseen is not None
        if key in self._seen:
            return False
        self.unseen.pop(key, None)
        self._seen[key] = len(self._seen)  # every new point is a trial
        return True

    def _known(self, batch: Batch) -> Batch:
        """Number the batch's trials, and take from the journal what it knows of them."""
        self.asked += len(batch.fresh)
        if self.journal is None or not self.journal.trials:
            return batch
        trials = self.journal.trials
        for i, row in enumerate(batch.fresh):
            number = batch.first + i
            record = trials.get(number)
            if record is None:
                continue
            if record.x != fingerprint(row):
                if not self._retried:
                    raise self.contradiction(number)
                self.journal.forget(number)
                break
            if self.retry_failed and record.outcome.failed:
                self._retried = True
                continue
            batch.outcomes[i] = record.outcome
            batch.known.add(i)
            batch.missing -= 1
        return batch
