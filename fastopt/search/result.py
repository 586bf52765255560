"""What a search returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._optional import package
from fastopt.errors import OptionError
from fastopt.search.layout import Matrix
from fastopt.search.pareto import fronts
from fastopt.search.space import Space

__all__ = ["Pareto", "Progress", "Result"]


@dataclass(frozen=True)
class Progress:
    """What a callback sees: trials done, the best one, its objective, seconds since the start.

    Attributes
    ----------
    n_evals : int
        Trials done.
    fun : float
        Objective of the best one.
    x : dict or None
        The best one.
    elapsed_s : float
        Seconds since the start.
    """

    n_evals: int
    fun: float
    x: dict[str, Any] | None
    elapsed_s: float


@dataclass(frozen=True)
class Pareto:
    """Trials that no other trial beats in every objective.

    Attributes
    ----------
    x : list of dict
        The trials.
    fun : (n, n_objectives) float64
        Their objectives; sorted by the first.
    trials : (n,) int64
        Their numbers.
    """

    x: list[dict[str, Any]]
    fun: Matrix
    trials: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Result:
    """A finished search.

    Attributes
    ----------
    x : dict or None
        The best trial: name -> value, without inactive variables. None if every trial failed.
        With several objectives the trial of the front that is nearest to the best of each,
        measured in units of the front's ranges.
    fun : float, or (n_objectives,) float64
        Its objective; NaN if every trial failed.
    n_evals : int
        Trials evaluated, failed ones included.
    n_failed : int
        Trials that returned NaN or minus infinity, raised, or did not return a number.
    history : (n_evals,) or (n_evals, n_objectives) float64
        Objective of every trial in order; NaN for failed ones.
    message : str
        Why the search ended.
    method, method_reason : str
        The engine that ran, and why it was chosen.
    interrupted : bool
        Ctrl-C ended the search.
    violation : float
        Sum of what the best trial exceeds the constraints by: 0 if it is feasible.
    violations : (n_evals,) float64 or None
        The same of every trial; None without constraints.
    errors : dict
        Trial number -> message, of trials that raised or did not return a number.
    stopped : set of int
        Numbers of trials that were stopped early; their objective is the last they reported.
    numbers : (n_evals,) int64
        Trial numbers: in order, with gaps where a search ended before earlier trials were
        finished; by arrival in asynchronous mode.
    values : (n_evals, d) float64 or None
        Every trial's values (a Choice's index); None if ``keep_trials`` was off.
    """

    x: dict[str, Any] | None
    fun: Any
    n_evals: int
    n_failed: int
    history: NDArray[np.float64]
    message: str
    method: str
    method_reason: str
    elapsed_s: float
    space: Space
    interrupted: bool = False
    maximize: bool | tuple[bool, ...] = False
    violation: float = 0.0
    violations: NDArray[np.float64] | None = field(default=None, repr=False)
    errors: dict[int, str] = field(default_factory=dict, repr=False)
    stopped: set[int] = field(default_factory=set, repr=False)
    numbers: NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, dtype=np.int64), repr=False
    )
    values: Matrix | None = field(default=None, repr=False)

    @property
    def best(self) -> NDArray[np.float64]:
        """(n_evals,) best objective so far after each trial, feasible trials only."""
        if self.history.ndim == 2:
            raise OptionError("best: there are several objectives; see pareto")
        counted = self.history.copy()
        if self.violations is not None:
            counted[self.violations > 0] = np.nan
        if self.stopped:
            counted[np.isin(self.numbers, list(self.stopped))] = np.nan
        return (np.fmax if self.maximize is True else np.fmin).accumulate(counted)

    @property
    def trials(self) -> dict[str, NDArray[Any]]:
        """Columns: ``trial``, each variable, ``fun`` (``fun_0`` ... with several objectives)."""
        if self.values is None:
            raise OptionError("trials: were not kept; pass keep_trials=True to minimize")
        columns: dict[str, NDArray[Any]] = {"trial": self.numbers}
        columns.update(self.space.columns_of(self.values))
        if self.history.ndim == 1:
            columns["fun"] = self.history
        else:
            columns.update({f"fun_{i}": c for i, c in enumerate(self.history.T)})
        if self.violations is not None:
            columns["violation"] = self.violations
        return columns

    @property
    def pareto(self) -> Pareto:
        """The feasible trials that no other feasible trial dominates."""
        if self.values is None:
            raise OptionError("pareto: trials were not kept; pass keep_trials=True to minimize")
        y = np.atleast_2d(self.history.T).T * self._signs()
        counted = ~np.isnan(y).any(axis=1)
        if self.violations is not None:
            counted &= self.violations <= 0
        if self.stopped:
            counted &= ~np.isin(self.numbers, list(self.stopped))
        rows = np.flatnonzero(counted)
        rows = rows[fronts(y[rows]) == 0]
        rows = rows[np.argsort(y[rows, 0], kind="stable")]
        fun = np.atleast_2d(self.history.T).T[rows]
        return Pareto(self.space.dicts_of(self.values[rows]), fun, self.numbers[rows])

    def _signs(self) -> NDArray[np.float64]:
        return np.where(self.maximize, -1.0, 1.0)

    def with_compromise(self) -> Result:
        """The same with ``x`` and ``fun`` of the trial of the front that is nearest to the best
        of each objective."""
        front = self.pareto
        if not len(front):
            return replace(self, fun=np.full(self.history.shape[1:], math.nan))
        y = front.fun * self._signs()
        low, span = y.min(axis=0), np.ptp(y, axis=0)
        i = int(np.argmin((((y - low) / np.where(span > 0, span, 1.0)) ** 2).sum(axis=1)))
        return replace(self, x=front.x[i], fun=front.fun[i], violation=0.0)

    def to_frame(self) -> Any:
        """``trials`` as a pandas.DataFrame (needs pandas)."""
        pandas = package("pandas", "to_frame")
        columns = {k: list(v) if v.ndim > 1 else v for k, v in self.trials.items()}
        return pandas.DataFrame(columns).set_index("trial")

    def plot(self, kind: str = "history", *, backend: str = "svg", **options: Any) -> Any:
        """A picture of the search.

        Parameters
        ----------
        kind : "history", "pareto", "slices", "contour", "parallel" or "importance"
        backend : "svg" or "matplotlib"
            Inline SVG as a string, or a matplotlib Figure.
        **options
            ``width`` and ``height`` in pixels; for "contour" also ``x`` and ``y``, the names of
            two variables.

        Returns
        -------
        str or matplotlib.figure.Figure

        Raises
        ------
        OptionError
            An unknown kind, or one that this search has no data for.
        """
        from fastopt.search import plots

        return plots.plot(self, kind, backend=backend, **options)

    def importance(self) -> dict[str, float]:
        """Share of each variable in what the objective varies, largest first: permutation
        importance on a forest fitted to the trials."""
        from fastopt.search import plots

        return plots.shares(self)
