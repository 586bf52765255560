"""``minimize``: checks what it is given, chooses engine and workers, and runs the search."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._options import choice, flag, integer, items, number
from fastopt._random import Seed
from fastopt.errors import (
    DTypeError,
    FastoptError,
    FormatError,
    OptionError,
    UnsupportedError,
)
from fastopt.search.batch import Budget
from fastopt.search.engine import Engine, Random, fingerprint, space_of
from fastopt.search.evaluation import Objective
from fastopt.search.executors import Executor
from fastopt.search.free_running import free_running
from fastopt.search.identity import digest_of
from fastopt.search.journal import Journal, stored_header
from fastopt.search.layout import Matrix
from fastopt.search.methods import engine_for
from fastopt.search.numbers import as_numbers
from fastopt.search.processes import Processes
from fastopt.search.progress import Line
from fastopt.search.result import Progress, Result
from fastopt.search.run import Run
from fastopt.search.space import Space
from fastopt.search.stopping import stopper_of

__all__ = ["minimize"]


def minimize(
    f: Callable[..., Any],
    space: Space | Mapping[str, Any],
    *,
    method: str | Engine = "auto",
    max_evals: int | None = 1000,
    max_time: float | None = None,
    vectorized: bool = False,
    workers: int | None = None,
    executor: Any = None,
    seed: Seed = 0,
    storage: Any = None,
    callback: Callable[[Progress], Any] | None = None,
    x0: Any = None,
    prior: Sequence[tuple[Any, Any]] | None = None,
    batch_size: int | None = None,
    lookahead: int | None = None,
    mode: str = "sync",
    maximize: bool | Sequence[bool] = False,
    constraints: int = 0,
    patience: int | None = None,
    target: float | None = None,
    timeout: float | None = None,
    stopper: Any = None,
    progress: bool = False,
    on_error: str = "raise",
    on_interrupt: str = "return",
    retry_failed: bool = False,
    keep_trials: bool | None = None,
) -> Result:
    """Search ``space`` for the trial with the lowest f.

    Parameters
    ----------
    f : callable
        Called with keyword arguments if its parameters are the variables' names, else with one
        dict; returns a real number. Inactive variables are absent. With ``vectorized`` it gets k
        trials at once, a (k, d) float64 matrix if every variable is a Float, Int or Vector, else
        a dict of k-element columns, and returns (k,). For several objectives
        (``method="nsga2"``) it returns two or more numbers, or (k, n_objectives).
    space : Space or dict of variables
    method : str or engine
        "auto", "random", "greedy", "genetic" ...; see docs/search.md for which to use.
    max_evals : int or None
        Budget in evaluations; None for no limit (then ``max_time`` is needed).
    max_time : float, optional
        Budget in seconds; no trial (or batch) starts after it.
    vectorized : bool
        f takes k trials at once.
    workers : int, optional
        Evaluate in that many processes of our own. A trial whose process dies is tried once
        more, then it has failed (``WorkerDied``).
    executor : concurrent.futures.Executor, optional
        Where trials run instead: processes, threads, loky, Dask, MPI. The result is the same for
        any number of workers.
    seed : int, SeedSequence or Generator
    storage : path, optional
        Journal of finished trials. The same call continues it, also after a crash, with the same
        trials as a run that was never stopped; ``max_evals`` and ``max_time`` may differ.
    callback : callable, optional
        Gets a ``Progress`` after each trial, in the order of trials (vectorised: after each
        batch); a true return value ends the search.
    x0 : dict, list of dicts, or matrix for a numeric space, optional
        Trials to begin with. A dict may lack variables: those are drawn.
    prior : list of (trial, result), optional
        What is known already: told to the engine, not counted. ``result`` is what f would
        return.
    batch_size : int, optional
        Trials proposed from the same knowledge; by default as many as the engine wants next,
        never chosen by the number of workers. In asynchronous mode: trials under way at a time.
    lookahead : int, optional
        Batches that are proposed before the oldest of them is told; by default what the engine
        says, 0 for those that learn. More keep many workers busy while one is slow, with the
        same result for any number of them, at the price of older knowledge.
    mode : "sync" or "async"
        "sync": proposals depend on the seed and on finished batches, so any number of workers
        gives the same result. "async": a new trial is proposed whenever one arrives, so no
        worker waits; the order of arrival is in the journal, by which the search can be replayed.
    maximize : bool, or one per objective
        Look for the highest f; results keep f's sign.
    constraints : int
        f returns ``(objective, that many numbers)``; a trial is feasible where all are <= 0.
    patience : int, optional
        End after that many evaluations in a row without a better one.
    target : float, optional
        End when a feasible trial is as good as this.
    timeout : float, optional
        Seconds for one trial, with ``workers``: its process is then killed and replaced, and the
        trial has failed.
    stopper : str or Stopper, optional
        "halving", "hyperband", "asha", "median" or "wilcoxon": ends trials early by what they
        report. f then takes ``report`` and calls ``report(step, value)``, which raises
        ``TrialStopped``, or it is a generator that yields its values.
    progress : bool
        One line on stderr where that is a terminal: evaluations, rate, best, time left.
    on_error : "raise" or "skip"
        What follows a trial that raised or returned no number, after it was recorded. The
        exception has what was found as ``.result``.
    on_interrupt : "return" or "raise"
        After Ctrl-C return the best so far, with ``.interrupted``, or raise KeyboardInterrupt
        (with ``.result``). A second Ctrl-C raises at once.
    retry_failed : bool
        Evaluate the failed trials of a journal again.
    keep_trials : bool, optional
        Keep each trial's values for ``to_frame``; by default up to 256 MB of them.

    Returns
    -------
    Result
        ``.x``, ``.fun``, ``.n_evals``, ``.history``, ``.message``, ``.to_frame()`` ...

    Raises
    ------
    DTypeError, OptionError
        An argument of another kind or outside its range; options that exclude each other.
    TrialError
        f returned something that is not a number (``on_error="raise"``).
    WorkerDied
        The executor broke, or a trial's process died twice (``on_error="raise"``).
    StorageError, FormatError
        The journal cannot be written, or belongs to another search.

    Notes
    -----
    NaN and minus infinity (plus infinity if maximised) count as failed trials: recorded, never
    the best, no error. Plus infinity is a value, ranked last. The same seed gives the same
    trials, up to where a time budget cuts them off. A space of up to 65,536 points is searched
    without evaluating a point twice, and the search ends when all were tried.

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
    if callback is not None and not callable(callback):
        raise DTypeError(f"callback: expected a callable, got {type(callback).__name__}")
    space = space_of(space)
    vectorized = flag(vectorized, "vectorized")
    max_evals = None if max_evals is None else integer(max_evals, "max_evals", low=1)
    max_time = None if max_time is None else number(max_time, "max_time", low=0)
    if max_evals is None and max_time is None:
        raise OptionError("max_evals: None needs max_time, or the search would not end")
    batch_size = None if batch_size is None else integer(batch_size, "batch_size", low=1)
    lookahead = None if lookahead is None else integer(lookahead, "lookahead", low=0)
    patience = None if patience is None else integer(patience, "patience", low=1)
    target = None if target is None else number(target, "target")
    constraints = integer(constraints, "constraints", low=0)
    choice(on_error, "on_error", ("raise", "skip"))
    choice(on_interrupt, "on_interrupt", ("return", "raise"))
    choice(mode, "mode", ("sync", "async"))
    rules = copy.deepcopy(stopper_of(stopper))  # what it learns is this search's
    progress = flag(progress, "progress")
    retry_failed = flag(retry_failed, "retry_failed")
    keep_trials = None if keep_trials is None else flag(keep_trials, "keep_trials")
    workers, timeout = _checked_workers(workers, timeout, executor, vectorized)
    if mode == "async" and (vectorized or retry_failed):
        raise OptionError('mode: "async" goes neither with vectorized nor with retry_failed')

    stored = {} if storage is None else stored_header(storage)
    first = _first_trials(space, x0, seed)
    try:
        engine, reason = engine_for(
            method,
            space,
            max_evals=max_evals,
            vectorized=vectorized,
            seed=seed,
            x0=first,
            stored=stored,
        )
    except TypeError as error:
        if stored and not isinstance(error, FastoptError):
            raise FormatError(f"options of no engine: {error}", str(storage), 0) from None
        raise
    objectives, signs, maximize = _signs(maximize, engine, method is engine)
    if objectives != 1 and (target is not None or patience is not None or rules is not None):
        raise OptionError("target, patience, stopper: are for one objective")
    objective = Objective(
        f,
        space,
        objectives=objectives,
        constraints=constraints,
        signs=signs,
        vectorized=vectorized,
    )
    budget = Budget(max_evals, max_time, patience, None if target is None else signs[0] * target)
    batch = batch_size or stored.get("batch", 0)
    run = Run(
        objective,
        engine,
        budget,
        batch=batch,
        on_error=on_error,
        on_interrupt=on_interrupt,
        keep_trials=keep_trials,
        callback=callback,
        reason=reason,
        maximize=maximize,
        vectorized=vectorized,
        lookahead=lookahead,
    )
    if rules is not None and not (objective.reports or objective.yields):
        raise OptionError("stopper: f must take report, or yield its values")
    # A trial that yields can wait for the others of its cohort; one that is called back cannot.
    cohorts = mode == "sync" and objective.yields and not objective.reports
    known = _known_results(objective, prior)
    journal = None
    if storage is not None:
        header = _header(engine, seed, batch, x0, mode, signs, constraints, known[0])
        header["lookahead"] = lookahead
        if rules is not None:
            header["stopper"] = [rules.name, digest_of(vars(rules)), cohorts]
        journal = Journal(storage, header)
    line = Line(max_evals, max_time) if progress else None
    run.watch(journal, rules, line, cohorts=cohorts, retry_failed=retry_failed)
    _tell_known(run, *known)
    if executor is not None:
        run.workers = Executor(objective, executor)
    elif workers is not None:
        run.workers = Processes(objective, workers, timeout)
    return run.finish(run.sync if mode == "sync" else lambda: free_running(run))


