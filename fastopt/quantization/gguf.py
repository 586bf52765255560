"""ggml's blocks of 32, byte for byte: Q8_0, Q4_0 and MXFP4 to and from QuantizedArray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import choice
from fastopt.errors import ArrayError, DTypeError
from fastopt.quantization.narrow import exponents
from fastopt.quantization.packing import pack_int4, unpack_int4

if TYPE_CHECKING:
    from fastopt.quantization.array import QuantizedArray

__all__ = ["from_gguf", "to_gguf"]

_BLOCK = 32
_PIECE = 1 << 16  # elements of the temporaries, which stay in the cache
_KINDS = {"Q8_0": ("int8", 2 + 32), "Q4_0": ("int4", 2 + 16), "MXFP4": ("mxfp4", 1 + 16)}


def to_gguf(x: Any, kind: str = "Q8_0", *, threads: int | None = None) -> Array:
    """Bytes of ggml's blocks: a scale, then the codes of 32 neighbours of the last axis.

    Parameters
    ----------
    x : array-like, or QuantizedArray
        Floats are rounded by ggml's own rule, so that the bytes are those of gguf-py. A
        QuantizedArray ("int8", "int4" or "mxfp4", symmetric, groups of 32 along the last axis)
        keeps its codes; its scales are rounded to float16 (Q8_0, Q4_0).
    kind : str
        "Q8_0": 34 bytes, float16 scale max|x| / 127 and 32 int8. "Q4_0": 18 bytes, float16 scale
        (the value of largest magnitude over -8) and 32 nibbles. "MXFP4": 17 bytes, an exponent and
        32 e2m1 elements. Nibbles: element j low and j + 16 high.
    threads : int, optional
        Thread count of the packing.

    Returns
    -------
    (..., n / 32 * block bytes) uint8 array

    Raises
    ------
    ArrayError, DTypeError, OptionError
        The last axis is no multiple of 32; NaN or infinity; the format or the groups do not fit.

    Notes
    -----
    The rule of ggml multiplies by 1 / scale in float32 and stores the scale rounded afterwards;
    Q8_0 rounds ties away from zero, Q4_0 is floor(x / scale + 8.5), MXFP4 takes the smaller
    magnitude on ties. A float16 scale overflows to infinity from max|x| = 8.3e6 (Q8_0) or 5.2e5
    (Q4_0) on, as it does there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import from_gguf, to_gguf
    >>> x = np.arange(64, dtype=np.float32)
    >>> data = to_gguf(x, "Q8_0")
    >>> data.shape, from_gguf(data, "Q8_0").codes[[0, 31, 62, 63]].tolist()
    ((68,), [0, 127, 125, 127])
    """
    from fastopt.quantization.array import QuantizedArray

    name, width = _KINDS[choice(kind, "kind", _KINDS)]
    if isinstance(x, QuantizedArray):
        shape = x.shape
        at_end = x.axis is None or x.axis % max(x.ndim, 1) == x.ndim - 1
        if x.dtype != name or not (x.symmetric and x.group_size == _BLOCK and at_end):
            raise DTypeError(
                f"x: {kind} holds {name} codes, symmetric, in groups of {_BLOCK} along the last "
                f"axis; got {x!r}"
            )
    else:
        x = as_array(x, "x", cast="float32").astype(np.float32, copy=False)
        check_finite(x, "x")
        shape = x.shape
    if not shape or shape[-1] % _BLOCK:
        raise ArrayError(f"x: expected a last axis of a multiple of {_BLOCK}, got shape {shape}")
    if isinstance(x, QuantizedArray):
        scale, codes = x.scale.reshape(-1), x.unpacked().reshape(-1, _BLOCK)
        if kind == "MXFP4":
            head = exponents(scale)[:, None]
        else:
            with np.errstate(over="ignore"):
                head = scale.astype("<f2")[:, None].view(np.uint8)
    else:
        rows = x.reshape(-1, _BLOCK)
        step = _PIECE // _BLOCK
        rule = _RULES[kind]
        parts = [rule(rows[i : i + step]) for i in range(0, len(rows), step)]
        parts = parts or [rule(rows)]
        head, codes = (np.concatenate(part) for part in zip(*parts, strict=True))
    if kind == "Q4_0":
        codes = codes ^ 8 if codes.dtype == np.uint8 else codes + np.int8(8)
    if kind != "Q8_0":
        codes = pack_int4(np.ascontiguousarray(codes), order="gguf", threads=threads)
    body = codes.view(np.uint8).reshape(len(head), width - head.shape[1])
    result: Array = np.concatenate([head, body], axis=1)
    return result.reshape(*shape[:-1], shape[-1] // _BLOCK * width)


def from_gguf(data: Any, kind: str = "Q8_0", *, threads: int | None = None) -> QuantizedArray:
    """The QuantizedArray that ggml's blocks hold; its values are exact.

    Parameters
    ----------
    data : (..., blocks * block bytes) uint8 array
        What :func:`to_gguf` or gguf-py gives (a GGUFReader's ``tensor.data``).
    kind, threads
        As in :func:`to_gguf`.

    Returns
    -------
    QuantizedArray
        int8, int4 or mxfp4 in groups of 32 along the last axis. Scales of Q4_0 may be negative.

    Raises
    ------
    ArrayError, DTypeError, OptionError
        The last axis does not hold whole blocks; an exponent of MXFP4 is NaN's (255) or 0 with
        codes that are not.
    """
    from fastopt.quantization.array import QuantizedArray

    name, width = _KINDS[choice(kind, "kind", _KINDS)]
    a = as_array(data, "data", dtypes=("uint8",))
    if not a.ndim or a.shape[-1] % width:
        raise ArrayError(f"data: expected a last axis of whole {width}-byte blocks, got {a.shape}")
    blocks = a.shape[-1] // width
    shape, groups = (*a.shape[:-1], blocks * _BLOCK), (*a.shape[:-1], blocks)
    rows = a.reshape(-1, width)
    if kind == "MXFP4":
        code, body = rows[:, 0], rows[:, 1:]
        if (code == 255).any() or ((code == 0) & (body & 0x77).any(axis=1)).any():
            raise ArrayError("data: an exponent is NaN, or its scale 2**-127 is below float32's")
        scale = np.ldexp(np.float32(1), np.where(code == 0, 127, code).astype(np.int32) - 127)
    else:
        body = rows[:, 2:]
        scale = np.ascontiguousarray(rows[:, :2]).view("<f2").astype(np.float32)
    body = np.ascontiguousarray(body)
    if kind == "Q8_0":
        codes = body.view(np.int8).reshape(shape)
    else:
        codes = unpack_int4(body.reshape(-1), shape, signed=False, order="gguf", threads=threads)
        codes = pack_int4(codes ^ 8 if kind == "Q4_0" else codes, threads=threads)
    storage = "uint8" if kind == "MXFP4" else "int8"
    zero = np.zeros(groups, storage)
    axis = len(shape) - 1
    return QuantizedArray(codes, scale.reshape(groups), zero, name, shape, axis, _BLOCK, True)


def _inverse(step: Array) -> Array:
    with np.errstate(divide="ignore", over="ignore"):
        result: Array = np.where(step == 0, np.float32(0), np.float32(1) / step)
    return result


def _half_bytes(step: Array) -> Array:
    with np.errstate(over="ignore"):
        result: Array = step.astype("<f2").view(np.uint8)
    return result


def _q8(x: Array) -> tuple[Array, Array]:
    step = np.abs(x).max(axis=1, keepdims=True, initial=0) / np.float32(127)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = x * _inverse(step)
        size = np.abs(scaled)
        whole = np.floor(size)
        whole += np.floor(2 * (size - whole))  # ties away from zero
        codes = np.copysign(whole, scaled).astype(np.int8)
    return _half_bytes(step), codes


def _q4(x: Array) -> tuple[Array, Array]:
    at = np.abs(x).argmax(axis=1)[:, None]
    step = np.take_along_axis(x, at, axis=1) / np.float32(-8)
    with np.errstate(invalid="ignore", over="ignore"):
        level = np.trunc(x * _inverse(step) + np.float32(8.5))
        codes = np.minimum(level.astype(np.uint8), 15)
    return _half_bytes(step), codes ^ 8


def _mx(x: Array) -> tuple[Array, Array]:
    top = np.abs(x).max(axis=1, keepdims=True, initial=0)
    exponent = np.where(top > 0, np.clip(np.frexp(top)[1] - 3, -127, 127), -127)
    size = np.abs(np.ldexp(x.astype(np.float64), -exponent))
    codes = (size[..., None] > _MIDDLES).sum(axis=2).astype(np.uint8)
    codes |= ((x < 0) & (codes > 0)).astype(np.uint8) << 3  # no negative zero
    return (exponent + 127).astype(np.uint8), codes


_MIDDLES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_RULES = {"Q8_0": _q8, "Q4_0": _q4, "MXFP4": _mx}
