"""Which adapter takes which kind of model, and how its result is given back."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastopt._optional import package
from fastopt.compression.data import open_source
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.models import Model, Network
from fastopt.models.sklearn import EstimatorModel, is_estimator
from fastopt.models.torch import TorchModel, is_module

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
        ``open(model, portable, data) -> (adapter, give_back)``; data as ``compress`` takes them,
        or None.
    """

    name: str
    suits: Callable[[Any], bool]
    open: Callable[[Any, bool, Any], Opened]


def open_model(model: Any, portable: bool = False, data: Any = None) -> Opened:
    """The adapter of a model, and how its result is given back.

    Parameters
    ----------
    model : any of ``KINDS``
    portable : bool
        ONNX: plain forms only.
    data : data, optional
        Of which a kind takes the shapes of its inputs, where the model does not know them.

    Returns
    -------
    adapter : Model
        What the passes see.
    give_back : callable
        From an adapter to an object of the kind that was given.

    Raises
    ------
    DTypeError
        Nothing that can be compressed.

    Examples
    --------
    >>> from fastopt.compression import open_model
    >>> from fastopt.models import Network
    >>> adapter, give_back = open_model(Network.mlp((4, 8, 2), seed=0))
    >>> list(adapter.layers), type(give_back(adapter)).__name__
    (['dense0', 'dense1'], 'Network')
    """
    for kind in KINDS:
        if kind.suits(model):
            return kind.open(model, portable, data)
    names = ", ".join(kind.name for kind in KINDS[:-1])
    raise DTypeError(
        f"model: expected {names} or {KINDS[-1].name}, "
        f"got {type(model).__module__}.{type(model).__name__}"
    )


def _same(model: Any) -> Any:
    return model


def _is_path(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))


def _open_path(model: Any, portable: bool, data: Any) -> Opened:
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


def _open_proto(model: Any, portable: bool, data: Any) -> Opened:
    return _onnx(model, portable), lambda m: m.to_proto()


def _onnx(model: Any, portable: bool) -> Model:
    for name in ("onnx", "onnxruntime"):
        package(name, "an ONNX model", "fastopt[onnx]")
    from fastopt.models import OnnxModel

    found: Any = OnnxModel(model, portable=portable)
    return found  # type: ignore[no-any-return]


def _open_estimator(model: Any, portable: bool, data: Any) -> Opened:
    return EstimatorModel(model), lambda m: m.to_estimator()


def _open_module(model: Any, portable: bool, data: Any) -> Opened:
    if data is None:
        raise OptionError("data: a torch module needs rows, of which its shapes are taken")
    names = [
        name
        for name, p in inspect.signature(model.forward).parameters.items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    needed = [n for n in names if inspect.signature(model.forward).parameters[n].default is
              inspect.Parameter.empty]  # fmt: skip
    source = open_source(data, "data", needed or names[:1])
    if missing := [name for name in needed if name not in source.names]:
        raise ArrayError(f"data: no array for the argument {missing[0]!r} of forward")
    some = np.arange(4)
    feed = {
        name: source.take(name, some[: source.shape(name)[0]])
        for name in names
        if name in source.names
    }
    return TorchModel(model, feed), lambda m: m.to_module()


def _is_adapter(model: Any) -> bool:
    return all(hasattr(model, name) for name in ("layers", "groups", "run", "keep_units", "copy"))


def _open_adapter(model: Any, portable: bool, data: Any) -> Opened:
    return model, _same


KINDS = (
    Kind("a path to an .onnx, .npz or .safetensors file", _is_path, _open_path),
    Kind("an onnx.ModelProto", _is_proto, _open_proto),
    Kind("a fitted scikit-learn MLP, linear model or Pipeline", is_estimator, _open_estimator),
    Kind("a torch.nn.Module that torch.fx can trace", is_module, _open_module),
    Kind("a fastopt.models.Network or another adapter", _is_adapter, _open_adapter),
)
