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
    method : str
        The engine that ran.
    method_reason : str
        Why ``method="auto"`` chose it.
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
    method_reason: str
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

    def plot(self, width: int = 640, height: int = 320) -> str:
        """The search as an inline SVG: each trial a dot, the best so far a line."""
        y, best = self.history, self.best
        shown = np.isfinite(y)
        if not shown.any():
            body = ""
            low = high = 0.0
        else:
            low, high = float(y[shown].min()), float(np.quantile(y[shown], 0.95))
            span = high - low or 1.0
            right, top = max(self.n_evals - 1, 1), height - 40

            def at(i: int, value: float) -> str:
                inside = min(max((value - low) / span, 0.0), 1.0)
                return f"{50 + i / right * (width - 60):.1f},{20 + (1 - inside) * top:.1f}"

            keep = np.flatnonzero(shown)
            keep = keep[:: max(1, len(keep) // 2000)]
            points = [at(int(i), float(y[i])).split(",") for i in keep]
            dots = "".join(f'<circle cx="{a}" cy="{b}" r="1.5"/>' for a, b in points)
            steps = np.flatnonzero(np.isfinite(best) & (best != np.append([np.nan], best[:-1])))
            line = []
            for n, i in enumerate(steps):
                stop = int(steps[n + 1]) if n + 1 < len(steps) else self.n_evals - 1
                line += [at(int(i), float(best[i])), at(stop, float(best[i]))]
            body = (
                f'<g fill="#9ab">{dots}</g>'
                f'<polyline fill="none" stroke="#c33" stroke-width="2" points="{" ".join(line)}"/>'
            )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
            f'<text x="4" y="24">{high:.3g}</text><text x="4" y="{height - 20}">{low:.3g}</text>'
            f'<text x="50" y="{height - 4}">{self.method}: {self.n_evals} trials</text>'
            f"{body}</svg>"
        )
