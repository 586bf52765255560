"""ONNX files: reading one safely, with its external data."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._files import path_of, storage_errors
from fastopt._optional import package
from fastopt.errors import DTypeError, FormatError

__all__ = ["constant_of", "load_onnx", "read_model"]


def load_onnx() -> Any:
    """The onnx package."""
    return package("onnx", "an ONNX model", "fastopt[onnx]")


def read_model(source: Any) -> tuple[Any, Path | None]:
    """A ModelProto, external data not yet read, and the file it came from.

    Raises
    ------
    FormatError
        Not an ONNX model, truncated, or external data outside the model's folder.
    StorageError
        The file cannot be read; MissingFileError where there is none.
    """
    onnx = load_onnx()
    path = None
    if isinstance(source, onnx.ModelProto):
        model = source
    elif isinstance(source, (str, os.PathLike)):
        path = Path(path_of(source, "model"))
        with storage_errors(os.fspath(path)), open(path, "rb") as file:
            data = file.read()
        if not data:
            raise FormatError("is empty", os.fspath(path))
        try:
            model = onnx.load_from_string(data)
        except Exception as error:  # protobuf's own errors are no common class
            raise FormatError(
                "cannot be read as ONNX: damaged, truncated or of another kind", os.fspath(path)
            ) from error
    else:
        raise DTypeError(
            f"model: expected a path or an onnx.ModelProto, got {type(source).__name__}"
        )
    where = None if path is None else os.fspath(path)
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise FormatError("is no ONNX model: no version, operator set or output", where)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _place(tensor, path)
    return model, path


def constant_of(tensor: Any, path: Path | None) -> Any:
    """A TensorProto's values: an ndarray, or the TensorProto where NumPy lacks its type."""
    onnx = load_onnx()
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    dtype = _numpy_type(tensor.data_type)
    shape = tuple(tensor.dims)
    where = None if path is None else os.fspath(path)
    if external:
        file, offset, length = _place(tensor, path)
        if dtype is not None:
            wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if length != wanted:
                raise FormatError(
                    f"tensor {tensor.name!r} has {length} bytes of external data, "
                    f"its shape needs {wanted}",
                    where,
                )
            with storage_errors(os.fspath(file)):
                values = np.fromfile(
                    file, dtype.newbyteorder("<"), wanted // dtype.itemsize, "", offset
                )
            return values.astype(dtype, copy=False).reshape(shape)
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        with storage_errors(os.fspath(file)), open(file, "rb") as handle:
            handle.seek(offset)
            copy.raw_data = handle.read(length)
        copy.data_location = onnx.TensorProto.DEFAULT
        del copy.external_data[:]
        return copy
    if dtype is None:
        return tensor
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise FormatError(
            f"tensor {tensor.name!r}: its data do not fit its shape", where
        ) from error


def _numpy_type(code: int) -> np.dtype[Any] | None:
    """The NumPy dtype of a tensor type; None for strings and for types that NumPy lacks."""
    proto = load_onnx().TensorProto
    names = (
        "FLOAT", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BOOL", "FLOAT16",
        "DOUBLE", "UINT32", "UINT64",
    )  # fmt: skip
    kinds = {"FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool"}
    for name in names:
        if code == getattr(proto, name):
            return np.dtype(kinds.get(name, name.lower()))
    return None


def _tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of the model, those in subgraphs and functions too."""

    def of_nodes(nodes: Any) -> Iterator[Any]:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield sparse.values
                    yield sparse.indices
                if attribute.HasField("g"):
                    yield from of_graph(attribute.g)
                for graph in attribute.graphs:
                    yield from of_graph(graph)

    def of_graph(graph: Any) -> Iterator[Any]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        yield from of_nodes(graph.node)

    yield from of_graph(model.graph)
    for function in model.functions:
        yield from of_nodes(function.node)


def _place(tensor: Any, path: Path | None) -> tuple[Path, int, int]:
    """(file, offset, length) of a tensor's external data; refused outside the model's folder."""
    where = None if path is None else os.fspath(path)
    entry = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")

    def refuse(why: str) -> FormatError:
        return FormatError(f"external data {location!r} of tensor {tensor.name!r} {why}", where)

    if path is None:
        raise refuse("cannot be found from a ModelProto; give the model's path")
    folder = path.parent.resolve()
    parts = Path(location).parts
    if not location or "\0" in location or Path(location).is_absolute() or ".." in parts:
        raise refuse("must lie in the model's folder")
    file = folder
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise refuse("is a symbolic link")
    try:
        info = file.stat()
    except OSError:
        raise refuse("does not exist") from None
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        raise refuse("is no plain file, or has a second (hard) link")
    try:
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", info.st_size - offset))
    except ValueError:
        raise refuse("has an offset or a length that is no number") from None
    if offset < 0 or length < 0 or offset + length > info.st_size:
        raise refuse(f"ends at byte {offset + length}, the file at {info.st_size}")
    return file, offset, length
