"""An optimizer's state in a safetensors file: arrays as tensors, the rest as JSON beside them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt._files import Declared, load_arrays, path_of, save_arrays
from fastopt.errors import ConcurrentUseError, FormatError
from fastopt.optim.optimizer import Optimizer

__all__ = ["load", "save"]

KEY = "fastopt.optim/2"  # of the JSON in the file, and the version of what it means


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
    StorageError
        The system refuses to write there; nothing has changed.
    ImportError
        The package safetensors is missing: ``pip install fastopt[safetensors]``.

    Examples
    --------
    >>> import os, tempfile
    >>> import safetensors
    >>> import numpy as np
    >>> from fastopt import optim
    >>> opt = optim.Adam(np.ones(3))
    >>> opt.step(np.ones(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "adam.safetensors")
    ...     optim.save(opt, path)
    ...     again = optim.Adam(np.ones(3))
    ...     optim.load(again, path)
    >>> again.state_dict()["state"][0]["step"]
    1
    """
    tensors: dict[str, Any] = {}
    plain = _taken_apart(optimizer.state_dict(), "", tensors)
    save_arrays(path, KEY, {"optimizer": type(optimizer).__name__, "rest": plain}, tensors)


def load(optimizer: Optimizer, path: str | os.PathLike[str]) -> None:
    """In place: ``optimizer.load_state_dict`` of what :func:`save` wrote.

    Parameters
    ----------
    optimizer : Optimizer
        Of the same class and over parameters of the same shapes as the one that was saved.
    path : path
        What :func:`save` wrote.

    Raises
    ------
    FormatError
        Not such a file, a damaged one, another optimizer's, or one that does not fit these
        parameters; the optimizer is as it was.
    MissingFileError, StorageError
        There is no such file, or it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import safetensors
    >>> import numpy as np
    >>> from fastopt import optim
    >>> opt = optim.Adam(np.ones(3))
    >>> opt.step(np.ones(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "adam.safetensors")
    ...     optim.save(opt, path)
    ...     again = optim.Adam(np.ones(3))
    ...     optim.load(again, path)
    >>> again.state_dict()["state"][0]["step"]
    1
    """
    where = path_of(path)
    # no state is larger than four arrays per parameter in its own precision, and the averages
    most = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])

    def check(config: Any, declared: Declared) -> None:
        if config.get("optimizer") != type(optimizer).__name__:
            raise FormatError(
                f"holds the state of {config.get('optimizer')}, not of {type(optimizer).__name__}"
            )
        size = sum(int(dtype[1:]) * math.prod(shape) for dtype, shape in declared.values())
        if size > 6 * most + (1 << 20):
            raise FormatError(f"holds {size} bytes of state for {most} bytes of parameters")

    config, tensors = load_arrays(where, KEY, check)
    try:
        state = _put_together(config["rest"], tensors)
        state["state"] = {int(k): v for k, v in state["state"].items()}
        optimizer.load_state_dict(state)
    except ConcurrentUseError:
        raise
    except Exception as error:
        raise FormatError(f"not a state of this optimizer: {error}", where) from None


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
