"""Which proposals are new: neither known, nor a repetition of each other, nor ever told."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np

from fastopt.search.engine import fingerprint
from fastopt.search.layout import Matrix

__all__ = ["put_new", "repeats", "without"]


def repeats(values: Matrix, known: Set[bytes], seen: Set[int]) -> list[int]:
    """Rows that are in ``known`` (bytes) or ``seen`` (fingerprints), or equal to one before."""
    taken, found = set(known), []
    for i, value in enumerate(values):
        key = value.tobytes()
        if key in taken or (seen and fingerprint(value) in seen):
            found.append(i)
        taken.add(key)
    return found


def put_new(
    values: Matrix, row: int, points: Iterable[Matrix], known: Set[bytes], seen: Set[int]
) -> None:
    """In place: values[row] = the first of ``points`` that is new, if there is one."""
    here = {value.tobytes() for value in values}
    for point in points:
        key = point.tobytes()
        if key not in known and key not in here and fingerprint(point) not in seen:
            values[row] = point
            return


def without(waiting: Matrix, values: Matrix) -> Matrix:
    """The rows of ``waiting`` that are not among ``values``."""
    if np.array_equal(waiting, values):
        return waiting[:0]
    told = {row.tobytes() for row in values}
    left: Matrix = waiting[[row.tobytes() not in told for row in waiting]]
    return left
