"""Scales and zero points of an array: the range of each part, whole or clipped by a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array
from fastopt._kernels import quantize_range as kernel
from fastopt._options import choice, flag, number
from fastopt._random import Seed, check_seed
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.clipping import (
    mse_range,
    narrow_mse_range,
    percentile_range,
    second_moment,
)
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.histograms import HistogramObserver
from fastopt.quantization.layout import layout_of
from fastopt.quantization.qparams import QParams, from_range

__all__ = ["METHODS", "check_options", "choose_qparams", "feature_weights", "holds_nan", "ranges"]

SMALL = 1 << 15  # elements below which NumPy's pass costs less than the kernel's call
METHODS = ("minmax", "percentile", "mse", "entropy")


def choose_qparams(
    x: Any,
    dtype: str | Format = "int8",
    *,
    axis: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    method: str = "minmax",
    percentile: float = 99.99,
    gram: Any = None,
    threads: int | None = None,
) -> QParams:
    r"""Scale and zero point of ``x`` for a format: scale = max|x| / 127 for symmetric int8.

    Parameters
    ----------
    x : array-like, float32 or float64
        The values; finite.
    dtype : str or Format
        Any that :func:`fastopt.quantize` takes.
    axis : int, optional
        One scale per index of this axis (with ``group_size``: the axis that is cut into groups).
    group_size : int, optional
        One scale per this many elements along ``axis`` (default the last).
    symmetric : bool
        Equal range on both sides of zero, zero point fixed; else the range [min, max], widened to
        hold 0, and a zero point that represents 0 exactly.
    method : str
        "minmax": the whole range. "percentile": ``percentile`` % of the values of each part.
        "mse": the clipped range with the least squared error. "entropy": the one that keeps the
        most information (a histogram of 4096 bins; integers only; for large parts).
    percentile : float
        In (0, 100]; (100 - percentile) / 2 % are cut on each side, or symmetrically of |x|.
    gram : Gram, or (n, n) array X^T X, optional
        For "mse" of a weight whose last axis is the layer's input: the error of feature j counts
        with the second moment of what it meets.
    threads : int, optional
        Thread count.

    Returns
    -------
    QParams
        ``scale`` has the dtype of x.

    Raises
    ------
    ArrayError
        x holds NaN or infinity.
    OptionError, DTypeError

    Notes
    -----
    An all-zero part gets scale 1. A scale that would be denormal is raised to the smallest normal
    number. Fixed point has its scale given by the format and ignores the data; 16-bit floats have
    scale 1. float8: max|x| / 448 or 57344. nf4: max|x|. mxfp4: the power of two below max|x|, over
    4, so that up to a quarter of the range above 6 is clipped ("mse" may choose the next power).

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import choose_qparams
    >>> scale, zero_point = choose_qparams(np.array([-1.0, 0.5], np.float32), "uint8",
    ...                                    symmetric=False)
    >>> int(zero_point)
    170
    """
    a = as_array(x, "x", cast="float32")
    fmt = format_of(dtype)
    check_options(symmetric, method, percentile, None, threads)
    low, high = ranges(a, axis=axis, group_size=group_size, threads=threads)
    if not np.isfinite(low).all():  # then both ends are NaN
        raise ArrayError("x: holds NaN or infinity, so it has no scale; clean the data first")
    if gram is not None and method != "mse":
        raise OptionError(f"gram: only method 'mse' weighs by a gram, not {method!r}")
    cut = float(percentile)
    if method == "entropy" and not fmt.integers:
        raise OptionError(f"method: 'entropy' needs an integer format, got {fmt.name}")
    if method != "minmax" and fmt.scaled and a.size:
        weight = None if gram is None else feature_weights(gram, a.shape)
        low, high = _clipped(
            a, weight, low, high, fmt, symmetric, method, cut, axis, group_size, threads
        )
    return from_range(low, high, fmt, symmetric)


def check_options(
    symmetric: Any, method: Any, percentile: Any, seed: Seed, threads: int | None
) -> None:
    """Check the options of a quantisation, including those that its method does not use."""
    flag(symmetric, "symmetric")
    choice(method, "method", METHODS)
    number(percentile, "percentile", low=0.0, high=100.0, low_open=True)
    check_seed(seed)
    _threads.resolve(threads, 0)


def feature_weights(gram: Any, shape: tuple[int, ...]) -> Array:
    """Diagonal of X^T X / rows, one weight for each index of the last axis of ``shape``."""
    if not shape:
        raise ArrayError("gram: a single number has no features")
    result: Array = second_moment(gram, shape[-1]).diagonal().copy()
    return result


def _clipped(
    x: Array,
    weight: Array | None,
    low: Array,
    high: Array,
    fmt: Format,
    symmetric: bool,
    method: str,
    percentile: float,
    axis: int | None,
    group_size: int | None,
    threads: int | None,
) -> tuple[Array, Array]:
    """The ranges (low, high) of the parts of ``x`` narrowed by a method, in the same shape."""
    new_low, new_high = low.astype(np.float64), high.astype(np.float64)
    for index, rows, weights in _parts(x, weight, axis, group_size):
        ends = new_low[index].reshape(-1), new_high[index].reshape(-1)
        if method == "mse" and not fmt.affine:
            ends = narrow_mse_range(rows, weights, *ends, fmt, threads=threads)
        elif method == "mse":
            wide = rows.shape[1] > 1024  # outliers in a large part, not in a group of weights
            ends = mse_range(
                rows, weights, *ends, fmt, symmetric=symmetric, wide=wide, threads=threads
            )
        elif method == "percentile":
            ends = percentile_range(rows, *ends, percentile, symmetric=symmetric)
        else:
            seen = HistogramObserver("entropy", axis=0).partial_fit(rows, threads=threads)
            ends = seen.range(fmt.name, symmetric=symmetric)
        shape = new_low[index].shape
        new_low[index], new_high[index] = ends[0].reshape(shape), ends[1].reshape(shape)
    return new_low.astype(low.dtype), new_high.astype(high.dtype)


def _parts(
    x: Array, weight: Array | None, axis: int | None, group_size: int | None
) -> Iterator[tuple[Any, Array, Array | None]]:
    """(index into the scales, parts as rows, weights as rows) of each regular piece of ``x``."""
    spread = None if weight is None else np.broadcast_to(weight, x.shape)
    if group_size is None:
        channels = 1 if axis is None else x.shape[axis]

        def rows_of(a: Array) -> Array:
            moved = a if axis is None else np.moveaxis(a, axis, 0)
            return np.ascontiguousarray(moved.reshape(channels, -1))

        yield ..., rows_of(x), None if spread is None else rows_of(spread)
        return
    at = (-1 if axis is None else axis) % x.ndim
    whole = x.shape[at] // group_size * group_size
    for begin, end, size in ((0, whole, group_size), (whole, x.shape[at], x.shape[at] - whole)):
        if begin < end:
            groups = (end - begin) // size
            index = (slice(None),) * at + (
                slice(begin // group_size, begin // group_size + groups),
            )
            order = tuple(range(at + 1)) + tuple(range(at + 2, x.ndim + 1)) + (at + 1,)
            shape = (*x.shape[:at], groups, size, *x.shape[at + 1 :])

            def pieces(a: Array) -> Array:
                part = a[(slice(None),) * at + (slice(begin, end),)]  # noqa: B023
                return np.ascontiguousarray(
                    part.reshape(shape).transpose(order).reshape(-1, size)  # noqa: B023
                )

            yield index, pieces(x), None if spread is None else pieces(spread)


def ranges(
    x: Array, *, axis: int | None, group_size: int | None, threads: int | None = None
) -> tuple[Array, Array]:
    """Smallest and largest element of each part of ``x`` that shares a scale, in one pass.

    Both are NaN for a part that holds NaN or infinity, both 0 for an array without elements.
    """
    layout = layout_of(x.shape, axis, group_size)
    low = np.zeros(layout.scale_shape, x.dtype)
    high = np.zeros(layout.scale_shape, x.dtype)
    if x.size:
        kernel.min_max(
            low,
            high,
            x,
            *layout.loops,
            _threads.resolve(threads, x.size),
        )
    return low, high


def holds_nan(x: Array, threads: int | None) -> bool:
    """Whether x holds NaN. Infinities cost a second pass: the range alone looks the same."""
    if x.size < SMALL:
        return bool(np.isnan(x).any())
    low, _ = ranges(x, axis=None, group_size=None, threads=threads)
    return bool(np.isnan(low)) and bool(np.isnan(x).any())
