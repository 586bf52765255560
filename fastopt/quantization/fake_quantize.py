"""fake_quantize: the nearest values that a format can hold, with the straight-through mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, check_disjoint, name_of, out_for
from fastopt._options import flag
from fastopt._random import Seed
from fastopt.errors import ArrayError, OptionError
from fastopt.quantization.choose_qparams import check_options, choose_qparams, holds_nan
from fastopt.quantization.codes import check_rules, fake
from fastopt.quantization.formats import Format, format_of
from fastopt.quantization.layout import layout_of, spread
from fastopt.quantization.quantize import given_scale, quantize

__all__ = ["fake_quantize"]

_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")


def fake_quantize(
    x: Any,
    dtype: str | Format = "int8",
    *,
    axis: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    method: str = "minmax",
    percentile: float = 99.99,
    gram: Any = None,
    scale: Any = None,
    zero_point: Any = None,
    rounding: str = "nearest",
    parity: str = "onnx",
    return_mask: bool = False,
    out: Any = None,
    seed: Seed = None,
    threads: int | None = None,
) -> Any:
    """Quantise and dequantise: (clip(round(x / scale) + zero_point) - zero_point) * scale.

    Parameters
    ----------
    x : array-like, float32 or float64
        The values; finite (with a given scale, or in fixed point, infinities saturate).
    dtype, axis, group_size, symmetric, method, percentile, gram, rounding, parity, seed, threads
        As in :func:`fastopt.quantize`.
    scale : float or array, optional
        Given instead of chosen: positive and finite, () or (C,) or one per group.
    zero_point : integer or array of the shape of ``scale``, optional
        Given with an integer format's scale, whose whole range is then used; default the
        symmetric one.
    return_mask : bool
        Also return where the gradient of the straight-through estimator passes: True where x was
        in the range that the format represents, that is where its code did not saturate (torch's
        definition; a value that rounds to the last code is inside).
    out : array of x's dtype and shape, optional
        Overwritten with the result and returned; may be x itself.

    Returns
    -------
    ndarray, or (ndarray, bool ndarray) with ``return_mask``

    Raises
    ------
    ArrayError
        x holds NaN (parity "torch" with a given scale: it becomes the lowest value, outside), or
        infinity where a scale must be chosen.
    OptionError, DTypeError

    Notes
    -----
    For integers and fixed point memory is read and written once, no codes are kept, and the
    result has the bits of ``dequantize(quantize(x, ...))``. parity="torch" gives the bits of
    torch.fake_quantize_per_tensor_affine and _per_channel_affine: the product with 1 / scale is
    rounded and the zero point added after that, as here; torch's quantize_per_tensor differs.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> fastopt.fake_quantize(np.array([0.3, 100.0, 127.0], np.float32)).tolist()
    [0.0, 100.0, 127.0]
    >>> y, inside = fastopt.fake_quantize(np.array([0.3, 9.0], np.float32), "q3.4",
    ...                                   return_mask=True)
    >>> y.tolist(), inside.tolist()
    ([0.3125, 7.9375], [True, False])
    """
    a = as_array(x, "x", cast="float32")
    fmt = format_of(dtype)
    check_options(symmetric, method, percentile, seed, threads)
    flag(return_mask, "return_mask")
    result = out_for(out, "out", a.shape, name_of(a.dtype))
    if not fmt.integers:
        if zero_point is not None or parity != "onnx":
            raise OptionError(f"zero_point, parity: are of integers, {fmt.name} has neither")
        q = quantize(
            a,
            fmt,
            axis=axis,
            group_size=group_size,
            method=method,
            percentile=percentile,
            gram=gram,
            scale=scale,
            rounding=rounding,
            seed=seed,
            threads=threads,
        )
        inside = None
        if return_mask:
            step = spread(q.scale, q.shape, layout_of(q.shape, q.axis, q.group_size))
            inside = np.abs(a) <= step * np.float32(fmt.peak)
        if q.scale.dtype == result.dtype:
            q.dequantize(result, threads=threads)
        else:
            result[...] = q.dequantize(threads=threads)  # codebooks are float32
        return result if inside is None else (result, inside)
    check_rules(rounding, parity)
    given = scale is not None or fmt.own_scale is not None
    if zero_point is not None and (scale is None or fmt.own_scale is not None):
        raise OptionError("zero_point: comes with the scale of an integer format")
    if fmt.own_scale is not None:
        axis = group_size = None
        scale = fmt.own_scale
    layout = layout_of(a.shape, axis, group_size)
    axis = layout.axis
    if given:
        step = given_scale(scale, name_of(a.dtype), layout.scale_shape, fmt, fixed_zero=True)
        zero = _given_zero(zero_point, fmt, step.shape)
    else:
        step, zero = choose_qparams(
            a,
            fmt,
            axis=axis,
            group_size=group_size,
            symmetric=symmetric,
            method=method,
            percentile=percentile,
            gram=gram,
            threads=threads,
        )
    low, high = fmt.limits(symmetric and zero_point is None)
    check = given and parity == "onnx"
    message = f"x: holds NaN, which {fmt.name} cannot hold; clean the data first"
    if check and out is not None and holds_nan(a, threads):
        raise ArrayError(message)
    check_disjoint([("out", result)], [("scale", step), ("zero_point", zero)])
    if result.ctypes.data != a.ctypes.data:  # the same elements are read before they are written
        check_disjoint([("out", result)], [("x", a)])
    mask = np.empty(a.shape, bool) if return_mask else None
    odd = fake(
        result,
        mask,
        a,
        step,
        zero,
        layout,
        low,
        high,
        rounding,
        seed,
        threads,
        parity=parity,
        check=check,
    )
    if odd:
        raise ArrayError(message)
    return result if mask is None else (result, mask)


def _given_zero(zero_point: Any, fmt: Format, shape: tuple[int, ...]) -> Array:
    """A caller's zero point as codes."""
    if zero_point is None:
        return np.full(shape, fmt.symmetric_zero_point, fmt.storage)
    zero = as_array(zero_point, "zero_point", dtypes=_INTEGERS)
    if zero.shape != shape or (zero < fmt.qmin).any() or (zero > fmt.qmax).any():
        raise ArrayError(
            f"zero_point: expected shape {shape} and codes {fmt.qmin}..{fmt.qmax} of {fmt.name}"
        )
    return zero.astype(fmt.storage)
