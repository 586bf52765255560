"""ggml's blocks of 32, byte for byte: Q8_0, Q4_0 and MXFP4 to and from QuantizedArray."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array
from fastopt._kernels import codebook as kernel
from fastopt._options import choice
from fastopt.errors import ArrayError, DTypeError
from fastopt.quantization.codebooks import exponents
from fastopt.quantization.packing import pack_int4

__all__ = ["read_blocks", "to_gguf"]

_BLOCK = 32
_ENCODE, _JOIN, _SPLIT = 0, 1, 2  # values to blocks, codes to blocks, blocks to codes
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
    (Q4_0) on, as it does there; one that 1 / scale overflows for (max|x| below 4e-37) gives zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import from_gguf, to_gguf
    >>> x = np.arange(64, dtype=np.float32)
    >>> data = to_gguf(x, "Q8_0")
    >>> data.shape, from_gguf(data, "Q8_0").codes[[0, 31, 62, 63]].tolist()
    ((68,), [0, 127, 125, 127])
    """
    name, width = _KINDS[choice(kind, "kind", _KINDS)]
    if hasattr(x, "codes"):
        shape = x.shape
        at_end = x.axis is None or x.axis % max(x.ndim, 1) == x.ndim - 1
        if x.dtype != name or not (x.symmetric and x.group_size == _BLOCK and at_end):
            raise DTypeError(
                f"x: {kind} holds {name} codes, symmetric, in groups of {_BLOCK} along the last "
                f"axis; got {x!r}"
            )
        value, scale, way = x.codes, x.scale, _JOIN
        if name != "int8" and value.shape == shape and value.size > 1:  # one code per byte
            value = pack_int4(value, threads=threads)
        if kind == "MXFP4":
            exponents(scale)  # refuses scales that are not powers of two
        elif scale.dtype != np.float32:  # rounded once
            scale = scale.astype(np.float16).astype(np.float32)
    else:
        value = as_array(x, "x", cast="float32").astype(np.float32, copy=False)
        shape, scale, way = value.shape, np.empty(0, np.float32), _ENCODE
    if not shape or shape[-1] % _BLOCK:
        raise ArrayError(f"x: expected a last axis of a multiple of {_BLOCK}, got shape {shape}")
    used = _threads.resolve(threads, math.prod(shape))
    result = np.empty((*shape[:-1], shape[-1] // _BLOCK * width), np.uint8)
    arrays = (np.ascontiguousarray(value), np.ascontiguousarray(scale))
    if not kernel.ggml(result, *arrays, list(_KINDS).index(kind), way, used):
        raise ArrayError("x: holds NaN or infinity")
    return result


def read_blocks(data: Any, kind: str, threads: int | None) -> tuple[Any, ...]:
    """The arguments of the QuantizedArray that ggml's blocks hold."""
    name, width = _KINDS[choice(kind, "kind", _KINDS)]
    a = as_array(data, "data", dtypes=("uint8",))
    if not a.ndim or a.shape[-1] % width:
        raise ArrayError(f"data: expected a last axis of whole {width}-byte blocks, got {a.shape}")
    blocks = a.shape[-1] // width
    shape, groups = (*a.shape[:-1], blocks * _BLOCK), (*a.shape[:-1], blocks)
    n = math.prod(shape)
    codes = np.empty(shape, np.int8) if kind == "Q8_0" else np.empty(n // 2, np.uint8)
    scale = np.empty(groups, np.float32)
    used = _threads.resolve(threads, n)
    if not kernel.ggml(a, codes, scale, list(_KINDS).index(kind), _SPLIT, used):
        raise ArrayError("data: an exponent is NaN, or its scale 2**-127 is below float32's")
    zero = np.zeros(groups, "uint8" if kind == "MXFP4" else "int8")
    return codes, scale, zero, name, shape, len(shape) - 1, _BLOCK, True