def _checked_workers(
    workers: Any, timeout: Any, executor: Any, vectorized: bool
) -> tuple[int | None, float | None]:
    workers = None if workers is None else integer(workers, "workers", low=1)
    timeout = None if timeout is None else number(timeout, "timeout", low=0, low_open=True)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise DTypeError(
            f"executor: expected a concurrent.futures.Executor, got {type(executor).__name__}"
        )
    if workers is not None and executor is not None:
        raise OptionError("workers: is for processes of our own; the executor has its workers")
    if vectorized and (workers is not None or executor is not None):
        name = "workers" if executor is None else "executor"
        raise OptionError(f"{name}: is for one trial per call; use vectorized=False")
    if timeout is not None and workers is None:
        raise OptionError("timeout: needs workers=, whose processes can be killed")
    return workers, timeout


def _first_trials(space: Space, x0: Any, seed: Seed) -> Any:
    """``x0`` as engines take it: whole trials, those given in part completed by draws."""
    if isinstance(x0, Mapping):
        x0 = [x0]
    if not isinstance(x0, (list, tuple)) or not x0 or not isinstance(x0[0], Mapping):
        return x0
    drawn = Random(space, seed=0 if isinstance(seed, np.random.Generator) else seed)
    return space.dicts_of(space.complete(x0, drawn.propose(len(x0)), "x0"))


