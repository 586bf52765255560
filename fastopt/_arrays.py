"""Row 1: the gate for arrays. Anything array-like comes in; a checked ndarray goes on.

Accepted: NumPy arrays, torch CPU tensors, DLPack objects, buffers and (as inputs) nested lists.
Refused, never silently changed: masked and sparse arrays, object, string, complex and structured
dtypes, foreign byte order; for arrays that are written also read-only, misaligned, strided or
overlapping ones. Every refusal names the argument and comes before the first write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastopt._optional import package
from fastopt.errors import ArrayError, DTypeError

__all__ = [
    "FLOATS",
    "Array",
    "as_array",
    "as_labels",
    "as_ndarray",
    "as_numbers",
    "as_target",
    "check_disjoint",
    "check_finite",
    "name_of",
    "out_for",
]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

PAIRWISE = 16  # arrays up to which check_disjoint compares every two

FLOATS: tuple[str, ...] = ("float32", "float64")


_names: dict[Any, str] = {}

# torch's dtypes that NumPy has through ml_dtypes alone, and integers of their width.
_EXTENDED = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def name_of(dtype: Any) -> str:
    """``dtype.name``, which NumPy puts together anew every time (4 us)."""
    name = _names.get(dtype)
    if name is None:
        name = _names[dtype] = dtype.name
    return name


def as_array(
    x: Any,
    name: str,
    *,
    dtypes: Sequence[str] = FLOATS,
    cast: str | None = None,
    ndim: int | Sequence[int] | None = None,
    shape: Sequence[int | None] | None = None,
    contiguous: bool = True,
) -> Array:
    """An input: ``x`` as an aligned, native ndarray, without a copy where it already is one.

    Parameters
    ----------
    x : array-like
        What the caller passed.
    name : str
        The argument's name, for the error.
    dtypes : sequence of str
        dtypes that pass as they are.
    cast : str, optional
        dtype that other real numbers (integers, bool, float16, bfloat16) are converted to;
        without it they are refused.
    ndim, shape : optional
        Wanted rank or ranks; wanted shape, with None for any length.
    contiguous : bool
        Copy to C order where needed.

    Raises
    ------
    DTypeError, ArrayError
    """
    a = _ndarray(x, name)
    dtype = a.dtype
    if name_of(dtype) not in dtypes:
        if cast is None or not (dtype.kind in "fiub" or name_of(dtype) == "bfloat16"):
            raise DTypeError(f"{name}: expected dtype {' or '.join(dtypes)}, got {dtype}")
        a = a.astype(cast)
        dtype = a.dtype
    if not dtype.isnative:
        raise DTypeError(
            f"{name}: expected native byte order, got {a.dtype.str}; "
            f"convert with .astype('{a.dtype.newbyteorder('=').str}')"
        )
    if ndim is not None or shape is not None:
        _check_shape(a, name, ndim, shape)
    flags = a.flags
    if not flags.aligned:
        a = a.copy()
    if contiguous and not flags.c_contiguous:
        a = np.ascontiguousarray(a)
    return a


def as_target(
    x: Any,
    name: str,
    *,
    dtypes: Sequence[str] = FLOATS,
    ndim: int | Sequence[int] | None = None,
    shape: Sequence[int | None] | None = None,
) -> Array:
    """An array to be written in place: the caller's own memory, never a copy of it."""
    if not isinstance(x, np.ndarray) and isinstance(x, (list, tuple, int, float, complex)):
        raise DTypeError(
            f"{name}: is written in place, so it must be an array, not {type(x).__name__}"
        )
    a = _ndarray(x, name)
    if name_of(a.dtype) not in dtypes:
        raise DTypeError(f"{name}: expected dtype {' or '.join(dtypes)}, got {a.dtype}")
    if not a.dtype.isnative:
        raise DTypeError(f"{name}: is written in place and must have native byte order")
    _check_shape(a, name, ndim, shape)
    flags = a.flags
    if not flags.writeable:
        raise ArrayError(f"{name}: is written in place but is read-only")
    if not flags.aligned:
        raise ArrayError(f"{name}: is written in place but is misaligned; pass an aligned copy")
    if not flags.c_contiguous:
        raise ArrayError(
            f"{name}: is written in place and must be C-contiguous; "
            "pass numpy.ascontiguousarray(x) and copy the result back"
        )
    return a


def out_for(
    out: Any,
    name: str,
    shape: Sequence[int],
    dtype: str,
    read: Iterable[tuple[str, Array]] = (),
) -> Array:
    """The result's array: ``out`` checked, also for memory that it shares with one of ``read``, or
    a new one of that shape and dtype."""
    if out is None:
        return np.empty(shape, dtype)
    result = as_target(out, name, dtypes=(dtype,), shape=shape)
    check_disjoint([(name, result)], read)
    return result


