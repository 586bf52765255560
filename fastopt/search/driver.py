"""The loop: ask an engine, evaluate, tell, until a budget ends."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from fastopt._options import choice, integer, number
from fastopt._random import Seed
from fastopt.errors import DTypeError, OptionError
from fastopt.search.engine import Engine, fingerprint, space_of
from fastopt.search.evaluation import (
    Outcome,
    evaluate_batch,
    evaluate_many,
    evaluate_one,
    takes_keywords,
)
from fastopt.search.journal import Journal, stored_header
from fastopt.search.methods import engine_for
from fastopt.search.result import Progress, Result
from fastopt.search.space import Matrix, Space

__all__ = ["minimize"]

# Cells of the trials' matrix up to which every trial is kept for to_frame (256 MB).
KEEP_CELLS = 1 << 25
# Work in one task of an executor, so that sending it costs little.
CHUNK_S = 0.05


def minimize(
    f: Callable[..., Any],
    space: Space | Mapping[str, Any],
    *,
    method: str | Engine = "auto",
    max_evals: int | None = 1000,
    max_time: float | None = None,
    vectorized: bool = False,
    executor: Any = None,
    seed: Seed = 0,
    storage: Any = None,
    callback: Callable[[Progress], Any] | None = None,
    x0: Any = None,
    batch_size: int | None = None,
    on_error: str = "raise",
    keep_trials: bool | None = None,
) -> Result:
    """Search ``space`` for the trial with the lowest f.

    Parameters
    ----------
    f : callable
        Called with keyword arguments if its parameters are the variables' names, else with one
        dict; returns a real number. With ``vectorized`` it gets k trials at once, a (k, d)
        float64 matrix if every variable is a Float, Int or Vector, else a dict of k-element
        columns, and returns (k,).
    space : Space or dict of variables
    method : "auto", "random", "greedy", "genetic", or an engine
        See docs/search.md for which to use.
    max_evals : int or None
        Budget in evaluations; None for no limit (then ``max_time`` is needed).
    max_time : float, optional
        Budget in seconds; no trial (or batch) starts after it.
    vectorized : bool
        f takes k trials at once.
    executor : concurrent.futures.Executor, optional
        Where trials run; the result is the same for any number of workers.
    seed : int, SeedSequence or Generator
    storage : path, optional
        Journal of finished trials, each on disk before the next is chosen. The same call
        continues it, also after a crash, with the same trials as a run that was never stopped;
        ``max_evals`` and ``max_time`` may differ.
    callback : callable, optional
        Gets a ``Progress`` after each trial (vectorised or with an executor: after each batch);
        a true return value ends the search.
    x0 : dict, list of dicts, or matrix for a numeric space, optional
        Trials to begin with.
    batch_size : int, optional
        Trials proposed from the same knowledge; by default as many as the engine wants next,
        never chosen by the number of workers.
    on_error : "raise" or "skip"
        What follows a trial that raised or returned no number, after it was recorded.
    keep_trials : bool, optional
        Keep each trial's values for ``to_frame``; by default up to 256 MB of them.

    Returns
    -------
    Result
        ``.x``, ``.fun``, ``.n_evals``, ``.history``, ``.message``, ``.to_frame()`` ...

    Raises
    ------
    TrialError
        f returned something that is not a number (``on_error="raise"``).

    Notes
    -----
    NaN and minus infinity count as failed trials: recorded, never the best, no error. Plus
    infinity is a value, ranked last. Ctrl-C ends the search and returns the best so far. The
    same seed gives the same trials, up to where a time budget cuts them off.

    Examples
    --------
    >>> from fastopt import Float, Int, Space, minimize
    >>> space = Space(x=Float(-2, 2), n=Int(1, 8))
    >>> res = minimize(lambda x, n: (x - 1) ** 2 + abs(n - 3), space, max_evals=300)
    >>> res.x["n"], bool(abs(res.x["x"] - 1) < 0.05)
    (3, True)
    """
    if not callable(f):
        raise DTypeError(f"f: expected a callable, got {type(f).__name__}")
    space = space_of(space)
    if max_evals is not None:
        max_evals = integer(max_evals, "max_evals", low=1)
    elif max_time is None:
        raise OptionError("max_evals: None needs max_time, or the search would not end")
    if max_time is not None:
        max_time = number(max_time, "max_time", low=0)
    if batch_size is not None:
        batch_size = integer(batch_size, "batch_size", low=1)
    choice(on_error, "on_error", ("raise", "skip"))
    if isinstance(x0, Mapping):
        x0 = [x0]
    stored = {} if storage is None else stored_header(storage)
    engine, reason = engine_for(
        method,
        space,
        max_evals=max_evals,
        vectorized=vectorized,
        seed=seed,
        x0=x0,
        stored=stored,
    )
    batch = batch_size or stored.get("batch") or 0
    if executor is not None:
        if not callable(getattr(executor, "submit", None)):
            raise DTypeError(
                f"executor: expected a concurrent.futures.Executor, got {type(executor).__name__}"
            )
        if vectorized:
            raise OptionError("executor: is for one trial a call; use vectorized=False")
    journal = None
    if storage is not None:
        journal = Journal(storage, _header(engine, seed, batch, x0))
    run = _Run(f, engine, vectorized, on_error, keep_trials, max_evals, callback)
    run.journal, run.executor, run.reason = journal, executor, reason
    try:
        return run.loop(max_evals, max_time, batch)
    finally:
        if journal is not None:
            journal.close()


def _header(engine: Engine, seed: Seed, batch: int, x0: Any) -> dict[str, Any]:
    """What must be equal for a journal to be continued: all that proposals depend on."""
    if isinstance(seed, np.random.Generator) or seed is None:
        raise OptionError("storage: needs a seed that can be given again (an int)")
    first = None if x0 is None else fingerprint(engine.space.parse(x0, "x0"))
    return {
        "space": repr(engine.space),
        "method": engine.method,
        "key": engine.key,
        "options": engine.options(),
        "batch": batch,
        "own_batch": engine.batch,
        "x0": first,
    }


class _Run:
    """One search under way: what was evaluated and what came out."""

    def __init__(
        self,
        f: Callable[..., Any],
        engine: Engine,
        vectorized: bool,
        on_error: str,
        keep_trials: bool | None,
        max_evals: int | None,
        callback: Callable[[Progress], Any] | None,
    ) -> None:
        self.f = f
        self.engine = engine
        self.space = engine.space
        self.vectorized = vectorized
        self.keywords = not vectorized and takes_keywords(f, self.space)
        self.on_error = on_error
        self.callback = callback
        cells = self.space.n_columns * (max_evals or 1 << 20)
        self.keep = cells <= KEEP_CELLS if keep_trials is None else bool(keep_trials)
        self.history = array("d")
        self.kept: list[Matrix] = []
        self.errors: dict[int, str] = {}
        self.best = math.inf
        self.best_values: Matrix | None = None
        self.start = time.monotonic()
        self.deadline = math.inf
        self.message = ""
        self.reason = ""
        self.journal: Journal | None = None
        self.executor: Any = None
        self.seconds = 0.0  # spent in f by workers, for the size of chunks
        self.counted = 0

    def loop(self, max_evals: int | None, max_time: float | None, batch: int) -> Result:
        self.deadline = math.inf if max_time is None else self.start + max_time
        limit = math.inf if max_evals is None else max_evals
        try:
            while not self.message:
                if len(self.history) >= limit:
                    self.message = f"max_evals={max_evals} reached"
                elif time.monotonic() >= self.deadline:
                    self.message = f"max_time={max_time:g} s reached"
                else:
                    k = batch or self.engine.wants()
                    self._batch(int(min(k, limit - len(self.history))))
        except KeyboardInterrupt:
            self.message = "interrupted"
        return self._result()

    def _batch(self, k: int) -> None:
        values = self.engine.propose(k)
        first = len(self.history)
        try:
            if self.vectorized:
                self._vectorized(values)
            elif self.executor is not None:
                self._parallel(values)
            else:
                self._serial(values)
        finally:
            done = len(self.history) - first
            if done:
                y = np.frombuffer(self.history, dtype=np.float64)[first:].copy()
                self.engine.learn(values[:done], y)
                if self.keep:
                    self.kept.append(values[:done].copy())

    def _vectorized(self, values: Matrix) -> None:
        first, k = len(self.history), len(values)
        known = self._known(first, k)
        if len(known) == k:
            y = np.array([v for v, _ in known])
            self.errors.update({first + i: e for i, (_, e) in enumerate(known) if e is not None})
        else:
            failure: Exception | None = None
            try:
                y = evaluate_batch(self.f, self.space, values)
            except Exception as error:
                failure, y = error, np.full(k, math.nan)
                self.errors[first] = f"{type(error).__name__}: {error}"
            self._store(
                [(first + i, v, self.errors.get(first + i)) for i, v in enumerate(y.tolist())]
            )
            if failure is not None and self.on_error == "raise":
                self.history.frombytes(y.tobytes())
                raise failure
        self.history.frombytes(y.tobytes())
        if not np.isnan(y).all():
            i = int(np.nanargmin(y))
            self._better(float(y[i]), values[i])
        self._report()

    def _serial(self, values: Matrix) -> None:
        f, keywords, history = self.f, self.keywords, self.history
        deadline, monotonic = self.deadline, time.monotonic
        known = self._known(len(history), len(values))
        for i, trial in enumerate(self.space.dicts_of(values)):
            if i < len(known):
                self._record(Outcome(*known[i], None, 0.0), values[i], fresh=False)
                continue
            if deadline < math.inf and monotonic() >= deadline:
                return
            try:
                y = evaluate_one(f, trial, keywords)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                self._record(Outcome(math.nan, message, error, 0.0), values[i])
                continue
            if self.journal is not None:
                self._store([(len(history), y, None)])
            history.append(y)
            if y < self.best:
                self._better(y, values[i])
            if self.callback is not None:
                self._report()
                if self.message:
                    return

    def _parallel(self, values: Matrix) -> None:
        """Chunks of about 50 ms to the executor; results are taken in the order of trials."""
        known = self._known(len(self.history), len(values))
        for i, (y, error) in enumerate(known):
            self._record(Outcome(y, error, None, 0.0), values[i], fresh=False)
        values = values[len(known) :]
        trials = self.space.dicts_of(values)
        each = self.seconds / self.counted if self.counted else math.inf
        size = max(1, min(math.ceil(len(trials) / 2), int(CHUNK_S / max(each, 1e-7))))
        tasks = [
            self.executor.submit(evaluate_many, self.f, trials[i : i + size], self.keywords)
            for i in range(0, len(trials), size)
        ]
        done = 0
        try:
            for task in tasks:
                left = None if self.deadline == math.inf else self.deadline - time.monotonic()
                try:
                    outcomes = task.result(None if left is None else max(left, 0.0))
                except (TimeoutError, futures.TimeoutError):
                    return
                self._store(
                    [(len(self.history) + i, o.y, o.message) for i, o in enumerate(outcomes)]
                )
                self.seconds += sum(o.seconds for o in outcomes)
                self.counted += len(outcomes)
                for outcome in outcomes:
                    self._record(outcome, values[done], store=False)
                    done += 1
        finally:
            for task in tasks:
                task.cancel()
        self._report()

    def _record(
        self, outcome: Outcome, values: Matrix, fresh: bool = True, store: bool = True
    ) -> None:
        """Append one trial; raise its error after that, unless it came from the journal."""
        if outcome.message is not None:
            self.errors[len(self.history)] = outcome.message
        if fresh and store:
            self._store([(len(self.history), outcome.y, outcome.message)])
        self.history.append(outcome.y)
        if outcome.y < self.best:
            self._better(outcome.y, values)
        if fresh and outcome.error is not None and self.on_error == "raise":
            raise outcome.error

    def _known(self, first: int, k: int) -> list[tuple[float, str | None]]:
        """What the journal holds of trials first..first + k - 1, up to the first gap."""
        known: list[tuple[float, str | None]] = []
        if self.journal is not None:
            while len(known) < k and first + len(known) in self.journal.trials:
                known.append(self.journal.trials[first + len(known)])
        return known

    def _store(self, records: list[tuple[int, float, str | None]]) -> None:
        if self.journal is not None and records:
            self.journal.append(records)

    def _better(self, y: float, values: Matrix) -> None:
        if y < self.best or self.best_values is None:
            self.best, self.best_values = y, values.copy()

    def _x(self) -> dict[str, Any] | None:
        if self.best_values is None:
            return None
        return self.space.dicts_of(self.best_values[None])[0]

    def _report(self) -> None:
        if self.callback is not None:
            now = time.monotonic() - self.start
            fun = self.best if self.best_values is not None else math.nan
            if self.callback(Progress(len(self.history), fun, self._x(), now)):
                self.message = "stopped by the callback"

    def _result(self) -> Result:
        history = np.array(self.history, dtype=np.float64)
        values = None
        if self.keep:
            values = np.concatenate([np.empty((0, self.space.n_columns)), *self.kept])
        return Result(
            x=self._x(),
            fun=self.best if self.best_values is not None else math.nan,
            n_evals=len(history),
            n_failed=int(np.isnan(history).sum()),
            history=history,
            message=self.message,
            method=self.engine.method,
            method_reason=self.reason,
            elapsed_s=time.monotonic() - self.start,
            space=self.space,
            errors=self.errors,
            values=values,
        )
