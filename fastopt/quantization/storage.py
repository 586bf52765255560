"""QuantizedArray to and from safetensors files and ONNX tensors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import FastoptError, FormatError, UnsupportedError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.formats import format_of
from fastopt.quantization.layout import layout_of

__all__ = ["from_safetensors", "to_onnx", "to_safetensors"]

_KEY = "fastopt.quantized"
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
    ImportError
        The package safetensors is missing: pip install "fastopt[safetensors]".
    """
    save = _package().save
    parts = {name: np.asarray(getattr(q, name), order="C") for name in _PARTS}
    config = q.config()
    note = json.dumps({**config, "sha256": _checksum(parts, config)})
    data = save(parts, metadata={_KEY: note})
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def from_safetensors(path: str | os.PathLike[str]) -> QuantizedArray:
    """Read what :func:`to_safetensors` wrote; every bit is checked.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    FormatError
        Not such a file, or damaged.
    ImportError
        The package safetensors is missing.
    """
    _package()
    from safetensors import safe_open

    where = os.fspath(path)
    try:
        with safe_open(where, framework="numpy") as file:
            note = json.loads((file.metadata() or {})[_KEY])
            parts = {name: file.get_tensor(name) for name in _PARTS}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise FormatError(f"not a quantised array: {error}", where) from None
    try:
        found = note.pop("sha256")
        if found != _checksum(parts, note):
            raise FormatError("the checksum does not fit: the file is damaged", where)
        fmt = format_of(note["dtype"])
        q = QuantizedArray(
            parts["codes"],
            parts["scale"],
            parts["zero_point"],
            fmt.name,
            tuple(int(n) for n in note["shape"]),
            note["axis"],
            note["group_size"],
            bool(note["symmetric"]),
        )
        scales = layout_of(q.shape, q.axis, q.group_size).scale_shape
        if not (
            q.scale.shape == q.zero_point.shape == scales
            and q.zero_point.dtype == fmt.storage
            and q.unpacked().shape == q.shape
            and q.unpacked().dtype == fmt.storage
        ):
            raise FormatError("the arrays do not fit each other", where)
    except FormatError:
        raise
    except (FastoptError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"not a quantised array: {error}", where) from None
    return q


def to_onnx(q: QuantizedArray, name: str) -> tuple[Any, list[Any]]:
    """A DequantizeLinear node that makes the tensor ``name``, and its initialisers.

    Parameters
    ----------
    q : QuantizedArray
        An integer array (packed 4-bit codes stay packed) or fixed point of up to 16 bits.
    name : str
        Name of the node's output; the initialisers are called name_codes, name_scale and
        name_zero_point.

    Returns
    -------
    node : onnx.NodeProto
        Needs opset 13 for 8 bits, 21 for 16 and 4 bits and for groups.
    initializers : list of onnx.TensorProto

    Raises
    ------
    UnsupportedError
        ONNX's operator does not take the format.
    ImportError
        The package onnx is missing.
    """
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise ImportError("to_onnx needs the package onnx: pip install onnx") from None
    fmt = q.format
    kind = fmt.name.upper() if fmt.packed else fmt.storage.upper()
    if fmt.kind not in ("int", "fixed") or "32" in kind:
        raise UnsupportedError(f"DequantizeLinear has no codes of the format {q.dtype}")
    from fastopt.quantization.packing import pack_int4

    def tensor(part: str, codes: Array, shape: tuple[int, ...]) -> Any:
        raw = pack_int4(codes) if fmt.packed else np.ascontiguousarray(codes)
        return helper.make_tensor(
            f"{name}_{part}", getattr(TensorProto, kind), shape, raw.tobytes(), raw=True
        )

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


def _package() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'needs the package safetensors: pip install "fastopt[safetensors]"'
        ) from None
    return safetensors.numpy


def _checksum(parts: dict[str, Array], config: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for part in _PARTS:
        a = parts[part]
        digest.update(f"{part} {a.dtype.str} {a.shape} ".encode())
        digest.update(a.tobytes())
    return digest.hexdigest()
