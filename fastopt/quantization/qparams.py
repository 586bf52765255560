"""Scales and zero points of a known range."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_array
from fastopt._options import flag
from fastopt.errors import ArrayError
from fastopt.quantization.codebooks import narrow_scale
from fastopt.quantization.formats import Format, format_of

__all__ = ["QParams", "from_range", "qparams_from_range"]


class QParams(NamedTuple):
    """A scale and a zero point for each part of an array.

    Attributes
    ----------
    scale : float array
        Step between two codes; positive and finite.
    zero_point : integer array of the codes' storage dtype
        The code of the value 0.
    """

    scale: Array
    zero_point: Array


def qparams_from_range(
    low: Any, high: Any, dtype: str | Format = "int8", *, symmetric: bool = True
) -> QParams:
    """Scale and zero point for values in [low, high], elementwise.

    Symmetric: scale = max(|low|, |high|) / r with r = 127 for int8 and uint8, zero point 0 (int8)
    or 128 (uint8). Affine: the range is widened to hold 0, scale = (high - low) / (qmax - qmin),
    zero_point = clip(round(qmin - low / scale), qmin, qmax). Narrow floats and codebooks are
    always symmetric.

    Parameters
    ----------
    low, high : float32 or float64 arrays of one shape
        Ends of the range; finite, low <= high.
    dtype : str or Format
        Any format.
    symmetric : bool
        Symmetric or affine.

    Returns
    -------
    QParams

    Raises
    ------
    ArrayError
        Shapes differ, an end is NaN or infinite, or low > high.

    Examples
    --------
    >>> from fastopt.quantization import qparams_from_range
    >>> scale, zero_point = qparams_from_range(-1.0, 3.0, "int8")
    >>> round(127 * float(scale), 6), int(zero_point)
    (3.0, 0)
    """
    fmt = format_of(dtype)
    flag(symmetric, "symmetric")
    first = as_array(low, "low", cast="float32", contiguous=False)
    second = as_array(high, "high", cast="float32", contiguous=False)
    if first.shape != second.shape:
        raise ArrayError(f"high: expected the shape of low {first.shape}, got {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ArrayError("low, high: hold NaN or infinity; a range has finite ends")
    if (first > second).any():
        raise ArrayError("low: is above high")
    return from_range(first, second, fmt, symmetric)


def from_range(low: Array, high: Array, fmt: Format, symmetric: bool) -> QParams:
    """:func:`qparams_from_range` of checked ends."""
    float_dtype = np.result_type(low, high)
    lo, hi = low.astype(np.float64), high.astype(np.float64)
    if fmt.own_scale is not None:
        scale = np.full(lo.shape, fmt.own_scale)
        zero = np.zeros(lo.shape)
    elif not fmt.affine:
        scale = narrow_scale(np.maximum(-lo, hi), fmt, float_dtype)
        zero = np.zeros(lo.shape)
    elif symmetric:
        reach = fmt.symmetric_range
        scale = _usable(np.maximum(-lo, hi) / reach, reach, float_dtype)
        zero = np.full(lo.shape, float(fmt.symmetric_zero_point))
    else:
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
        steps = fmt.qmax - fmt.qmin
        scale = hi / steps - lo / steps
        below = np.rint(-lo / np.where(scale == 0, 1.0, scale))  # codes below the zero point
        scale = _usable(scale, np.maximum(below, steps - below), float_dtype)
        rounded = np.asarray(scale, float_dtype).astype(np.float64)
        zero = np.minimum(np.maximum(np.rint(fmt.qmin - lo / rounded), fmt.qmin), fmt.qmax)
    return QParams(np.asarray(scale, float_dtype), np.asarray(zero, fmt.storage))


def _usable(scale: Array, steps: Any, dtype: Any) -> Array:
    """1 for an empty range, never denormal, and so that ``steps`` of it do not overflow."""
    info = np.finfo(dtype)
    cap = np.nextafter(np.asarray(float(info.max) / steps, dtype), dtype.type(0))
    kept = np.minimum(np.maximum(scale, float(info.tiny)), cap.astype(np.float64))
    return np.where(scale == 0, 1.0, kept)
