"""Which adapter takes which kind of model, and how its result is given back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastopt.errors import DTypeError, OptionError
from fastopt.models import Model, Network

__all__ = ["KINDS", "Kind", "Opened", "open_model"]

# The adapter, and what makes a user's kind of model of an adapter again.
Opened = tuple[Model, Callable[[Any], Any]]


class Kind(NamedTuple):
    """A kind of model: how to tell it, and how to open it.

    Attributes
    ----------
    name : str
        As an error message calls it.
    suits : callable
        Whether an object is one; imports nothing.
    open : callable
        ``open(model, portable) -> (adapter, give_back)``.
    """

    name: str
    suits: Callable[[Any], bool]
    open: Callable[[Any, bool], Opened]


def open_model(model: Any, portable: bool = False) -> Opened:
    """The adapter of a model, and how its result is given back.

    Raises
    ------
    DTypeError
        Nothing that can be compressed.
    """
    for kind in KINDS:
        if kind.suits(model):
            return kind.open(model, portable)
    names = ", ".join(kind.name for kind in KINDS[:-1])
    raise DTypeError(
        f"model: expected {names} or {KINDS[-1].name}, "
        f"got {type(model).__module__}.{type(model).__name__}"
    )


def _same(model: Any) -> Any:
    return model


def _is_path(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))


def _open_path(model: Any, portable: bool) -> Opened:
    path = Path(model)
    if path.suffix in (".npz", ".safetensors"):
        return Network.load(path), _same
    if path.suffix == ".onnx":
        return _onnx(path, portable), _same
    raise OptionError(
        f"model: expected a file named .onnx, or .npz or .safetensors as Network.save "
        f"writes them, got {os.fspath(model)}"
    )


def _is_proto(model: Any) -> bool:
    return type(model).__name__ == "ModelProto"


def _open_proto(model: Any, portable: bool) -> Opened:
    return _onnx(model, portable), lambda m: m.to_proto()


def _onnx(model: Any, portable: bool) -> Model:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise ImportError(
            "ONNX models need the packages onnx and onnxruntime: pip install 'fastopt[onnx]'"
        ) from None
    from fastopt.models import OnnxModel

    found: Any = OnnxModel(model, portable=portable)
    return found  # type: ignore[no-any-return]


def _is_adapter(model: Any) -> bool:
    return all(hasattr(model, name) for name in ("layers", "groups", "run", "keep_units", "copy"))


def _open_adapter(model: Any, portable: bool) -> Opened:
    return model, _same


KINDS = (
    Kind("a path to an .onnx, .npz or .safetensors file", _is_path, _open_path),
    Kind("an onnx.ModelProto", _is_proto, _open_proto),
    Kind("a fastopt.models.Network or another adapter", _is_adapter, _open_adapter),
)
