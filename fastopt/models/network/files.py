"""Networks in files: a description in JSON beside the arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastopt._arrays import Array
from fastopt._files import load_arrays, save_arrays
from fastopt.errors import FormatError, OptionError
from fastopt.models.network.dense import Dense
from fastopt.quantization import QuantizedArray

__all__ = ["read_network", "write_network"]

Made = TypeVar("Made")
_KEY, _VERSION = "fastopt", 2  # version 1 had weights (n_in, n_out)
_CODE_ARRAYS = ("codes", "scale", "zero_point")
_CODE_CONFIG = ("dtype", "shape", "axis", "group_size", "symmetric")


def write_network(
    path: str | os.PathLike[str], layers: Sequence[Dense], loss: str, classes: Array | None
) -> None:
    """Write the layers, codes and scales where they are quantised, whole or not at all."""
    arrays: dict[str, Array] = {}
    described = []
    for d in layers:
        entry: dict[str, Any] = {"name": d.name, "activation": d.activation}
        if d.stored is None:
            arrays[f"{d.name}.weight"] = np.ascontiguousarray(d.weight)
        else:
            q = d.stored
            entry["quantized"] = {name: getattr(q, name) for name in _CODE_CONFIG}
            arrays.update({f"{d.name}.weight.{k}": getattr(q, k) for k in _CODE_ARRAYS})
        if d.bias is not None:
            arrays[f"{d.name}.bias"] = np.ascontiguousarray(d.bias)
        described.append(entry)
    config = {
        "version": _VERSION,
        "loss": loss,
        "classes": None if classes is None else classes.tolist(),
        "layers": described,
    }
    save_arrays(path, _KEY, config, arrays, npz=_is_npz(path))


def read_network(
    path: str | os.PathLike[str], make: Callable[[list[Dense], str, Any], Made]
) -> Made:
    """``make(layers, loss, classes)`` of a file; FormatError where it is not a network."""
    _is_npz(path)  # refuses other names
    config, arrays = load_arrays(path, _KEY, _check_config)
    try:
        layers = [_layer_from(entry, arrays) for entry in config["layers"]]
        return make(layers, config["loss"], config["classes"])
    except Exception as error:  # well-formed, but not a network
        raise FormatError(f"cannot be read as a network: {error}", os.fspath(path)) from None


def _is_npz(path: str | os.PathLike[str]) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise OptionError(f"path: expected a name ending in .npz or .safetensors, got {path}")
    return suffix == ".npz"


def _check_config(config: Any, declared: Mapping[str, Any]) -> None:
    """Refuse another version, and arrays that the description does not ask for."""
    if config.get("version") != _VERSION:
        raise FormatError(f"not a network of format version {_VERSION}")
    wanted = set()
    for entry in config["layers"]:
        parts = [f"weight.{k}" for k in _CODE_ARRAYS] if "quantized" in entry else ["weight"]
        wanted |= {f"{entry['name']}.{part}" for part in [*parts, "bias"]}
    unknown = set(declared) - wanted
    if unknown:
        raise FormatError(f"holds arrays that are no part of it: {sorted(unknown)}")


def _layer_from(entry: dict[str, Any], arrays: dict[str, Array]) -> Dense:
    name = entry["name"]
    stored = None
    if "quantized" in entry:
        parts = {k: arrays[f"{name}.weight.{k}"] for k in _CODE_ARRAYS}
        config: dict[str, Any] = {k: entry["quantized"][k] for k in _CODE_CONFIG}
        config["shape"] = tuple(config["shape"])
        stored = QuantizedArray(**{**parts, **config})
        weight = np.asarray(stored.dequantize(), np.float32)
    else:
        weight = arrays[f"{name}.weight"]
    return Dense(weight, arrays.get(f"{name}.bias"), entry["activation"], name, stored)
