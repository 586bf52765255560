"""4-bit codes two to a byte, in the orders of ONNX and of ggml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastopt import _options, _threads
from fastopt._arrays import Array, as_array, out_for
from fastopt._kernels import pack as kernel
from fastopt._options import choice, flag
from fastopt.errors import ArrayError

__all__ = ["pack_int4", "unpack_int4"]

_ORDERS = ("onnx", "gguf")


def pack_int4(
    codes: Any, *, order: str = "onnx", out: Any = None, threads: int | None = None
) -> Array:
    """Pack 4-bit codes: byte = low nibble | high nibble << 4.

    Parameters
    ----------
    codes : int8 (-8..7) or uint8 (0..15) array
        One code per element; only the low four bits are kept.
    order : str
        "onnx": neighbours share a byte, the first one low (an odd end leaves the last high nibble
        0). "gguf": in each block of 32, element j is low and j + 16 high (ggml's Q4_0).
    out : (ceil(n / 2),) uint8 array, optional
        Overwritten with the result and returned.
    threads : int, optional
        Thread count.

    Returns
    -------
    (ceil(n / 2),) uint8 array

    Raises
    ------
    ArrayError, DTypeError, OptionError
        "gguf" needs a multiple of 32 elements.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import pack_int4
    >>> [hex(b) for b in pack_int4(np.array([1, -1, 7], np.int8))]
    ['0xf1', '0x7']
    """
    a = as_array(codes, "codes", dtypes=("int8", "uint8"))
    gguf = choice(order, "order", _ORDERS) == "gguf"
    if gguf and a.size % 32:
        raise ArrayError(f"codes: order 'gguf' needs a multiple of 32 elements, got {a.size}")
    result = out_for(out, "out", ((a.size + 1) // 2,), "uint8", [("codes", a)])
    kernel.pack_nibbles(result, a, gguf, _threads.resolve(threads, a.size))
    return result


def unpack_int4(
    packed: Any,
    shape: int | Sequence[int],
    *,
    signed: bool = True,
    order: str = "onnx",
    out: Any = None,
    threads: int | None = None,
) -> Array:
    """The codes that :func:`pack_int4` packed.

    Parameters
    ----------
    packed : (ceil(n / 2),) uint8 array
        The bytes.
    shape : int or tuple of int
        Shape of the codes, n elements.
    signed : bool
        int8 codes -8..7, else uint8 codes 0..15.
    order, threads
        As in :func:`pack_int4`.
    out : int8 or uint8 array of that shape, optional
        Overwritten with the result and returned.

    Returns
    -------
    int8 or uint8 array

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import unpack_int4
    >>> unpack_int4(np.array([0xF1, 0x07], np.uint8), 3).tolist()
    [1, -1, 7]
    """
    wanted = _options.shape(shape, "shape")
    flag(signed, "signed")
    n = math.prod(wanted)
    a = as_array(packed, "packed", dtypes=("uint8",))
    if a.size != (n + 1) // 2:
        raise ArrayError(f"packed: expected {(n + 1) // 2} bytes for shape {wanted}, got {a.size}")
    gguf = choice(order, "order", _ORDERS) == "gguf"
    if gguf and n % 32:
        raise ArrayError(f"packed: order 'gguf' needs a multiple of 32 elements, got {n}")
    result = out_for(out, "out", wanted, "int8" if signed else "uint8", [("packed", a)])
    kernel.unpack_nibbles(result, a, gguf, _threads.resolve(threads, n))
    return result