def _signs(
    maximize: Any, engine: Engine, given: bool
) -> tuple[int, tuple[float, ...], bool | tuple[bool, ...]]:
    """How many objectives (0: as many as f returns), their signs, and ``maximize`` checked."""
    several = engine.n_objectives != 1
    objectives = engine.n_objectives if given or not several else 0
    if not isinstance(maximize, (list, tuple)):
        up = flag(maximize, "maximize")
        return objectives, (-1.0 if up else 1.0,), up
    flags = tuple(flag(m, "maximize") for m in maximize)
    if not several or len(flags) < 2 or objectives not in (0, len(flags)):
        wanted = "several of them" if several and not given else str(engine.n_objectives)
        raise OptionError(f"maximize: expected {wanted}, got {len(flags)}")
    return len(flags), tuple(-1.0 if m else 1.0 for m in flags), flags


Known = tuple[Matrix, list[Any], list[float]]  # values, y in the sign minimised, violation


def _known_results(objective: Objective, prior: Any) -> Known:
    space = objective.space
    if prior is None:
        return np.empty((0, space.n_columns)), [], []
    pairs = items(prior, "prior")
    if not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in pairs):
        raise DTypeError("prior: expected a list of (trial, result) pairs")
    rows = [
        space.parse([x] if isinstance(x, Mapping) else x, f"prior[{i}]")
        for i, (x, _) in enumerate(pairs)
    ]
    ys, violations = [], []
    for _, raw in pairs:
        limits: Any = ()
        if objective.constraints:
            if not isinstance(raw, (tuple, list)) or len(raw) != 2:
                raise DTypeError("prior: with constraints a result is (objective, constraints)")
            raw, limits = raw
        if objective.objectives == 1:
            ys.append(as_numbers(raw, ()) * objective.signs[0])
        else:
            ys.append(as_numbers(raw, (objective.objectives or None,)) * np.array(objective.signs))
        excess = as_numbers(limits, np.shape(limits)) if objective.constraints else np.zeros(1)
        violations.append(float(np.maximum(excess, 0.0).sum()))
    return np.concatenate([np.empty((0, space.n_columns)), *rows]), ys, violations


