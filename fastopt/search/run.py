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

from fastopt.search.batch import EXHAUSTED, Batch, Budget
from fastopt.search.cohorts import evaluate_cohort
from fastopt.search.counting import Counting
from fastopt.search.engine import Engine
from fastopt.search.evaluation import Objective, Outcome
from fastopt.search.here import evaluate_at_once, evaluate_here
from fastopt.search.journal import Journal
from fastopt.search.ledger import Ledger
from fastopt.search.progress import Line
from fastopt.search.proposals import Proposals
from fastopt.search.result import Progress, Result
from fastopt.search.stopping import Ladder, Stopper
from fastopt.search.workers import Inline, Task, Workers

__all__ = ["Run"]

log = logging.getLogger("fastopt.search")

# Cells of the trials' matrix up to which every trial is kept for to_frame (256 MB).
KEEP_CELLS = 1 << 25
# Seconds between two looks whether Ctrl-C was pressed, while others evaluate.
LOOK_S = 0.05
# Trials of a batch that end by the same rule: what earlier batches taught a stopper.
STOPPED_BATCH = 8


class Run:
    """See the module. The driver fills in what is optional: workers, a journal, a stopper, the
    progress line."""

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
        vectorized: bool = False,
        lookahead: int | None = None,
    ) -> None:
        self.objective, self.engine, self.budget = objective, engine, budget
        self.space = engine.space
        self.batch, self.lookahead, self.vectorized = batch, lookahead, vectorized
        self.raises = on_error == "raise"
        self.on_interrupt = on_interrupt
        self.reason, self.maximize = reason, maximize
        limit = budget.max_evals
        cells = self.space.n_columns * (limit or 1 << 20)
        keep = cells <= KEEP_CELLS if keep_trials is None else keep_trials
        self.trials = Ledger(objective, engine, keep)
        self.proposals = Proposals(engine, self.trials, math.inf if limit is None else limit)
        self.counting = Counting(self.trials, budget, callback, vectorized)
        self.workers: Workers | None = None
        self.stopper: Stopper | None = None
        self.cohorts = False
        self.deadline = math.inf
        if budget.max_time is not None:
            self.deadline = self.counting.start + budget.max_time
        self.failure: Exception | None = None
        self.interrupts = 0
        self.evaluating = False
        self._message = ""

    @property
    def message(self) -> str:
        """Why the search ends; empty while it goes on."""
        return self.counting.ended or self._message

    @message.setter
    def message(self, text: str) -> None:
        self._message = text

    def watch(
        self,
        journal: Journal | None,
        stopper: Stopper | None,
        line: Line | None,
        *,
        cohorts: bool,
        retry_failed: bool,
    ) -> None:
        """Whom trials are shown to as they finish; whether they can wait for each other, and
        whether failed ones are tried again."""
        self.stopper = self.counting.stopper = stopper
        self.cohorts = cohorts
        self.counting.line = line
        self.counting.journal = self.proposals.journal = journal
        self.proposals.retry_failed = retry_failed

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
            if self.counting.line is not None:
                self.counting.line.end()
            if self.counting.journal is not None:
                self.counting.journal.close()

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
        self.proposals.list_points()
        # Batches that the engine may propose before the oldest of them is told.
        finite = self.proposals.unseen is not None
        told = finite or self.vectorized or self.stopper is not None
        ahead = 0 if told else self.engine.lag if self.lookahead is None else self.lookahead
        open_: deque[Batch] = deque()
        try:
            while not self.message:
                while len(open_) <= ahead and self.proposals.room > 0 and self.in_time():
                    batch = self.proposals.next(self._wanted)
                    if batch is None:
                        self.message = EXHAUSTED
                        break
                    batch.ladder = self._ladder()
                    batch.stop = self.rule()
                    open_.append(batch)
                    if batch.ladder is None:
                        self._send(batch)
                if not open_:
                    self.message = self.message or self.budget_reached()
                    break
                if open_[0].ladder is not None:
                    evaluate_cohort(self, open_[0], open_[0].ladder)
                elif self.vectorized:
                    evaluate_at_once(self, open_[0])
                elif self.workers is None:
                    evaluate_here(self, open_[0])
                else:
                    self._await(open_)
                if self.interrupts:
                    self.message = "interrupted"
                if open_[0].missing or self.failure is not None:  # ended early
                    self.message = self.message or self.budget_reached()
                    break
                self.counting.settle(open_[0])
                self.proposals.learn(open_[0])
                open_.popleft()
        finally:
            self.evaluating = False
            for batch in open_:
                self.counting.settle(batch, gaps=True)
                self.proposals.learn(batch)
            if self.failure is not None:
                raise self.failure

    def in_time(self) -> bool:
        return self.deadline == math.inf or time.monotonic() < self.deadline

    def budget_reached(self) -> str:
        if self.failure is not None:
            return f"{type(self.failure).__name__}: {self.failure}"
        if not self.in_time():
            return f"max_time={self.budget.max_time:g} s reached"
        return f"max_evals={self.budget.max_evals} reached"

    def _wanted(self) -> int:
        """Trials of a batch; fewer where a stopper learns from each batch."""
        if self.batch:
            return self.batch
        ladder = self._ladder()
        if ladder is not None:
            return ladder.size
        wanted = self.engine.wants()
        return wanted if self.stopper is None else min(wanted, STOPPED_BATCH)

    def _ladder(self) -> Ladder | None:
        """How the next batch is thinned, where its trials can wait for each other."""
        return self.stopper.ladder() if self.stopper is not None and self.cohorts else None

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

    def _await(self, open_: deque[Batch]) -> None:
        """Until the oldest batch is complete, or the search is to end."""
        oldest = open_[0]
        assert self.workers is not None
        self.counting.settle(oldest, ready=True)
        while oldest.missing and not self.message and not self.interrupts:
            for number, outcome in self.wait():
                batch = next(b for b in open_ if number - b.first < len(b.fresh))
                self.counting.record(batch, number - batch.first, outcome)
                if self.is_fatal(outcome):
                    return
            if self.counting.per_trial:
                self.counting.settle(oldest, ready=True)
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

    # --- the result

    def result(self) -> Result:
        return self.trials.result(
            message=self.message,
            method_reason=self.reason,
            elapsed_s=self.counting.elapsed,
            interrupted=self.message == "interrupted",
            maximize=self.maximize,
        )