def check_disjoint(
    written: Iterable[tuple[str, Array]], read: Iterable[tuple[str, Array]]
) -> None:
    """Refuse a written array that shares memory with another one; n log n for n of them.

    Bounds are compared (as numpy.may_share_memory does), which is exact for the contiguous arrays
    that kernels get.
    """
    writes = list(written)
    named = [*writes, *read]
    if len(named) <= PAIRWISE:  # an address costs more than a few comparisons
        overlap = np.may_share_memory
        for i, (name, a) in enumerate(writes):
            for other, b in named[i + 1 :]:
                if overlap(a, b):
                    raise ArrayError(f"{name}: shares memory with {other}; pass separate arrays")
        return
    spans = sorted((*_bounds(a), i) for i, (_, a) in enumerate(named) if a.size)
    furthest = furthest_written = (0, -1)  # end of an array that begins before this one, which
    for low, high, i in spans:
        end, j = furthest if i < len(writes) else furthest_written
        if low < end:
            name, other = named[min(i, j)][0], named[max(i, j)][0]
            raise ArrayError(f"{name}: shares memory with {other}; pass separate arrays")
        furthest = max(furthest, (high, i))
        if i < len(writes):
            furthest_written = max(furthest_written, (high, i))


def _bounds(a: Array) -> tuple[int, int]:
    """First and last byte address of an array that is not empty, the last one excluded."""
    low = high = a.ctypes.data
    for n, stride in zip(a.shape, a.strides, strict=True):
        low += min(0, (n - 1) * stride)
        high += max(0, (n - 1) * stride)
    return low, high + a.itemsize


def check_finite(a: Array, name: str) -> None:
    """Refuse NaN and infinity where the method has no rule for them."""
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        raise ArrayError(f"{name}: holds NaN or infinity; clean the data first")


def _ndarray(x: Any, name: str) -> Array:
    """``x`` as an ndarray of real numbers that shares its memory wherever the type allows."""
    a = as_ndarray(x, name)
    kind = a.dtype.kind
    if kind in "fiub":
        return a
    if kind != "V" or a.dtype.names or a.dtype.name.startswith("void"):
        raise DTypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
    return a


