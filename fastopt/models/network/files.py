"""Networks in files: a description of the graph in JSON beside the arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastopt._arrays import Array
from fastopt._files import load_arrays, save_arrays
from fastopt.errors import FormatError, OptionError
from fastopt.models.network.activations import Activation, Softmax
from fastopt.models.network.attention import Attention
from fastopt.models.network.combine import Add, Concat, Flatten, Mul
from fastopt.models.network.conv import Conv2d
from fastopt.models.network.dense import Dense
from fastopt.models.network.embedding import Embedding, Positions
from fastopt.models.network.graph import INPUT, Graph
from fastopt.models.network.module import Module
from fastopt.models.network.norm import BatchNorm, LayerNorm
from fastopt.models.network.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d, Mean
from fastopt.quantization import QuantizedArray

__all__ = ["MODULES", "read_network", "write_network"]

MODULES: dict[str, type[Any]] = {
    m.kind: m
    for m in (
        Activation, Add, Attention, AvgPool2d, BatchNorm, Concat, Conv2d, Dense, Embedding,
        Flatten, GlobalAvgPool2d, LayerNorm, MaxPool2d, Mean, Mul, Positions, Softmax,
    )
}  # fmt: skip

Made = TypeVar("Made")
# Version 1 had weights (n_in, n_out), version 2 chains of dense layers.
_KEY, _VERSION, _CHAINS = "fastopt", 3, 2
_CODE_ARRAYS = ("codes", "scale", "zero_point")
_CODE_CONFIG = ("dtype", "shape", "axis", "group_size", "symmetric")


def write_network(
    path: str | os.PathLike[str], graph: Graph, loss: str, classes: Array | None
) -> None:
    """Write the graph, codes and scales where a weight is quantised, whole or not at all."""
    arrays: dict[str, Array] = {}
    described = []
    for m in graph.modules.values():
        entry: dict[str, Any] = {"kind": m.kind, **m.config()}
        held = m.held()
        q: QuantizedArray | None = getattr(m, "stored", None)
        if q is not None:
            del held["weight"]
            entry["quantized"] = {name: getattr(q, name) for name in _CODE_CONFIG}
            arrays.update({f"{m.name}.weight.{k}": getattr(q, k) for k in _CODE_ARRAYS})
        arrays.update({f"{m.name}.{k}": np.ascontiguousarray(a) for k, a in held.items()})
        entry["shape"] = None if q is None else list(m.held()["weight"].shape)
        described.append(entry)
    config = {
        "version": _VERSION,
        "loss": loss,
        "classes": None if classes is None else classes.tolist(),
        "input_shape": list(graph.shapes[INPUT]),
        "layers": described,
    }
    save_arrays(path, _KEY, config, arrays, npz=_is_npz(path))


def read_network(
    path: str | os.PathLike[str], make: Callable[[list[Module], str, Any, Any], Made]
) -> Made:
    """``make(layers, loss, classes, input_shape)``; FormatError where it is no network."""
    _is_npz(path)  # refuses other names
    config, arrays = load_arrays(path, _KEY, _check_config)
    try:
        layers = [_module_from(entry, arrays) for entry in config["layers"]]
        return make(layers, config["loss"], config["classes"], config.get("input_shape"))
    except Exception as error:  # well-formed, but not a network
        raise FormatError(f"cannot be read as a network: {error}", os.fspath(path)) from None


def _is_npz(path: str | os.PathLike[str]) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise OptionError(f"path: expected a name ending in .npz or .safetensors, got {path}")
    return suffix == ".npz"


def _check_config(config: Any, declared: Mapping[str, Any]) -> None:
    """Refuse another version, and arrays that the description does not ask for."""
    if config.get("version") not in (_CHAINS, _VERSION):
        raise FormatError(f"not a network of format version {_CHAINS} or {_VERSION}")
    wanted = set()
    for entry in config["layers"]:
        module = MODULES[entry.get("kind", Dense.kind)]
        parts = [*module.arrays, *module.buffers]
        if "quantized" in entry:
            parts = [*parts[1:], *(f"weight.{k}" for k in _CODE_ARRAYS)]
        wanted |= {f"{entry['name']}.{part}" for part in parts}
    unknown = set(declared) - wanted
    if unknown:
        raise FormatError(f"holds arrays that are no part of it: {sorted(unknown)}")


def _module_from(entry: dict[str, Any], arrays: Mapping[str, Array]) -> Module:
    kind = MODULES[entry.get("kind", Dense.kind)]
    config = {k: v for k, v in entry.items() if k not in ("kind", "quantized", "shape")}
    config["inputs"] = tuple(config.get("inputs", ()))
    name = entry["name"]
    held = {k: arrays.get(f"{name}.{k}") for k in (*kind.arrays, *kind.buffers)}
    if "quantized" in entry:
        parts = {k: arrays[f"{name}.weight.{k}"] for k in _CODE_ARRAYS}
        codes: dict[str, Any] = {k: entry["quantized"][k] for k in _CODE_CONFIG}
        codes["shape"] = tuple(codes["shape"])
        stored = QuantizedArray(**{**parts, **codes})
        weight = np.asarray(stored.dequantize(), np.float32)
        held["weight"] = weight.reshape(entry.get("shape") or weight.shape)
        config["stored"] = stored
    made: Module = kind(**held, **config)
    return made
