"""Steps along a direction that lower a function by enough, and the products that they need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from fastopt._arrays import Array

__all__ = ["PIECE", "Evaluate", "Point", "armijo", "dot", "first_step", "flatness", "wolfe"]

Point: TypeAlias = "tuple[Array, float, Array]"  # x, value, gradient
Evaluate: TypeAlias = "Callable[[Array], Point]"

ARMIJO = 1e-4  # share of the predicted decrease that a step must bring (Nocedal & Wright, eq. 3.6)
CURVATURE = 0.9  # share of the slope that may be left at a step's end (ibid., eq. 3.7b)
PIECE = 4096  # columns of a product that BLAS leaves to one thread


def flatness(g: Array) -> float:
    return float(np.abs(g).max()) if g.size else 0.0


def dot(a: Array, b: Array) -> float:
    """In pieces that BLAS computes in one thread: more threads would change the bits and
    keep the cores from the function that is minimised. Float32 products are summed in double."""
    if a.dtype == np.float32:
        return float(np.einsum("i,i->", a.ravel(), b.ravel(), dtype=np.float64))
    if a.size <= PIECE:
        return float(np.vdot(a, b))
    a, b = a.ravel(), b.ravel()
    parts = range(0, a.size, PIECE)
    return math.fsum(float(np.dot(a[i : i + PIECE], b[i : i + PIECE])) for i in parts)


def first_step(x: Array, g: Array) -> float:
    """A first step that moves no component by more than 1 (or its own size)."""
    return max(1.0, float(np.abs(x).max())) / max(flatness(g), 1e-300)


def armijo(
    evaluate: Evaluate, x: Array, reference: float, g: Array, t: float
) -> tuple[Point, float] | None:
    """Halve t until x - t g lowers the value below ``reference`` by enough; None if none does."""
    slope = dot(g, g)
    slack = 4 * float(np.finfo(x.dtype).eps) * abs(reference)  # rounding of the value itself
    for _ in range(60):
        trial = x - x.dtype.type(t) * g
        if np.array_equal(trial, x):
            return None
        point = evaluate(trial)
        if point[1] <= reference - ARMIJO * t * slope + slack and np.isfinite(point[2]).all():
            return point, t
        t *= 0.5
    return None


def wolfe(
    evaluate: Evaluate, x: Array, f: float, d: Array, slope: float, t: float, noise: float
) -> Point | None:
    """A step along d with the strong Wolfe conditions (ibid., algorithms 3.5 and 3.6), where
    values are trusted up to the share ``noise`` and slopes beyond."""
    slack = noise * abs(f)
    dt = x.dtype.type
    low = (0.0, f, slope)  # step, value, slope: the best end of the bracket
    high: tuple[float, float, float] | None = None
    kept: Point | None = None  # the point at `low`, once it is not the start
    for _ in range(40):
        point = evaluate(x + d if t == 1.0 else x + dt(t) * d)
        value = point[1]
        rise = dot(point[2], d)  # finite only where the gradient is
        finite = math.isfinite(value) and math.isfinite(rise)
        rise = rise if finite else math.inf
        if not finite or value > f + ARMIJO * t * slope + slack or value > low[1] + slack:
            high = (t, value if finite else math.inf, rise)
        else:
            if abs(rise) <= -CURVATURE * slope:
                return point
            if rise * ((high[0] if high else math.inf) - low[0]) >= 0:
                high = low
            low, kept = (t, value, rise), point
        if high is None:
            t *= 4.0
            continue
        t = _cubic(low, high)
        if abs(high[0] - low[0]) * float(np.abs(d).max()) <= float(np.finfo(x.dtype).eps) * max(
            1e-30, float(np.abs(x).max())
        ):
            break
    return kept if kept is not None and kept[1] < f else None


def _cubic(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    """Minimiser of the cubic through both ends (ibid., eq. 3.59), kept inside the bracket."""
    (ta, fa, da), (tb, fb, db) = a, b
    middle = 0.5 * (ta + tb)
    if not (math.isfinite(fb) and math.isfinite(db)):
        return middle
    d1 = da + db - 3.0 * (fa - fb) / (ta - tb)
    inside = d1 * d1 - da * db
    if inside < 0:
        return middle
    d2 = math.copysign(math.sqrt(inside), tb - ta)
    denominator = db - da + 2.0 * d2
    if denominator == 0:
        return middle
    t = tb - (tb - ta) * (db + d2 - d1) / denominator
    edge = 0.1 * abs(tb - ta)
    return t if min(ta, tb) + edge <= t <= max(ta, tb) - edge else middle
