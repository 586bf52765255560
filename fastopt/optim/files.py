"""An optimizer's state in a safetensors file: arrays as tensors, the rest as JSON beside them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.errors import FormatError
from fastopt.optim.optimizer import Optimizer

__all__ = ["load", "save"]

FORMAT = "fastopt.optim/1"


def save(optimizer: Optimizer, path: str | os.PathLike[str]) -> None:
    """Write ``optimizer.state_dict()`` to ``path`` (safetensors), whole or not at all.

    Parameters
    ----------
    optimizer : Optimizer
        Its parameters are not written; they are the model's.
    path : path
        Replaced if it exists; written beside it first, synced to the disk, then renamed.

    Raises
    ------
    ImportError
        The package safetensors is missing: ``pip install fastopt[safetensors]``.
    """
    tensors: dict[str, Any] = {}
    plain = _taken_apart(optimizer.state_dict(), "", tensors)
    meta = {"format": FORMAT, "optimizer": type(optimizer).__name__, "rest": json.dumps(plain)}
    data = _safetensors().save(tensors, metadata=meta)
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent or ".", prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(optimizer: Optimizer, path: str | os.PathLike[str]) -> None:
    """In place: ``optimizer.load_state_dict`` of what :func:`save` wrote.

    Raises
    ------
    FormatError
        Not such a file, another optimizer's, or one that does not fit these parameters; the
        optimizer is as it was.
    """
    safetensors = _safetensors()
    try:
        data = Path(path).read_bytes()
        tensors = safetensors.load(data)
        length = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + length])["__metadata__"]
        if meta["format"] != FORMAT:
            raise KeyError("format")
        kind, plain = meta["optimizer"], json.loads(meta["rest"])
        state = _put_together(plain, tensors)
        state["state"] = {int(k): v for k, v in state["state"].items()}
    except OSError:
        raise
    except Exception as error:
        raise FormatError(f"not an optimizer's state: {error}", str(path)) from None
    if kind != type(optimizer).__name__:
        raise FormatError(
            f"holds the state of {kind}, not of {type(optimizer).__name__}", str(path)
        )
    optimizer.load_state_dict(state)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("saving needs safetensors: pip install fastopt[safetensors]") from None
    return safetensors.numpy


def _taken_apart(value: Any, name: str, tensors: dict[str, Any]) -> Any:
    """``value`` with every array moved to ``tensors`` and named by its place."""
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return {
            str(k): _taken_apart(v, f"{name}.{k}".lstrip("."), tensors) for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_taken_apart(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _put_together(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return tensors[value["$tensor"]]
        return {k: _put_together(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_together(v, tensors) for v in value]
    return value
