"""QuantizedArray to and from safetensors files and ONNX tensors."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._arrays import Array
from fastopt._files import Declared, load_arrays, path_of, save_arrays
from fastopt._optional import package
from fastopt._options import flag, integer
from fastopt.errors import FastoptError, FormatError, UnsupportedError
from fastopt.quantization.codebooks import exponents
from fastopt.quantization.formats import format_of
from fastopt.quantization.layout import layout_of
from fastopt.quantization.packing import pack_int4

if TYPE_CHECKING:
    from fastopt.quantization.array import QuantizedArray

__all__ = ["read", "to_onnx", "to_safetensors"]

_KEY = "fastopt.quantized"
_ONNX_NAMES = {"mxfp4": "FLOAT4E2M1", "float8_e4m3fn": "FLOAT8E4M3FN"}
_ONNX_NAMES |= {"float8_e5m2": "FLOAT8E5M2", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
_PARTS = ("codes", "scale", "zero_point")


def to_safetensors(q: QuantizedArray, path: str | os.PathLike[str]) -> None:
    """Write codes, scale and zero point to a safetensors file with a checksum over all of it.

    Parameters
    ----------
    q : QuantizedArray
        What is written.
    path : path
        The file; it appears whole or not at all (written beside, synced, renamed).

    Raises
    ------
    StorageError
        The system refuses to write there; nothing has changed.
    ImportError
        The package safetensors is missing: pip install "fastopt[safetensors]".

    Examples
    --------
    >>> import os, tempfile
    >>> import safetensors
    >>> import numpy as np, fastopt
    >>> q = fastopt.quantize(np.arange(6.0), "int8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "w.safetensors")
    ...     q.to_safetensors(path)
    ...     again = fastopt.QuantizedArray.from_safetensors(path)
    >>> bool((again.codes == q.codes).all())
    True
    """
    parts = {name: np.asarray(getattr(q, name), order="C") for name in _PARTS}
    if q.dtype == "mxfp4":
        parts["scale"] = exponents(q.scale)  # e8m0: a byte each
    save_arrays(path, _KEY, q.config(), parts)


def read(path: str | os.PathLike[str]) -> tuple[str, tuple[Any, ...]]:
    """(path, the arguments of QuantizedArray) of a file of :func:`to_safetensors`."""
    where = path_of(path)
    note, parts = load_arrays(where, _KEY, _check)
    try:
        fmt = format_of(note["dtype"])
        if fmt.name == "mxfp4":
            exponent = parts["scale"].astype(np.int32) - 127
            parts["scale"] = np.ldexp(np.float32(1), exponent).astype(np.float32)
        if parts["zero_point"].dtype != fmt.storage:
            raise FormatError(f"zero_point: expected {fmt.storage}")
        symmetric = flag(note["symmetric"], "symmetric")
        layout = (tuple(note["shape"]), note["axis"], note["group_size"], symmetric)
    except (FastoptError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"not a quantised array: {error}", where) from None
    return where, (*(parts[name] for name in _PARTS), fmt.name, *layout)


def _check(config: dict[str, Any], declared: Declared) -> None:
    """The parts, and no more codes and scales than the shape asks for."""
    if set(declared) != set(_PARTS):
        raise FormatError(f"expected {', '.join(_PARTS)}, got {', '.join(sorted(declared))}")
    shape = [integer(n, "shape", low=0) for n in config["shape"]]
    scales = layout_of(shape, config["axis"], config["group_size"]).scale_shape
    codes = math.prod(declared["codes"][1])
    if codes > math.prod(shape) or declared["scale"][1] != scales:
        raise FormatError(f"the arrays do not fit the shape {tuple(shape)}")


def to_onnx(q: QuantizedArray, name: str) -> tuple[Any, list[Any]]:
    """A node that makes the tensor ``name`` (DequantizeLinear, or Cast), and its initialisers.

    Parameters
    ----------
    q : QuantizedArray
        Integers (packed 4-bit codes stay packed), fixed point of up to 16 bits, float8, mxfp4;
        float16 and bfloat16 at scale 1, which take a Cast.
    name : str
        Name of the node's output; the initialisers are called name_codes, name_scale and
        name_zero_point.

    Returns
    -------
    node : onnx.NodeProto
        Needs opset 13 for 8 bits, 19 for float8, 21 for 16 and 4 bits and for groups, 23 for
        mxfp4.
    initializers : list of onnx.TensorProto

    Raises
    ------
    UnsupportedError
        ONNX's operator does not take the format.
    ImportError
        The package onnx is missing.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> import onnx
    >>> node, tensors = fastopt.quantize(np.arange(6.0), "int8").to_onnx("w")
    >>> node.op_type, [t.name for t in tensors]
    ('DequantizeLinear', ['w_codes', 'w_scale', 'w_zero_point'])
    """
    onnx = package("onnx", "to_onnx", "fastopt[onnx]")
    TensorProto, helper = onnx.TensorProto, package("onnx.helper", "to_onnx", "fastopt[onnx]")
    fmt = q.format
    kind = _ONNX_NAMES.get(fmt.name, (fmt.name if fmt.packed else fmt.storage).upper())
    if fmt.name == "nf4" or "32" in kind:
        raise UnsupportedError(f"ONNX has no codes of the format {q.dtype}")

    def tensor(part: str, codes: Array, shape: tuple[int, ...]) -> Any:
        raw = pack_int4(codes) if fmt.packed else codes
        return helper.make_tensor(
            f"{name}_{part}", getattr(TensorProto, kind), shape, raw.tobytes(), raw=True
        )

    if fmt.floating and not fmt.scaled:
        if not (q.scale == 1).all():
            raise UnsupportedError(f"DequantizeLinear takes no {q.dtype}; Cast has no scale")
        given = tensor("codes", q.codes, q.shape)
        return helper.make_node("Cast", [given.name], [name], to=TensorProto.FLOAT), [given]
    scale = helper.make_tensor(
        f"{name}_scale",
        TensorProto.FLOAT,
        q.scale.shape,
        np.ascontiguousarray(q.scale, np.float32).tobytes(),
        raw=True,
    )
    tensors = [
        tensor("codes", q.unpacked(), q.shape),
        scale,
        tensor("zero_point", q.zero_point, q.zero_point.shape),
    ]
    options: dict[str, int] = {} if q.axis is None else {"axis": q.axis % q.ndim}
    if q.group_size is not None:
        options = {"axis": (-1 if q.axis is None else q.axis) % q.ndim, "block_size": q.group_size}
    node = helper.make_node("DequantizeLinear", [t.name for t in tensors], [name], **options)
    return node, tensors