def _tell_known(run: Run, values: Matrix, ys: list[Any], violations: list[float]) -> None:
    if not len(values):
        return
    y = np.array(ys)
    if run.trials.several:
        run.trials.objectives_of(tuple(ys[0].tolist()))
    violation = np.array(violations) if run.objective.constraints else None
    run.engine.learn(values, y, violation)
    if not run.trials.several:
        for row, value, excess in zip(values, y.tolist(), violations, strict=True):
            if not math.isnan(value):
                run.trials.note(excess, value, row)


def _header(
    engine: Engine,
    seed: Seed,
    batch: int,
    x0: Any,
    mode: str,
    signs: tuple[float, ...],
    constraints: int,
    prior: Matrix,
) -> dict[str, Any]:
    """What must be equal for a journal to be continued: all that proposals depend on."""
    if isinstance(seed, np.random.Generator) or seed is None:
        raise OptionError("storage: needs a seed that can be given again (an int)")
    space = engine.space
    try:
        digest = space.digest
    except OptionError as error:
        raise OptionError(f"storage: {error}") from None
    try:
        variables: Any = space.to_dict()
    except UnsupportedError:  # for readers of the file only; the digest says what the space is
        variables = {name: repr(v)[:200] for name, v in space.variables.items()}
    first = None
    if x0 is not None:
        first = fingerprint(space.parse(_first_trials(space, x0, seed), "x0"))
    return {
        "space": digest,
        "variables": variables,
        "method": engine.method,
        "proposals": engine.proposals,
        "key": engine.key,
        "options": engine.options(),
        "batch": batch,
        "own_batch": engine.batch,
        "x0": first,
        "prior": fingerprint(prior) if len(prior) else None,
        "mode": mode,
        "signs": list(signs),
        "constraints": constraints,
    }
