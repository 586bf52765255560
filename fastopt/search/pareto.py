"""Several objectives: fronts, crowding, hypervolume. All objectives are minimised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._arrays import as_array
from fastopt.errors import ArrayError

__all__ = ["crowding", "fronts", "hypervolume", "thinned"]


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
    bisection (Zhang et al., ENS-BS, IEEE TEC 19 (2015)): O(n log n) for two objectives, about
    that for three, O(n^2) at worst for more.

    Examples
    --------
    >>> fronts([[1, 2], [2, 1], [2, 2], [3, 3]]).tolist()
    [0, 0, 1, 2]
    """
    y = _rows(y)
    rank = np.empty(len(y), np.int32)
    bad = np.isnan(y).any(axis=1)
    if not bad.any():
        _kernels.fronts.fronts(rank, np.ascontiguousarray(y))
    else:
        found = np.empty(len(y) - int(bad.sum()), np.int32)
        _kernels.fronts.fronts(found, y[~bad])
        rank[~bad] = found
        rank[bad] = found.max(initial=-1) + 1
    return rank.astype(np.intp)


def _rows(y: Any) -> NDArray[np.float64]:
    return as_array(y, "y", dtypes=("float64",), cast="float64", ndim=2)


def crowding(y: Any) -> NDArray[np.float64]:
    """Crowding distance of the rows of one front: the sides of the box between the neighbours.

    Each objective is divided by its range; the ends of each objective get infinity (Deb et al.,
    NSGA-II, IEEE TEC 6 (2002), section III.B).

    Parameters
    ----------
    y : (n, n_objectives) array
        Objectives of one front.

    Returns
    -------
    (n,) float64

    Examples
    --------
    >>> crowding([[0, 4], [1, 2], [4, 0]]).tolist()
    [inf, 2.0, inf]
    """
    y = _rows(y)
    distance = np.zeros(len(y))
    for column in y.T:
        order = np.argsort(column, kind="stable")
        span = _span(column, order)
        if not 0 < span < math.inf:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def _span(column: NDArray[np.float64], order: NDArray[np.intp]) -> float:
    """Largest value less the smallest; NaN where both are the same infinity."""
    return float(column[order[-1]]) - float(column[order[0]]) if len(order) else 0.0


def thinned(y: Any, n: int) -> NDArray[np.intp]:
    """Rows of one front that stay when the most crowded row goes, again and again, until n are
    left: unlike the n rows of largest distance, they have no gap where several were close.

    Parameters
    ----------
    y : (k, m) array-like of float64
    n : int

    Returns
    -------
    (min(n, k),) intp, ascending

    Notes
    -----
    Distances are those of ``crowding`` among the rows that are left; O(m k log k + k (k - n)).

    Examples
    --------
    >>> thinned([[0, 9], [4, 5], [5, 4], [5.1, 3.9], [9, 0]], 3).tolist()
    [0, 1, 4]
    """
    y = _rows(y)
    k = len(y)
    left = np.ones(k, bool)
    distance = crowding(y)
    links = []  # of each objective: scaled values, the row before and the row after each row
    for column in y.T:
        order = np.argsort(column, kind="stable")
        span = _span(column, order)
        if not 0 < span < math.inf:
            continue
        before, after = np.full(k, -1), np.full(k, -1)
        before[order[1:]], after[order[:-1]] = order[:-1], order[1:]
        links.append(((column / span).tolist(), before.tolist(), after.tolist()))
    for _ in range(k - n):
        shown = np.where(left, distance, np.inf)
        out = int(np.argmin(shown))
        if not math.isfinite(shown[out]):  # ends alone are left
            out = int(np.flatnonzero(left)[-1])
        left[out] = False
        for at, before, after in links:
            low, high = before[out], after[out]
            if high >= 0:
                before[high] = low
                if after[high] >= 0 and low >= 0:
                    distance[high] += at[out] - at[low]
            if low >= 0:
                after[low] = high
                if before[low] >= 0 and high >= 0:
                    distance[low] += at[high] - at[out]
    return np.flatnonzero(left)


def hypervolume(y: Any, reference: Any) -> float:
    """Volume between the rows of ``y`` and ``reference``, exact for two or three objectives.

    Rows that are not below the reference everywhere add nothing. O(n log n) for two objectives,
    O(n^2) for three (a sweep along the third with the front of the other two).

    Parameters
    ----------
    y : (n, 2) or (n, 3) array
        Objectives, smaller is better.
    reference : (2,) or (3,) array
        The corner that the volume ends at.

    Returns
    -------
    float

    Raises
    ------
    ArrayError
        ``y`` has neither two nor three columns, or the reference another number.

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
