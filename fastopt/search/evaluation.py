"""Calling the objective: how it is called, what it may return, what counts as a failed trial."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt.errors import TrialError
from fastopt.search.space import Matrix, Space

__all__ = ["Outcome", "evaluate_batch", "evaluate_many", "evaluate_one", "takes_keywords"]


def takes_keywords(f: Callable[..., Any], space: Space) -> bool:
    """Whether ``f`` is called as f(**trial) (True) or f(trial) with a dict (False).

    Keywords if the variables' names are parameters of f and it needs no others; also if f takes
    only ``**kwargs``. Everything else, a callable without a signature included, gets the dict.
    """
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return False
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = set(space.names)
    return needed <= names and (names <= named or open_ended)


def evaluate_one(f: Callable[..., Any], trial: dict[str, Any], keywords: bool) -> Any:
    """f of one trial; NaN for a failed trial.

    Raises
    ------
    TrialError
        f returned something that is not a real number.
    """
    raw = f(**trial) if keywords else f(trial)
    if type(raw) is float:
        return math.nan if raw == -math.inf else raw
    return _numbers(raw, None)


class Outcome(NamedTuple):
    """One trial: objective (NaN if it failed), message and exception of a failure, seconds."""

    y: float
    message: str | None
    error: Exception | None
    seconds: float


def evaluate_many(
    f: Callable[..., Any], trials: list[dict[str, Any]], keywords: bool
) -> list[Outcome]:
    """What a worker does with one chunk: every trial, failed ones included."""
    outcomes = []
    for trial in trials:
        start = time.perf_counter()
        y, message, failure = math.nan, None, None
        try:
            y = evaluate_one(f, trial, keywords)
        except Exception as error:
            message, failure = f"{type(error).__name__}: {error}", _portable(error)
        outcomes.append(Outcome(y, message, failure, time.perf_counter() - start))
    return outcomes


def _portable(error: Exception) -> Exception:
    """The exception if it survives the way between processes, else a TrialError that names it."""
    try:
        copy.copy(error)  # rebuilt as on the other side
    except Exception:
        return TrialError(f"objective: {type(error).__name__}: {error}")
    return error


def evaluate_batch(f: Callable[..., Any], space: Space, values: Matrix) -> NDArray[np.float64]:
    """Vectorised f of k trials: (k,)."""
    given = values.copy() if space.numeric else space.columns_of(values)  # f may write into it
    y: NDArray[np.float64] = _numbers(f(given), len(values))
    return y


def _numbers(raw: Any, k: int | None) -> Any:
    """What f returned as float64, checked; minus infinity counts as NaN, a failed trial."""
    wanted = "a number" if k is None else f"{k} numbers, shape ({k},)"
    if raw is None or isinstance(raw, (str, bytes, complex)):
        raise TrialError(f"objective: expected {wanted}, got {raw!r}")
    try:
        y = np.asarray(raw)
        if y.dtype.kind not in "fiub":
            if y.dtype.kind == "c":
                raise TypeError
            y = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        raise TrialError(f"objective: expected {wanted}, got {type(raw).__name__}") from None
    y = y.astype(np.float64)
    if k is None:
        if y.ndim:
            raise TrialError(f"objective: expected a number, got an array of shape {y.shape}")
    elif y.shape != (k,):
        raise TrialError(f"objective: expected {wanted}, got shape {y.shape}")
    y[y == -math.inf] = math.nan
    return float(y) if y.ndim == 0 else y
