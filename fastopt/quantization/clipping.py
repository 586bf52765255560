"""Ranges narrower than the data: what to clip so that the rest is rounded better.

Each function takes parts as rows and answers with one range a row. The mean squared error is
searched over a grid of shrunken ranges; the entropy method compares a histogram with its quantised
self; the percentile cuts a fixed share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite
from fastopt._interrupts import interruptible
from fastopt._kernels import clip as kernel
from fastopt.calibration import Gram, check_gram
from fastopt.errors import OptionError
from fastopt.quantization.codebooks import decode_narrow, encode_narrow, narrow_scale
from fastopt.quantization.formats import Format, format_of

__all__ = [
    "RangeRule",
    "entropy_range",
    "mse_range",
    "narrow_mse_range",
    "percentile_range",
    "second_moment",
]

# Parts of a range that are tried, largest first so that ties keep the wider one. Weights have
# their optimum in the first 32 (steps of 2 %); the geometric tail is for data whose largest value
# is an outlier. 32 are what the kernel takes at a time.
_NEAR = np.arange(100, 36, -2) / 100
_WIDE = np.concatenate([_NEAR, 0.375 * 2.0 ** -(np.arange(32) / 4)])
_SERIAL_BELOW = 1 << 17  # evaluations of about 0.3 ns
_CHUNK = 1 << 22  # elements of a float32 copy


class RangeRule(NamedTuple):
    """How a kernel looks for the range of an integer format with the least squared error.

    ``wide``, ``near``: the parts of the range tried for both ends and for one; then what a scale
    and a zero point follow from: the steps of the scale in a range (in max|x| if symmetric), the
    symmetric zero point, the ends of the codes.
    """

    wide: Array
    near: Array
    symmetric: bool
    steps: int
    zero_point: int
    qmin: int
    qmax: int

    @classmethod
    def of(cls, fmt: Format, *, symmetric: bool, wide: bool = False) -> RangeRule:
        """The rule of a format."""
        steps = fmt.symmetric_range if symmetric else fmt.qmax - fmt.qmin
        codes = fmt.limits(symmetric)
        middle = fmt.symmetric_zero_point
        return cls(_WIDE if wide else _NEAR, _NEAR, symmetric, steps, middle, *codes)


def mse_range(
    x: Array,
    weight: Array | None,
    low: Array,
    high: Array,
    dtype: str | Format,
    *,
    symmetric: bool,
    wide: bool = True,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Range of each row that minimises sum_i weight_i (x_i - dequantise(quantise(x_i)))^2.

    Parameters
    ----------
    x : (rows, n) float32 or float64
        Values, or the centres of a histogram's bins.
    weight : (rows, n), (k, n) or None
        Weights >= 0, or a histogram's counts; row r uses weight row r mod k.
    low, high : (rows,)
        The full range of each row.
    dtype : str or Format
        An integer format.
    symmetric : bool
        Shrink max|x| only; else both ends together, then each alone.
    wide : bool
        Try ranges down to 1 / 600 of the full one (outliers), not only down to 0.38.

    Returns
    -------
    low, high : (rows,) float64

    Notes
    -----
    32 evaluations of an element, 64 if wide, and 64 more for an affine range. A row is
    scaled by a power of two before float32 is used, so any magnitude works.
    """
    rule = RangeRule.of(_integer(dtype), symmetric=symmetric, wide=wide)
    best_low, best_high = low.astype(np.float64), high.astype(np.float64)
    shared = None if weight is None else _normal(weight.astype(np.float64, order="C"))[0]
    count = 1 if shared is None else len(shared)
    n, tried = x.shape[1], len(rule.wide) + 2 * len(rule.near)
    step = max(1, _CHUNK // max(1, n * count)) * count  # whole rounds of the weights
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        part, unit = (x[rows], 1.0) if x.dtype == np.float32 else _normal(x[rows])
        w = shared if shared is None or count < len(x) else shared[rows]
        lo, hi = best_low[rows] / unit, best_high[rows] / unit
        work = len(part) * n * tried if len(part) > 1 else 0
        used = _threads.resolve(threads, work, _SERIAL_BELOW)
        shared_rows = 0 if w is None else len(w)
        # the kernel looks at signals between a few rows
        few = 4.0 * n * tried
        args = (lo, hi, part, w, len(part), n, shared_rows, *rule, used)
        interruptible(few, kernel.best_range, *args)
        best_low[rows], best_high[rows] = lo * unit, hi * unit
    return best_low, best_high


def narrow_mse_range(
    x: Array,
    weight: Array | None,
    low: Array,
    high: Array,
    fmt: Format,
    *,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """As :func:`mse_range` for narrow floats and codebooks: every candidate range is tried.

    Twice the range is a candidate too: the next power of two, where a scale is one.
    """
    part, unit = _normal(x)
    top = np.maximum(-low, high) / unit
    best, least = top.copy(), np.full(len(x), np.inf)
    value = np.empty_like(part)
    for ratio in (*_NEAR, 2.0):
        scale = narrow_scale(top * ratio, fmt, np.float32)
        codes = encode_narrow(part, fmt, scale, 0, None, threads=threads)
        decode_narrow(value, codes, fmt, scale, 0, None, threads)
        value -= part
        value *= value
        if weight is not None:
            value *= weight
        error = value.sum(axis=1, dtype=np.float64)
        best = np.where(error < least, top * ratio, best)
        least = np.minimum(error, least)
    return -best * unit, best * unit


def percentile_range(
    x: Array, low: Array, high: Array, percentile: float, *, symmetric: bool
) -> tuple[Array, Array]:
    """Range of each row that holds ``percentile`` % of it, (100 - percentile) / 2 % cut per side.

    Exact (numpy.quantile, linear); symmetric ranges hold the percentage of |x|.
    """
    keep, work = percentile / 100.0, 100.0 * x.size
    if x.shape[1] == 0:
        return low.astype(np.float64), high.astype(np.float64)
    if symmetric:
        top = interruptible(work, np.quantile, np.abs(x), keep, 1).astype(np.float64)
        return -top, top
    cut = (1.0 - keep) / 2.0
    ends = interruptible(work, np.quantile, x, [cut, 1.0 - cut], 1).astype(np.float64)
    return ends[0], ends[1]


def entropy_range(
    counts: Array,
    width: Array,
    low: Array,
    high: Array,
    dtype: str | Format,
    *,
    symmetric: bool,
) -> tuple[Array, Array]:
    """Range of each row of a histogram that loses the least information, KL(P || Q).

    P is the histogram with everything outside the range put into its end bins; Q is the
    histogram inside the range, each of the format's levels spread evenly over the bins where P
    holds data. KL = sum_b P_b log(P_b / Q_b), both normalised.

    Parameters
    ----------
    counts : (rows, bins) integer
        Bins from -bins / 2 to bins / 2 times the width.
    width : (rows,)
        Width of a bin.
    low, high : (rows,)
        The full range.
    dtype : str or Format
        An integer format: its number of levels counts.
    symmetric : bool
        Fold the histogram and search max|x|; else search the longer side, then the other.

    Notes
    -----
    Prefix sums make a candidate cost one logarithm a level instead of one a bin. Where the range
    has fewer bins than levels nothing is lost, so the full range stays. Source: S. Migacz, "8-bit
    inference with TensorRT" (GTC 2017).
    """
    fmt = _integer(dtype)
    half = counts.shape[1] // 2
    levels = fmt.symmetric_range + 1 if symmetric else fmt.qmax - fmt.qmin + 1
    lows, highs = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
    if symmetric:
        highs = np.maximum(-lows, highs)
        lows = np.zeros_like(highs)
        counts = counts[:, half:] + counts[:, :half][:, ::-1]
        half = 0
    for r, c in enumerate(counts):
        # bins in use on each side of zero; a value on an edge is in the bin beyond it
        left = 0 if symmetric else int(-lows[r] / width[r]) + 1
        right = int(highs[r] / width[r]) + 1
        for side in ("right", "left") if right >= left else ("left", "right"):
            part = c[half - left : half + right]
            if side == "right":
                end = max(0, min(right, _entropy_end(part, levels) - left))
                right, highs[r] = end, highs[r] if end == right else end * width[r]
            elif left:
                end = max(0, min(left, _entropy_end(part[::-1], levels) - right))
                left, lows[r] = end, lows[r] if end == left else -end * width[r]
    return (-highs, highs) if symmetric else (lows, highs)


def _entropy_end(counts: Array, levels: int) -> int:
    """Number of bins, from the left, that keep the most information in ``levels`` levels."""
    span = len(counts)
    if span <= levels:
        return span
    c = counts.astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(c)])
    used = np.concatenate([[0.0], np.cumsum(c > 0)])
    plogp = np.concatenate([[0.0], np.cumsum(c * np.log(np.maximum(c, 1.0)))])
    total = max(mass[-1], 1.0)
    steps = min(256, span - levels)
    length = span - (span - levels) * np.arange(steps + 1) // steps
    edges = np.arange(levels + 1) * length[:, None] // levels
    inside, filled = np.diff(mass[edges], axis=1), np.diff(used[edges], axis=1)
    outside, last = mass[-1] - mass[length], c[length - 1]
    # an end bin that was empty holds data of P once the outer mass is in it
    filled[:, -1] += (outside > 0) & (last == 0)
    p = inside.copy()  # mass of P that meets each level
    p[:, -1] += outside
    log_q = np.log(np.maximum(inside, 1.0) / np.maximum(filled, 1.0))
    log_p = plogp[length] - _xlogx(last) + _xlogx(last + outside)
    kept = np.maximum(total - outside, 1.0)
    kl = (log_p - (p * log_q).sum(axis=1)) / total + np.log(kept / total)
    kl[((p > 0) & (inside == 0)).any(axis=1)] = np.inf  # mass of P where Q has none
    return int(length[np.argmin(np.rint(kl * 1e12))])  # of equals the widest


def _xlogx(x: Array) -> Array:
    result: Array = x * np.log(np.maximum(x, 1.0))
    return result


def second_moment(gram: Any, n: int) -> Array:
    """X^T X / rows of a Gram, or the matrix X^T X that was given, checked; float64."""
    if isinstance(gram, Gram):
        result: Array = check_gram(gram, n).covariance()
        result += np.multiply.outer(gram.mean, gram.mean)
        return result
    matrix = as_array(gram, "gram", cast="float64", shape=(n, n)).astype(np.float64)
    check_finite(matrix, "gram")
    return matrix


def _integer(dtype: str | Format) -> Format:
    fmt = format_of(dtype)
    if not fmt.affine:
        raise OptionError(f"dtype: a clipped range needs an integer format, got {fmt.name}")
    return fmt


def _normal(x: Array) -> tuple[Array, Array]:
    """Rows as float32 over a power of two that brings max|row| into [1, 2), and that power."""
    top = np.maximum(x.max(axis=1, initial=0), -x.min(axis=1, initial=0)).astype(np.float64)
    unit = np.ldexp(1.0, np.frexp(top)[1] - 1)
    return np.ascontiguousarray(x / unit[:, None].astype(x.dtype), np.float32), unit
