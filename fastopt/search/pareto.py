"""Several objectives: fronts, crowding, hypervolume. All objectives are minimised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt._arrays import as_array
from fastopt.errors import ArrayError

__all__ = ["crowding", "fronts", "hypervolume"]

BLOCK = 256  # rows that are compared with all others at once


def fronts(y: Any) -> NDArray[np.intp]:
    """Front of each row: 0 where no other row dominates it, 1 where only rows of front 0 do, ...

    A row dominates another if it is nowhere larger and somewhere smaller; equal rows share a
    front. NaN rows come last, in a front of their own.

    Parameters
    ----------
    y : (n, m) array-like of float64

    Returns
    -------
    (n,) intp

    Notes
    -----
    Rows in lexicographic order go to the first front that does not dominate them, found by
    bisection (Zhang et al., ENS-BS, IEEE TEC 19 (2015)); with two objectives only the last row of
    a front is looked at, O(n log n).

    Examples
    --------
    >>> fronts([[1, 2], [2, 1], [2, 2], [3, 3]]).tolist()
    [0, 0, 1, 2]
    """
    y = _rows(y)
    rank = np.zeros(len(y), np.intp)
    bad = np.isnan(y).any(axis=1)
    good = np.flatnonzero(~bad)
    rows, inverse = np.unique(y[good], axis=0, return_inverse=True)  # lexicographic, no copies
    if y.shape[1] == 2:
        found = _two(rows)
    else:
        found = _many(rows)
    rank[good] = found[inverse.ravel()]
    rank[bad] = found.max(initial=-1) + 1
    return rank


def _rows(y: Any) -> NDArray[np.float64]:
    return as_array(y, "y", dtypes=("float64",), cast="float64", ndim=2)


def _two(rows: NDArray[np.float64]) -> NDArray[np.intp]:
    """Fronts of sorted, different rows: of each front its lowest second value decides."""
    lowest: list[float] = []  # the negated lowest second value of each front, which falls
    rank = np.empty(len(rows), np.intp)
    for i, second in enumerate((-rows[:, 1]).tolist()):
        # The first front whose lowest second value is above this one.
        k = _first(lowest, second)
        if k == len(lowest):
            lowest.append(second)
        else:
            lowest[k] = second
        rank[i] = k
    return rank


def _first(lowest: list[float], second: float) -> int:
    """First front with -lowest < second, of a list that falls."""
    low, high = 0, len(lowest)
    while low < high:
        middle = (low + high) // 2
        if lowest[middle] < second:
            high = middle
        else:
            low = middle + 1
    return low


def _many(rows: NDArray[np.float64]) -> NDArray[np.intp]:
    members: list[list[int]] = []
    rank = np.empty(len(rows), np.intp)

    def dominated(front: list[int], row: NDArray[np.float64]) -> bool:
        for start in range(len(front), 0, -BLOCK):  # the latest rows dominate most often
            block = rows[front[max(0, start - BLOCK) : start]]
            if (block <= row).all(axis=1).any():
                return True
        return False

    for i, row in enumerate(rows):
        low, high = 0, len(members)
        while low < high:
            middle = (low + high) // 2
            if dominated(members[middle], row):
                low = middle + 1
            else:
                high = middle
        if low == len(members):
            members.append([])
        members[low].append(i)
        rank[i] = low
    return rank


def crowding(y: Any) -> NDArray[np.float64]:
    """Crowding distance of the rows of one front: the sides of the box between the neighbours.

    Each objective is divided by its range; the ends of each objective get infinity (Deb et al.,
    NSGA-II, IEEE TEC 6 (2002), section III.B).

    Examples
    --------
    >>> crowding([[0, 4], [1, 2], [4, 0]]).tolist()
    [inf, 2.0, inf]
    """
    y = _rows(y)
    distance = np.zeros(len(y))
    for column in y.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if not span > 0 or not math.isfinite(span):
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def hypervolume(y: Any, reference: Any) -> float:
    """Volume between the rows of ``y`` and ``reference``, exact for two or three objectives.

    Rows that are not below the reference everywhere add nothing. O(n log n) for two objectives,
    O(n^2) for three (a sweep along the third with the front of the other two).

    Examples
    --------
    >>> hypervolume([[1, 2], [2, 1]], [3, 3])
    3.0
    """
    y = _rows(y)
    reference = as_array(reference, "reference", dtypes=("float64",), cast="float64")
    if y.shape[1] not in (2, 3) or reference.shape != (y.shape[1],):
        raise ArrayError(
            f"hypervolume: expected y (n, 2) or (n, 3) and a reference of that length, "
            f"got {y.shape} and {reference.shape}"
        )
    y = y[(y < reference).all(axis=1)]
    if y.shape[1] == 2:
        return _area(y, reference)
    y = y[np.argsort(y[:, 2], kind="stable")]
    heights = np.append(y[:, 2], reference[2])
    total = 0.0
    front = np.empty((0, 2))
    for i in range(len(y)):
        point = y[i, :2]
        if not (front <= point).all(axis=1).any():
            front = np.vstack([front[~(front >= point).all(axis=1)], point])
        total += _area(front, reference[:2]) * float(heights[i + 1] - heights[i])
    return total


def _area(y: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    if not len(y):
        return 0.0
    y = y[np.lexsort((y[:, 1], y[:, 0]))]
    floor = np.minimum.accumulate(np.append(reference[1], y[:, 1]))
    return float(((floor[:-1] - floor[1:]) * (reference[0] - y[:, 0])).sum())
