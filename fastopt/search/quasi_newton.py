"""Projected quasi-Newton search in the unit box, one batch of points at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastopt.search.layout import Matrix

__all__ = ["QuasiNewton", "box_minimum"]

FORWARD, CENTRAL = 3e-9, 6e-6  # steps of the differences, shares of the range
# The first curvature is that of the first step divided by this. Directions of too little curvature
# are corrected by one step each, those of too much by many (Byrd, Liu & Nocedal 1992).
SOFTER = 1e5
FIRST = 5.0  # the first step is 1 / FIRST of the range along the steepest variable
ARMIJO = 0.1
BACKTRACKS = 25
SWEEPS = 60  # of coordinate descent, where the active sets go round


def _empty() -> Matrix:
    return np.empty(0)


@dataclass
class QuasiNewton:
    """BFGS with finite differences, started by ``start``; ``request`` is what to evaluate next.

    Each step is the minimum of the quadratic model in the box, shortened by interpolation until
    it keeps Armijo's rule; the Hessian's update is damped (Powell 1978; Nocedal & Wright,
    "Numerical optimization", procedure 18.2). Forward differences become central ones once a step
    fails. A gradient is one batch of d points.
    """

    request: Matrix = field(default_factory=lambda: np.empty((0, 0)))  # (m, d), empty at the end
    x: Matrix = field(default_factory=_empty)
    fx: float = 0.0
    f_start: float = 0.0
    left: int = 0  # evaluations
    hessian: Matrix = field(default_factory=lambda: np.empty((0, 0)))
    known: str = "nothing"  # of the Hessian: "nothing", "scale" or "pairs"
    gradient: Matrix = field(default_factory=_empty)
    x_old: Matrix = field(default_factory=_empty)
    g_old: Matrix = field(default_factory=_empty)  # empty where no pair can be made
    step: Matrix = field(default_factory=_empty)  # empty while a gradient is asked for
    slope: float = 0.0
    share: float = 1.0  # of the step
    tries: int = 0
    central: bool = False
    reset: bool = False  # whether the Hessian was thrown away since the last good step

    def start(self, x: Matrix, fx: float, evaluations: int) -> None:
        """In place: begin at x of value fx."""
        self.__init__()  # type: ignore[misc]
        self.x, self.fx, self.f_start, self.left = x.copy(), fx, fx, evaluations
        self._ask_gradient()

    def advance(self, y: NDArray[np.float64]) -> None:
        """In place: take the values of ``request`` and make the next one."""
        self.left -= len(y)
        if len(self.step):
            self._line(float(y[0]))
        else:
            self._newton(y)
        if self.left <= 0:
            self.request = self.request[:0]

    # --- inside

    def _ask_gradient(self) -> None:
        h = CENTRAL if self.central else FORWARD
        ahead = self.x + np.diag(np.where(self.x + h > 1, -h, h))
        self.step = self.step[:0]
        if self.central:
            ahead = np.vstack([ahead, np.clip(2 * self.x - ahead, 0, 1)])
        self.request = ahead

    def _newton(self, y: NDArray[np.float64]) -> None:
        d = len(self.x)
        moved = self.request.reshape(-1, d, d).diagonal(axis1=1, axis2=2)
        with np.errstate(invalid="ignore", over="ignore"):
            if self.central:
                self.gradient = (y[:d] - y[d:]) / (moved[0] - moved[1])
            else:
                self.gradient = (y - self.fx) / (moved[0] - self.x)
        g = self.gradient
        if not np.isfinite(g).all() or not g.any():
            self.request = self.request[:0]
            return
        self._learn_curvature()
        step = box_minimum(self.x, g, self.hessian)
        if not g @ step < 0:
            step = np.clip(-0.1 * g / np.abs(g).max(), -self.x, 1 - self.x)
        self.step, self.slope, self.share, self.tries = step, float(g @ step), 1.0, 0
        self._ask_point()

    def _learn_curvature(self) -> None:
        d, g = len(self.x), self.gradient
        if self.known == "nothing":
            self.hessian = np.eye(d) * (np.abs(g).max() * FIRST)
            self.known = "scale"
            return
        if not len(self.g_old):
            return
        s, y = self.x - self.x_old, g - self.g_old
        if self.known == "scale" and s @ y > 0:
            self.hessian = np.eye(d) * ((s @ y) / (s @ s) / SOFTER)
            self.known = "pairs"
        b = self.hessian @ s
        curved, wanted = s @ b, s @ y
        if wanted < 0.2 * curved:  # Powell's damping keeps the matrix positive definite
            share = 0.8 * curved / (curved - wanted)
            y = share * y + (1 - share) * b
            wanted = s @ y
        if curved > 0 and wanted > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y):
            self.hessian = self.hessian + np.outer(y, y) / wanted - np.outer(b, b) / curved

    def _ask_point(self) -> None:
        point = np.clip(self.x + self.share * self.step, 0, 1)
        if (point == self.x).all() or self.tries >= BACKTRACKS:
            self._failed()
        else:
            self.request = point[None]

    def _line(self, y: float) -> None:
        self.tries += 1
        expected = self.share * self.slope
        if not y < self.fx + ARMIJO * expected:
            excess = y - self.fx - expected
            shorter = -0.5 * expected / excess if np.isfinite(excess) and excess > 0 else 0.0
            self.share *= min(0.5, max(0.1, shorter))
            self._ask_point()
            return
        self.reset = False
        self.x_old, self.g_old = self.x, self.gradient
        gain, self.x, self.fx = self.fx - y, self.request[0], y
        if gain <= 1e-15 * abs(self.fx) + 1e-16 * (self.f_start - self.fx):
            if self.central:
                self.request = self.request[:0]
                return
            self._go_central()
        self._ask_gradient()

    def _failed(self) -> None:
        """No point along the step is better: central differences, a new Hessian, or the end."""
        if not self.central:
            self._go_central()
        elif not self.reset:
            self.reset, self.known, self.g_old = True, "nothing", self.g_old[:0]
        else:
            self.request = self.request[:0]
            return
        self._ask_gradient()

    def _go_central(self) -> None:
        self.central, self.g_old = True, self.g_old[:0]


def box_minimum(x: Matrix, gradient: Matrix, hessian: Matrix) -> Matrix:
    """The step p that minimises g p + p H p / 2 with x + p in the unit box.

    Active sets: a variable whose free step leaves the box is fixed at the bound, one whose
    multiplier has the wrong sign is freed. Where that goes round, coordinate descent.
    """
    d = len(x)
    low, high = -x, 1 - x
    side = np.where((x <= 0) & (gradient > 0), -1, np.where((x >= 1) & (gradient < 0), 1, 0))
    ridge = 1e-13 * float(np.trace(hessian))
    step = np.zeros(d)
    for _ in range(20):
        free = side == 0
        step = np.where(side < 0, low, np.where(side > 0, high, 0.0))
        if free.any():
            inner = hessian[np.ix_(free, free)] + np.eye(int(free.sum())) * ridge
            rest = gradient[free] + hessian[np.ix_(free, ~free)] @ step[~free]
            try:
                step[free] = -np.linalg.solve(inner, rest)
            except np.linalg.LinAlgError:
                break
        over, under = free & (step > high), free & (step < low)
        if over.any() or under.any():
            side[over], side[under] = 1, -1
            continue
        multiplier = gradient + hessian @ step
        wrong = ((side < 0) & (multiplier < 0)) | ((side > 0) & (multiplier > 0))
        if not wrong.any():
            return np.asarray(np.clip(step, low, high))
        side[wrong] = 0
    step = np.clip(np.nan_to_num(step), low, high)
    if gradient @ step + 0.5 * step @ hessian @ step > 0:
        step[:] = 0
    slope = gradient + hessian @ step
    curvature = np.maximum(hessian.diagonal(), 1e-300)
    for _ in range(SWEEPS):
        longest = 0.0
        for i in range(d):
            new = min(max(step[i] - slope[i] / curvature[i], low[i]), high[i])
            if new != step[i]:
                longest = max(longest, abs(new - step[i]))
                slope = slope + hessian[:, i] * (new - step[i])
                step[i] = new
        if longest < 1e-6:
            break
    return np.asarray(step)
