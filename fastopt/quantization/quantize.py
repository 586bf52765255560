"""quantize and dequantize: choose the scales, then convert."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, name_of
from fastopt._options import choice, flag
from fastopt._random import Seed
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.choose_qparams import check_options, choose_qparams
from fastopt.quantization.codebooks import derive_codes, encode_narrow, exponents
from fastopt.quantization.codes import ROUNDINGS, check_rules, encode, encode_derived
from fastopt.quantization.formats import BLOCKS, Format, format_of
from fastopt.quantization.layout import layout_of

__all__ = ["dequantize", "quantize"]

_ROUNDINGS = {"float": ("nearest", "stochastic"), "codebook": ("nearest",)}


def quantize(
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
    rounding: str = "nearest",
    parity: str = "onnx",
    saturate: bool = True,
    seed: Seed = None,
    threads: int | None = None,
) -> QuantizedArray:
    """Quantise: code = clip(round(x / scale) + zero_point, qmin, qmax), scale chosen from x.

    Parameters
    ----------
    x : array-like, float32 or float64 (other real dtypes become float32)
        The values; finite (fixed point also takes infinities, which saturate; 16-bit floats take
        infinities and NaN).
    dtype : str
        "int8", "uint8", "int16", "uint16", "int4", "uint4" (packed two to a byte), "int2", "int3",
        "int5", "int6", "int7" and the same unsigned (a byte each); a fixed-point name: "q3.12" has
        a sign, 3 integer and 12 fraction bits, "uq4.12" no sign; "float16", "bfloat16",
        "float8_e4m3fn", "float8_e5m2" (bare codes, uint16 or uint8); "nf4", "mxfp4"
        (packed, float32 values).
    axis : int, optional
        One scale per index of this axis; default one scale for all.
    group_size : int, optional
        One scale per this many elements along ``axis`` (default the last axis). With neither,
        nf4 has groups of 64 and mxfp4 of 32 along the last axis.
    symmetric : bool
        Symmetric codes keep to -127..127 (int8), 1..255 (uint8); affine ones use the whole range.
        Floats and codebooks are symmetric either way.
    method : str
        How the range is chosen, "minmax", "percentile", "mse" or "entropy"; see
        :func:`fastopt.quantization.choose_qparams`, also for ``percentile`` and ``gram``.
    scale : array or float, optional
        Given instead of chosen: positive and finite, () or (C,) or one per group; the zero point
        is then the symmetric one. 16-bit floats have scale 1 unless it is given.
    rounding : str
        "nearest" (ties to even), "nearest_away" (ties away from zero), "floor", "trunc" (toward
        zero) or "stochastic" (up with the probability of the fraction: the mean is exact).
        Floats take "nearest" and "stochastic", codebooks "nearest" (the nearest value).
    parity : str
        "onnx": true division, the zero point added after rounding. "torch" (integers): the codes
        of torch.quantize_per_tensor and _per_channel, which round x * (1 / scale) + zero_point.
    saturate : bool
        float8: what is too large for a given scale becomes the largest finite value; with False
        NaN (e4m3fn) or infinity (e5m2), as in :func:`fastopt.quantization.cast`.
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

    Notes
    -----
    Symmetric integers and float8 with method "minmax" read float32 memory once where parts are
    runs of neighbours of at most 2**17 elements (rows, groups along the last axis): the scale and
    the codes of a run are made while it is cached. Otherwise the ranges are a pass of their own.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> q = fastopt.quantize(np.array([0.5, -0.25, 20.0], np.float32), "q3.12")
    >>> q.codes.tolist(), q.dequantize().tolist()
    ([2048, -1024, 32767], [0.5, -0.25, 7.999755859375])
    """
    a = as_array(x, "x", cast="float32")
    fmt = format_of(dtype)
    check_options(symmetric, method, percentile, seed, threads)
    flag(saturate, "saturate")
    choice(rounding, "rounding", _ROUNDINGS.get(fmt.kind, ROUNDINGS))
    check_rules(rounding, parity)
    if parity != "onnx" and not fmt.integers:
        raise OptionError(f"parity: {parity!r} is a rule for integers, not for {fmt.name}")
    if fmt.own_scale is not None or (scale is None and not fmt.scaled):
        axis = group_size = None
        scale = 1.0 if fmt.own_scale is None else fmt.own_scale
    given = scale is not None
    message = f"x: holds NaN, which {fmt.name} cannot hold; clean the data first"
    if given and fmt.tabled and np.isnan(a).any():
        raise ArrayError(message)
    if axis is None and group_size is None and a.ndim and scale is None:
        group_size = BLOCKS.get(fmt.name)
    layout = layout_of(a.shape, axis, group_size)
    axis = layout.axis
    fixed_zero = symmetric or not fmt.affine
    if fmt.tabled:
        a = as_array(a, "x", dtypes=("float32",), cast="float32") if a.dtype != "f4" else a
        if scale is None and method == "minmax":
            made = derive_codes(a, fmt, axis, group_size, threads)
            if made is not None:
                zero = np.zeros(made[1].shape, fmt.storage)
                return QuantizedArray(*made, zero, fmt.name, a.shape, axis, group_size)
    plain = method == "minmax" and gram is None and rounding == "nearest" and parity == "onnx"
    if scale is None and plain and (symmetric if fmt.affine else fmt.floating):
        both = encode_derived(a, layout, fmt, threads)
        if both is not None:
            zero = np.zeros(layout.scale_shape, fmt.storage)
            return QuantizedArray(*both, zero, fmt.name, a.shape, axis, group_size)
    if scale is None:
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
    else:
        step = given_scale(scale, name_of(a.dtype), layout.scale_shape, fmt, fixed_zero)
        zero = np.full(step.shape, fmt.symmetric_zero_point, fmt.storage)
    if not fmt.integers:
        codes = encode_narrow(
            a,
            fmt,
            step,
            axis,
            group_size,
            rounding=rounding,
            saturate=saturate,
            seed=seed,
            threads=threads,
        )
    else:
        packed = fmt.packed
        codes = np.empty((a.size + 1) // 2 if packed else a.shape, "u1" if packed else fmt.storage)
        low, high = fmt.limits(symmetric)
        odd = encode(
            codes,
            a,
            step,
            zero,
            layout,
            low,
            high,
            threads,
            rounding=rounding,
            seed=seed,
            parity=parity,
            check=given,
            packed=packed,
        )
        if odd:
            raise ArrayError(message)
    return QuantizedArray(codes, step, zero, fmt.name, a.shape, axis, group_size, fixed_zero)


def given_scale(
    scale: Any, dtype: str, shape: tuple[int, ...], fmt: Format, fixed_zero: bool
) -> Array:
    """A caller's scale, checked."""
    if not fixed_zero:
        raise OptionError(
            "scale: affine codes need a zero point as well; "
            "use quantization.quantize_linear(x, scale, zero_point)"
        )
    step = as_array(scale, "scale", cast="float64", shape=shape).astype(dtype)
    if not (np.isfinite(step) & (step > 0)).all():
        raise ArrayError(f"scale: expected positive numbers that are finite in {dtype}")
    if fmt.name == "mxfp4":
        exponents(step)
    return step


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

    Raises
    ------
    DTypeError
        ``q`` is no QuantizedArray.

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
