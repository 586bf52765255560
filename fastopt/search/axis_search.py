"""Global search along every axis at once, for objectives that are sums over the variables."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastopt.search.layout import Matrix

__all__ = ["AxisSearch", "is_sum", "splits"]

SPLITS = 2  # pairs of points that tell a sum from other objectives
FINEST = 1e-9  # intervals that are not divided further, share of the range


def splits(points: Matrix, u: Matrix) -> None:
    """In place: rows 2.. become mixes of rows 0 and 1, each beside its complement.

    For a sum over the variables, f of a mix plus f of its complement is f of row 0 plus row 1.
    """
    for k in range(min(SPLITS, (len(points) - 2) // 2)):
        first = u[k] < 0.5
        if first.all() or not first.any():
            first[0] ^= True
        points[2 + 2 * k] = np.where(first, points[0], points[1])
        points[3 + 2 * k] = np.where(first, points[1], points[0])


def is_sum(y: NDArray[np.float64]) -> bool:
    """Whether the values of ``splits``'s points are those of a sum over the variables."""
    y = y[: 2 + 2 * SPLITS]
    if len(y) < 2 + 2 * SPLITS or not np.isfinite(y).all() or not np.ptp(y):
        return False
    gaps = y[2::2] + y[3::2] - y[0] - y[1]
    return bool((np.abs(gaps) <= 1e-9 * np.ptp(y) + 1e-12 * np.abs(y).max()).all())


@dataclass
class AxisSearch:
    """d one-dimensional searches in turns: one point on each axis, then the sum of the best.

    A point on an axis is the vertex of the parabola through the best three, or the middle of the
    interval in which the flattest parabola through its ends gets below the best value (STEP:
    Swarzberg, Seront & Bersini 1994; for sums, Posik & Baudis, GECCO 2015). The base moves to the
    combination after each turn; where its value is not the predicted one, the search ends.
    """

    request: Matrix = field(default_factory=lambda: np.empty((0, 0)))
    x: Matrix = field(default_factory=lambda: np.empty(0))
    fx: float = 0.0
    turn: int = 0
    turns: int = 0
    points: list[list[tuple[float, float]]] = field(default_factory=list)  # (place, f - fx)
    gain: float = 0.0  # predicted; 0 while points on the axes are asked for
    drops: Matrix = field(default_factory=lambda: np.empty(0))  # predicted per axis

    def start(self, x: Matrix, fx: float, turns: int) -> None:
        """In place: begin at x of value fx, for at most ``turns`` points on each axis."""
        self.__init__()  # type: ignore[misc]
        self.x, self.fx, self.turns = x.copy(), fx, turns
        self.points = [[(float(place), 0.0)] for place in x]
        self._ask_axes()

    def advance(self, y: NDArray[np.float64]) -> None:
        """In place: take the values of ``request`` and make the next one."""
        if self.gain:
            point, value = self.request[0], float(y[0])
            slack = 1e-6 * self.gain + 1e-11 * max(abs(self.fx), abs(value))
            if not abs(self.fx - self.gain - value) <= slack:
                if value < self.fx:
                    self.x, self.fx = point, value
                self.request = self.request[:0]
                return
            for i in np.flatnonzero(self.drops).tolist():
                self.points[i] = [(p, f - self.drops[i]) for p, f in self.points[i]]
            self.x, self.fx, self.gain = point, value, 0.0
            self._ask_axes()
            return
        rise = y - self.fx
        if not np.isfinite(rise).all():
            self.request = self.request[:0]
            return
        places = self.request.diagonal()
        for i, own in enumerate(self.points):
            if all(place != places[i] for place, _ in own):
                own.append((float(places[i]), float(rise[i])))
                own.sort()
        self.drops = np.minimum(rise, 0.0)
        self.gain = float(-self.drops.sum())
        if self.gain:
            self.request = np.where(self.drops < 0, places, self.x)[None]
        else:
            self._ask_axes()

    def _ask_axes(self) -> None:
        if self.turn >= self.turns:
            self.request = self.request[:0]
            return
        self.turn += 1
        self.request = np.tile(self.x, (len(self.x), 1))
        for i, own in enumerate(self.points):
            self.request[i, i] = self._place(float(self.x[i]), own)

    def _place(self, x: float, own: list[tuple[float, float]]) -> float:
        if self.turn <= 2:  # both bounds
            return float((x <= 0.5) == (self.turn == 1))
        at, f = np.array(own).T
        best = int(np.argmin(f))
        if self.turn % 2 and 0 < best < len(at) - 1:
            vertex = self._vertex(at[best - 1 : best + 2], f[best - 1 : best + 2])
            if vertex is not None and np.abs(at - vertex).min() >= 1e-12:
                return vertex
        below = f[best] - 1e-10 * (f.max() - f[best]) - 1e-300
        width = np.diff(at)
        bend = (np.sqrt(f[:-1] - below) + np.sqrt(f[1:] - below)) ** 2 / np.maximum(
            width, 1e-300
        ) ** 2
        k = int(np.argmin(np.where(width < FINEST, np.inf, bend)))
        return float(0.5 * (at[k] + at[k + 1]))

    def _vertex(self, at: Matrix, f: Matrix) -> float | None:
        """Of the parabola through three points; a little further where it is the middle one."""
        left, right = np.diff(at)
        rise, fall = np.diff(f) / (left, right)
        bend = (fall - rise) / (left + right)
        if not bend > 0:
            return None
        vertex = at[1] - (rise + bend * left) / (2 * bend)
        off = vertex - at[1]
        if abs(off) < 1e-4 * min(left, right):
            vertex = at[1] + np.sign(off) * max(2 * abs(off), 1e-11)
        return float(vertex) if at[0] < vertex < at[2] else None
