"""cast: between float32 or float64 and the narrow floating-point formats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_target, check_disjoint, name_of
from fastopt._options import choice, flag
from fastopt._random import Seed, check_seed
from fastopt.quantization.codes import decode_floats, encode_floats
from fastopt.quantization.formats import FLOAT_SPECS
from fastopt.quantization.layout import layout_of

__all__ = ["cast", "narrow_target"]

_WIDE = ("float32", "float64")
_ONE = np.ones((), np.float32)


def cast(
    x: Any,
    dtype: str,
    *,
    rounding: str = "nearest",
    saturate: bool = True,
    source: str | None = None,
    out: Any = None,
    seed: Seed = None,
    threads: int | None = None,
) -> Array:
    """Cast to ``dtype``: the nearest value that it holds, ties to even; exact where it widens.

    Parameters
    ----------
    x : float32, float64, float16, bfloat16 or float8 array
        The values (NumPy with ml_dtypes' types, or torch tensors).
    dtype : str
        "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2" or "float32".
    rounding : str
        "nearest": ties to even. "stochastic": up or down with the probability that makes the
        mean exact.
    saturate : bool
        float8 only, as in ONNX's Cast: what is too large becomes the largest finite value (448 or
        57344) or, with False, NaN (e4m3fn) or infinity (e5m2). float16 and bfloat16 overflow to
        infinity, as IEEE 754 says.
    source : str, optional
        Format of x where it is an array of bare codes, uint8 or uint16.
    out : array of x's shape, optional
        Overwritten with the result and returned: of the target's dtype, or uint8 or uint16 for
        the bare codes.
    seed : int, SeedSequence or Generator, optional
        Of stochastic rounding; the result depends on it and not on the thread count.
    threads : int, optional
        Thread count.

    Returns
    -------
    ndarray
        float16 and float32 are NumPy's; the others are ml_dtypes' dtypes where that package is
        installed, and their bare codes (uint16, uint8) where it is not.

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Notes
    -----
    NaN stays NaN with its sign. float64 is rounded once, not first to float32. Memory is read and
    written once. Stochastic rounding takes 16 random bits per element (Philox4x32-7 of its index):
    the probability is exact for 16-bit formats' normal values, else within 2**-17.

    Examples
    --------
    >>> import ml_dtypes, numpy as np  # without ml_dtypes the result is the codes as uint8
    >>> from fastopt.quantization import cast
    >>> cast(np.array([1.0, 1 / 3, 1e9], np.float32), "float8_e4m3fn").astype(float).tolist()
    [1.0, 0.34375, 448.0]
    """
    choice(dtype, "dtype", [*FLOAT_SPECS, "float32"])
    choice(rounding, "rounding", ("nearest", "stochastic"))
    flag(saturate, "saturate")
    check_seed(seed)
    a, given = _source(x, source)
    if dtype == "float32":
        wide = narrow_target(out, a.shape, "float32", [("x", a)])
        _widened(a, given, wide, threads)
        return wide
    if given not in _WIDE:
        a = _widened(a, given, np.empty(a.shape, np.float32), threads)
    spec = FLOAT_SPECS[dtype]
    if spec.bits == 8 and saturate:
        spec = spec._replace(over=spec.max_code)
    result = narrow_target(out, a.shape, dtype, [("x", a)])
    codes = _codes_of(result, spec.bits)
    layout = layout_of(a.shape, None, None)
    encode_floats(codes, a, _ONE, layout, spec, threads, rounding=rounding, seed=seed)
    return result


def _source(x: Any, source: str | None) -> tuple[Array, str]:
    """x as floats or as bare codes, and the name of its format."""
    if source is not None:
        choice(source, "source", FLOAT_SPECS)
        width = FLOAT_SPECS[source].bits
        wanted = (f"uint{width}", source)
        return _codes_of(as_array(x, "x", dtypes=wanted), width), source
    a = as_array(x, "x", dtypes=(*_WIDE, *FLOAT_SPECS))
    name = name_of(a.dtype)
    return (a if name in _WIDE else _codes_of(a, FLOAT_SPECS[name].bits)), name


def _widened(a: Array, given: str, out: Array, threads: int | None) -> Array:
    """out = a as float32."""
    if given in _WIDE:
        np.copyto(out, a, casting="unsafe")
    else:
        layout = layout_of(a.shape, None, None)
        decode_floats(out, a, _ONE, layout, FLOAT_SPECS[given], threads)
    return out


def _codes_of(a: Array, bits: int) -> Array:
    """The bare codes in the memory of ``a``."""
    return a.view(f"uint{bits}")


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's or ml_dtypes' dtype of a format, or that of its bare codes."""
    if name in ("float16", "float32"):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(f"uint{FLOAT_SPECS[name].bits}")
    kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return kind


def narrow_target(
    out: Any, shape: tuple[int, ...], name: str, read: Iterable[tuple[str, Array]]
) -> Array:
    """``out`` checked, the format's dtype or its bare codes, or a new array."""
    if out is None:
        return np.empty(shape, dtype_of(name))
    bare = () if name == "float32" else (f"uint{FLOAT_SPECS[name].bits}",)
    result = as_target(out, "out", dtypes=(name, *bare), shape=shape)
    check_disjoint([("out", result)], read)
    return result
