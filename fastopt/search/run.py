"""One search under way: ask the engine, send trials out, record what comes back, tell.

``sync``: trials are proposed in batches, and a batch is told when all of it is there, in the
order of trial numbers; so what is proposed depends on the seed and on finished batches, never on
who was faster. The asynchronous loop is in ``free_running``.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from fastopt._random import generator_of
from fastopt.errors import FormatError
from fastopt.search.batch import EXHAUSTED, Batch, Budget, rows_of, told_of
from fastopt.search.engine import Engine, fingerprint
from fastopt.search.evaluation import Objective, Outcome
from fastopt.search.journal import Journal
from fastopt.search.layout import LISTED, Matrix
from fastopt.search.ledger import Ledger, whole
from fastopt.search.progress import Line
from fastopt.search.result import Progress, Result
from fastopt.search.stopping import Stopper
from fastopt.search.workers import Inline, Task, Workers

__all__ = ["Run"]

log = logging.getLogger("fastopt.search")

# Cells of the trials' matrix up to which every trial is kept for to_frame (256 MB).
KEEP_CELLS = 1 << 25
# Seconds between two looks whether Ctrl-C was pressed, while others evaluate.
LOOK_S = 0.05
# Messages of a search that ended before what is already finished: that no longer counts.
EARLY = ("stopped by", "patience", "target")
# Trials of a batch that end by the same rule: what earlier batches taught a stopper.
STOPPED_BATCH = 8
# Batches without any new point of a finite space after which the rest is listed.
STALE = 4


class Run:
    """See the module. The driver fills in what is optional."""

    def __init__(
        self,
        objective: Objective,
        engine: Engine,
        budget: Budget,
        *,
        batch: int = 0,
        on_error: str = "raise",
        on_interrupt: str = "return",
        keep_trials: bool | None = None,
        callback: Callable[[Progress], Any] | None = None,
        reason: str = "",
        maximize: bool | tuple[bool, ...] = False,
    ) -> None:
        self.objective = objective
        self.engine = engine
        self.space = engine.space
        self.budget = budget
        self.batch = batch
        self.raises = on_error == "raise"
        self.on_interrupt = on_interrupt
        self.callback = callback
        self.reason = reason
        self.maximize = maximize
        self.journal: Journal | None = None
        self.retry_failed = False
        self.workers: Workers | None = None
        self.stopper: Stopper | None = None
        self.lookahead: int | None = None
        self.line: Line | None = None
        self.arrived, self.shown = 0, math.inf
        self.vectorized = False
        # What callers want to see or decide after each trial.
        self.per_trial = callback is not None or budget.patience or budget.target is not None
        limit = budget.max_evals
        cells = self.space.n_columns * (limit or 1 << 20)
        keep = cells <= KEEP_CELLS if keep_trials is None else keep_trials
        self.trials = Ledger(objective, engine, keep)
        self.limit = math.inf if limit is None else limit
        self.asked = 0
        self.failure: Exception | None = None
        self.start = time.monotonic()
        self.deadline = math.inf
        if budget.max_time is not None:
            self.deadline = self.start + budget.max_time
        self.message = ""
        self.interrupts = 0
        self.evaluating = False
        self.unseen: dict[bytes, Matrix] | None = None  # points of a finite space not tried yet
        self.seen: dict[bytes, int] = {}  # point -> number of its trial
        self.told: dict[int, tuple[Any, float]] = {}  # and what came out
        self.retried = False

    # --- the whole

    def finish(self, loop: Callable[[], None]) -> Result:
        """Run ``loop`` to its end, whatever that is, and put the result together."""
        log.info("%s over %d variables", self.engine.method, len(self.space.names))
        error: BaseException | None = None
        try:
            with self._ctrl_c():
                try:
                    loop()
                except KeyboardInterrupt as stop:
                    self.message, error = "interrupted", stop
                finally:
                    self._close()
        except Exception as failure:
            self.message = self.message or f"{type(failure).__name__}: {failure}"
            self._attach(failure)
            raise
        if self.message == "interrupted" and self.on_interrupt == "raise":
            error = error or KeyboardInterrupt()
            self._attach(error)
            raise error
        result = self.result()
        log.info("%s: %d evaluations, best %s", self.message, result.n_evals, result.fun)
        return result

    def _close(self) -> None:
        try:
            if self.workers is not None:
                self.workers.close()
        finally:
            if self.line is not None:
                self.line.end()
            if self.journal is not None:
                self.journal.close()

    def _attach(self, error: BaseException) -> None:
        """What was found goes with the exception, as ``error.result``."""
        with suppress(AttributeError):  # an exception of fixed slots
            error.result = self.result()  # type: ignore[attr-defined]

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends the search between two steps, or inside the objective; it is not
        lost where the objective swallows it. The second one is an ordinary KeyboardInterrupt."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return

        def pressed(number: int, frame: Any) -> None:
            self.interrupts += 1
            if self.evaluating or self.interrupts > 1:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    # --- synchronous

    def sync(self) -> None:
        self.prepare()
        # Batches that the engine may propose before the oldest of them is told.
        finite = self.unseen is not None
        told = finite or self.vectorized or self.stopper is not None
        ahead = 0 if told else self.engine.lag if self.lookahead is None else self.lookahead
        open_: deque[Batch] = deque()
        try:
            while not self.message:
                while len(open_) <= ahead and self.asked < self.limit and self.in_time():
                    batch = self._propose()
                    if batch is None:
                        break
                    batch.stop = self.rule()
                    open_.append(batch)
                    self._send(batch)
                if not open_:
                    self.message = self.message or self.budget_reached()
                    break
                if self.vectorized:
                    self._evaluate_at_once(open_[0])
                elif self.workers is None:
                    self._evaluate_here(open_[0])
                else:
                    self._await(open_)
                if self.interrupts:
                    self.message = "interrupted"
                if open_[0].missing or self.failure is not None:  # ended early
                    self.message = self.message or self.budget_reached()
                    break
                self.settle(open_[0])
                self.learn(open_[0])
                open_.popleft()
        finally:
            self.evaluating = False
            for batch in open_:
                self.settle(batch, gaps=True)
                self.learn(batch)
            if self.failure is not None:
                raise self.failure

    def prepare(self) -> None:
        if self.space.size <= LISTED:
            points = self.space.points()
            order = generator_of(self.engine.key).permutation(len(points))
            self.unseen = {points[i].tobytes(): points[i] for i in order}

    def in_time(self) -> bool:
        return self.deadline == math.inf or time.monotonic() < self.deadline

    def budget_reached(self) -> str:
        if self.failure is not None:
            return f"{type(self.failure).__name__}: {self.failure}"
        if not self.in_time():
            return f"max_time={self.budget.max_time:g} s reached"
        return f"max_evals={self.budget.max_evals} reached"

    def _propose(self) -> Batch | None:
        """The next batch; None, with the reason in ``message``, if there is nothing to propose."""
        room = self.limit - self.asked
        for _ in range(STALE if self.unseen != {} else 0):
            k = int(min(self.batch or self._wanted(), room))
            values = self.engine.propose(k)
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
            k = int(min(self.batch or self._wanted(), room))
            rest = np.array(list(self.unseen.values())[:k])
            rows = [i for i, row in enumerate(rest) if self._is_new(row)]
            return self._known(Batch(rest, self.asked, rows))
        self.message = EXHAUSTED
        return None

    def _wanted(self) -> int:
        """Trials of a batch; fewer where a stopper learns from each batch."""
        wanted = self.engine.wants()
        return wanted if self.stopper is None else min(wanted, STOPPED_BATCH)

    def _is_new(self, row: Matrix) -> bool:
        """Whether a point of a finite space comes for the first time; it is noted then."""
        key = row.tobytes()
        assert self.unseen is not None
        if key in self.seen:
            return False
        self.unseen.pop(key, None)
        self.seen[key] = len(self.seen)  # every new point is a trial
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
                if not self.retried:
                    raise FormatError(
                        f"trial {number} was evaluated at another point than is proposed now: the "
                        "journal is of another version or machine",
                        self.journal.path,
                    )
                self.journal.forget(number)
                break
            if self.retry_failed and record.outcome.failed:
                self.retried = True
                continue
            batch.outcomes[i] = record.outcome
            batch.known.add(i)
            batch.missing -= 1
        return batch

    def _send(self, batch: Batch) -> None:
        if self.workers is None or self.vectorized or not batch.missing:
            return
        todo = [i for i, o in enumerate(batch.outcomes) if o is None]
        trials = self.space.dicts_of(batch.fresh[todo])
        stop = batch.stop
        self.workers.send(
            [Task(batch.first + i, t, stop) for i, t in zip(todo, trials, strict=True)]
        )

    def rule(self) -> Any:
        return None if self.stopper is None else self.stopper.rule()

    def _evaluate_here(self, batch: Batch) -> None:
        objective, outcomes = self.objective, batch.outcomes
        todo = [i for i, o in enumerate(outcomes) if o is None]
        trials = self.space.dicts_of(batch.fresh[todo])
        stop = batch.stop
        timed = self.deadline < math.inf
        watched = self.journal is not None or self.line is not None
        careful = timed or self.per_trial or watched
        results = objective.each(trials, stop)
        if not careful:
            self.evaluating = True
            for i, outcome in zip(todo, results, strict=True):
                outcomes[i] = outcome
                batch.missing -= 1
                if self.interrupts or (type(outcome) is not float and self.is_fatal(outcome)):
                    break
            self.evaluating = False
            return
        self.settle(batch, ready=True)
        for i in todo:
            if self.message or (timed and time.monotonic() >= self.deadline):
                return
            self.evaluating = True
            outcome = next(results)
            self.evaluating = False
            self.record(batch, i, outcome)
            if self.per_trial:
                self.settle(batch, ready=True)
            if self.interrupts or (type(outcome) is not float and self.is_fatal(outcome)):
                return

    def _evaluate_at_once(self, batch: Batch) -> None:
        """Vectorised: the whole batch in one call, unless the journal has all of it."""
        if not batch.missing:
            return
        batch.known.clear()
        failure: Exception | None = None
        count, limits = len(batch.fresh), None
        self.evaluating = True
        try:
            y, limits = self.objective.batch(batch.fresh)
        except Exception as error:
            failure, y = error, np.full(count, math.nan)
        self.evaluating = False
        outcomes: list[Any] = y.tolist() if y.ndim == 1 else [tuple(row) for row in y.tolist()]
        if y.ndim > 1 or limits is not None:
            c = [()] * count if limits is None else [tuple(row) for row in limits.tolist()]
            outcomes = [Outcome(v, c[i]) for i, v in enumerate(outcomes)]
        if failure is not None:
            message = f"{type(failure).__name__}: {failure}"
            outcomes[0] = Outcome(math.nan, (), message, failure)
            self.is_fatal(outcomes[0])
        if self.journal is not None:
            self.journal.append(
                (batch.first + i, row, whole(o), None)
                for i, (row, o) in enumerate(zip(batch.fresh, outcomes, strict=True))
            )
        batch.outcomes, batch.missing = outcomes, 0

    def _await(self, open_: deque[Batch]) -> None:
        """Until the oldest batch is complete, or the search is to end."""
        oldest = open_[0]
        assert self.workers is not None
        self.settle(oldest, ready=True)
        while oldest.missing and not self.message and not self.interrupts:
            for number, outcome in self.wait():
                batch = next(b for b in open_ if number - b.first < len(b.fresh))
                self.record(batch, number - batch.first, outcome)
                if self.is_fatal(outcome):
                    return
            if self.per_trial:
                self.settle(oldest, ready=True)
            if not self.in_time():
                return

    def wait(self) -> list[tuple[int, float | Outcome]]:
        """What arrives within a moment."""
        assert self.workers is not None
        left = min(LOOK_S, self.deadline - time.monotonic())
        self.evaluating = isinstance(self.workers, Inline)
        arrivals = self.workers.arrivals(max(left, 0.0))
        self.evaluating = False
        return arrivals

    def is_fatal(self, outcome: float | Outcome) -> bool:
        """Whether a trial ends the search; its error is raised when all else is recorded."""
        if not self.raises or not isinstance(outcome, Outcome) or outcome.error is None:
            return False
        self.failure = self.failure or outcome.error
        return True

    def record(
        self, batch: Batch, i: int, outcome: float | Outcome, asked: int | None = None
    ) -> None:
        batch.outcomes[i] = outcome
        batch.missing -= 1
        if self.line is not None:
            self._show(outcome)
        if self.journal is not None:
            self.journal.append([(batch.first + i, batch.fresh[i], whole(outcome), asked)])

    def _show(self, outcome: float | Outcome) -> None:
        """The progress line, which counts trials as they arrive."""
        assert self.line is not None
        self.arrived += 1
        if not isinstance(outcome, Outcome):
            self.shown = min(self.shown, outcome) if outcome == outcome else self.shown
        fun = min(self.shown, self.trials.best[1] if self.trials.best[0] == 0.0 else math.inf)
        self.line.show(self.arrived, self.objective.signs[0] * fun)

    # --- from outcomes to the result

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
            if outcome is None or self.message.startswith(EARLY):
                batch.outcomes[i] = None
                continue
            self._settle_one(batch.first + i, batch.fresh[i], outcome)
            if self.per_trial and not self.vectorized:
                self._judge()
        if self.vectorized:
            self._judge()
            if self.line is not None:
                self.line.show(len(self.trials), self.trials.fun)

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
        if self.callback is not None and self.callback(self.progress()):
            self.message = "stopped by the callback"
        elif self.budget.patience and self.trials.since >= self.budget.patience:
            self.message = f"patience={self.budget.patience}: no improvement"
        elif self.budget.target is not None and self.trials.best <= (0.0, self.budget.target):
            self.message = "target reached"

    def progress(self) -> Progress:
        elapsed = time.monotonic() - self.start
        return Progress(len(self.trials), self.trials.fun, self.trials.x, elapsed)

    def learn(self, batch: Batch) -> None:
        """Tell the engine the finished part of a batch; points that it repeats are answered from
        what is known."""
        if batch.y is not None:  # settled at once
            self.engine.learn(batch.values, batch.y)
            return
        numbers = range(batch.first, batch.first + len(batch.fresh))
        if batch.rows is not None:
            for number, outcome in zip(numbers, batch.outcomes, strict=True):
                if outcome is not None:
                    self.told[number] = told_of(outcome)
            rows = [
                i for i, row in enumerate(batch.values) if self.seen[row.tobytes()] in self.told
            ]
            told = [self.told[self.seen[batch.values[i].tobytes()]] for i in rows]
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
        violation = np.array([v for _, v in told]) if self.objective.constraints else None
        self.engine.learn(rows_of(batch.values, rows), y, violation)

    # --- the result

    def result(self) -> Result:
        return self.trials.result(
            message=self.message,
            method_reason=self.reason,
            elapsed_s=time.monotonic() - self.start,
            interrupted=self.message == "interrupted",
            maximize=self.maximize,
        )
