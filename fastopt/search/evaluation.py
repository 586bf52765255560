"""Calling the objective: how it is called, what it may return, what counts as a failed trial."""

from __future__ import annotations

import inspect
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt.errors import DTypeError, TrialError, TrialStopped
from fastopt.search.layout import Matrix
from fastopt.search.numbers import as_numbers, real
from fastopt.search.reporting import Course, Leg, Reporter, Reports, Stop
from fastopt.search.space import Space

__all__ = ["Objective", "Outcome", "Portable", "Reports", "Stop", "transportable"]


class Outcome(NamedTuple):
    """One trial: what came out, in the sign that is minimised.

    ``y`` is NaN for a failed trial, a tuple with several objectives; ``reports`` are its
    intermediate (step, value) pairs; ``stopped`` says that it ended early, with its last report.
    """

    y: float | tuple[float, ...]
    constraints: tuple[float, ...] = ()
    message: str | None = None
    error: Exception | None = None
    reports: Reports = ()
    stopped: bool = False

    @property
    def failed(self) -> bool:
        return any(map(math.isnan, self.y if isinstance(self.y, tuple) else (self.y,)))


class Objective:
    """``f`` and all that is known of how to call it.

    Parameters
    ----------
    f : callable
    space : Space
    objectives : int
        1: f returns a number; more: that many numbers; 0: some, as many as it returns first.
    constraints : int
        f returns (objective, that many numbers) if not 0.
    signs : tuple of 1.0 or -1.0
        -1 for what is maximised: one for all objectives, or one for each.
    vectorized : bool
        f takes all trials of a batch at once.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        space: Space,
        *,
        objectives: int = 1,
        constraints: int = 0,
        signs: tuple[float, ...] = (1.0,),
        vectorized: bool = False,
    ) -> None:
        self.f = f
        self.space = space
        self.objectives = objectives
        self.constraints = constraints
        self.signs = signs
        self.reports = not vectorized and _takes_report(f, space)
        self.yields = not vectorized and inspect.isgeneratorfunction(f)
        self.keywords = not vectorized and _takes_keywords(f, space, self.reports)
        self.waiting: dict[int, Course] = {}  # trials that wait for others, by number
        # Nothing but one number: most of what a cheap trial costs is saved.
        one = objectives == 1 and signs == (1.0,)
        self.plain = one and not (constraints or self.reports or self.yields)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which get trials as dicts: the space may hold large options."""
        return {**vars(self), "space": None, "waiting": {}}

    def many(
        self, trials: list[dict[str, Any]], stop: Stop | None = None
    ) -> tuple[list[float | Outcome], float]:
        """What another process does with several trials: their outcomes, and the seconds."""
        start = time.perf_counter()
        outcomes = [transportable(outcome) for outcome in self.each(trials, stop)]
        return outcomes, time.perf_counter() - start

    def each(
        self, trials: Iterable[dict[str, Any]], stop: Stop | None = None
    ) -> Iterator[float | Outcome]:
        """Outcome of one trial after the other, each evaluated when it is asked for.

        A float, or an Outcome where there is more to say. Exceptions of f become outcomes.
        """
        if not self.plain:
            for trial in trials:
                yield self._reported(trial, stop)
            return
        f, keywords, worst = self.f, self.keywords, -math.inf
        for trial in trials:
            try:
                raw = f(**trial) if keywords else f(trial)
                y = raw if type(raw) is float and raw != worst else self._outcome(raw)
            except Exception as error:
                y = _raised(error)
            yield y

    def __call__(self, trial: dict[str, Any], stop: Stop | None = None) -> float | Outcome:
        """Outcome of one trial, as from ``each``."""
        return next(self.each((trial,), stop))

    def _reported(self, trial: dict[str, Any], stop: Stop | None) -> float | Outcome:
        number = stop.number if isinstance(stop, Leg) else -1
        course = self.waiting.pop(number, None)
        reporter = Reporter(self.signs[0]) if course is None else course.reporter
        reporter.stop = stop
        try:
            if course is None:
                options = {"report": reporter} if self.reports else {}
                raw = self.f(**trial, **options) if self.keywords else self.f(trial, **options)
                course = Course(raw, reporter) if self.yields else None
            if course is not None:
                raw = course.run()
            return self._outcome(raw, reporter.seen)
        except TrialStopped:
            if course is not None and number >= 0 and course.alive:
                self.waiting[number] = course
            elif course is not None:
                course.items.close()
            y = reporter.seen[-1][1] if reporter.seen else math.nan
            return Outcome(y, reports=tuple(reporter.seen), stopped=True)
        except Exception as error:
            return _raised(error)

    def dismiss(self, numbers: Iterable[int]) -> None:
        """Close the trials of those numbers that wait here."""
        for number in numbers:
            course = self.waiting.pop(number, None)
            if course is not None:
                with suppress(Exception):  # its result no longer counts
                    course.items.close()

    def batch(self, values: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Vectorised f of k trials: (k,) or (k, objectives), and (k, constraints) or None.

        Raises
        ------
        TrialError
            f returned something else; and whatever f raises.
        """
        k = len(values)
        given = self.space.present(values)
        raw = self.f(given.copy() if isinstance(given, np.ndarray) else given)
        limits = None
        if self.constraints:
            raw, limits = _pair(raw)
            if self.constraints == 1 and np.ndim(limits) == 1:
                limits = as_numbers(limits, (k,))[:, None]
            limits = as_numbers(limits, (k, self.constraints))
        if self.objectives == 1:
            y = as_numbers(raw, (k,)) * self.signs[0]
            y[y == -math.inf] = math.nan
        else:
            y = self._several(as_numbers(raw, (k, self.objectives or None)))
        return y, limits

    def _several(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Several objectives as they are minimised, (k, m); their number is noted."""
        if y.shape[1] < 2:
            raise TrialError(f"objective: expected several numbers, got {y.shape[1]}")
        self.objectives = y.shape[1]
        y = y * np.array(self.signs)
        y[(np.isnan(y) | (y == -math.inf)).any(axis=1)] = math.nan
        return y

    def _outcome(self, raw: Any, seen: Iterable[tuple[int, float]] = ()) -> float | Outcome:
        limits: tuple[float, ...] = ()
        if self.constraints:
            raw, given = _pair(raw)
            if self.constraints == 1 and np.ndim(given) == 0:
                limits = (real(given),)
            else:
                limits = tuple(as_numbers(given, (self.constraints,)).tolist())
        if self.objectives == 1:
            y = self.signs[0] * real(raw)
            y = math.nan if y == -math.inf else y
            seen = tuple(seen)
            return Outcome(y, limits, reports=seen) if limits or seen else y
        ys = self._several(as_numbers(raw, (self.objectives or None,))[None])[0].tolist()
        return Outcome(tuple(ys), limits, reports=tuple(seen))


def _raised(error: Exception) -> Outcome:
    return Outcome(math.nan, (), f"{type(error).__name__}: {error}", error)


def _takes_report(f: Callable[..., Any], space: Space) -> bool:
    parameters = _parameters(f)
    return parameters is not None and "report" in parameters and "report" not in space.names


def _takes_keywords(f: Callable[..., Any], space: Space, reports: bool) -> bool:
    """Whether ``f`` is called as f(**trial) (True) or f(trial) with a dict (False).

    Keywords if the variables' names are parameters of f and it needs no others (those of
    variables with a condition need defaults); also if f takes only ``**kwargs``. Everything
    else, a callable without a signature included, gets the dict.
    """
    parameters = _parameters(f)
    if parameters is None:
        return False
    kinds = [p for p in parameters.values() if not (reports and p.name == "report")]
    named = {p.name for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {
        p.name
        for p in kinds
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in kinds)
    names = set(space.names)
    return needed <= names and (names <= named or open_ended)


def _parameters(f: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(f).parameters
    except (TypeError, ValueError):
        return None


def _pair(raw: Any) -> tuple[Any, Any]:
    if not isinstance(raw, (tuple, list)) or len(raw) != 2:
        raise TrialError(f"objective: expected (objective, constraints), got {type(raw).__name__}")
    return raw[0], raw[1]


# --- on the way to other processes


def transportable(outcome: float | Outcome) -> float | Outcome:
    """The outcome with an exception that survives the way between processes."""
    if not isinstance(outcome, Outcome) or outcome.error is None:
        return outcome
    try:
        pickle.loads(pickle.dumps(outcome.error))
    except Exception:
        return outcome._replace(error=TrialError(f"objective: {outcome.message}"))
    return outcome


class Portable:
    """A callable that can be sent to another process: by pickle, else by cloudpickle if it is
    installed. In this process it is the callable itself.

    ``far`` processes have not begun as this one did, so what stands in ``__main__`` cannot be
    sent by its name there.

    Raises
    ------
    DTypeError
        At sending: it cannot be pickled; names the part that cannot.
    """

    def __init__(self, f: Callable[..., Any], *, far: bool = False) -> None:
        self.f = f
        self.far = far
        self._packed = b""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.packed(),)

    def packed(self) -> bytes:
        """The pickle, made once."""
        if not self._packed:
            self._packed = self._pickled()
        return self._packed

    def _pickled(self) -> bytes:
        try:
            data = pickle.dumps(self.f)
            if self.far and b"__main__" in data:
                with suppress(ImportError):
                    data = import_module("cloudpickle").dumps(self.f)
            return data
        except Exception as error:
            try:
                packed: bytes = import_module("cloudpickle").dumps(self.f)
                return packed
            except ImportError:
                part = _culprit(self.f)
                raise DTypeError(
                    f"objective: {part} cannot be sent to another process: {error}; define it "
                    "at the top of a module, or install cloudpickle"
                ) from None
            except Exception as error:
                raise DTypeError(
                    f"objective: {_culprit(self.f)} cannot be sent to another process: {error}"
                ) from None


def _unpacked(data: bytes) -> Portable:
    return Portable(pickle.loads(data))  # made by ``packed`` in the process that sent it


def _culprit(f: Any) -> str:
    """The smallest part of a callable that cannot be pickled, by name."""
    name = getattr(f, "__qualname__", type(f).__name__)
    parts: dict[str, Any] = {}
    if isinstance(f, partial):
        parts = {"func": f.func, **{f"args[{i}]": a for i, a in enumerate(f.args)}, **f.keywords}
    elif inspect.ismethod(f):
        parts = {"__self__": f.__self__}
    elif inspect.isfunction(f):
        cells = f.__closure__ or ()
        parts = {n: c.cell_contents for n, c in zip(f.__code__.co_freevars, cells, strict=True)}
    elif hasattr(f, "__dict__"):
        parts = vars(f)
    for part, value in parts.items():
        try:
            pickle.dumps(value)
        except Exception:
            inner = _culprit(value) if callable(value) else type(value).__name__
            return f"{name}.{part} ({inner})"
    return str(name)
