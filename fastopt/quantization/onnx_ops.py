"""ONNX's element-wise quantisation operators by name, with their exact semantics."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import (
    Array,
    as_array,
    as_ndarray,
    as_target,
    check_disjoint,
    name_of,
    out_for,
)
from fastopt._options import integer
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.casting import narrow_target
from fastopt.quantization.choose_qparams import ranges
from fastopt.quantization.codes import (
    check_rules,
    decode,
    decode_floats,
    encode,
    encode_derived,
    encode_floats,
)
from fastopt.quantization.formats import FLOAT_SPECS, FORMATS, FloatSpec, Format, format_of
from fastopt.quantization.layout import Layout, layout_of, normal_axis
from fastopt.quantization.qparams import qparams_from_range

__all__ = ["dequantize_linear", "dynamic_quantize", "dynamic_quantize_linear", "quantize_linear"]

_CODES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
_LIMITS = {name: (float(np.iinfo(name).min), float(np.iinfo(name).max)) for name in _CODES}
# ml_dtypes' 4- and 2-bit types, one code per byte
_NIBBLES = {"int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8"}
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_FLOAT4 = "float4_e2m1fn"
_E2M1 = FloatSpec(8, 1, 1, 7, 7, 7)  # in a byte, the sign on top: no infinity, NaN becomes 6
# Elements of the blocks of rows that dynamic_quantize reads twice: they stay in the L2 cache.
_ROWS = 1 << 18


def quantize_linear(
    x: Any,
    scale: Any,
    zero_point: Any = None,
    axis: int = 1,
    out: Any = None,
    *,
    block_size: int | None = None,
    output_dtype: str | None = None,
    parity: str = "onnx",
    threads: int | None = None,
) -> Array:
    """ONNX QuantizeLinear: y = saturate(round_half_even(x / scale) + zero_point).

    Parameters
    ----------
    x : float32 or float64 array
        The values. NaN gives the lowest code; infinities saturate.
    scale : scalar, (C,) or blocked array
        One number: per tensor. 1-D: per index of ``axis``. The rank of x: blocked along ``axis``.
        Finite and not 0.
    zero_point : scalar or array of the shape of ``scale``, optional
        Its dtype is the result's: int8, uint8, int16, uint16, or ml_dtypes' int4, uint4, int2,
        uint2, float8_e4m3fn, float8_e5m2, float4_e2m1fn (the floats': 0). A plain int is a code of
        ``output_dtype``, else of ``out``'s dtype, else uint8; default 0.
    axis : int
        As in ONNX; without effect for a scalar scale.
    out : integer array of x's shape, optional
        Overwritten with the result and returned.
    block_size : int, optional
        Elements of a block along ``axis``; default from the shapes.
    output_dtype : str, optional
        The codes' dtype, where the zero point does not say it; "int4", "uint4", "int2" and "uint2"
        also go with zero points in a byte each.
    parity : str
        "onnx", or "torch" for integer codes: what torch.quantize_per_tensor (scalar scale) and
        torch.quantize_per_channel (1-D scale) give, round(x * (1 / scale) + zero_point) in
        float32, the product and the sum rounded once per tensor and separately per channel.
        There NaN gives the highest code, as torch does per tensor.
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
    s = as_array(scale, "scale", cast=name_of(a.dtype)).astype(a.dtype, copy=False)
    check_rules("nearest", parity)
    if not _usable(s):
        raise ArrayError(f"scale: expected numbers that are finite in {s.dtype} and not 0")
    named = output_dtype or (name_of(out.dtype) if isinstance(out, np.ndarray) else "uint8")
    zero_point = _plain_zero(zero_point, named)
    wanted = named if zero_point is None else _dtype_name(zero_point)
    if output_dtype in _NIBBLES and wanted == _NIBBLES[output_dtype]:
        wanted = output_dtype
    if wanted in _FLOAT8 or wanted == _FLOAT4:
        _zero_only(zero_point)
        if parity != "onnx":
            raise OptionError(f"parity: {parity!r} is a rule for integers, not for {wanted}")
        layout, s, _ = _scales(a.shape, s, s, axis, block_size)
        if wanted == _FLOAT4:
            import ml_dtypes  # where the dtype of the zero point comes from

            dtype = np.dtype(ml_dtypes.float4_e2m1fn)
            made = np.empty(a.shape, np.uint8) if out is None else _float4_target(out, a, s)
            encode_floats(made, a, s, layout, _E2M1, threads)
            np.bitwise_or(made & 7, made >> 4, out=made)  # the sign goes down to the fourth bit
            return made.view(dtype) if out is None else out
        spec = FLOAT_SPECS[wanted]
        result = narrow_target(out, a.shape, wanted, [("x", a), ("scale", s)])
        spec = spec._replace(over=spec.max_code)
        encode_floats(result.view("uint8"), a, s, layout, spec, threads)
        return result
    if wanted in _NIBBLES:
        zero_point = zero_point if zero_point is not None else np.zeros(s.shape, _NIBBLES[wanted])
        fmt = FORMATS[wanted]
        zero = _codes(_nibbles(zero_point, fmt), "zero_point", s.shape)
        layout, s, zero = _scales(a.shape, s, zero, axis, block_size)
        read = [("x", a), ("scale", s), ("zero_point", zero)]
        result = out_for(out, "out", a.shape, name_of(zero.dtype), read)
        encode(result, a, s, zero, layout, fmt.qmin, fmt.qmax, threads, parity=parity)
        return result
    if zero_point is None:
        if named not in _CODES[:4]:
            names = ", ".join((*_CODES[:4], *_NIBBLES, *_FLOAT8))
            raise OptionError(f"output_dtype: expected one of {names}, got {named!r}")
        zero = np.zeros(s.shape, named)
    else:
        zero = _codes(zero_point, "zero_point", s.shape)
        if output_dtype not in (None, name_of(zero.dtype)):
            raise OptionError(
                f"output_dtype: expected that of zero_point, {zero.dtype}, got {output_dtype!r}"
            )
    layout, s, zero = _scales(a.shape, s, zero, axis, block_size)
    read = [("x", a), ("scale", s), ("zero_point", zero)]
    result = out_for(out, "out", a.shape, name_of(zero.dtype), read)
    low, high = _LIMITS[name_of(zero.dtype)]
    encode(result, a, s, zero, layout, low, high, threads, parity=parity)
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
    x : int8, uint8, int16, uint16, int32, or ml_dtypes' 4-bit, 2-bit or float8 array
        The codes.
    scale : scalar, (C,) or blocked array, float16, float32 or float64
        Its dtype is the result's; plain numbers are float32.
    zero_point : int, or array of x's dtype and the shape of ``scale``, optional
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
    s = as_array(scale, "scale", cast="float32")
    if not hasattr(scale, "dtype"):
        s = s.astype(np.float32)
    given = _dtype_name(x)
    half = getattr(scale, "dtype", None) == np.float16
    if given in _FLOAT8 or given == _FLOAT4:
        _zero_only(zero_point)
        narrow = as_array(x, "x", dtypes=(*_FLOAT8, _FLOAT4)).view("uint8")
        if given == _FLOAT4:
            narrow = (narrow & 7) | (narrow & 8) << 4
        layout, s, _ = _scales(narrow.shape, s, s, axis, block_size)
        made = "float16" if half else name_of(s.dtype)
        result = out_for(out, "out", narrow.shape, made, [("x", narrow), ("scale", s)])
        values = np.empty(narrow.shape, np.float32) if half else result
        spec = _E2M1 if given == _FLOAT4 else FLOAT_SPECS[given]
        decode_floats(values, narrow, s, layout, spec, threads)
        return _rounded(result, values)
    if given in _NIBBLES:
        x = as_ndarray(x, "x").astype(_NIBBLES[given])
        if zero_point is not None:
            zero_point = _nibbles(zero_point, FORMATS[given])
    codes = _codes(x, "x", None)
    zero_point = _plain_zero(zero_point, name_of(codes.dtype))
    if zero_point is None:
        zero = np.zeros(s.shape, codes.dtype)
    else:
        zero = _codes(zero_point, "zero_point", s.shape)
        if zero.dtype != codes.dtype:
            raise DTypeError(
                f"zero_point: expected the dtype of x {codes.dtype}, got {zero.dtype}"
            )
    layout, s, zero = _scales(codes.shape, s, zero, axis, block_size)
    read = [("x", codes), ("scale", s), ("zero_point", zero)]
    result = out_for(out, "out", codes.shape, "float16" if half else name_of(s.dtype), read)
    values = np.empty(codes.shape, np.float32) if half else result
    decode(values, codes, s, zero, layout, threads)
    return _rounded(result, values)


def _rounded(result: Array, values: Array) -> Array:
    """``values`` in ``result``, whose dtype may be narrower than that of the arithmetic."""
    if values is not result:
        with np.errstate(over="ignore"):
            result[...] = values
    return result


def dynamic_quantize_linear(x: Any, *, threads: int | None = None) -> tuple[Array, Array, Array]:
    """ONNX DynamicQuantizeLinear: uint8 codes, scale = (max(0, max x) - min(0, min x)) / 255.

    Parameters
    ----------
    x : float32 array
        The values; finite.
    threads : int, optional
        Thread count; the codes do not depend on it.

    Returns
    -------
    codes : uint8 array of x's shape
    scale : float32 scalar array
    zero_point : uint8 scalar array

    Raises
    ------
    ArrayError
        x holds NaN or infinity.

    Notes
    -----
    All zeros give scale 1 and zero point 0, as in onnxruntime. The zero point is
    clip(round(0 - min / scale), 0, 255) in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import dynamic_quantize_linear
    >>> codes, scale, zero_point = dynamic_quantize_linear(np.array([-1.0, 0.0, 4.1], np.float32))
    >>> codes.tolist(), float(scale), int(zero_point)
    ([0, 50, 255], 0.019999999552965164, 50)
    """
    a = as_array(x, "x", dtypes=("float32",), cast="float32")
    low, high = ranges(a, axis=None, group_size=None, threads=threads)
    if not np.isfinite(low):
        raise ArrayError("x: holds NaN or infinity, so it has no scale; clean the data first")
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    with np.errstate(over="ignore"):
        scale = np.asarray((high - low) / np.float32(255), np.float32)
    if not np.isfinite(scale):
        raise ArrayError("x: the range of its values is too large for float32")
    if scale == 0:
        scale = np.ones((), np.float32)
    zero = np.asarray(np.clip(np.rint(np.float32(0) - low / scale), 0, 255), np.uint8)
    codes = np.empty(a.shape, np.uint8)
    encode(codes, a, scale, zero, layout_of(a.shape, None, None), 0, 255, threads)
    return codes, scale, zero


def dynamic_quantize(
    x: Any, dtype: str = "int8", *, symmetric: bool = True, threads: int | None = None
) -> QuantizedArray:
    """Quantise each row (last axis) by its own range: what activations need at run time.

    Parameters
    ----------
    x : (..., k) float32 or float64 array
        The values; finite.
    dtype : str
        "int8", "uint8", "int16" or "uint16".
    symmetric : bool
        As in :func:`fastopt.quantize`.
    threads : int, optional
        Thread count; the codes do not depend on it.

    Returns
    -------
    QuantizedArray
        Grouped along the last axis with one group per row: ``scale`` has shape (..., 1).

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Notes
    -----
    Memory is read once: the range and the codes of a row, or of a block of rows, are made while it
    is cached.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import dynamic_quantize
    >>> dynamic_quantize(np.array([[1.0, -0.5], [100.0, 50.0]], np.float32)).codes.tolist()
    [[127, -64], [127, 64]]
    """
    a = as_array(x, "x", cast="float32")
    fmt = format_of(dtype)
    if not fmt.affine or fmt.packed:
        raise OptionError(f"dtype: expected an 8- or 16-bit integer format, got {fmt.name!r}")
    if a.ndim == 0:
        raise ArrayError("x: a single number has no rows")
    width = max(1, a.shape[-1])
    if symmetric:
        made = encode_derived(a, layout_of(a.shape, -1, width), fmt, threads)
        if made is not None:
            zero = np.zeros(made[1].shape, fmt.storage)
            return QuantizedArray(*made, zero, fmt.name, a.shape, a.ndim - 1, width)
    table = a.reshape(-1, width) if a.size else a.reshape(0, width)
    codes = np.empty(table.shape, fmt.storage)
    scale = np.empty((len(table), 1), a.dtype)
    zero = np.empty((len(table), 1), fmt.storage)
    low, high = fmt.limits(symmetric)
    step = max(1, _ROWS // width)
    for start in range(0, len(table), step):
        rows = slice(start, start + step)
        ends = ranges(table[rows], axis=-1, group_size=width, threads=threads)
        if not np.isfinite(ends[0]).all():
            raise ArrayError("x: holds NaN or infinity, so it has no scale; clean the data first")
        scale[rows], zero[rows] = qparams_from_range(*ends, fmt, symmetric=symmetric)
        layout = layout_of(table[rows].shape, -1, width)
        encode(codes[rows], table[rows], scale[rows], zero[rows], layout, low, high, threads)
    head = (*a.shape[:-1], 1 if a.shape[-1] else 0)
    return QuantizedArray(
        codes.reshape(a.shape),
        scale.reshape(head),
        zero.reshape(head),
        fmt.name,
        a.shape,
        a.ndim - 1,
        width,
        symmetric,
    )


def _dtype_name(a: Any) -> str:
    """Name of a NumPy dtype, "" where there is none (a torch tensor, a list)."""
    dtype = getattr(a, "dtype", None)
    return name_of(dtype) if isinstance(dtype, np.dtype) else ""


def _float4_target(out: Any, a: Array, s: Array) -> Array:
    """The bytes of ``out``, a float4 or uint8 array of x's shape."""
    result = as_target(out, "out", dtypes=(_FLOAT4, "uint8"), shape=a.shape)
    check_disjoint([("out", result)], [("x", a), ("scale", s)])
    return result.view(np.uint8)


def _usable(scale: Array) -> bool:
    """Whether all scales are finite and not 0."""
    if scale.size == 1:
        s = float(scale.item())
        return s != 0 and s - s == 0
    return bool((np.isfinite(scale) & (scale != 0)).all())


def _plain_zero(zero_point: Any, dtype: str) -> Any:
    """A plain int as a code of ``dtype``; anything else as it is."""
    if type(zero_point) is not int or dtype in _FLOAT8:
        return zero_point
    fmt = format_of(dtype) if dtype in FORMATS else None
    low, high = (fmt.qmin, fmt.qmax) if fmt else _LIMITS.get(dtype, _LIMITS["uint8"])
    if not low <= zero_point <= high:
        raise ArrayError(f"zero_point: expected {low}..{high} of {dtype}, got {zero_point}")
    return np.full((), zero_point, fmt.storage if fmt else dtype)


def _nibbles(zero_point: Any, fmt: Format) -> Array:
    """Zero points of a 4-bit format, in a byte each."""
    zero = as_ndarray(zero_point, "zero_point")
    if zero.dtype.kind not in "iuV":  # V: ml_dtypes' nibbles
        raise DTypeError(f"zero_point: expected integers, got dtype {zero.dtype}")
    codes = zero.astype(np.int64)
    if (codes != zero).any() or (codes < fmt.qmin).any() or (codes > fmt.qmax).any():
        raise ArrayError(f"zero_point: expected codes {fmt.qmin}..{fmt.qmax} of {fmt.name}")
    return codes.astype(fmt.storage)


def _zero_only(zero_point: Any) -> None:
    """Check that a zero point is 0: float8 takes no other."""
    if zero_point is not None and as_ndarray(zero_point, "zero_point").astype(np.float32).any():
        raise ArrayError("zero_point: must be 0 for a float8 format")


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
    """The layout given by the shapes of x and scale; scale and zero point reshaped to it."""
    if scale.shape in ((), (1,)):
        if scale.ndim:
            scale, zero = scale.reshape(()), zero.reshape(())
        return layout_of(shape, None, None), scale, zero
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
