"""A model cut into levels: the small one answers where it is sure, the big one does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_ndarray
from fastopt._options import items, number
from fastopt.errors import ArrayError, DTypeError, OptionError

__all__ = ["Cascade"]


class Cascade:
    """Early exit: level i answers the rows whose largest probability reaches threshold i.

    Parameters
    ----------
    levels : sequence of models
        From the cheapest to the best: each has ``predict_proba(X)`` or is a function of X that
        returns class probabilities (rows, classes). All have the same classes in the same order.
    threshold : float or sequence of float
        Confidence 0..1 at which a level answers; one for all levels, or one for each but the
        last, which answers whatever is left.

    Attributes
    ----------
    levels : list
    thresholds : list of float
    classes_ : array or None
        The class labels of the first level that has ``classes_``.

    Raises
    ------
    DTypeError
        A level has no ``predict_proba`` and cannot be called.
    OptionError
        No level, or another number of thresholds than levels but the last.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.layering import Cascade
    >>> small = lambda x: np.where(x > 0, [[0.1, 0.9]], [[0.4, 0.6]])
    >>> big = lambda x: np.array([[1.0, 0.0]] * len(x))
    >>> c = Cascade([small, big], 0.8)
    >>> c.predict(np.array([[1.0], [-1.0]])).tolist(), c.shares(np.array([[1.0], [-1.0]]))
    ([1, 0], [0.5, 0.5])
    """

    def __init__(self, levels: Sequence[Any], threshold: float | Sequence[float]) -> None:
        self.levels = items(levels, "levels")
        if not self.levels:
            raise OptionError("levels: expected at least one model")
        for i, level in enumerate(self.levels):
            if not callable(level) and not hasattr(level, "predict_proba"):
                raise DTypeError(
                    f"levels[{i}]: expected predict_proba or a function, "
                    f"got {type(level).__name__}"
                )
        n = len(self.levels) - 1
        several = isinstance(threshold, (list, tuple, np.ndarray)) and np.ndim(threshold) > 0
        given = items(threshold, "threshold") if several else None
        if given is not None and len(given) != n:
            raise OptionError(f"threshold: expected {n} values for {n + 1} levels")
        self.thresholds = [
            number(t, "threshold", low=0.0, high=1.0)
            for t in ([threshold] * n if given is None else given)
        ]
        self.classes_ = next(
            (
                as_ndarray(m.classes_, "levels: classes_")
                for m in self.levels
                if hasattr(m, "classes_")
            ),
            None,
        )

    def route(self, X: Any) -> tuple[Array, Array]:
        """(probabilities (rows, classes), level that answered each row).

        A level sees only the rows that the ones before it left. NaN counts as unsure.

        Raises
        ------
        ArrayError
            A level's answer has another number of rows or classes.
        """
        x = X if hasattr(X, "iloc") else as_ndarray(X, "X")
        if not hasattr(x, "iloc") and x.ndim == 0:
            raise ArrayError("X: expected rows, got a scalar")
        rows = np.arange(len(x))
        answered = np.zeros(len(x), np.int64)
        result: Array | None = None
        for i, level in enumerate(self.levels):
            if not len(rows) and result is not None:
                break
            part = x.iloc[rows] if hasattr(x, "iloc") else x[rows]
            ask: Callable[[Any], Any] = getattr(level, "predict_proba", level)
            p = as_array(ask(part), f"levels[{i}]", cast="float64")
            if (
                p.ndim != 2
                or len(p) != len(rows)
                or (result is not None and p.shape[1] != result.shape[1])
            ):
                raise ArrayError(
                    f"levels[{i}]: expected probabilities ({len(rows)}, classes), got {p.shape}"
                )
            if result is None:
                result = np.zeros((len(x), p.shape[1]), p.dtype)
            answered[rows] = i
            result[rows] = p
            if i < len(self.thresholds) and p.shape[1]:
                sure = p.max(axis=1) >= self.thresholds[i]  # false for NaN
                rows = rows[~sure]
        return result if result is not None else np.zeros((0, 0)), answered

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the level that answered each row, (rows, classes)."""
        return self.route(X)[0]

    def predict(self, X: Any) -> Array:
        """Class labels (``classes_`` where a level has them, else 0, 1, ...)."""
        best: Array = self.route(X)[0].argmax(axis=1)
        return best if self.classes_ is None else self.classes_[best]

    def mean_cost(self, X: Any, costs: Sequence[float]) -> float:
        """Mean cost per row of X when level i costs ``costs[i]`` for each row that it sees.

        Parameters
        ----------
        X : array
            Rows.
        costs : sequence of float
            Of each level, in any unit: multiply-adds, seconds. A row pays every level it reaches.
        """
        found = [number(c, "costs", low=0.0) for c in items(costs, "costs")]
        if len(found) != len(self.levels):
            raise OptionError(f"costs: expected {len(self.levels)} numbers, got {len(found)}")
        paid = np.cumsum(found)
        return float(np.dot(self.shares(X), paid))

    def shares(self, X: Any) -> list[float]:
        """Share of the rows that each level answers."""
        answered = self.route(X)[1]
        counts = np.bincount(answered, minlength=len(self.levels))
        return [float(c) / max(1, len(answered)) for c in counts]

    @classmethod
    def tuned(cls, levels: Sequence[Any], X: Any, y: Any, *, max_drop: float = 0.0) -> Cascade:
        """The cascade with the lowest thresholds that keep accuracy on (X, y).

        Parameters
        ----------
        levels : sequence of models
            As for the class.
        X, y : arrays
            Held-out rows and their labels.
        max_drop : float
            Accuracy that may be lost against the last level alone, 0..1.

        Notes
        -----
        Greedy from the last but one level to the first; each threshold is one of the confidences
        seen, so the answer is exact for one level and this data. Level 0 is asked first.
        """
        drop = number(max_drop, "max_drop", low=0.0, high=1.0)
        labels = as_labels(y, "y")
        tail = cls(levels[-1:], 1.0)
        floor = float((tail.predict(X) == labels).mean()) - drop
        thresholds: list[float] = []
        for i in range(len(levels) - 2, -1, -1):
            head = cls(levels[i : i + 1], 1.0)
            confidence = np.nan_to_num(head.predict_proba(X).max(axis=1), nan=-1.0)
            right = (head.predict(X) == labels).astype(np.float64)
            rest = (cls(levels[i + 1 :], thresholds).predict(X) == labels).astype(np.float64)
            order = np.argsort(-confidence, kind="stable")
            # accuracy when the first r rows of that order are answered here
            score = (np.cumsum((right - rest)[order]) + rest.sum()) / len(labels)
            ends = np.append(np.diff(confidence[order]) != 0, True)  # a threshold takes all ties
            good = np.flatnonzero((score >= floor - 1e-12) & ends & (confidence[order] >= 0))
            level = float(confidence[order][good[-1]]) if len(good) else 1.0
            thresholds.insert(0, min(1.0, level))
        return cls(levels, thresholds)
