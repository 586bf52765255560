"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.errors import OptionError
from fastopt.search.space import Matrix, Space

__all__ = ["Progress", "Result"]


@dataclass(frozen=True)
class Progress:
    """What a callback sees: trials done, the best one, its objective, seconds since the start."""

    n_evals: int
    fun: float
    x: dict[str, Any] | None
    elapsed_s: float


@dataclass(frozen=True)
class Result:
    """A finished search.

    Attributes
    ----------
    x : dict or None
        The best trial: name -> value. None if every trial failed.
    fun : float
        Its objective; NaN if every trial failed.
    n_evals : int
        Trials evaluated, failed ones included.
    n_failed : int
        Trials that returned NaN or minus infinity, raised, or did not return a number.
    history : (n_evals,) float64
        Objective of every trial in order; NaN for failed ones.
    message : str
        Why the search ended.
    errors : dict
        Trial number -> message, of trials that raised or did not return a number.
    values : (n_evals, d) float64 or None
        Every trial's values (a Choice's index); None if ``keep_trials`` was off.
    """

    x: dict[str, Any] | None
    fun: float
    n_evals: int
    n_failed: int
    history: NDArray[np.float64]
    message: str
    method: str
    elapsed_s: float
    space: Space
    errors: dict[int, str] = field(default_factory=dict, repr=False)
    values: Matrix | None = field(default=None, repr=False)

    @property
    def best(self) -> NDArray[np.float64]:
        """(n_evals,) best objective so far, after each trial."""
        return np.fmin.accumulate(self.history)

    @property
    def trials(self) -> dict[str, NDArray[Any]]:
        """Columns: ``trial``, each variable, ``fun``."""
        if self.values is None:
            raise OptionError("trials: were not kept; pass keep_trials=True to minimize")
        columns: dict[str, NDArray[Any]] = {"trial": np.arange(self.n_evals)}
        columns.update(self.space.columns_of(self.values))
        columns["fun"] = self.history
        return columns

    def to_frame(self) -> Any:
        """``trials`` as a pandas.DataFrame (needs pandas)."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ImportError("to_frame needs pandas: pip install pandas") from None
        columns = {k: list(v) if v.ndim > 1 else v for k, v in self.trials.items()}
        return pandas.DataFrame(columns).set_index("trial")
