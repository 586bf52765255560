"""quantize, dequantize and fake_quantize: choose the scales, then convert."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, out_for
from fastopt._options import choice
from fastopt._random import Seed
from fastopt.errors import ArrayError, DTypeError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.convert import ROUNDINGS, decode, encode_rounded
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.layout import layout_of, normal_axis
from fastopt.quantization.packing import pack_int4
from fastopt.quantization.qparams import choose_qparams

__all__ = ["dequantize", "fake_quantize", "quantize"]


def quantize(
    x: Any,
    dtype: str | Format = "int8",
    *,
    axis: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    method: str = "minmax",
    rounding: str = "nearest",
    seed: Seed = None,
    threads: int | None = None,
) -> QuantizedArray:
    """Quantise: code = clip(round(x / scale) + zero_point, qmin, qmax), scale chosen from x.

    Parameters
    ----------
    x : array-like, float32 or float64 (other real dtypes become float32)
        The values; finite (fixed point also takes infinities, which saturate).
    dtype : str
        "int8", "uint8", "int16", "uint16", "int4", "uint4" (packed two to a byte) or a fixed-point
        name: "q3.12" has a sign, 3 integer and 12 fraction bits; "uq4.12" has no sign.
    axis : int, optional
        One scale per index of this axis; default one scale for all.
    group_size : int, optional
        One scale per this many elements along ``axis`` (default the last axis).
    symmetric : bool
        Symmetric codes keep to -127..127 (int8), 1..255 (uint8); affine ones use the whole range.
    method : str
        How the range is chosen; see :func:`fastopt.quantization.choose_qparams`.
    rounding : str
        "nearest" (ties to even), "nearest_away" (ties away from zero), "floor", "trunc" (toward
        zero) or "stochastic" (up with the probability of the fraction: the mean is exact).
    seed : int, SeedSequence or Generator, optional
        Of stochastic rounding; the codes depend on it and not on the thread count.
    threads : int, optional
        Thread count; the codes do not depend on it.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    ArrayError
        x holds NaN, or infinity where a scale must be chosen.
    OptionError, DTypeError

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> q = fastopt.quantize(np.array([0.5, -0.25, 20.0], np.float32), "q3.12")
    >>> q.codes.tolist(), q.dequantize().tolist()
    ([2048, -1024, 32767], [0.5, -0.25, 7.999755859375])
    """
    a = as_array(x, "x", cast="float32")
    fmt = format_of(dtype)
    choice(rounding, "rounding", ROUNDINGS)
    if fmt.kind == "fixed":
        axis = group_size = None
        if np.isnan(a).any():
            raise ArrayError("x: holds NaN, which fixed point cannot hold; clean the data first")
        scale = np.asarray(2.0**-fmt.frac_bits, a.dtype)
        zero = np.zeros((), fmt.storage)
    else:
        if group_size is not None and axis is None:
            axis = -1
        scale, zero = choose_qparams(
            a,
            fmt,
            axis=axis,
            group_size=group_size,
            symmetric=symmetric,
            method=method,
            threads=threads,
        )
    if axis is not None:
        axis = normal_axis(axis, a.ndim)
    codes = np.empty(a.shape, fmt.storage)
    low, high = code_limits(fmt, symmetric)
    layout = layout_of(a.shape, axis, group_size)
    encode_rounded(codes, a, scale, zero, layout, low, high, rounding, "saturate", seed, threads)
    if fmt.packed:
        codes = pack_int4(codes, threads=threads)
    keeps_zero = symmetric or fmt.kind == "fixed"
    return QuantizedArray(codes, scale, zero, fmt.name, a.shape, axis, group_size, keeps_zero)


def code_limits(fmt: Format, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code in use."""
    if fmt.kind == "int" and symmetric:
        return fmt.symmetric_zero_point - fmt.symmetric_range, fmt.qmax
    return fmt.qmin, fmt.qmax


def dequantize(q: QuantizedArray, *, out: Any = None, threads: int | None = None) -> Array:
    """The values of a QuantizedArray, (codes - zero_point) * scale.

    Parameters
    ----------
    q : QuantizedArray
        The codes; for bare code arrays use
        :func:`fastopt.quantization.dequantize_linear`.
    out : array, optional
        Overwritten with the result and returned.
    threads : int, optional
        Thread count.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> fastopt.dequantize(fastopt.quantize(np.array([0.5, 127.0], np.float32))).tolist()
    [0.0, 127.0]
    """
    if not isinstance(q, QuantizedArray):
        raise DTypeError(
            f"q: expected a QuantizedArray, got {type(q).__name__}; "
            "for bare codes use quantization.dequantize_linear(codes, scale, zero_point)"
        )
    return q.dequantize(out, threads=threads)


def fake_quantize(
    x: Any,
    dtype: str | Format = "int8",
    *,
    axis: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    method: str = "minmax",
    rounding: str = "nearest",
    seed: Seed = None,
    out: Any = None,
    threads: int | None = None,
) -> Array:
    """Quantise and dequantise: the nearest values that the format can hold.

    Parameters
    ----------
    x : array-like, float32 or float64
        The values; finite.
    dtype, axis, group_size, symmetric, method, rounding, seed, threads
        As in :func:`fastopt.quantize`.
    out : array of x's dtype and shape, optional
        Overwritten with the result and returned; may be x itself.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> fastopt.fake_quantize(np.array([0.3, 100.0, 127.0], np.float32)).tolist()
    [0.0, 100.0, 127.0]
    """
    a = as_array(x, "x", cast="float32")
    result = out_for(out, "out", a.shape, a.dtype.name)
    q = quantize(
        a,
        dtype,
        axis=axis,
        group_size=group_size,
        symmetric=symmetric,
        method=method,
        rounding=rounding,
        seed=seed,
        threads=threads,
    )
    layout = layout_of(q.shape, q.axis, q.group_size)
    decode(result, q.unpacked(), q.scale, q.zero_point, layout, threads)
    return result