def as_ndarray(x: Any, name: str) -> Array:
    """``x`` as an ndarray of whatever dtype, without a copy where its type allows.

    For what is not only numbers (labels, names, tables); :func:`as_array` is the gate for numbers.

    Raises
    ------
    DTypeError
        Masked and sparse arrays, also inside a list, and what NumPy cannot read.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, (np.generic, float, int)):
        return np.asarray(x)
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(f"{name}: masked arrays are not taken; fill or drop the masked values")
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    if type(x).__module__.partition(".")[0] == "torch":
        return _from_torch(x, name)
    if hasattr(x, "toarray") and hasattr(x, "nnz"):
        raise DTypeError(f"{name}: sparse matrices are not taken here; pass x.toarray()")
    if not hasattr(x, "__array__") and not hasattr(x, "__array_interface__"):
        if hasattr(x, "__dlpack__"):
            try:
                return np.from_dlpack(x)
            except (TypeError, ValueError, RuntimeError, BufferError) as error:
                raise DTypeError(f"{name}: cannot take this DLPack object: {error}") from None
        if isinstance(x, (list, tuple)) and _holds_masks(x):
            raise DTypeError(f"{name}: masked values are not taken; fill or drop them")
    try:
        return np.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise DTypeError(f"{name}: cannot be read as an array: {error}") from None


def _holds_masks(x: Any) -> bool:
    """Whether a masked array stands in nested lists, where NumPy drops its mask."""
    return any(
        isinstance(v, np.ma.MaskedArray) or (isinstance(v, (list, tuple)) and _holds_masks(v))
        for v in x
    )


def as_labels(y: Any, name: str) -> Array:
    """Class labels: an array of integers, bools, whole floats, strings or dates, none missing.

    An object array of numbers becomes one of numbers; one of strings stays as it is.

    Raises
    ------
    ArrayError
        A missing value (NaN, None, NaT), a number that is not whole, or complex numbers.
    DTypeError
        A masked, sparse or structured array; objects that have no order among them.
    """
    a = as_ndarray(y, name)
    if a.dtype.kind == "O":
        values = a.ravel().tolist()
        if any(_is_missing(v) for v in values):
            raise ArrayError(f"{name}: Input {name} contains NaN or None; clean the labels first")
        if values and all(isinstance(v, (int, float, np.number, np.bool_)) for v in values):
            a = np.array(values).reshape(a.shape)
        elif not all(isinstance(v, str) for v in values):
            _check_sortable(values, name)
    kind = a.dtype.kind
    if kind == "c":
        raise ArrayError(f"{name}: Complex data not supported; got dtype {a.dtype}")
    if kind == "V":
        raise DTypeError(f"{name}: expected labels, got dtype {a.dtype}")
    if kind in "Mm" and np.isnat(a).any():
        raise ArrayError(f"{name}: Input {name} contains NaT; clean the labels first")
    if kind == "f":
        if not np.isfinite(a).all():
            raise ArrayError(f"{name}: Input {name} contains NaN or infinity; clean the labels")
        if (a != np.floor(a)).any():
            raise ArrayError(
                f"{name}: Unknown label type: continuous. Maybe you are trying to fit a "
                "classifier, which expects discrete classes on a regression target with "
                "continuous values."
            )
    return a


def _check_sortable(values: list[Any], name: str) -> None:
    """Refuse labels that are only told apart, not put in order."""
    try:
        sorted(values)
    except Exception as error:  # whatever an object's own __lt__ raises
        raise DTypeError(f"{name}: expected labels of one kind: {error}") from None


def _is_missing(value: Any) -> bool:
    """Whether a value of an object array is None or not equal to itself (NaN, NaT, pandas.NA)."""
    if value is None:
        return True
    try:
        return not bool(value == value)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"


def as_numbers(x: Any, name: str) -> Array:
    """``x`` as an ndarray of real numbers; object arrays of them become float64.

    Raises
    ------
    DTypeError
        Masked and sparse arrays, dates, objects that are no numbers.
    ArrayError
        Complex numbers or strings, also inside object arrays: their conversion would lose what
        they say.
    """
    a = as_ndarray(x, name)
    kind = a.dtype.kind
    if kind == "c":
        raise ArrayError(f"{name}: Complex data not supported; got dtype {a.dtype}")
    if kind in "US":
        raise ArrayError(f"{name}: expected numbers, got dtype {a.dtype}; convert it first")
    if kind != "O":
        return _ndarray(a, name)
    result = np.empty(a.shape)
    flat = result.reshape(-1)
    for i, value in enumerate(a.ravel().tolist()):
        if isinstance(value, (str, bytes, complex, np.complexfloating)):
            raise ArrayError(f"{name}: expected real numbers, got {value!r}")
        if isinstance(value, (np.datetime64, np.timedelta64, np.ndarray)):
            raise DTypeError(f"{name}: expected real numbers, got {type(value).__name__}")
        try:
            flat[i] = float(value)
        except TypeError as error:
            raise DTypeError(f"{name}: argument must be numbers: {error}") from None
        except (ValueError, OverflowError) as error:
            raise ArrayError(f"{name}: expected numbers: {error}") from None
    return result


def _from_torch(x: Any, name: str) -> Array:
    """A torch CPU tensor's memory, without a copy; bfloat16 and float8 in ml_dtypes' dtypes."""
    if not hasattr(x, "detach"):
        raise DTypeError(f"{name}: expected an array or tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise DTypeError(f"{name}: expected a CPU tensor, got one on {x.device}; move it first")
    if str(x.layout) != "torch.strided":
        raise DTypeError(f"{name}: expected a dense tensor, got layout {x.layout}")
    tensor = x.detach()
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind in _EXTENDED:
        import torch

        ml_dtypes = package("ml_dtypes", f"{name}: a {kind} tensor")
        bare = tensor.view(getattr(torch, _EXTENDED[kind])).numpy()
        a: Array = bare.view(getattr(ml_dtypes, kind))
        return a
    try:
        a = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise DTypeError(f"{name}: cannot read this tensor: {error}") from None
    return a


def _check_shape(
    a: Array, name: str, ndim: int | Sequence[int] | None, shape: Sequence[int | None] | None
) -> None:
    if ndim is not None:
        ranks = (ndim,) if isinstance(ndim, int) else tuple(ndim)
        if a.ndim not in ranks:
            wanted = " or ".join(map(str, ranks))
            raise ArrayError(f"{name}: expected {wanted} dimensions, got shape {a.shape}")
    if shape is not None:
        fits = a.shape == shape or (
            len(shape) == a.ndim
            and all(s is None or s == n for s, n in zip(shape, a.shape, strict=True))
        )
        if not fits:
            wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
            raise ArrayError(f"{name}: expected shape {wanted}, got {a.shape}")
