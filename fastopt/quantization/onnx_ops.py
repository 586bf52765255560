"""ONNX's element-wise quantisation operators by name, with their exact semantics."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, out_for
from fastopt._options import integer
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.convert import decode, encode
from fastopt.quantization.layout import Layout, layout_of, normal_axis

__all__ = ["dequantize_linear", "quantize_linear"]

_CODES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")


def quantize_linear(
    x: Any,
    scale: Any,
    zero_point: Any = None,
    axis: int = 1,
    out: Any = None,
    *,
    block_size: int | None = None,
    output_dtype: str | None = None,
    threads: int | None = None,
) -> Array:
    """ONNX QuantizeLinear: y = saturate(round_half_even(x / scale) + zero_point).

    Parameters
    ----------
    x : float32 or float64 array
        The values. NaN gives the lowest code; infinities saturate.
    scale : scalar, (C,) or blocked array
        One number: per tensor. 1-D: per index of ``axis``. The rank of x: blocked along ``axis``.
    zero_point : integer scalar or array of the shape of ``scale``, optional
        Its dtype is the result's; default uint8 zeros.
    axis : int
        As in ONNX; without effect for a scalar scale.
    out : integer array of x's shape, optional
        Overwritten with the result and returned.
    block_size : int, optional
        Elements of a block along ``axis``; default from the shapes.
    output_dtype : str, optional
        The codes' dtype where ``zero_point`` is absent.
    threads : int, optional
        Thread count; the codes do not depend on it.

    Returns
    -------
    ndarray of the zero point's dtype

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import quantize_linear
    >>> quantize_linear(np.array([0.5, 1.5, 300.0], np.float32), 1.0, np.uint8(1)).tolist()
    [1, 3, 255]
    """
    a = as_array(x, "x", cast="float32")
    s = as_array(scale, "scale", cast=a.dtype.name).astype(a.dtype, copy=False)
    if zero_point is None:
        if output_dtype is None:
            output_dtype = "uint8" if not isinstance(out, np.ndarray) else out.dtype.name
        if output_dtype not in _CODES[:4]:
            raise OptionError(
                f"output_dtype: expected one of {', '.join(_CODES[:4])}, got {output_dtype!r}"
            )
        zero = np.zeros(s.shape, output_dtype)
    else:
        zero = _codes(zero_point, "zero_point", s.shape)
    layout, s, zero = _scales(a.shape, s, zero, axis, block_size)
    result = out_for(out, "out", a.shape, zero.dtype.name)
    info = np.iinfo(zero.dtype)
    encode(result, a, s, zero, layout, float(info.min), float(info.max), threads)
    return result


def dequantize_linear(
    x: Any,
    scale: Any,
    zero_point: Any = None,
    axis: int = 1,
    out: Any = None,
    *,
    block_size: int | None = None,
    threads: int | None = None,
) -> Array:
    """ONNX DequantizeLinear: y = (x - zero_point) * scale.

    Parameters
    ----------
    x : int8, uint8, int16, uint16 or int32 array
        The codes.
    scale : scalar, (C,) or blocked array, float32 or float64
        Its dtype is the result's.
    zero_point : array of x's dtype and the shape of ``scale``, optional
        Default 0.
    axis, block_size, threads
        As in :func:`quantize_linear`.
    out : float array of x's shape, optional
        Overwritten with the result and returned.

    Returns
    -------
    ndarray of the scale's dtype

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import dequantize_linear
    >>> dequantize_linear(np.array([0, 3], np.uint8), np.float32(0.5), np.uint8(1)).tolist()
    [-0.5, 1.0]
    """
    codes = _codes(x, "x", None)
    s = as_array(scale, "scale", cast="float32")
    if zero_point is None:
        zero = np.zeros(s.shape, codes.dtype)
    else:
        zero = _codes(zero_point, "zero_point", s.shape)
        if zero.dtype != codes.dtype:
            raise DTypeError(
                f"zero_point: expected the dtype of x {codes.dtype}, got {zero.dtype}"
            )
    layout, s, zero = _scales(codes.shape, s, zero, axis, block_size)
    result = out_for(out, "out", codes.shape, s.dtype.name)
    decode(result, codes, s, zero, layout, threads)
    return result


def _codes(a: Any, name: str, shape: tuple[int, ...] | None) -> Array:
    """An integer array of a codes' dtype."""
    codes = as_array(a, name, dtypes=_CODES)
    if shape is not None and codes.shape != shape:
        if codes.size != 1 or np.prod(shape) != 1:
            raise ArrayError(f"{name}: expected the shape of scale {shape}, got {codes.shape}")
        codes = codes.reshape(shape)
    return codes


def _scales(
    shape: tuple[int, ...], scale: Array, zero: Array, axis: int, block_size: int | None
) -> tuple[Layout, Array, Array]:
    """The layout that the shapes of x and scale say, with scale and zero point in its shape."""
    if scale.shape in ((), (1,)):
        return layout_of(shape, None, None), scale.reshape(()), zero.reshape(())
    a = normal_axis(axis, len(shape))
    if scale.ndim == 1 and (len(shape) != 1 or scale.shape == shape):
        if scale.shape[0] != shape[a]:
            raise ArrayError(
                f"scale: expected {shape[a]} elements for axis {axis} of {shape}, "
                f"got {scale.shape[0]}"
            )
        return layout_of(shape, a, None), scale, zero
    if scale.ndim != len(shape):
        raise ArrayError(f"scale: expected a scalar, 1-D or {len(shape)}-D, got {scale.ndim}-D")
    parts, length = scale.shape[a], shape[a]
    if block_size is None or block_size == 0:
        block_size = -(-length // max(parts, 1))
    block = integer(block_size, "block_size", low=1)
    layout = layout_of(shape, a, block)
    if layout.scale_shape != scale.shape:
        raise ArrayError(
            f"scale: expected shape {layout.scale_shape} for {shape} in blocks of {block} along "
            f"axis {axis}, got {scale.shape}"
        )
    return layout, scale, zero
